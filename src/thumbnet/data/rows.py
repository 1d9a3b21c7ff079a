"""The rows of CSV, with the numbers of their lines. This module imports no torch."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator

from thumbnet.errors import DataError


def numbered_rows(lines: Iterable[str], separator: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the first line and the cells of each row that is not blank.

    Args:
        lines: the lines of the file with their line ends.
        separator: the character between cells.
        name: the file, for errors.

    Raises:
        DataError: a row is not valid CSV.
    """
    reader = csv.reader(lines, delimiter=separator, strict=True)
    start = 1
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield start, row
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{name}, line {start}: {error}") from None
