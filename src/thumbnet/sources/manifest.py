"""Read tables that name pictures and their classes: labels.csv, train.csv with train/, metadata.jsonl, ..."""

from __future__ import annotations

import csv
import json
import os
import re
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from thumbnet.data.corrections import COLUMNS, is_corrections, read_corrections
from thumbnet.data.multilabel import MultiLabelSplit, as_matrix
from thumbnet.data.reading import folders_in, inside, is_file, is_folder, read_error, read_text
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
from thumbnet.invocation import quoted
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources import parquet
from thumbnet.sources.column_names import label_candidates
from thumbnet.sources.columns import (
    Columns,
    find_columns,
    labels_of,
    marks_pictures,
    notes_on_unread_marks,
)
from thumbnet.sources.group_columns import unused_groups
from thumbnet.sources.index import is_output_folder, is_picture_name
from thumbnet.sources.label_lists import read_labels
from thumbnet.sources.labels import (
    check_in_train,
    class_names,
    in_class_order,
    named_numbers,
    one_spelling,
)
from thumbnet.sources.lookup import Pictures
from thumbnet.sources.place import Place, has_pictures
from thumbnet.sources.split_columns import split_of_name, split_word
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
from thumbnet.sources.tables import TEXT_SUFFIXES, Table, read_table

_LISTS = re.compile(r"(.*[_-])?(train|val|valid|test|labels?|annotations?|list)([_-].*)?\.txt", re.I)
_NO_CLASS = re.compile(
    r"images?|imgs?|pictures?|photos?|jpe?gs?|pngs?|parts?|batch(es)?|chunks?|"
    r"(.*[_-])?(images?|imgs?|part|batch|chunk)[_-]?\d*",
    re.I,
)
_CLASS_FILES = ("labels.txt", "classes.txt", "label_num_to_disease_map.json")
_SPLIT_FOLDER_TABLES = ("metadata.csv", "metadata.jsonl", "_classes.csv")  # the Hub's and Roboflow's
_TABLE_FOLDERS = re.compile(r"annotations?|labels?|splits?|meta|metadata|csvs?|tables?|lists?", re.I)
_SHEETS = (".xlsx", ".xls", ".ods")
_NO_TABLES = (".json", ".manifest", ".yaml", ".yml")
_ALSO_TABLES = (".txt", *_NO_TABLES, *_SHEETS)  # files that may hold a table, but are not read as one
_MAX_SHOWN = 5  # tables that an error lists
_HEAD = 200  # rows by which a table is recognised
_MOST_COLUMNS = 300  # of a table that names pictures; more are pixels, or marks of many labels
NAMES = ("label_pattern", "classes_from")
"""The settings by which classes come from the names of files or folders."""
COLUMNS_AND_PICTURES = ("path_column", "label_column", "images")
"""The settings about tables."""


class Unused(NamedTuple):
    """A table, or another file that may hold one, that is not read.

    Attributes:
        path: the file.
        why: its name and the reason, printable.
        is_table: whether its name is that of a table.
        damaged: whether it is such a table, and cannot be read.
    """

    path: Path
    why: str
    is_table: bool
    damaged: bool


def recognise(place: Place, settings: DataSettings) -> bool:
    """Whether the place is a table that names pictures, or a folder with one.

    Class folders take precedence over a table, unless only tables label the test pictures, or the settings
    name a column or the pictures' folder.
    """
    try:
        if is_file(place.path):
            return _is_table_name(place.path) and _is_manifest(place.path, settings, None)
        found = _table_files(place.path)
        pictures = _picture_place(place, settings)
        if not any(_is_manifest(path, settings, pictures) for path, _ in found):
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
    tables = _table_files(place.path)
    for path, _ in tables if tables and class_folders(place) else []:  # most class folders have no table
        with suppress(ThumbnetError, OSError, ValueError, csv.Error, RecursionError):
            if _is_manifest(path, settings, place):
                table = _load(path, limit)
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
    files = [(place.path, "")] if alone else _table_files(place.path)
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
                _load(path, _HEAD)
            except DataError as error:
                notes.append(note_on_unreadable(path, base, error))
                continue
            if not _is_manifest(path, any_label, folder, labelled=False):
                notes.append(f"{printable(path.name)} was skipped: it names no pictures")
                continue
        tables.append((_load(path), base))
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
            f"train is not used. {printable(of_train[0].name)}: {_why_not(of_train[0], settings, place)}.\n"
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
    labels = {one.columns.label for one in manifests}
    for column in label_candidates({name: None for one in manifests for name in one.table.names}):
        pairs = {
            (names[label], nfc(word))
            for one in manifests
            if one.columns.label and column in one.table.names
            for label, word in zip(labels_of(one.table, one.columns), one.table.column(column), strict=True)
            if label in names
        }
        titles = named_numbers(pairs, order)
        if titles and column not in labels:
            return titles, [
                f"class names come from the column {printable(column)!r}; "
                f"to keep the numbers: --label-column {quoted(next(iter(labels)))}"
            ]
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
    for path, _ in [] if place is None or is_file(place.path) else _table_files(place.path)[:_MAX_SHOWN]:
        try:
            names = _load(path, _HEAD).names
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


