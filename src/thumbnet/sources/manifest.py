"""Read tables that name pictures and their classes: labels.csv, train.csv with train/, metadata.jsonl, ..."""

from __future__ import annotations

import csv
import json
import os
from collections import defaultdict
from collections.abc import Container, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from thumbnet.data.corrections import is_corrections
from thumbnet.data.multilabel import MultiLabelSplit, as_matrix
from thumbnet.data.reading import folders_in, is_file, is_folder, read_error, read_text
from thumbnet.data.spelling import nfc
from thumbnet.data.splits import Data, Split
from thumbnet.errors import (
    DataError,
    MissingExtraError,
    ThumbnetError,
    UnusedSettingError,
    printable,
    some_of,
)
from thumbnet.files import user_path
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources.column_names import label_candidates
from thumbnet.sources.columns import (
    Columns,
    find_columns,
    labels_of,
    notes_on_unread_marks,
)
from thumbnet.sources.group_columns import unused_groups
from thumbnet.sources.label_lists import read_labels
from thumbnet.sources.labels import (
    are_whole_numbers,
    check_in_train,
    class_names,
    in_class_order,
    named_numbers,
    note_on_titles,
    one_spelling,
)
from thumbnet.sources.lookup import Pictures
from thumbnet.sources.place import Place
from thumbnet.sources.split_columns import split_of_name, split_word
from thumbnet.sources.table_files import (
    HEAD,
    MAX_SHOWN,
    class_folders,
    find_tables,
    is_manifest,
    is_table_name,
    load_table,
    picture_names,
    why_not,
)
from thumbnet.sources.table_rows import (
    Missing,
    Rows,
    collect,
    duplicate_notes,
    missing_help,
    one_name_per_group,
    several_notes,
    what_is_missing,
)
from thumbnet.sources.table_splits import Manifest, choose, note_on_unreadable, split_of_table
from thumbnet.sources.tables import Table

_CLASS_FILES = ("labels.txt", "classes.txt", "label_num_to_disease_map.json")
NAMES = ("label_pattern", "classes_from")
"""The settings by which classes come from the names of files or folders."""
COLUMNS_AND_PICTURES = ("path_column", "label_column", "images")
"""The settings about tables."""


def recognise(place: Place, settings: DataSettings) -> bool:
    """Whether the place is a table that names pictures, or a folder with one.

    Class folders take precedence over a table, unless only tables label the test pictures, or the settings
    name a column or the pictures' folder.
    """
    try:
        if is_file(place.path):
            return is_table_name(place.path) and is_manifest(place.path, settings, None)
        found = find_tables(place.path)
        pictures = _picture_place(place, settings)
        if not any(is_manifest(path, settings, pictures) for path, _ in found):
            return False
        if settings.path_column or settings.label_column or settings.images:
            return True
        return not class_folders(place) or _splits_by_table(place, found, settings)
    except (DataError, MissingExtraError, ValueError, csv.Error, RecursionError):
        return False


def labelling(place: Place, settings: DataSettings, limit: int) -> list[tuple[Table, Columns]]:
    """The first ``limit`` rows of each table next to class folders that labels the pictures, and its columns.

    Corrections are left out, and so are tables that cannot be read: the user has named none of them.
    """
    found: list[tuple[Table, Columns]] = []
    tables = find_tables(place.path)
    for path, _ in tables if tables and class_folders(place) else []:  # most class folders have no table
        with suppress(ThumbnetError, OSError, ValueError, csv.Error, RecursionError):
            if is_manifest(path, settings, place):
                table = load_table(path, limit)
                columns = find_columns(table, settings)
                if columns.labelled and not is_corrections(table.names):
                    found.append((table, columns))
    return found


