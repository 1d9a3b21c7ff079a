"""Cells of CSV that are safe to open in a spreadsheet and to print on a terminal. Imports no torch.

A spreadsheet computes cells that begin with ``=``, ``+``, ``-`` or ``@``, even quoted ones, and a formula can
start programs or send data away. A terminal obeys control characters, and invisible characters can turn the
direction of a text around. Names of files and classes may come from strangers, so the rule for every CSV file
that thumbnet writes is:

- No cell of text begins like a formula: a name gets ``./`` in front, any other text ``'``.
- In lists for people, such as ``mistakes.csv`` and ``predict --csv``, control characters are escaped, as in
  ``\\x1b``.
- ``labels.csv`` keeps each name exactly: thumbnet reads it back, and :func:`unguarded_name` and
  :func:`unguarded_text` undo the first rule.

Every CSV file is formatted here, because Python alone writes some names as rows that nothing can read; see
:func:`csv_text`.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence

from thumbnet.errors import harmless

# Also the same characters in full width, which spreadsheets in East Asia accept, and the white space that
# some spreadsheets skip at the start of a cell.
_FORMULA = r"(?:[\t\r\n]|\s*[=+\-@＝＋－＠].)"
# Guarded cells match too, so that a guard can always be taken off again.
_UNSAFE_NAME = re.compile(rf"(?:\./)*{_FORMULA}", re.DOTALL)
_UNSAFE_TEXT = re.compile(rf"'*{_FORMULA}", re.DOTALL)
_NUMBER = re.compile(r"[+-]\d+(\.\d+)?")


def safe_name(name: str) -> str:
    """Return a picture's name as a cell of a list for people.

    >>> safe_name("=1+1.png"), safe_name("cats/1.png"), safe_name("\\x1b[2J.png")
    ('./=1+1.png', 'cats/1.png', '\\\\x1b[2J.png')
    """
    return guarded_name(harmless(name))


def safe_text(text: str) -> str:
    """Return a text, such as a class name, as a cell of a list for people.

    >>> safe_text("=1+1"), safe_text("-1")
    ("'=1+1", '-1')
    """
    return guarded_text(harmless(text))


def guarded_name(name: str) -> str:
    """Put ``./`` before a name that looks like a formula. For a path, that is the same file."""
    return f"./{name}" if _UNSAFE_NAME.match(name) else name


def unguarded_name(cell: str) -> str:
    """Undo :func:`guarded_name`."""
    return cell[2:] if cell.startswith("./") and _UNSAFE_NAME.match(cell) else cell


def guarded_text(text: str) -> str:
    """Put ``'`` before a text that looks like a formula. A number keeps its sign."""
    return f"'{text}" if _UNSAFE_TEXT.match(text) and not _NUMBER.fullmatch(text) else text


def unguarded_text(cell: str) -> str:
    """Undo :func:`guarded_text`."""
    return cell[1:] if cell.startswith("'") and _UNSAFE_TEXT.match(cell) else cell


def csv_text(rows: Iterable[Sequence[object]], *, quote_text: bool = False) -> str:
    """Format rows as CSV, one line each unless a cell has several lines.

    Python before 3.11.9 and 3.12.3 leaves a carriage return without quotes (CPython issue 67044), and readers
    take it for the end of the row. A row with one is therefore quoted as a whole; other rows have only the
    quotes that they need.

    Args:
        rows: the cells of each row: text, numbers, or None for an empty cell.
        quote_text: quote all cells but numbers in other rows, too.
    """
    text = io.StringIO()
    usual = csv.writer(
        text, quoting=csv.QUOTE_NONNUMERIC if quote_text else csv.QUOTE_MINIMAL, lineterminator="\n"
    )
    quoted = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    for row in rows:
        returns = any(isinstance(cell, str) and "\r" in cell for cell in row)
        (quoted if returns else usual).writerow(row)
    return text.getvalue()


def as_csv(head: Sequence[str], rows: Iterable[Sequence[str | float]]) -> str:
    """Format rows as CSV with the header ``head``.

    All text is quoted, so that programs that split cells at semicolons keep it whole.
    """
    return csv_text([head, *rows], quote_text=True)
