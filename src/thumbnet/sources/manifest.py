"""Read tables that name pictures and their classes: labels.csv, train.csv with train/, metadata.jsonl, ..."""

from __future__ import annotations

import csv
import json
import os
import re
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from thumbnet.data.corrections import COLUMNS, is_corrections, read_corrections
from thumbnet.data.multilabel import MultiLabelSplit, as_matrix
from thumbnet.data.reading import inside, is_file, is_folder, read_error, read_text
from thumbnet.data.splits import Data, Split
from thumbnet.errors import DataError, MissingExtraError, printable
from thumbnet.invocation import command
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources import parquet
from thumbnet.sources.columns import (
    Columns,
    class_names,
    find_columns,
    in_class_order,
    label_candidates,
    split_of_name,
    split_word,
)
from thumbnet.sources.index import is_picture_name
from thumbnet.sources.label_lists import read_labels
from thumbnet.sources.lookup import Pictures
from thumbnet.sources.place import Place
from thumbnet.sources.tables import TEXT_SUFFIXES, Table, read_table

_LISTS = re.compile(r"(.*[_-])?(train|val|valid|test|labels?|annotations?|list)([_-].*)?\.txt", re.I)
_NO_CLASS = re.compile(
    r"images?|imgs?|pictures?|photos?|jpe?gs?|pngs?|parts?|batch(es)?|chunks?|"
    r"(.*[_-])?(images?|imgs?|part|batch|chunk)[_-]?\d*",
    re.I,
)
_CLASS_FILES = ("labels.txt", "classes.txt", "label_num_to_disease_map.json")
_SPLIT_FOLDER_TABLES = ("metadata.csv", "metadata.jsonl", "_classes.csv")  # the Hub's and Roboflow's
_MAX_SHOWN = 5  # missing pictures that an error lists


@dataclass(frozen=True)
class _Manifest:
    """A table and the meaning of its columns. Paths are relative to ``base``, a folder below the root."""

    table: Table
    columns: Columns
    base: str
    split: str


@dataclass
class _Rows:
    """The rows collected so far for one split; a row has one label, or any number if ``several``."""

    several: bool
    paths: list[str] = field(default_factory=list)
    labels: list[tuple[str, ...]] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)

    def merged(self) -> _Rows:
        """A row per picture, with the labels of all rows that name it."""
        rows = _Rows(self.several)
        at: dict[str, int] = {}
        for path, labels, group in zip(self.paths, self.labels, self.groups, strict=True):
            if path in at:
                rows.labels[at[path]] = tuple(dict.fromkeys((*rows.labels[at[path]], *labels)))
                continue
            at[path] = len(rows.paths)
            rows.paths.append(path)
            rows.labels.append(labels)
            rows.groups.append(group)
        return rows


def recognise(place: Place, settings: DataSettings) -> bool:
    """Whether the place is a table that names pictures, or a folder with one.

    Class folders take precedence over a table, unless only tables label the test pictures.
    """
    try:
        if is_file(place.path):
            return _is_table_name(place.path) and _is_manifest(place.path, settings, None)
        found = _table_files(place.path)
        if not any(_is_manifest(path, settings, place) for path, _ in found):
            return False
        return not class_folders(place) or _splits_by_table(place, found, settings)
    except (DataError, MissingExtraError, ValueError, csv.Error, RecursionError):
        return False


