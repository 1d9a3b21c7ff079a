"""Labels for splits whose pictures are in no class folders, from a table next to class folders for train.

```text
train/CLASS/*, test/*, test.csv             the table names pictures of test/ and classes of train/
Final_Training/, Final_Test/, GT-*.csv      GTSRB: its classes are numbers, as the folders are
train/CLASS/*, val/*, train.txt, val.txt    Places365: train.txt says which number is which folder
LOC_val_solution.csv                        ImageNet: a class, then the boxes of its objects
```
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from thumbnet.data.spelling import name_key
from thumbnet.errors import DataError, printable
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources.columns import Columns, find_columns, labels_of
from thumbnet.sources.lookup import Pictures, Wanted
from thumbnet.sources.place import Place
from thumbnet.sources.split_columns import split_of_name
from thumbnet.sources.split_names import splits_named
from thumbnet.sources.tables import EMPTY, TEXT_SUFFIXES, Table, read_table

_MOST_TABLES = 20
_FITTING = 0.5  # share of a table's rows that must name pictures of the split
_BOXES = re.compile(r"(\S+)((\s+-?\d+(\.\d+)?){4})+\s*")


class Labelled(NamedTuple):
    """Pictures that a table labels: paths, labels (int64 [N]) and a note; no paths if it cannot be used."""

    paths: list[str]
    labels: np.ndarray
    note: str


def labels_from_tables(
    place: Place, files: Sequence[str], folder: str, split: str, class_names: Sequence[str]
) -> Labelled | None:
    """Find the labels of the pictures in the folder of a split.

    Args:
        place: the folder of the data.
        files: the files in it that are not pictures, relative to it.
        folder: the split's folder, relative to it.
        split: ``val`` or ``test``.
        class_names: the classes of train.

    Returns:
        None if no table names the pictures and something like labels.
    """
    pictures = Pictures(place, trusted=False)
    damaged: list[str] = []
    for path, table, columns in _tables(place, files, split, damaged):
        base = os.path.dirname(path)
        rows = [
            (cell, label)
            for cell, label in zip(table.column(columns.path), _labels(table, columns), strict=True)
            if label
        ]
        try:
            found = pictures.find_all([Wanted(cell, split) for cell, _ in rows], base)
        except DataError:
            continue
        pairs = {
            (one.path, label)
            for one, (_, label) in zip(found, rows, strict=True)
            if one.path is not None and one.path.replace(os.sep, "/").startswith(f"{folder}/")
        }
        if len(pairs) < _FITTING * len(table.rows) or len({label for _, label in pairs}) < 2:
            continue
        of = dict(sorted(pairs))
        position = _positions(set(of.values()), class_names, place, files)
        wrong = [label for label in of.values() if label not in position]
        name, where = printable(path), printable(folder)
        if wrong or len(of) < len(pairs):
            such = f"such as {printable(wrong[0])[:60]!r}, are not classes of train" if wrong else "differ"
            note = f"{name} is not used: its labels for pictures of {where}/ {such}"
            return Labelled([], np.zeros(0, np.int64), note)
        labels = np.array([position[label] for label in of.values()], np.int64)
        left_out = len(table.rows) - len(of)
        lost = f"; {left_out:,} other row(s) were skipped" if left_out else ""
        column = f", column {printable(columns.label)!r}" if columns.label else ""
        note = (
            f"{where}/ has no class folders: the classes of {len(of):,} pictures come from "
            f"{name}{column}{lost}"
        )
        return Labelled(list(of), labels, note)
    if damaged:
        return Labelled([], np.zeros(0, np.int64), f"warning: {damaged[0]}. The table is not used")
    return None


def _tables(
    place: Place, files: Sequence[str], split: str, damaged: list[str]
) -> Iterator[tuple[str, Table, Columns]]:
    """The tables that may be about a split, with paths and labels; paths are relative to ``place``.

    What is wrong with tables that cannot be read is added to ``damaged``.
    """
    tried = 0
    for path in sorted(files, key=lambda path: (path.count("/"), path)):
        stem, suffix = os.path.splitext(os.path.basename(path))
        inside = any(split in splits_named(part) for part in path.split("/")[:-1])
        about = split_of_name(stem) in ((split, "") if inside and suffix != ".txt" else (split,))
        if suffix.lower() not in TEXT_SUFFIXES or not about or "submission" in stem.lower():
            continue
        tried += 1
        if tried > _MOST_TABLES:
            return
        try:
            table = read_table(place.path / path)
        except DataError as error:
            damaged.append(str(error))
            continue
        try:
            columns = find_columns(table, DataSettings())
            rest = [name for name in table.names if name not in (columns.path, columns.split)]
            if not columns.labelled and len(rest) == 1:
                columns = Columns(columns.path, rest[0], columns.split)
            if columns.labelled:
                _labels(table, columns)
                yield path, table, columns
        except DataError:
            continue


def _labels(table: Table, columns: Columns) -> list[str]:
    """Each row's label, without the boxes that ImageNet's tables give."""
    labels = labels_of(table, columns)
    boxes = [_BOXES.fullmatch(label) for label in labels]
    if all(box or label in EMPTY for box, label in zip(boxes, labels, strict=True)):
        return [box[1] if box else "" for box in boxes]
    return labels


def _positions(
    labels: set[str], class_names: Sequence[str], place: Place, files: Sequence[str]
) -> Mapping[str, int]:
    """The class of each label: the one of that name or number, or the one that a table of train names."""
    exact = {name: position for position, name in enumerate(class_names)}
    keys = Counter(map(name_key, class_names))
    alike = {name_key(name): position for name, position in exact.items() if keys[name_key(name)] == 1}

    def named(name: str) -> int | None:
        return exact.get(name, alike.get(name_key(name)))

    known = {label: position for label in labels if (position := named(label)) is not None}
    if len(known) == len(labels) or not all(re.fullmatch(r"\d{1,9}", label, re.ASCII) for label in labels):
        return known
    if all(re.fullmatch(r"\d{1,9}", name, re.ASCII) for name in class_names):
        numbers = {int(name): position for position, name in enumerate(class_names)}
        return {label: numbers[int(label)] for label in labels if int(label) in numbers}
    for _, table, columns in _tables(place, files, "train", []):
        cells = table.column(columns.path)
        folders = [named(os.path.basename(os.path.dirname(cell.replace("\\", "/")))) for cell in cells]
        pairs = {pair for pair in zip(_labels(table, columns), folders, strict=True) if pair[0]}
        of = {label: position for label, position in pairs if position is not None}
        if len(of) == len(pairs):
            return {label: of[label] for label in labels if label in of}
    return {}
