"""Lists of pictures as CSV, safe to open in a spreadsheet. This module imports no torch.

A spreadsheet computes cells that begin with ``=``, ``+``, ``-`` or ``@``, even quoted ones, and a formula can
start programs or send data away. Names of files and folders may come from strangers, so no cell begins with
these characters.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence

# Also the same characters in full width, which spreadsheets in East Asia accept, and the white space that
# some spreadsheets skip at the start of a cell.
_FORMULA = re.compile(r"[\t\r\n]|\s*[=+\-@＝＋－＠].", re.DOTALL)
_NUMBER = re.compile(r"[+-]\d+(\.\d+)?")


def safe_name(name: str) -> str:
    """Return a picture's name as a cell: a name that looks like a formula begins with ``./``.

    For a path, that is the same file.

    >>> safe_name("=1+1.png"), safe_name("cats/1.png")
    ('./=1+1.png', 'cats/1.png')
    """
    return f"./{name}" if _FORMULA.match(name) else name


def safe_text(text: str) -> str:
    """Return a text, such as a class name, as a cell: one that looks like a formula begins with ``'``.

    A number keeps its sign.

    >>> safe_text("=1+1"), safe_text("-1")
    ("'=1+1", '-1')
    """
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def as_csv(head: Sequence[str], rows: Iterable[Sequence[str | float]]) -> str:
    """Format rows as CSV with the header ``head``.

    All text is quoted, so that programs that split cells at semicolons keep it whole.
    """
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue()
