"""Choose which of a folder's tables to learn from, and find the split of each of their rows.

A table's name tells its split, or a column does, or another table or list next to it, or else the folders of
the pictures that it names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from thumbnet.data.spelling import file_key, name_key
from thumbnet.errors import DataError, printable
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources.column_names import label_candidates
from thumbnet.sources.columns import Columns, find_columns
from thumbnet.sources.split_columns import split_of_name, split_values, splits_of, unused_splits
from thumbnet.sources.split_names import split_name
from thumbnet.sources.tables import EMPTY, Table

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
    unclear: list[tuple[Table, str, DataError]] = []
    for table, base in tables:
        try:
            one = _understood(table, base, settings, alone)
        except DataError as error:
            if alone:
                raise
            unclear.append((table, base, error))
            continue
        if one.columns.labelled and "submission" not in table.path.stem.lower():
            labelled.append(one)
        elif not alone:
            without.append(one)
        elif one.splits:
            raise DataError(
                f"{printable(table.path.name)} has splits and no classes. Name the table of the classes, "
                "or the folder of both. If its numbers are the classes: --label-column NAME"
            )
        else:
            raise DataError(
                f"{printable(table.path.name)}: no column appears to have labels. The columns are "
                f"{', '.join(map(printable, table.names[:12]))}. "
                "Name the right one: --label-column NAME"
            )
    unclear.sort(key=lambda one: split_of_table(one[0].path, one[1]) != "train")
    if unclear and not labelled:
        raise unclear[0][2]
    train = _labels_of_train(labelled)
    without += _without_train_labels(unclear, train, settings)
    notes = [
        f"{printable(table.path.name)} was skipped: it is unclear which column has the labels"
        for table, base, _ in unclear
        if not split_of_table(table.path, base)
    ]
    for one in [one for one in labelled if _has_other_labels(one, train)]:
        labelled.remove(one)
        without.append(replace(one, columns=replace(one.columns, label="", one_hot=())))
        notes.append(
            f"{printable(one.table.path.name)}: {_names(one.columns.one_hot or [one.columns.label])} is not "
            f"taken for labels, because train's are in {_names(sorted(train.columns))}"
        )
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
        raise DataError(f"no table has labels: {listing}. If a column has them: --label-column NAME")
    labelled, without, more = _with_splits(labelled, without)
    notes += [
        f"{printable(one.table.path.name)} has no labels: its {len(one.table.rows):,} rows were skipped"
        for one in without
    ]
    return labelled, [*notes, *more]


def split_of_table(path: Path, base: str) -> str:
    """The split that the name of a table or of its folder mentions; may be empty."""
    return split_of_name(path.stem) or split_of_name(base)


def note_on_unreadable(path: Path, base: str, error: DataError) -> str:
    """The note about one of several tables, which cannot be read because of ``error``.

    Raises:
        DataError: its name, or that of its folder ``base``, says that it is the table of a split. Without
            train's table, for example, the test pictures would be trained on.
    """
    if split_of_table(path, base):
        raise error
    return f"warning: {error}. {printable(path.name)} is not used"


def _understood(table: Table, base: str, settings: DataSettings, alone: bool) -> Manifest:
    """A table with its columns, without labels if it lacks the column of labels that the user named."""
    asked = settings.label_column
    lacking = bool(asked) and asked not in table.names and not alone
    try:
        columns = find_columns(table, replace(settings, label_column="") if lacking else settings)
    except DataError:
        if not lacking:
            raise
        columns = find_columns(table, settings, labels=False)
    told = {} if asked and not lacking else _splits_in_labels(table, columns)
    splits = tuple(told[cell] for cell in table.column(columns.label)) if told else None
    if told or lacking:
        columns = replace(columns, label="", one_hot=())
    return Manifest(table, columns, base, split_of_table(table.path, base), splits)


class _Labels(NamedTuple):
    """Where train's labels are: the columns, and the keys of the classes.

    Both are empty if only the cells of a single column say that it has the labels.

    Attributes:
        columns: the columns with the labels.
        classes: the keys of the classes.
        others: the other columns of the tables with these columns.
        in_train: whether the name of such a table says train. Otherwise it says no split.
    """

    columns: frozenset[str]
    classes: frozenset[str]
    others: frozenset[str]
    in_train: bool

    def are_in(self, table: Table) -> bool:
        """Whether a table has such a column, with labels in it."""
        return any(set(table.column(name)) - EMPTY for name in self.columns if name in table.names)


def _labels_of_train(labelled: Sequence[Manifest]) -> _Labels:
    columns: set[str] = set()
    classes: set[str] = set()
    others: set[str] = set()
    named = [one for one in labelled if one.split == "train"]
    for one in named or [one for one in labelled if not one.split]:
        if one.columns.one_hot:
            columns.update(one.columns.one_hot)
            classes.update(one.columns.one_hot)
        elif label_candidates([one.columns.label]):
            columns.add(one.columns.label)
            classes.update(one.table.column(one.columns.label))
        else:
            continue
        others.update(one.table.names)
    keys = frozenset(map(name_key, classes - EMPTY))
    return _Labels(frozenset(columns), keys, frozenset(others - columns), bool(named))


def _without_train_labels(
    unclear: Sequence[tuple[Table, str, DataError]], train: _Labels, settings: DataSettings
) -> list[Manifest]:
    """The tables of a split that have none of the columns with train's labels, so they have no labels.

    Raises:
        DataError: it is unclear which column of another table of a split has the labels.
    """
    found = []
    for table, base, error in unclear:
        split = split_of_table(table.path, base)
        known = train.columns and (train.in_train or split != "train")
        if split and (train.are_in(table) or not known):
            raise error
        if split:
            found.append(Manifest(table, find_columns(table, settings, labels=False), base, split))
    return found


def _has_other_labels(one: Manifest, train: _Labels) -> bool:
    """Whether what looks like the labels of a table of a split is something else.

    The table has none of the columns with train's labels. Either train's table has the other column, too, but
    not for labels, or only cells say that it has labels, and no word in it is a class of train. Numbers say
    nothing: ages and sexes are numbers, too.
    """
    label = one.columns.label
    if not one.split or not train.columns or train.are_in(one.table):
        return False
    if label in train.others:
        return True
    if label_candidates([label]):
        return False
    cells = set(one.columns.one_hot or one.table.column(label)) - EMPTY
    return not any(name_key(cell) in train.classes for cell in cells if re.search(r"[^\W\d_]", cell))


def _splits_in_labels(table: Table, columns: Columns) -> dict[str, str]:
    """The splits of what looks like labels, for a list such as CelebA's ``list_eval_partition.txt``.

    There are none if the table has a column of splits as well, or if the name of the column says ``label``.
    """
    has_labels = columns.split or label_candidates([columns.label])
    if not columns.label or has_labels or not re.search("partition|split", table.path.stem, re.I):
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
    return file_key(cell.replace("\\", "/").removeprefix("./"))


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
        folder: next((part for part in folder[shared:] if _is_split(part, classes)), "")
        for folder in set(map(tuple, folders))
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


def _names(columns: Sequence[str]) -> str:
    return ", ".join(repr(printable(name)) for name in columns[:3]) + (", ..." if len(columns) > 3 else "")
