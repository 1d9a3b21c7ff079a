"""Which files in a folder are tables that name pictures, and why others are not.

A table is recognised by its name and its first rows. :mod:`thumbnet.sources.manifest` reads those that are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from thumbnet.data.corrections import COLUMNS, is_corrections, read_corrections
from thumbnet.data.reading import folders_in, inside, is_file
from thumbnet.data.spelling import nfc
from thumbnet.errors import DataError, MissingExtraError, printable
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources import parquet
from thumbnet.sources.column_names import label_candidates
from thumbnet.sources.columns import find_columns, marks_pictures
from thumbnet.sources.index import is_output_folder, is_picture_name
from thumbnet.sources.place import Place, has_pictures
from thumbnet.sources.split_columns import split_word
from thumbnet.sources.tables import TEXT_SUFFIXES, Table, read_table

_LISTS = re.compile(r"(.*[_-])?(train|val|valid|test|labels?|annotations?|list)([_-].*)?\.txt", re.I)
_NO_CLASS = re.compile(
    r"images?|imgs?|pictures?|photos?|jpe?gs?|pngs?|parts?|batch(es)?|chunks?|"
    r"(.*[_-])?(images?|imgs?|part|batch|chunk)[_-]?\d*",
    re.I,
)
_SPLIT_FOLDER_TABLES = ("metadata.csv", "metadata.jsonl", "_classes.csv")  # the Hub's and Roboflow's
_TABLE_FOLDERS = re.compile(r"annotations?|labels?|splits?|meta|metadata|csvs?|tables?|lists?", re.I)
_SHEETS = (".xlsx", ".xls", ".ods")
_NO_TABLES = (".json", ".manifest", ".yaml", ".yml")
_ALSO_TABLES = (".txt", *_NO_TABLES, *_SHEETS)  # files that may hold a table, but are not read as one
MAX_SHOWN = 5  # tables that an error lists
HEAD = 200  # rows by which a table is recognised
_MOST_COLUMNS = 300  # of a table that names pictures; more are pixels, or marks of many labels


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


def load_table(path: Path, limit: int | None = None) -> Table:
    """Read a table in text or Parquet, or its first ``limit`` rows; a file of corrections as what it decides.

    Raises:
        DataError: it cannot be read.
        MissingExtraError: it is Parquet, and the extra ``formats`` is not installed.
    """
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


def is_table_name(path: Path) -> bool:
    """Whether a file is a table by its suffix."""
    return path.suffix.lower() in (*TEXT_SUFFIXES, ".parquet")


def find_tables(folder: Path) -> list[tuple[Path, str]]:
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
    return bool(named) and is_table_name(path) and is_file(path)


def is_manifest(
    path: Path,
    settings: DataSettings,
    folder: Place | None,
    labelled: bool = True,
    head: Table | None = None,
) -> bool:
    """Whether a table's first rows name pictures.

    ``folder`` is None if the user named the table itself. A table found in a folder must also have labels,
    unless ``labelled`` is False. ``head`` is the table's first rows, if they have been read.
    """
    named = folder is None
    try:
        table = load_table(path, HEAD) if head is None else head
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
        for name in map(nfc, picture_names(folder, place)):
            if len(cells) >= HEAD or os.path.splitext(name)[0] in stems or name in stems:
                return True
    return False


def _most_pictures(place: Place, cells: list[str]) -> bool:
    """Whether the folder, or a folder directly in it, has most of the pictures that cells name."""
    stems = {nfc(re.split(r"[/\\]", cell)[-1]) for cell in cells}
    folders = [place.path, *folders_in(place.path)[:50]]
    there = {nfc(os.path.splitext(name)[0]) for folder in folders for name in picture_names(folder, place)}
    return 2 * len(stems & there) > len(stems)


def picture_names(folder: Path, place: Place) -> list[str]:
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
    inner = [path for path in inner[:50] if picture_names(path, place) and not is_output_folder(path)]
    return len(inner) >= 2


def why_not_read(place: Place, settings: DataSettings) -> str:
    """Lines about the tables in a folder that name no pictures and classes, each with the reason."""
    if not has_pictures(place):
        return ""
    lines = [f"\n  {one.why}" for one in islice(unused(place, settings), MAX_SHOWN)]
    return f"\nTables that were not used:{''.join(lines)}" if lines else ""


def unused(place: Place, settings: DataSettings) -> Iterator[Unused]:
    """Find the tables in a folder of pictures, and the files that may hold one, none of which is read."""
    tables = [path for path, _ in find_tables(place.path)]
    others = [path for path in inside(place.path) if path.suffix.lower() in _ALSO_TABLES and is_file(path)]
    for path in dict.fromkeys([*tables, *others]):
        name = printable(path.relative_to(place.path).as_posix())
        try:
            yield Unused(path, f"{name}: {why_not(path, settings, place)}", path in tables, False)
        except (DataError, MissingExtraError) as error:
            at = str(error).removeprefix(printable(str(path)))
            why = f"{name}: {error}" if at == str(error) else name + at
            yield Unused(path, why, path in tables, path in tables)


def is_spreadsheet(path: Path) -> bool:
    """Whether a file is a spreadsheet by its name."""
    return path.suffix.lower() in _SHEETS


def why_not(path: Path, settings: DataSettings, place: Place) -> str:
    """Why a file is not read as a table of the pictures in a folder.

    Raises:
        DataError, MissingExtraError: it cannot be read.
    """
    if is_spreadsheet(path):
        return "a spreadsheet; save it as CSV"
    if path.suffix.lower() in _NO_TABLES:
        return "convert it to CSV, with a column of picture paths and one of classes"
    table = load_table(path, HEAD)
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
