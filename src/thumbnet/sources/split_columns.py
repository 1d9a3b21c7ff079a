"""Columns that say which split each row of a table belongs to, and what their values mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from thumbnet.errors import DataError, printable
from thumbnet.sources.column_names import label_candidates, named, split_candidates
from thumbnet.sources.split_names import SPLITS, split_name
from thumbnet.sources.tables import EMPTY, Table

if TYPE_CHECKING:
    from thumbnet.sources.columns import Columns

# Columns of yes and no: the split of the rows with yes.
_FLAGS = {
    **dict.fromkeys(("istrain", "istraining", "intrain", "train", "training"), "train"),
    **dict.fromkeys(("isval", "isvalidation"), "val"),
    **dict.fromkeys(("istest", "istesting", "intest", "test", "testing"), "test"),
}
_ALSO_CLASSES = ("train", "training", "test", "testing")  # a train may be what the pictures show
_UNCLEAR = ("isvalid", "valid")  # validation, or in order?
_FER = {"publictest": "val", "privatetest": "test"}
_YES = frozenset(("1", "1.0", "true", "yes", "t", "y"))
_NO = frozenset(("0", "0.0", "false", "no", "f", "n"))
_MOST_SPLITS = 12  # different values of a column that tells splits


def split_column(columns: Mapping[str, Sequence[str]]) -> str:
    """The column of splits, by its name or because all its cells tell splits; empty if there is none.

    A column whose cells tell splits comes before one that is only called so, like the phases of an operation.
    """
    found = {name: split_values(name, cells) for name, cells in columns.items()}
    by_name = split_candidates(columns)
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


def split_word(text: str) -> str:
    """``train``, ``val`` or ``test`` if the text is a common name for it, else an empty string."""
    word = text.strip()
    found = split_name(word)
    known = found.split if found is not None and found.rank < 2 else ""
    return _FER.get(word.casefold(), known)


def split_of_name(stem: str) -> str:
    """The split that a file's name mentions, such as ``train`` for ``sign_mnist_train``.

    Empty if it mentions no split, or more than one. ``train_val`` is train.
    """
    found = split_name(stem)
    return _FER.get(stem.casefold(), found.split if found is not None else "")


def split_column_of(table: Table, names: Sequence[str], varied: Sequence[str]) -> str:
    """The column that says which split each row of a table of pictures belongs to; empty if none does.

    Args:
        table: the table.
        names: the columns that may say it.
        varied: columns with several values. Those among ``names`` need no name that suggests splits.
    """
    binary = [name for name in names if _yes_or_no(table.column(name))]
    flags = [name for name in named(names, list(_FLAGS)) if name in binary]
    flags = [name for name in flags if len(binary) == 1 or not named([name], _ALSO_CLASSES)]
    others = [name for name in varied if name in names and not named([name], list(_FLAGS))]
    for name in (*split_candidates(names), *flags, *others):
        if split_values(name, table.column(name)):
            return name
    return ""


def split_values(name: str, cells: Iterable[str]) -> dict[str, str]:
    """The split that each value of a column stands for; an empty string for a value that is not known.

    The result is empty if the column does not tell splits. In a column whose name says that it does, some
    values may be unknown.
    """
    values = sorted({cell for cell in cells if cell not in EMPTY})
    if not values or len(values) > _MOST_SPLITS:
        return {}
    if named([name], list(_FLAGS)) and _yes_or_no(values):
        yes = next(_FLAGS[key] for key in _FLAGS if named([name], [key]))
        no = "test" if yes == "train" else "train"
        return {value: yes if value.casefold() in _YES else no for value in values}
    if re.search("partition|split", name, re.I) and values == ["0", "1", "2"]:  # as in CelebA
        return dict(zip(values, SPLITS, strict=True))
    found = {value: split_word(value) for value in values}
    either = [value for value in values if (word := split_name(value)) is not None and word.either]
    if "val" not in found.values() and any(
        split == "test" and value not in either for value, split in found.items()
    ):
        found |= dict.fromkeys(either, "val")
    known = [split for split in found.values() if split]
    return found if known and (len(known) == len(found) or split_candidates([name])) else {}


def split_meanings(name: str, cells: Sequence[str], where: str) -> tuple[dict[str, str], list[str]]:
    """The split that each cell of a column of splits stands for, and a note if empty cells are train's.

    They are if cells tell other splits, but none says train.

    Args:
        name: the column's name.
        cells: its cells.
        where: what the note calls the column, printable.
    """
    of = split_values(name, cells)
    empty = sum(cell in EMPTY for cell in cells)
    if not of or not empty or "train" in of.values():
        return of, []
    return of | dict.fromkeys(EMPTY, "train"), [f"{where} is empty in {empty:,} row(s), which are train's"]


def unused_splits(table: Table, columns: Columns) -> list[str]:
    """Notes about columns that seem to tell splits, but whose values do not say which."""
    notes = []
    used = (columns.path, columns.label, columns.split, *columns.one_hot)
    others = [name for name in table.names if name not in used]
    for name in (*split_candidates(others), *named(others, (*_FLAGS, *_UNCLEAR))):
        values = sorted(set(table.column(name)) - EMPTY)
        if len(values) > 1:
            notes.append(
                f"{printable(table.path.name)}: the column {printable(name)!r} ({_some(values)}) is not "
                "used. If it tells splits, write train, val and test into a column called split"
            )
    return notes


def splits_of(table: Table, columns: Columns) -> tuple[list[str], list[str]]:
    """Each row's split by the table's split column, empty where it is unknown, and notes about it.

    Raises:
        DataError: some values are unknown and none is train.
    """
    cells = table.column(columns.split)
    where = f"{printable(table.path.name)}: the column {printable(columns.split)!r}"
    of, notes = split_meanings(columns.split, cells, where)
    unknown = [value for value, split in of.items() if not split]
    if unknown and "train" not in of.values():
        raise DataError(f"{where} has {_some(list(of))}: which of them is train? Write train, val and test")
    splits = [of.get(cell, "") for cell in cells]
    if any(split and not _says(value, split) for value, split in of.items() if value not in EMPTY):
        meaning = (
            f"{printable(value)} is {split}" for value, split in of.items() if value not in EMPTY and split
        )
        notes.append(f"{where} tells splits: {', '.join(meaning)}")
    left_out = splits.count("")
    if left_out:
        what = f"unknown: {_some(unknown)}" if unknown else "empty"
        notes.append(f"{where} leaves out {left_out:,} row(s), whose split is {what}")
    return splits, notes


def _says(value: str, split: str) -> bool:
    """Whether a value is a plain name for its split."""
    name = split_name(value)
    return name is not None and name.split == split


def _some(values: Sequence[str]) -> str:
    return ", ".join(printable(value) for value in values[:5]) + (", ..." if len(values) > 5 else "")


def _yes_or_no(cells: Iterable[str]) -> bool:
    found = {cell.casefold() for cell in cells if cell not in EMPTY}
    return bool(found) and found <= _YES | _NO
