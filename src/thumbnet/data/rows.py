"""The rows of CSV, with the numbers of their lines. This module imports no torch."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator

from thumbnet.errors import DataError


def numbered_rows(
    lines: Iterable[str], separator: str, name: str, skip_spaces: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the first line and the cells of each row that is not blank.

    Args:
        lines: the lines of the file with their line ends.
        separator: the character between cells.
        name: the file, for errors.
        skip_spaces: whether spaces after a separator are skipped, so that a quote may follow them.

    Raises:
        DataError: a row is not valid CSV.
    """
    reader = csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=skip_spaces)
    start = 1
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield start, row
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{name}, line {start}: {error}") from None