def _load(path: Path, limit: int | None = None) -> Table:
    if path.suffix.lower() == ".parquet":
        return parquet.read_rows(path, limit)
    table = read_table(path, limit)
    return _decided(path) if is_corrections(table.names) else table


def _decided(path: Path) -> Table:
    """A file of corrections as a table: its last row per picture, without dropped and unsure pictures."""
    found = read_corrections(path)
    labelled = [one for one in found if one.label]
    if not labelled:
        raise DataError(f"{printable(path.name)}: no row gives a picture a class")
    rows = [[one.name, one.label.strip(), one.split, one.was, one.decision] for one in labelled]
    left_out = len(found) - len(labelled)
    note = f"{printable(path.name)}: {left_out:,} dropped or unsure picture(s) are left out"
    lines = [one.line for one in labelled]
    return Table(path, list(COLUMNS), rows, lines, True, (note,) if left_out else ())


def _is_table_name(path: Path) -> bool:
    return path.suffix.lower() in (*TEXT_SUFFIXES, ".parquet")


def _table_files(folder: Path) -> list[tuple[Path, str]]:
    """The tables in a folder, in its split folders and in those of annotations.

    Each comes with the folder that its paths start from.
    """
    found = []
    for path in inside(folder):
        if path.name.startswith(".") or is_picture_name(path.name):
            continue
        if _is_table(path):
            found.append((path, ""))
        elif split_word(path.name):
            known = [path / name for name in _SPLIT_FOLDER_TABLES if is_file(path / name)][:1]
            tables = known or _csv_files(path)
            found += [(table, path.name) for table in tables if len(tables) == 1]
        elif _TABLE_FOLDERS.fullmatch(path.name):
            found += [(table, "") for table in _csv_files(path)]
    return found


def _csv_files(folder: Path) -> list[Path]:
    return [path for path in inside(folder) if path.suffix.lower() == ".csv" and is_file(path)]


def _is_table(path: Path) -> bool:
    named = path.suffix.lower() != ".txt" or _LISTS.fullmatch(path.name)
    return bool(named) and _is_table_name(path) and is_file(path)


def why_not_read(place: Place, settings: DataSettings) -> str:
    """Lines about the tables in a folder that name no pictures and classes, each with the reason."""
    if not has_pictures(place):
        return ""
    lines = [f"\n  {one.why}" for one in islice(unused(place, settings), _MAX_SHOWN)]
    return f"\nTables that were not used:{''.join(lines)}" if lines else ""


def unused(place: Place, settings: DataSettings) -> Iterator[Unused]:
    """Find the tables in a folder of pictures, and the files that may hold one, none of which is read."""
    tables = [path for path, _ in _table_files(place.path)]
    others = [path for path in inside(place.path) if path.suffix.lower() in _ALSO_TABLES and is_file(path)]
    for path in dict.fromkeys([*tables, *others]):
        name = printable(path.relative_to(place.path).as_posix())
        try:
            yield Unused(path, f"{name}: {_why_not(path, settings, place)}", path in tables, False)
        except (DataError, MissingExtraError) as error:
            at = str(error).removeprefix(printable(str(path)))
            why = f"{name}: {error}" if at == str(error) else name + at
            yield Unused(path, why, path in tables, path in tables)


def is_spreadsheet(path: Path) -> bool:
    """Whether a file is a spreadsheet by its name."""
    return path.suffix.lower() in _SHEETS


