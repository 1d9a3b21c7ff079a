"""Tables next to pictures that are read by the names of folders or files instead.

``2021-05-03/*.jpg``, ``2021-05-04/*.jpg`` and ``labels.csv`` look like class folders, but the days are no
classes. A table that has the folders' classes is not mentioned: it may add splits, or be what a network
predicts. Nor is one with another name for each of them.

``0_left.jpg``, ``0_right.jpg`` and ``labels.xlsx`` look like classes in names, but the sides are no classes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from thumbnet.data.reading import read_error
from thumbnet.data.spelling import file_key, name_key, nfc
from thumbnet.data.splits import Data
from thumbnet.errors import DataError, printable, some_of
from thumbnet.files import open_whole
from thumbnet.invocation import command
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources.column_names import label_candidates
from thumbnet.sources.columns import Columns
from thumbnet.sources.folders import classes_in_names
from thumbnet.sources.index import is_picture_name
from thumbnet.sources.label_lists import read_labels
from thumbnet.sources.manifest import labelling
from thumbnet.sources.place import Place
from thumbnet.sources.table_files import is_spreadsheet, unused
from thumbnet.sources.tables import Table

_MOST_NOTES = 5
_CLASS_LIST = 1 << 20  # bytes of a table that are searched for the names of classes
_ROWS = 100_000  # of each table that are compared with the folders: nobody should wait for a note


def notes_on_unread_tables(place: Place, source: str, data: Data, settings: DataSettings) -> list[str]:
    """A note about each table in a place with class folders that labels their pictures in another way.

    It is a warning if the name of the table's column says that it has labels.

    Args:
        place: a folder.
        source: what the user named.
        data: what was read from the folders.
        settings: how they were read.
    """
    notes = []
    for table, columns in labelling(place, settings, _ROWS):
        labels = _other_labels(table, columns, data, settings)
        if labels:
            warning = "warning: " if label_candidates([columns.label]) else ""
            notes.append(
                f"{warning}{printable(table.path.name)} gives the pictures other classes "
                f"({some_of(labels, 3)}) than their folders do, and the folders count. "
                f"To train on the table: {_command(place, source, table, columns)}"
            )
    return notes


def notes_on_unused_tables(place: Place, data: Data, settings: DataSettings) -> list[str]:
    """Notes about tables that may have the classes of the pictures, but cannot be read as tables of pictures.

    Next to class folders, these are spreadsheets and tables that cannot be read at all: others may list
    anything. The names of pictures are less certain to have the classes, so all tables count there. A list of
    their classes is not mentioned.

    Args:
        place: a folder.
        data: what was read from the names of its folders or pictures.
        settings: how they were read.

    Raises:
        DataError: the classes come from the names of pictures, and such a table is called ``labels``.
    """
    notes = []
    in_names = classes_in_names(data)
    for one in unused(place, settings):
        called_labels = re.search("label", one.path.stem, re.I)
        table = one.damaged or (in_names and (one.is_table or called_labels)) or is_spreadsheet(one.path)
        if not table or "submission" in one.path.stem.lower() or _lists_classes(one.path, data.class_names):
            continue
        if in_names and called_labels:
            shown = some_of(sorted(map(printable, data.class_names)), 3)
            raise DataError(
                f"the names of the pictures have classes ({shown}), but a table seems to have others, and it "
                f"cannot be used. {one.why}\n"
                "If the names are right, move the table to another folder, or say where the class is in a "
                "name: --label-pattern REGEX"
            )
        notes.append(f"{'warning: ' if one.damaged else ''}not used: {one.why}")
    return notes[:_MOST_NOTES]


def _lists_classes(path: Path, class_names: Sequence[str]) -> bool:
    """Whether all class names are in a text file, not as parts of longer names."""
    if path.suffix.lower() == ".parquet" or is_spreadsheet(path):
        return False
    try:
        with open_whole(path) as file:
            text = nfc(file.read(_CLASS_LIST).decode("utf-8", "replace"))
    except OSError as error:
        raise read_error(error, path) from None
    return all(re.search(rf"(?<![\w./-]){re.escape(nfc(name))}(?![\w./-])", text) for name in class_names)


def _command(place: Place, source: str, table: Table, columns: Columns) -> str:
    """The command that trains on the table."""
    if place.unpacked:  # the user cannot name a table in an archive
        asked = ("--label-column", columns.label) if columns.label else ("--path-column", columns.path)
        return command("train", source, *asked)
    if table.path.parent == place.path:
        return command("train", table.path)
    return command("train", table.path, "--images", place.path)


def _other_labels(table: Table, columns: Columns, data: Data, settings: DataSettings) -> list[str]:
    """The labels in a table, printable, if they divide the pictures in another way than ``data``; else none.

    They divide them in the same way if they are names of classes, or if each label stands for one class, as
    n01440764 for tench. A single label, as in an empty submission, divides nothing.
    """
    try:
        (rows,) = read_labels([(table, columns)], settings.multilabel).rows
    except DataError:
        return []
    ends = [_ends(cell) for cell in table.column(columns.path)]
    classes = _classes(data, ends)
    pairs: set[tuple[tuple[str, ...], str]] = set()
    for (inner, alone), labels in zip(ends, rows, strict=True):
        known = classes[inner] or classes[alone]
        if labels and len(known) == 1:
            pairs.add((labels, next(iter(known))))
    given = {labels for labels, _ in pairs}
    one_to_one = len(pairs) == len(given) == len({known for _, known in pairs})
    words = {label for labels in given for label in labels}
    if len(given) < 2 or one_to_one or set(map(name_key, words)) <= set(map(name_key, data.class_names)):
        return []
    return sorted(map(printable, words))


def _classes(data: Data, ends: Sequence[tuple[str, str]]) -> Mapping[str, set[str]]:
    """The classes of the pictures whose path has each of these ends (see :func:`_ends`)."""
    found: dict[str, set[str]] = {end: set() for pair in ends for end in pair}
    for split in data.splits.values():
        for index, label in enumerate(split.labels.tolist()):
            for end in _ends(split.name(index)):
                if end in found:
                    found[end].add(data.class_names[label])
    return found


def _ends(path: str) -> tuple[str, str]:
    """The keys of a path's end with and without the innermost folder, without the suffix of a picture."""
    last = path.replace("\\", "/").split("/")[-2:]
    if is_picture_name(last[-1]):
        last[-1] = os.path.splitext(last[-1])[0]
    key = file_key("/".join(last))
    return key, key.rpartition("/")[2]