def read(place: Place, source: str, settings: DataSettings) -> Data:
    """Read the pictures that one table, or one table per split, names.

    Raises:
        DataError: a table cannot be read, its columns are ambiguous, or pictures are missing.
    """
    alone = is_file(place.path)
    root = Place(place.path.parent) if alone else place
    files = [(place.path, "")] if alone else find_tables(place.path)
    picture_place = _picture_place(root, settings)
    tables, notes = _load_all(files, settings, None if alone else picture_place)
    manifests, more = choose(tables, settings, alone)
    notes += more
    if not alone:
        _check_train(files, manifests, settings, picture_place)
    pictures = Pictures(picture_place, trusted=alone)
    chosen = [(one.table, one.columns) for one in manifests]
    found = read_labels(chosen, settings.multilabel)
    notes += (*found.notes, *notes_on_unread_marks(chosen, settings))
    splits: dict[str, Rows] = defaultdict(lambda: Rows(found.several))
    missing: list[Missing] = []
    for manifest, labels in zip(manifests, found.rows, strict=True):
        lost, more = collect(manifest, labels, pictures, splits, found.several, settings)
        missing += lost
        notes += more
    notes += one_name_per_group(splits, settings.group_by)
    if missing:
        what = what_is_missing(missing, printable(str(pictures.index.root)))
        if settings.on_bad_image != "skip" or not any(rows.paths for rows in splits.values()):
            raise DataError(what + missing_help(missing, manifests, source))
        notes.append(f"{what} and were skipped, such as {missing[0].line}")
    if found.several:
        splits = {split: rows.merged() for split, rows in splits.items()}
        notes += several_notes(splits, found.how)
        splits = {split: rows for split, rows in splits.items() if any(rows.labels)}
    else:
        notes += duplicate_notes(splits)
    respelt, more = one_spelling(
        {split: [label for row in rows.labels for label in row] for split, rows in splits.items()}
    )
    notes += more
    if respelt:
        for rows in splits.values():
            rows.respell(respelt)
    unnamed = pictures.neighbours({path for rows in splits.values() for path in rows.paths})
    if unnamed:
        notes.append(
            f"skipped {len(unnamed):,} picture(s) that no row gives a label, such as {printable(unnamed[0])}"
        )
    again = _found_again(place, picture_place, settings)
    return replace(_data(source, root.path, manifests, pictures, splits, notes, settings), settings=again)


def _data(
    source: str,
    folder: Path,
    manifests: list[Manifest],
    pictures: Pictures,
    splits: dict[str, Rows],
    notes: list[str],
    settings: DataSettings,
) -> Data:
    used = {split: {label for row in rows.labels for label in row} for split, rows in splits.items()}
    names = class_names(set().union(*used.values()))
    check_in_train(used, names, source)
    order, position = in_class_order(names)
    titles, note = _titles(folder, order)
    if titles == tuple(order) and not settings.label_column:
        titles, more = _titles_in_tables(manifests, names, order)
        note += more
    made = {
        split: _split(pictures, rows, position, len(order)) for split, rows in splits.items() if rows.paths
    }
    groups: dict[str, np.ndarray] = {}
    if settings.group_by and _have_groups(manifests, settings.group_by):
        groups = {split: np.array(rows.groups, object) for split, rows in splits.items() if rows.paths}
    elif not settings.group_by and (unused := unused_groups(manifests, len(names))):
        notes.append(unused)
    pictures.index.keep()
    several = any(rows.several for rows in splits.values())
    layout = " + ".join(dict.fromkeys(_described(manifest, several) for manifest in manifests))
    return Data(source, layout, titles, made, (*notes, *note), groups)


def _split(pictures: Pictures, rows: Rows, position: dict[str, int], classes: int) -> Split:
    """The pictures of a split with the positions of their labels, or as a matrix of them."""
    if not rows.several:
        labels = [position[label] for (label,) in rows.labels]
        return pictures.index.split(rows.paths, np.array(labels, dtype=np.int64))
    matrix = as_matrix([[position[label] for label in row] for row in rows.labels], classes)
    return MultiLabelSplit(pictures.index.split(rows.paths, np.zeros(len(matrix), dtype=np.int64)), matrix)