def _why_not(path: Path, settings: DataSettings, place: Place) -> str:
    """Why a file is not read as a table of the pictures in a folder.

    Raises:
        DataError, MissingExtraError: it cannot be read.
    """
    if is_spreadsheet(path):
        return "a spreadsheet; save it as CSV"
    if path.suffix.lower() in _NO_TABLES:
        return "convert it to CSV, with a column of picture paths and one of classes"
    table = _load(path, _HEAD)
    try:
        columns = find_columns(table, settings)
    except DataError as error:
        return str(error).removeprefix(f"{printable(path.name)}: ")
    others = [name for name in table.names if name != columns.path]
    listing = ", ".join(map(printable, others[:12]))
    if not columns.labelled:
        return f"no column appears to have labels ({listing}). Name it: --label-column NAME"
    if path.suffix.lower() == ".txt" and not _LISTS.fullmatch(path.name):
        return "only text files with usual names are looked for: name the file itself instead of its folder"
    cells = table.column(columns.path)
    if cells and _any_picture(place, cells):
        return f"it is unclear whether one of its columns ({listing}) has the classes: --label-column NAME"
    return (
        f"no picture is called like the cells in {printable(columns.path)!r}, such as "
        f"{printable(next(iter(cells), ''))!r}. If one of the other columns ({listing}) has their names: "
        "--path-column NAME"
    )


def _is_manifest(path: Path, settings: DataSettings, folder: Place | None, labelled: bool = True) -> bool:
    """Whether a table's first rows name pictures.

    ``folder`` is None if the user named the table itself. A table found in a folder must also have labels,
    unless ``labelled`` is False.
    """
    named = folder is None
    try:
        table = _load(path, _HEAD)
        if len(table.names) > _MOST_COLUMNS and not marks_pictures(table):
            return False
        columns = find_columns(table, settings)
    except DataError as error:
        if folder is None:
            return path.suffix.lower() != ".txt" or "--label-column" in str(error)
        return "--label-column" in str(error) and bool(settings.images or has_pictures(folder))
    if not columns.labelled and labelled and not named:
        return False
    if folder is None or settings.path_column:
        return True
    cells = table.column(columns.path)
    if any(is_picture_name(re.split(r"[/\\]", cell)[-1]) for cell in cells):
        return True
    known = bool(
        settings.label_column or columns.one_hot or label_candidates([columns.label]) or not labelled
    )
    return _most_pictures(folder, cells) if not table.header else known and _any_picture(folder, cells)


def _any_picture(place: Place, cells: list[str]) -> bool:
    """Whether the folder, or a folder directly in it, has a picture that a cell names.

    If there are so many cells that more may follow, any picture counts.
    """
    stems = {nfc(re.split(r"[/\\]", cell)[-1]) for cell in cells}
    for folder in [place.path, *folders_in(place.path)[:50]]:
        for name in map(nfc, _picture_names(folder, place)):
            if len(cells) >= _HEAD or os.path.splitext(name)[0] in stems or name in stems:
                return True
    return False


def _most_pictures(place: Place, cells: list[str]) -> bool:
    """Whether the folder, or a folder directly in it, has most of the pictures that cells name."""
    stems = {nfc(re.split(r"[/\\]", cell)[-1]) for cell in cells}
    folders = [place.path, *folders_in(place.path)[:50]]
    there = {nfc(os.path.splitext(name)[0]) for folder in folders for name in _picture_names(folder, place)}
    return 2 * len(stems & there) > len(stems)


def _picture_names(folder: Path, place: Place) -> list[str]:
    """The names of pictures among the first 1,000 files of a folder."""
    if place.unpacked is not None:
        prefix = "/".join(folder.relative_to(place.unpacked.folder).parts)
        return place.unpacked.pictures.by_folder.get(prefix, [])[:1000]
    with os.scandir(folder) as entries:
        return [entry.name for entry in islice(entries, 1000) if is_picture_name(entry.name)]


def class_folders(place: Place) -> bool:
    """Whether the folder, or its train folder, has two or more class folders with pictures."""
    folders = [path for path in folders_in(place.path) if not path.name.startswith(".")]
    base = [path for path in folders if split_word(path.name) == "train"] or [place.path]
    inner = [path for path in folders_in(base[0]) if not path.name.startswith((".", "__"))]
    inner = [path for path in inner if not split_word(path.name) and not _NO_CLASS.fullmatch(path.name)]
    inner = [path for path in inner[:50] if _picture_names(path, place) and not is_output_folder(path)]
    return len(inner) >= 2


def _splits_by_table(place: Place, found: list[tuple[Path, str]], settings: DataSettings) -> bool:
    """Whether the test pictures are in no class folders and get their labels from a table, as in GTSRB."""
    tables = {split_of_name(path.stem) for path, _ in found if _is_manifest(path, settings, place)}
    tests = [path for path in folders_in(place.path) if split_word(path.name) == "test"]
    flat = any(bool(_picture_names(path, place)) and not folders_in(path) for path in tests)
    return {"train", "test"} <= tables and flat
