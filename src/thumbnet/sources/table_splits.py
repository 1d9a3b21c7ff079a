"""Choose which of a folder's tables to learn from, and find the split of each of their rows.

A table's name tells its split, or a column does, or another table or list next to it, or else the folders of
the pictures that it names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from thumbnet.errors import DataError, printable
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources.columns import (
    Columns,
    find_columns,
    split_of_name,
    split_values,
    splits_of,
    unused_splits,
)
from thumbnet.sources.split_names import split_name
from thumbnet.sources.tables import Table

_COVERED = 0.5  # share of a table's rows that lists must name to be its splits


@dataclass(frozen=True)
class Manifest:
    """A table and the meaning of its columns.

    Attributes:
        base: the folder that paths are relative to, below the root.
        split: the split that the names of its file and folder mention; may be empty.
        splits: the split of each row, empty where it is unknown; None if nothing in the tables says.
    """

    table: Table
    columns: Columns
    base: str
    split: str
    splits: tuple[str, ...] | None = None


def choose(
    tables: Sequence[tuple[Table, str]], settings: DataSettings, alone: bool
) -> tuple[list[Manifest], list[str]]:
    """The tables to read, one per split or a single one, and notes about the others.

    Args:
        tables: each with its folder below the root.
        alone: whether the user named the table.

    Raises:
        DataError: no table has labels, or it is unclear which one is for which split.
    """
    labelled: list[Manifest] = []
    without: list[Manifest] = []
    unclear: list[tuple[Table, DataError]] = []
    notes: list[str] = []
    for table, base in tables:
        try:
            one = _understood(table, base, settings, alone)
        except DataError as error:
            if alone or split_of_name(table.path.stem) or split_of_name(base):
                raise
            unclear.append((table, error))
            continue
        if one.columns.labelled and "submission" not in table.path.stem.lower():
            labelled.append(one)
        elif not alone:
            without.append(one)
        elif one.splits:
            raise DataError(
                f"{printable(table.path.name)} has splits and no classes. Name the table of the classes, "
                "or the folder of both"
            )
        else:
            raise DataError(
                f"{printable(table.path.name)}: no column appears to have labels. The columns are "
                f"{', '.join(map(printable, table.names[:12]))}. "
                "Name the right one: --label-column NAME"
            )
    if unclear and not labelled:
        raise unclear[0][1]
    notes += [
        f"{printable(table.path.name)} was skipped: it is unclear which column has the labels"
        for table, _ in unclear
    ]
    if len(labelled) > 1 and any(one.split == "train" for one in labelled):
        notes += [
            f"{printable(one.table.path.name)} was skipped: its name does not mention a split"
            for one in labelled
            if not one.split
        ]
        labelled = [one for one in labelled if one.split]
    if len(labelled) > 1:
        labelled = _with_val(labelled)
        splits = [one.split for one in labelled]
        if len(set(splits)) < len(splits) or "" in splits:
            listing = ", ".join(printable(one.table.path.name) for one in labelled)
            raise DataError(
                f"several tables have labels ({listing}). Pass the one to train on instead of the folder"
            )
    if not labelled:
        listing = ", ".join(printable(table.path.name) for table, _ in tables)
        raise DataError(f"no table has labels: {listing}")
    labelled, without, more = _with_splits(labelled, without)
    notes += [
        f"{printable(one.table.path.name)} has no labels: its {len(one.table.rows):,} rows were skipped"
        for one in without
    ]
    return labelled, [*notes, *more]


def _understood(table: Table, base: str, settings: DataSettings, alone: bool) -> Manifest:
    """A table with its columns, without labels if it lacks the column of labels that the user named."""
    asked = settings.label_column
    lacking = bool(asked) and asked not in table.names and not alone
    columns = find_columns(table, replace(settings, label_column="") if lacking else settings)
    told = {} if asked and not lacking else _splits_in_labels(table, columns)
    splits = tuple(told[cell] for cell in table.column(columns.label)) if told else None
    if told or lacking:
        columns = replace(columns, label="", one_hot=())
    split = split_of_name(table.path.stem) or split_of_name(base)
    return Manifest(table, columns, base, split, splits)


def _splits_in_labels(table: Table, columns: Columns) -> dict[str, str]:
    """The splits of what looks like labels, for a list such as CelebA's ``list_eval_partition.txt``."""
    if not columns.label or not re.search("partition|split", table.path.stem, re.I):
        return {}
    cells = table.column(columns.label)
    told = split_values("partition", cells)
    return told if all(told.get(cell) for cell in cells) else {}