def read(place: Place, source: str, settings: DataSettings) -> Data:
    """Read the pictures that one table, or one table per split, names.

    Raises:
        DataError: a table cannot be read, its columns are ambiguous, or pictures are missing.
    """
    alone = is_file(place.path)
    root = Place(place.path.parent) if alone else place
    files = [(place.path, "")] if alone else _table_files(place.path)
    manifests, notes = _choose(files, settings, None if alone else root)
    pictures = Pictures(_picture_place(root, settings), trusted=alone)
    found = read_labels([(one.table, one.columns) for one in manifests], settings.multilabel)
    splits: dict[str, _Rows] = defaultdict(lambda: _Rows(found.several))
    missing: list[str] = []
    for manifest, labels in zip(manifests, found.rows, strict=True):
        notes += _collect(manifest, labels, pictures, splits, missing, settings)
    if missing:
        shown = "\n".join(f"  {line}" for line in missing[:_MAX_SHOWN])
        more = f"\n  and {len(missing) - _MAX_SHOWN} more" if len(missing) > _MAX_SHOWN else ""
        what = f"{len(missing)} row(s) name pictures that are not in {printable(str(pictures.index.root))}"
        if settings.on_bad_image != "skip" or not any(rows.paths for rows in splits.values()):
            corrections = any(is_corrections(manifest.table.names) for manifest in manifests)
            correct = command("train", "DATA", "--labels", source)
            other = f"\nTo correct the labels of other data by this file: {correct}" if corrections else ""
            raise DataError(
                f"{what} (searched by path, by file name, and without the suffix):\n{shown}{more}\n"
                "Name the folder of the pictures with --images FOLDER, "
                f"or skip these rows with --on-bad-image skip{other}"
            )
        notes.append(f"{what} and were skipped, such as {missing[0]}")
    if found.several:
        splits = {split: rows.merged() for split, rows in splits.items()}
        notes += _several_notes(splits, found.how)
        splits = {split: rows for split, rows in splits.items() if any(rows.labels)}
    else:
        notes += _duplicate_notes(splits)
    unnamed = pictures.neighbours({path for rows in splits.values() for path in rows.paths})
    if unnamed:
        notes.append(
            f"skipped {len(unnamed):,} picture(s) that no row names, such as {printable(unnamed[0])}"
        )
    return _data(source, root.path, manifests, pictures, splits, notes, settings)


def _data(
    source: str,
    folder: Path,
    manifests: list[_Manifest],
    pictures: Pictures,
    splits: dict[str, _Rows],
    notes: list[str],
    settings: DataSettings,
) -> Data:
    used = {split: {label for row in rows.labels for label in row} for split, rows in splits.items()}
    names = class_names(set().union(*used.values()))
    in_train = {names[label] for label in used.get("train", ())}
    for split, labels in used.items():
        stray = sorted({names[label] for label in labels} - in_train)
        if stray and in_train:
            raise DataError(
                f"{source}: {split} has classes that train lacks: {', '.join(map(printable, stray[:20]))}"
            )
    order, position = in_class_order(names)
    titles, note = _titles(folder, order)
    made = {
        split: _split(pictures, rows, position, len(order)) for split, rows in splits.items() if rows.paths
    }
    grouped = {
        split: np.array(rows.groups) for split, rows in splits.items() if rows.paths and settings.group_by
    }
    pictures.index.keep()
    several = any(rows.several for rows in splits.values())
    layout = " + ".join(dict.fromkeys(_described(manifest, several) for manifest in manifests))
    by_column = {split: groups for split, groups in grouped.items() if len(groups) == len(made[split])}
    return Data(
        source, layout, titles, made, (*notes, *note), by_column if _has_group(manifests, settings) else {}
    )


def _split(pictures: Pictures, rows: _Rows, position: dict[str, int], classes: int) -> Split:
    """The pictures of a split with the positions of their labels, or as a matrix of them."""
    if not rows.several:
        labels = [position[label] for (label,) in rows.labels]
        return pictures.index.split(rows.paths, np.array(labels, dtype=np.int64))
    matrix = as_matrix([[position[label] for label in row] for row in rows.labels], classes)
    return MultiLabelSplit(pictures.index.split(rows.paths, np.zeros(len(matrix), dtype=np.int64)), matrix)


def _has_group(manifests: list[_Manifest], settings: DataSettings) -> bool:
    return all(settings.group_by in manifest.table.names for manifest in manifests)


def _described(manifest: _Manifest, several: bool) -> str:
    columns = manifest.columns
    label = (
        f"one column per {'label' if several else 'class'} ({len(columns.one_hot)})"
        if columns.one_hot
        else f"{'labels' if several else 'classes'} in {columns.label!r}"
    )
    split = f", splits in {columns.split!r}" if columns.split else ""
    return printable(f"{manifest.table.path.name}: pictures in {columns.path!r}, {label}{split}")