def _have_groups(manifests: list[Manifest], group_by: str) -> bool:
    """Whether the tables have a column of that name; otherwise it is an expression for pictures' names.

    Raises:
        DataError: only some of them have it.
    """
    lacking = [one.table.path.name for one in manifests if group_by not in one.table.names]
    if 0 < len(lacking) < len(manifests):
        raise DataError(
            f"--group-by {printable(group_by)}: {some_of([printable(name) for name in lacking])} has no such "
            "column, but another table of the data has. Add the column there, with the groups of its pictures"
        )
    return not lacking


def _described(manifest: Manifest, several: bool) -> str:
    columns = manifest.columns
    label = (
        f"one column per {'label' if several else 'class'} ({len(columns.one_hot)})"
        if columns.one_hot
        else f"{'labels' if several else 'classes'} in {columns.label!r}"
    )
    split = f", splits in {columns.split!r}" if columns.split else ""
    return printable(f"{manifest.table.path.name}: pictures in {columns.path!r}, {label}{split}")


def _load_all(
    files: list[tuple[Path, str]], settings: DataSettings, folder: Place | None
) -> tuple[list[tuple[Table, str]], list[str]]:
    """The tables that name pictures, each with its folder, and notes about the others."""
    tables: list[tuple[Table, str]] = []
    notes: list[str] = []
    any_label = replace(settings, label_column="")
    for path, base in files:
        if folder is not None:
            try:
                head = load_table(path, HEAD)
            except DataError as error:
                notes.append(note_on_unreadable(path, base, error))
                continue
            if not is_manifest(path, any_label, folder, labelled=False, head=head):
                notes.append(f"{printable(path.name)} was skipped: it names no pictures")
                continue
        tables.append((load_table(path), base))
    return tables, notes


def _check_train(
    files: list[tuple[Path, str]], manifests: list[Manifest], settings: DataSettings, place: Place
) -> None:
    """Refuse to train on the tables of val or test because train's table is not among the ``manifests``.

    Raises:
        DataError: that is so. The message says why it is not.
    """
    used = [one.table.path for one in manifests]
    of_train = [path for path, base in files if split_of_table(path, base) == "train" and path not in used]
    if of_train and all(one.split in ("val", "test") and not one.columns.split for one in manifests):
        raise DataError(
            f"{some_of([printable(path.name) for path in used])} would be trained on, because the table of "
            f"train is not used. {printable(of_train[0].name)}: {why_not(of_train[0], settings, place)}.\n"
            "To train on another table, name it instead of the folder"
        )


def _titles(folder: Path, order: list[str]) -> tuple[tuple[str, ...], list[str]]:
    """The class names, and a note about their file if they have one.

    Integer classes take their names from a file in the folder that names exactly these classes.
    """
    if not all(name.isdecimal() for name in order):
        return tuple(order), []
    notes: list[str] = []
    for name in _CLASS_FILES:
        try:
            if not is_file(folder / name):
                continue
            text = read_text(folder / name, "utf-8-sig")
            if name.endswith(".json"):
                found = {str(key): str(value) for key, value in json.loads(text).items()}
            else:
                lines = [line.strip() for line in text.splitlines() if line.strip()]
                found = {str(number): line for number, line in enumerate(lines)}
        except OSError as error:
            raise read_error(error, folder / name) from None
        except UnicodeDecodeError:
            notes.append(f"warning: {name} is not UTF-8, so class names are not taken from it")
            continue
        except (ValueError, AttributeError, RecursionError):
            continue
        if set(found) == set(order) and len(set(found.values())) == len(found):
            return tuple(found[key] for key in order), [f"class names come from {name}"]
    return tuple(order), notes


def _titles_in_tables(
    manifests: list[Manifest], names: Mapping[str, str], order: list[str]
) -> tuple[tuple[str, ...], list[str]]:
    """The class names, and a note about the column that they come from, if there is one.

    Whole numbers take their names from a column such as ``label_name`` that has a word of its own for each.

    Args:
        manifests: the tables that are read.
        names: the class of each label.
        order: the classes in order.
    """
    if not are_whole_numbers(order):
        return tuple(order), []
    labels = {one.columns.label for one in manifests}
    columns = dict.fromkeys(name for one in manifests for name in one.table.names if name not in labels)
    for column in label_candidates(columns):
        pairs = {
            (names[label], nfc(word))
            for one in manifests
            if one.columns.label and column in one.table.names
            for label, word in zip(labels_of(one.table, one.columns), one.table.column(column), strict=True)
            if label in names
        }
        titles = named_numbers(pairs, order)
        if titles:
            return titles, [note_on_titles(column, next(iter(labels)))]
    return tuple(order), []