def _with_val(labelled: list[Manifest]) -> list[Manifest]:
    """Make ``eval.csv`` the table of val if another one is that of test."""
    splits = [one.split for one in labelled]
    either = [
        one
        for one in labelled
        if one.split == "test" and (name := split_name(one.table.path.stem)) is not None and name.either
    ]
    if splits.count("test") == 2 and len(either) == 1 and "val" not in splits:
        return [replace(one, split="val") if one is either[0] else one for one in labelled]
    return labelled


def _with_splits(
    labelled: list[Manifest], without: list[Manifest]
) -> tuple[list[Manifest], list[Manifest], list[str]]:
    """Find the splits of the rows: the tables, those without labels that tell nothing, and notes."""
    notes = [note for one in labelled for note in unused_splits(one.table, one.columns)]
    made = []
    for one in labelled:
        if one.columns.split:
            splits, more = splits_of(one.table, one.columns)
            one = replace(one, splits=tuple(splits))
            notes += more
        elif len(labelled) > 1:
            one = replace(one, splits=(one.split,) * len(one.table.rows))
        made.append(one)
    if len(made) == 1 and made[0].splits is None and not made[0].split:
        lists = [one for one in without if one.splits or one.columns.split or one.split]
        cells = made[0].table.column(made[0].columns.path)
        told = _told_by(lists)
        splits = [told.get(_key(cell), "") for cell in cells]
        count = len(splits) - splits.count("")
        if {"train"} < set(splits) - {""} and count >= _COVERED * len(splits):
            names = ", ".join(printable(one.table.path.name) for one in lists)
            notes.append(f"splits come from {names}")
            if count < len(splits):
                notes.append(f"{len(splits) - count:,} row(s) are left out: {names} name no split for them")
            made = [replace(made[0], splits=tuple(splits))]
            without = [one for one in without if one not in lists]
    return made, without, notes


def _told_by(lists: Sequence[Manifest]) -> Mapping[str, str]:
    """The split that lists without labels name for each picture."""
    told: dict[str, str] = {}
    for one in lists:
        cells = one.table.column(one.columns.path)
        splits: Sequence[str] = one.splits or [one.split] * len(cells)
        if one.columns.split:
            splits, _ = splits_of(one.table, one.columns)
        for cell, split in zip(cells, splits, strict=True):
            told.setdefault(_key(cell), split)
    return told


def _key(cell: str) -> str:
    return cell.replace("\\", "/").removeprefix("./").casefold()


def splits_by_folder(paths: Sequence[str | None], classes: set[str]) -> tuple[list[str], list[str]] | None:
    """The splits of pictures by their folders, such as ``train/1.png``, and notes.

    Args:
        paths: the pictures; None for a row without one.
        classes: the names of classes. Folders with such names are no splits.

    Returns:
        None unless some pictures are in a folder for train and others in one for another split.
    """
    folders = [os.path.dirname(path).replace(os.sep, "/").split("/") if path else [] for path in paths]
    found = [folder for folder, path in zip(folders, paths, strict=True) if path]
    shared = 0
    while all(len(one) > shared and one[shared] == found[0][shared] for one in found) and found:
        shared += 1
    inner = {
        tuple(folder): next((part for part in folder[shared:] if _is_split(part, classes)), "")
        for folder in folders
    }
    names = sorted(set(inner.values()) - {""})
    known = {part: name for part in names if (name := split_name(part)) is not None}
    plain = {name.split for name in known.values() if not name.either}
    of = {
        part: "val" if name.either and plain == {"train", "test"} else name.split
        for part, name in known.items()
    }
    if not {"train"} < set(of.values()):
        return None
    splits = [of.get(inner[tuple(folder)], "") for folder in folders]
    meaning = ", ".join(f"{printable(part)}/ is {split}" for part, split in of.items())
    notes = [f"splits come from the folders of the pictures: {meaning}"]
    left_out = sum(not split and path is not None for split, path in zip(splits, paths, strict=True))
    if left_out:
        example = next(path for split, path in zip(splits, paths, strict=True) if path and not split)
        notes.append(
            f"{left_out:,} row(s) are left out: their pictures are in no split's folder, such as "
            f"{printable(example)}"
        )
    return splits, notes


def _is_split(folder: str, classes: set[str]) -> bool:
    name = split_name(folder)
    return name is not None and name.rank < 2 and folder not in classes