def _choose(
    files: list[tuple[Path, str]], settings: DataSettings, folder: Place | None
) -> tuple[list[_Manifest], list[str]]:
    """The tables to train and test on, one per split, and notes about the others."""
    labelled: list[_Manifest] = []
    notes: list[str] = []
    for path, base in files:
        if folder is not None and not _is_manifest(path, settings, folder, labelled=False):
            notes.append(f"{printable(path.name)} was skipped: it names no pictures")
            continue
        table = _load(path)
        columns = find_columns(table, settings)
        split = split_of_name(path.stem) or split_of_name(base)
        if not columns.labelled or "submission" in path.stem.lower():
            if folder is None:
                raise DataError(
                    f"{printable(path.name)}: no column appears to have labels. The columns are "
                    f"{', '.join(map(printable, table.names[:12]))}. "
                    "Name the right one: --label-column NAME"
                )
            notes.append(f"{printable(path.name)} has no labels: its {len(table.rows):,} rows were skipped")
            continue
        labelled.append(_Manifest(table, columns, base, split))
    if len(labelled) > 1 and any(manifest.split == "train" for manifest in labelled):
        notes += [
            f"{printable(m.table.path.name)} was skipped: its name does not mention a split"
            for m in labelled
            if not m.split
        ]
        labelled = [manifest for manifest in labelled if manifest.split]
    if len(labelled) == 1:
        labelled = [_Manifest(labelled[0].table, labelled[0].columns, labelled[0].base, "train")]
    splits = [manifest.split for manifest in labelled]
    if len(set(splits)) < len(splits) or "" in splits:
        listing = ", ".join(printable(manifest.table.path.name) for manifest in labelled)
        raise DataError(
            f"several tables have labels ({listing}). Pass the one to train on instead of the folder"
        )
    if not labelled:
        raise DataError(f"no table has labels: {', '.join(printable(path.name) for path, _ in files)}")
    return labelled, notes


def _collect(
    manifest: _Manifest,
    labels: list[tuple[str, ...]],
    pictures: Pictures,
    splits: dict[str, _Rows],
    missing: list[str],
    settings: DataSettings,
) -> list[str]:
    """Add a table's rows to the splits, and return notes about them."""
    table, columns = manifest.table, manifest.columns
    notes = list(table.notes)
    cells = table.column(columns.path)
    parts = [split_word(cell) for cell in table.column(columns.split)] if columns.split else []
    groups = table.column(settings.group_by) if settings.group_by in table.names else []
    unlabelled: dict[str, int] = defaultdict(int)
    for row, (cell, label) in enumerate(zip(cells, labels, strict=True)):
        split = (parts[row] or "train") if parts else manifest.split
        if not label and not splits[split].several:
            unlabelled[split] += 1
            continue
        hint = label[0] if len(label) == 1 else ""
        path = pictures.find(cell, manifest.base, split, hint) if cell else None
        if path is None:
            missing.append(
                f"{printable(table.path.name)}, line {table.lines[row]}: {printable(cell) or 'no path'}"
            )
            continue
        splits[split].paths.append(path)
        splits[split].labels.append(label)
        splits[split].groups.append(groups[row] if groups else "")
    folder = f"{manifest.base}/" if manifest.base else ""
    notes.append(f"{printable(folder + table.path.name)}: {len(table.rows):,} rows")
    notes += [
        f"{printable(table.path.name)}: skipped {count:,} row(s) of {split} without a label"
        for split, count in unlabelled.items()
    ]
    return notes


def _several_notes(splits: dict[str, _Rows], how: str) -> list[str]:
    """Say that pictures have several labels, how they are written, and which splits have none."""
    rows = [row for one in splits.values() for row in one.labels]
    without = sum(not row for row in rows)
    mean = sum(map(len, rows)) / max(1, len(rows))
    notes = [
        f"several labels per picture ({printable(how)}): {mean:.2f} on average, {without:,} picture(s) "
        "without a label. To read each cell as one class: --set data.multilabel=false"
    ]
    return notes + [
        f"skipped {len(one.paths):,} picture(s) of {split}: none of them has a label"
        for split, one in splits.items()
        if one.paths and not any(one.labels)
    ]


def _duplicate_notes(splits: dict[str, _Rows]) -> list[str]:
    """Warnings about pictures that several rows name, with the same label or with different ones."""
    seen: dict[str, str] = {}
    conflicts = []
    for rows in splits.values():
        for path, (label,) in zip(rows.paths, rows.labels, strict=True):
            before = seen.setdefault(path, label)
            if before != label:
                conflicts.append(f"{printable(path)} ({printable(before)} and {printable(label)})")
    repeats = sum(len(rows.paths) for rows in splits.values()) - len(seen) - len(conflicts)
    notes = []
    if conflicts:
        notes.append(
            f"warning: {len(conflicts)} row(s) give a picture a second label, such as {conflicts[0]}. If "
            "pictures may have several labels: --set data.multilabel=true"
        )
    if repeats:
        notes.append(f"warning: {repeats} row(s) name a picture that an earlier row already names")
    return notes