def _options(settings: DataSettings, keys: list[str]) -> str:
    """The options that give settings, as the user wrote them."""
    values = {key: printable(getattr(settings, key)) for key in keys}
    names = {
        key: "depth" if key == "classes_from" and value.isdigit() else key.replace("_", "-")
        for key, value in values.items()
    }
    return " and ".join(f"--{names[key]} {value}" for key, value in values.items())


def check_one_way(settings: DataSettings) -> None:
    """Refuse settings that take the classes both from names and from a table.

    Raises:
        UnusedSettingError: both are given.
    """
    names, tables = settings.given(*NAMES), settings.given(*COLUMNS_AND_PICTURES)
    if names and tables:
        raise UnusedSettingError(
            f"{_options(settings, names)} takes the classes from the names of files and folders, but "
            f"{_options(settings, tables)} from a table: leave one of them out"
        )


def check_used(place: Place | None, settings: DataSettings, used: Container[str], what: str) -> None:
    """Refuse settings about where classes stand that the form of the data does not use.

    Args:
        place: where the data are; None if they have a name.
        used: the settings that it uses.
        what: the data, as messages call them.

    Raises:
        UnusedSettingError: such a setting is given, but not used.
    """
    unused = [key for key in settings.given(*NAMES, *COLUMNS_AND_PICTURES) if key not in used]
    if not unused:
        return
    options = _options(settings, unused)
    if set(unused) <= set(NAMES):
        raise UnusedSettingError(
            f"{options} has no effect: {what} says in another way which class a picture has. Leave it out"
        )
    tables = []
    if place is not None:
        try:
            _picture_place(place, settings)
        except DataError as error:
            raise UnusedSettingError(str(error)) from None
    for path, _ in [] if place is None or is_file(place.path) else find_tables(place.path)[:MAX_SHOWN]:
        try:
            names = load_table(path, HEAD).names
        except (DataError, MissingExtraError) as error:
            tables.append(f"\n  {error}")
        else:
            listing = ", ".join(map(printable, names[:12]))
            tables.append(f"\n  {printable(path.name)} has the columns {listing}")
    raise UnusedSettingError(
        f"{options} has no effect: {what} is not read from a table that it fits. Leave it out, or name "
        f"the table{':' if tables else ''}{''.join(tables)}"
    )


def _picture_place(root: Place, settings: DataSettings) -> Place:
    if not settings.images:
        return root
    inner = root.inside(settings.images)
    if root.unpacked and is_folder(inner.path):
        return inner
    for folder in (user_path(settings.images), inner.path):
        if is_folder(folder):
            return Place(folder.absolute())
    raise DataError(f"data.images: there is no folder {settings.images!r}")


def _found_again(place: Place, pictures: Place, settings: DataSettings) -> DataSettings:
    """The settings that find the pictures from any working folder.

    ``images`` becomes absolute, unless it names a folder next to the table or in the archive.
    """
    if not settings.images or pictures.unpacked is not None:
        return settings
    home, folder = place.path.resolve(), os.path.realpath(pictures.path)
    beside = (home.parent if is_file(home) else home) / settings.images
    return settings if os.path.realpath(beside) == folder else replace(settings, images=folder)


def _splits_by_table(place: Place, found: list[tuple[Path, str]], settings: DataSettings) -> bool:
    """Whether the test pictures are in no class folders and get their labels from a table, as in GTSRB."""
    tables = {split_of_name(path.stem) for path, _ in found if is_manifest(path, settings, place)}
    tests = [path for path in folders_in(place.path) if split_word(path.name) == "test"]
    flat = any(bool(picture_names(path, place)) and not folders_in(path) for path in tests)
    return {"train", "test"} <= tables and flat
