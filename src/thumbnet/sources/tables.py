"""Read text tables (CSV, TSV, lists of paths, JSON lines), whatever their encoding, separator and header."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TypeVar

from thumbnet.data.reading import open_text, read_error
from thumbnet.data.rows import numbered_rows
from thumbnet.errors import DataError, printable
from thumbnet.files import open_whole
from thumbnet.sources.index import is_picture_name

TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson")
EMPTY = frozenset(("", "nan", "NaN"))  # cells that hold nothing
MAX_LINE = 4 << 20  # characters; a file with a longer line is refused

_SEPARATORS = (",", ";", "\t", "|")
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*$', re.I)  # the first line of Excel's files
_REPEATED = "{}: two columns are called {!r}. Rename one"
_HEADER_ROWS = 200  # that are compared with the first; as many as are read to recognise a table
_HEAD = 1 << 16  # bytes in which the encoding is detected
# What is tried next if a file is not text in an encoding. Excel on Windows saves CSV in a code page of the
# system, of which cp1252 is the western one; five bytes mean nothing in it.
_NEXT = {"utf-8-sig": "cp1252", "cp1252": "latin-1"}
_Row = TypeVar("_Row")


@dataclass(frozen=True)
class Table:
    """Rows of text.

    Attributes:
        path: the file.
        names: the columns' names; ``column 1``, ``column 2``, ... if the file has no header.
        rows: the cells; each row is as long as ``names``.
        lines: for each row, the number of the line where it begins.
        header: whether the file names its columns.
        notes: what the user should know.
    """

    path: Path
    names: list[str]
    rows: list[list[str]]
    lines: list[int]
    header: bool
    notes: tuple[str, ...] = ()

    def column(self, name: str) -> list[str]:
        """The cells of one column."""
        position = self._positions[name]
        return [row[position] for row in self.rows]

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {name: position for position, name in enumerate(self.names)}


def repeated_names(names: Sequence[str]) -> list[str]:
    """The names that occur more than once, sorted. There may be a million of them in a stranger's file."""
    return sorted(name for name, count in Counter(names).items() if count > 1)


def read_table(path: Path, limit: int | None = None) -> Table:
    """Read the table in a text file, or its first ``limit`` rows.

    With a ``limit``, the rows end before the first one that cannot be read, unless it is one of the first
    two. So a file that is damaged further down is recognised as the table that it is, and reading all of it
    says what is wrong.

    Raises:
        DataError: the file is missing, or is not a text table; the message names the line at fault.
        FailedReadError: the system failed to read it.
    """
    try:
        encoding = _encoding(path)
        while True:
            try:
                table = _read(path, encoding, limit)
                break
            except UnicodeDecodeError:
                if encoding not in _NEXT:
                    raise
                encoding = _NEXT[encoding]
    except OSError as error:
        raise read_error(error, path) from None
    except UnicodeError as error:
        raise DataError(f"{printable(str(path))} is not text: {error}") from None
    if encoding not in _NEXT.values():
        return table
    read_as = "Windows-1252" if encoding == "cp1252" else "Latin-1"
    note = (
        f"warning: {printable(path.name)} is not UTF-8 and was read as {read_as}. If names in it get wrong "
        "letters, save it as CSV UTF-8"
    )
    return replace(table, notes=(*table.notes, note))


def _encoding(path: Path) -> str:
    with open_whole(path) as file:
        head = file.read(_HEAD)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if min(even, odd) == 0 and max(even, odd) > len(head) // 4:  # UTF-16 without a byte order mark
        return "utf-16-le" if odd else "utf-16-be"
    return "utf-8-sig"


def _lines(path: Path, encoding: str) -> Iterator[str]:
    with open_text(path, encoding, newline="") as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise DataError(
                    f"{printable(str(path))}, line {number}: the line has more than {MAX_LINE:,} characters; "
                    "this is not a text table"
                )
            if "\0" in line:
                raise DataError(
                    f"{printable(str(path))}, line {number}: a NUL character; this is not a text table"
                )
            yield line


def _first(rows: Iterator[_Row], limit: int | None) -> list[_Row]:
    """All rows, or the first ones; see :func:`read_table`."""
    found: list[_Row] = []
    try:
        for row in islice(rows, limit):
            found.append(row)
    except DataError:
        if limit is None or len(found) < 2:  # a single row may be a header
            raise
    return found


