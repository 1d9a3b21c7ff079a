"""The column of a pandas frame or a table of pixels that says which split each row belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from thumbnet.errors import printable
from thumbnet.sources.columns import SPLIT_COLUMNS, label_candidates, named, split_meanings, split_values


def split_column(columns: Mapping[str, Sequence[str]]) -> str:
    """The column of splits, by its name or because all its cells tell splits; empty if there is none.

    A column whose cells tell splits comes before one that is only called so, like the phases of an operation.
    """
    found = {name: split_values(name, cells) for name, cells in columns.items()}
    by_name = named(columns, SPLIT_COLUMNS)
    sure = [name for name in by_name if found[name]]
    by_content = [name for name, splits in found.items() if splits and all(splits.values())]
    likely = [name for name in by_content if not label_candidates([name])]
    return next(iter((*sure, *likely, *by_name, *by_content)), "")


def row_splits(name: str, cells: Sequence[str], where: str) -> tuple[list[str] | None, list[str]]:
    """Read a column of splits.

    Args:
        name: its name.
        cells: its cells. Empty ones are train's if no other cell is.
        where: what notes call the table, printable.

    Returns:
        Each row's split, empty if the cell names none, and notes. None for the splits if no row is in train.
    """
    column = f"{where}: the column {printable(name)!r}"
    of, notes = split_meanings(name, cells, column)
    splits = [of.get(cell, "") for cell in cells]
    unknown = [cell for cell, split in zip(cells, splits, strict=True) if not split]
    values = ", ".join(printable(cell) or "(empty)" for cell in list(dict.fromkeys(unknown))[:5])
    if "train" not in splits:
        found = values or ", ".join(dict.fromkeys(splits))
        return None, [f"warning: {column} is not used as splits: no row says train, but {found}"]
    if unknown:
        notes.append(f"{column} has no known split in {len(unknown):,} row(s), which were skipped: {values}")
    return splits, notes