def _titles(folder: Path, order: list[str]) -> tuple[tuple[str, ...], list[str]]:
    """The class names, and a note about their file if they have one.

    Integer classes take their names from a file in the folder that names exactly these classes.
    """
    if not all(name.isdecimal() for name in order):
        return tuple(order), []
    for name in _CLASS_FILES:
        try:
            if not is_file(folder / name):
                continue
            text = read_text(folder / name)
            if name.endswith(".json"):
                found = {str(key): str(value) for key, value in json.loads(text).items()}
            else:
                lines = [line.strip() for line in text.splitlines() if line.strip()]
                found = {str(number): line for number, line in enumerate(lines)}
        except OSError as error:
            raise read_error(error, folder / name) from None
        except (ValueError, AttributeError, RecursionError):
            continue
        if set(found) == set(order) and len(set(found.values())) == len(found):
            return tuple(found[key] for key in order), [f"class names come from {name}"]
    return tuple(order), []


def _picture_place(root: Place, settings: DataSettings) -> Place:
    if not settings.images:
        return root
    inner = root.inside(settings.images)
    if root.unpacked and is_folder(inner.path):
        return inner
    for folder in (Path(settings.images).expanduser(), inner.path):
        if is_folder(folder):
            return Place(folder.absolute())
    raise DataError(f"data.images: there is no folder {settings.images!r}")


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
    """The tables in a folder and in its split folders, each with the folder that its paths start from."""
    found = []
    for path in inside(folder):
        if path.name.startswith("."):
            continue
        if (
            _is_table_name(path)
            and is_file(path)
            and (path.suffix.lower() != ".txt" or _LISTS.fullmatch(path.name))
        ):
            found.append((path, ""))
        elif split_word(path.name):
            inner = [path / name for name in _SPLIT_FOLDER_TABLES if is_file(path / name)]
            found += [(table, path.name) for table in inner[:1]]
    return found


def _is_manifest(path: Path, settings: DataSettings, folder: Place | None, labelled: bool = True) -> bool:
    """Whether a table's first rows name pictures.

    ``folder`` is None if the user named the table itself. A table found in a folder must also have labels,
    unless ``labelled`` is False.
    """
    named = folder is None
    try:
        table = _load(path, 200)
        columns = find_columns(table, settings)
    except DataError as error:
        return (named and path.suffix.lower() != ".txt") or "--label-column" in str(error)
    if len(table.names) > 300:
        return False
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
    return known and _any_picture(folder, cells)


def _any_picture(place: Place, cells: list[str]) -> bool:
    """Whether the folder, or a folder directly in it, has a picture that a cell names.

    From 200 cells on, any picture counts.
    """
    stems = {re.split(r"[/\\]", cell)[-1] for cell in cells}
    for folder in [place.path, *[path for path in inside(place.path) if is_folder(path)][:50]]:
        for name in _picture_names(folder, place):
            if len(cells) >= 200 or os.path.splitext(name)[0] in stems or name in stems:
                return True
    return False


def _picture_names(folder: Path, place: Place) -> list[str]:
    """The names of pictures among the first 1,000 files of a folder."""
    if place.unpacked is not None:
        prefix = "/".join(folder.relative_to(place.unpacked.folder).parts)
        return place.unpacked.pictures.by_folder.get(prefix, [])[:1000]
    with os.scandir(folder) as entries:
        return [entry.name for entry in islice(entries, 1000) if is_picture_name(entry.name)]


def class_folders(place: Place) -> bool:
    """Whether the folder, or its train folder, has two or more class folders with pictures."""
    folders = [path for path in inside(place.path) if is_folder(path) and not path.name.startswith(".")]
    base = [path for path in folders if split_word(path.name) == "train"] or [place.path]
    inner = [path for path in inside(base[0]) if is_folder(path) and not path.name.startswith((".", "__"))]
    inner = [path for path in inner if not split_word(path.name) and not _NO_CLASS.fullmatch(path.name)]
    return sum(bool(_picture_names(path, place)) for path in inner[:50]) >= 2


def _splits_by_table(place: Place, found: list[tuple[Path, str]], settings: DataSettings) -> bool:
    """Whether the test pictures are in no class folders and get their labels from a table, as in GTSRB."""
    tables = {split_of_name(path.stem) for path, _ in found if _is_manifest(path, settings, place)}
    tests = [path for path in inside(place.path) if split_word(path.name) == "test" and is_folder(path)]
    flat = any(bool(_picture_names(path, place)) and not any(map(is_folder, inside(path))) for path in tests)
    return {"train", "test"} <= tables and flat