def _read(path: Path, encoding: str, limit: int | None) -> Table:
    first = _first((line for line in _lines(path, encoding) if line.strip()), 30)
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return _read_json_lines(path, encoding, limit)
    if _is_counted(first):
        return _read_counted(path, encoding, limit)
    told = _SEPARATOR_LINE.match(first[0]) if first else None
    separator = told[1] if told else _separator(first)
    cells = islice(_cells(path, encoding, separator), int(bool(told)), None)
    found = _first(_same_width(path, cells), None if limit is None else limit + 1)
    if not found:
        raise DataError(f"{printable(str(path))} is empty: get it again, or remove it")
    lines, rows = [line for line, _ in found], [row for _, row in found]
    header = _has_header(rows)
    width = len(rows[0])
    names = rows[0] if header else [f"column {number + 1}" for number in range(width)]
    names = [name or f"column {number + 1}" for number, name in enumerate(names)]
    repeated = repeated_names(names)
    if repeated:
        raise DataError(_REPEATED.format(printable(str(path)), printable(repeated[0])))
    skip = int(header)
    return Table(path, names, rows[skip:], lines[skip:], header)


def _same_width(path: Path, rows: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, list[str]]]:
    """Strip the cells of each row, and the empty cells with which it is longer than the first row.

    Raises:
        DataError: a row has more or fewer cells than the first one.
    """
    start, width = 0, 0
    for line, cells in rows:
        row = [cell.strip() for cell in cells]
        start, width = (start, width) if start else (line, len(row))
        while len(row) > width and not row[-1]:
            row.pop()
        if len(row) != width:
            raise DataError(
                f"{printable(str(path))}, line {line}: {len(row)} cell(s), but line {start} has {width}. "
                "All lines need as many; if the file was cut off, get it again"
            )
        yield line, row


def _is_counted(lines: list[str]) -> bool:
    """Whether a table begins with its number of rows and the names of its columns, as CelebA's do."""
    if len(lines) < 3 or not lines[0].strip().isdecimal() or "," in lines[1]:
        return False
    names, row = lines[1].split(), lines[2].split()
    more = len(row) - len(names)
    return more in (0, 1) and len(row) > 1 and is_picture_name(row[0]) and not is_picture_name(names[0])


def _read_counted(path: Path, encoding: str, limit: int | None) -> Table:
    """Read a table of :func:`_is_counted`; the column of pictures may lack a name."""
    cells = ((number, line.split()) for number, line in enumerate(_lines(path, encoding), 1) if line.strip())
    (_, _), (_, names) = islice(cells, 2)
    found = _first(_same_width(path, cells), limit)
    lines, rows = [line for line, _ in found], [row for _, row in found]
    names = ["image", *names] if len(rows[0]) > len(names) else names
    repeated = repeated_names(names)
    if repeated:
        raise DataError(_REPEATED.format(printable(str(path)), printable(repeated[0])))
    return Table(path, names, rows, lines, True)


def _cells(path: Path, encoding: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the cells of each row that is not blank."""
    if separator == " ":
        for number, line in enumerate(_lines(path, encoding), 1):
            if line.strip():
                yield number, [cell.strip('"') for cell in line.strip().rsplit(maxsplit=1)]
        return
    yield from numbered_rows(_lines(path, encoding), separator, printable(str(path)), skip_spaces=True)


def _separator(lines: list[str]) -> str:
    """The separator that splits most lines into as many cells as the first line, which has at least two.

    If there is no such separator, it is a space or a comma.
    """
    best, choice = (0.0, 0), ""
    for separator in _SEPARATORS:
        try:
            widths = [len(row) for row in csv.reader(lines, delimiter=separator, skipinitialspace=True)]
        except csv.Error:
            continue
        if not widths or widths[0] < 2:
            continue
        score = (sum(width == widths[0] for width in widths) / len(widths), widths[0])
        if score > best:
            best, choice = score, separator
    if choice and best[0] >= 0.5:
        return choice
    if lines and all(len(line.split()) > 1 for line in lines):
        return " "
    return choice or ","


def _has_header(rows: list[list[str]]) -> bool:
    """Whether the first row is a header: it names no picture and no class of other rows, nor only numbers."""
    first = rows[0]
    if any(is_picture_name(re.split(r"[/\\]", cell)[-1]) for cell in first):
        return False
    for place, cell in enumerate(first):
        below = (row[place] for row in rows[1:_HEADER_ROWS] if len(row) > place)
        if cell and not _is_number(cell) and cell in below:
            return False
    return not all(_is_number(cell) for cell in first)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_json_lines(path: Path, encoding: str, limit: int | None) -> Table:
    found = _first(_json_objects(path, encoding), limit)
    rows, lines = [row for _, row in found], [number for number, _ in found]
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not names:
        raise DataError(f"{printable(str(path))} is empty: get it again, or remove it")
    return Table(path, names, [[_text(row.get(name)) for name in names] for row in rows], lines, True)


def _json_objects(path: Path, encoding: str) -> Iterator[tuple[int, dict[str, object]]]:
    for number, line in enumerate(_lines(path, encoding), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise DataError(
                f"{printable(str(path))}, line {number}: not a JSON object. Each line needs one; if the file "
                "was cut off, get it again"
            )
        yield number, row


def _text(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)
