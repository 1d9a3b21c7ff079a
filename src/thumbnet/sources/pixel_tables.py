"""Read tables of pixels: Kaggle's Digit Recognizer, Sign Language MNIST, FER2013, A-Z Handwritten, ...

Each row is a picture. Its pixels fill one column each, or all of them are in one cell, as in FER2013.
"""

from __future__ import annotations

import csv
import math
import re
import warnings
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from thumbnet.data.reading import inside, is_file, is_folder, open_text
from thumbnet.data.splits import ArraySplit, Data, Split
from thumbnet.errors import DataError, printable
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources import manifest
from thumbnet.sources.column_names import label_candidates, split_candidates
from thumbnet.sources.columns import marks_pictures
from thumbnet.sources.labels import check_in_train, class_names, in_class_order, one_spelling
from thumbnet.sources.place import Place
from thumbnet.sources.split_columns import row_splits, split_column, split_of_name
from thumbnet.sources.table_files import class_folders
from thumbnet.sources.table_splits import note_on_unreadable
from thumbnet.sources.tables import EMPTY, Table, read_table

_MIN_PIXELS = 64  # 8x8
_SUFFIXES = (".csv", ".tsv")
_INDEX = re.compile(r"id|index|unnamed: \d+")  # pandas calls a column without a name Unnamed: 0


class _Read(NamedTuple):
    """A table of pixels.

    Attributes:
        pixels: uint8 [N, P].
        labels: each row's label; None if the table has no labels.
        splits: each row's split, empty if it is unknown; None if the table has no column of splits.
        notes: what the user should know.
        others: the names of the columns that are not pixels.
    """

    pixels: np.ndarray
    labels: list[str] | None
    splits: list[str] | None
    notes: list[str]
    others: list[str]


def recognise(place: Place, settings: DataSettings) -> bool:
    """Whether the place is a table of pixels, or a folder with one.

    A folder that also has class folders, or a table of picture files, does not count: in HAM10000 the tables
    of pixels are smaller copies of the pictures.
    """
    try:
        if is_folder(place.path) and (class_folders(place) or manifest.recognise(place, settings)):
            return False
        return any(map(_has_pixels, _files(place.path)))
    except (DataError, ValueError, csv.Error, RecursionError):
        return False


def read(place: Place, source: str, settings: DataSettings) -> Data:
    """Read the pictures in one table of pixels, or in one table per split.

    Raises:
        DataError: a cell is not a whole number from 0 to 255, rows differ in length, or there are no labels.
    """
    alone = is_file(place.path)
    notes: list[str] = []
    found: dict[str, tuple[np.ndarray, list[str]]] = {}
    used: list[str] = []
    unlabelled: list[str] = []
    tables: list[Path] = []
    for path in _files(place.path):
        try:
            if _is_pixels(path):
                tables.append(path)
            else:
                notes.append(f"{printable(path.name)} was skipped: it has no pixels in its columns")
        except DataError as error:
            notes.append(note_on_unreadable(path, "", error))
    names_train = any(split_of_name(path.stem) == "train" for path in tables)
    for path in tables:
        name = printable(path.name)
        table = _read_table(path, settings)
        pixels, labels, splits = table.pixels, table.labels, table.splits
        if labels is None:
            columns = f" (columns other than pixels: {', '.join(table.others)})" if table.others else ""
            wanted = f" {settings.label_column!r}" if settings.label_column else ""
            unlabelled.append(f"{name} has pixels but no label column{printable(wanted + columns)}")
            notes.append(f"{name} has no labels: its {len(pixels):,} rows were skipped")
            continue
        named_split = "train" if alone else split_of_name(path.stem)
        if names_train and not splits and not named_split:
            notes.append(f"{name} was skipped: its name does not mention a split")
            continue
        notes += table.notes
        if "emnist" in path.name.lower():
            pixels = _upright(pixels)
            notes.append(f"{name}: EMNIST stores its pictures transposed; they are set upright")
        by_row = splits or [named_split or "train"] * len(labels)
        used.append(f"{name} ({len(pixels):,} rows)")
        for split in dict.fromkeys(filter(None, by_row)):
            chosen = [row for row, name in enumerate(by_row) if name == split]
            if split in found:
                raise DataError(
                    f"several tables have pixels for the split {split!r}. "
                    "Pass the one to train on instead of the folder"
                )
            found[split] = (pixels[chosen], [labels[row] for row in chosen])
    if not found and unlabelled:
        raise DataError(
            f"{'; '.join(unlabelled)}. Pass a table with labels, or name the column: --label-column NAME"
        )
    of_train = [path.name for path in _files(place.path) if split_of_name(path.stem) == "train"]
    if of_train and found and "train" not in found:
        raise DataError(
            f"{', '.join(used)} would be trained on, because the table of train is not used: "
            f"{'; '.join(notes)}. To train on another table, name it instead of the folder"
        )
    if len(found) == 1:
        found = {"train": next(iter(found.values()))}
    return _data(source, used, found, notes)


def _upright(pixels: np.ndarray) -> np.ndarray:
    """EMNIST's grey pictures, [N, side * side], with rows and columns swapped."""
    side = math.isqrt(pixels.shape[1])
    if side * side != pixels.shape[1]:
        return pixels
    return np.ascontiguousarray(pixels.reshape(-1, side, side).transpose(0, 2, 1)).reshape(len(pixels), -1)


def _data(
    source: str, tables: list[str], found: dict[str, tuple[np.ndarray, list[str]]], notes: list[str]
) -> Data:
    kept = {
        split: [row for row, label in enumerate(labels) if label not in EMPTY]
        for split, (_, labels) in found.items()
    }
    notes += [
        f"{split}: skipped {len(found[split][1]) - len(rows):,} row(s) without a label"
        for split, rows in kept.items()
        if len(rows) < len(found[split][1])
    ]
    kept = {split: rows for split, rows in kept.items() if rows or split == "train"}
    used = {split: [found[split][1][row] for row in rows] for split, rows in kept.items()}
    respelt, more = one_spelling(used)
    notes += more
    used = {split: [respelt.get(label, label) for label in labels] for split, labels in used.items()}
    names = class_names(label for labels in used.values() for label in labels)
    check_in_train(used, names, source)
    order, at = in_class_order(names)
    images = {split: _images(found[split][0][rows], source) for split, rows in kept.items()}
    made: dict[str, Split] = {
        split: ArraySplit(images[split][0], np.array([at[label] for label in labels], dtype=np.int64), split)
        for split, labels in used.items()
    }
    shape = next((shape for _, shape in images.values()), "")
    layout = f"pixels in {' + '.join(tables)}: {shape}"
    return Data(source, layout, tuple(order), made, tuple(notes))


def _images(pixels: np.ndarray, source: str) -> tuple[np.ndarray, str]:
    """Reshape uint8 [N, P] to [N, side, side, 3], and describe the shape.

    Three channels may be stored plane after plane, as in CIFAR, or interleaved.
    """
    count = pixels.shape[1]
    side = math.isqrt(count)
    if side * side == count:
        grey = pixels.reshape(-1, side, side, 1)
        return np.repeat(grey, 3, axis=3), f"{side}x{side} grey"
    side = math.isqrt(count // 3)
    if 3 * side * side == count:
        planes = pixels.reshape(-1, 3, side, side)
        interleaved = pixels.reshape(-1, side, side, 3)
        # Neighbouring pixels are alike, so the right order is the one with smaller differences.
        sample = slice(0, 200)
        roughness = [
            np.abs(np.diff(a.astype(np.int16), axis=axis)).mean()
            for a, axis in ((planes[sample], 3), (interleaved[sample], 2))
        ]
        if roughness[0] <= roughness[1]:
            return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), f"{side}x{side}, plane after plane"
        return np.ascontiguousarray(interleaved), f"{side}x{side} RGB"
    raise DataError(f"{source}: {count} pixels per row do not make a square picture, grey or in colour")


def _files(path: Path) -> list[Path]:
    files = [path] if is_file(path) else inside(path)
    return [file for file in files if file.suffix.lower() in _SUFFIXES and is_file(file)]


def _has_pixels(path: Path) -> bool:
    """Whether a file is a table of pixels; False if it cannot be read."""
    try:
        return _is_pixels(path)
    except DataError:
        return False


def _is_pixels(path: Path) -> bool:
    """Whether a table holds pixels, by its first rows.

    Raises:
        DataError: they cannot be read.
    """
    table = read_table(path, 3)
    if _string_column(table):
        return True
    return len(_pixel_columns(table)) >= _MIN_PIXELS and not marks_pictures(table)


def _string_column(table: Table) -> str:
    """The column whose cells each hold all pixels of a picture, as in FER2013; empty if there is none."""
    for name in table.names:
        cells = table.column(name)
        if cells and all(
            len(cell.split()) >= _MIN_PIXELS and cell.replace(" ", "").isdigit() for cell in cells
        ):
            return name
    return ""


def _pixel_columns(table: Table) -> list[int]:
    """The positions of the columns of pixels, empty if the table has none.

    They are all columns of numbers except those whose names suggest labels, ids or splits. If these do not
    make a square picture, the first one is taken as the label.
    """
    names = table.names
    ends = {names.index(name) for name in (*label_candidates(names), *split_candidates(names))}
    ends |= {at for at, name in enumerate(names) if _INDEX.fullmatch(name.lower()) or _is_unnamed(table, at)}
    chosen = [
        at for at in range(len(names)) if at not in ends and all(_is_byte_like(row[at]) for row in table.rows)
    ]
    if chosen[:1] == [0] and not _is_square(len(chosen)):
        chosen = chosen[1:]
    return chosen if len(chosen) >= _MIN_PIXELS and _is_square(len(chosen)) else []


def _is_unnamed(table: Table, at: int) -> bool:
    """Whether the header has no name for a column, as that of pandas' index."""
    return table.header and table.names[at] == f"column {at + 1}"


def _is_square(count: int) -> bool:
    return math.isqrt(count) ** 2 == count or (count % 3 == 0 and math.isqrt(count // 3) ** 2 * 3 == count)


def _is_byte_like(cell: str) -> bool:
    return cell.replace(".", "", 1).lstrip("-").isdigit()


def _read_table(path: Path, settings: DataSettings) -> _Read:
    head = read_table(path, 3)
    column = _string_column(head)
    chosen = [] if column else _pixel_columns(head)
    pixels_at = {head.names.index(column)} if column else set(chosen)
    others = [name for at, name in enumerate(head.names) if at not in pixels_at]
    split = split_column({name: head.column(name) for name in others if name != settings.label_column})
    label = _label_column(head, [name for name in others if name != split], settings)
    wanted = [name for name in (label, split) if name]
    if column:
        pixels, cells = _read_strings(path, column, wanted)
    else:
        pixels, cells = _read_columns(path, head, chosen, wanted)
    splits, notes = row_splits(split, cells[split], printable(path.name)) if split else (None, [])
    labels = cells.get(label)
    if labels and not head.header and label == head.names[0] and not settings.label_column:
        pixels, labels, end = _label_at_an_end(pixels, labels)
        notes.append(f"{printable(path.name)} has no header: its {end} column was taken as the labels")
    return _Read(pixels, labels, splits, notes, others)


def _label_at_an_end(pixels: np.ndarray, labels: list[str]) -> tuple[np.ndarray, list[str], str]:
    """Move the labels to the last column if only that one has numbers from 0 or 1 without gaps."""
    last = pixels[:, -1]
    if _are_classes(set(labels)) or not _are_classes(set(map(str, last.tolist()))):
        return pixels, labels, "first"
    first = _numbers(",".join(labels), ",")
    if first is None or len(first) != len(labels) or ((first < 0) | (first > 255)).any():
        return pixels, labels, "first"
    return np.column_stack([first.astype(np.uint8), pixels[:, :-1]]), list(map(str, last.tolist())), "last"


def _are_classes(values: set[str]) -> bool:
    """Whether the values are two or more numbers from 0 or 1 on, without gaps."""
    numbers = sorted(int(value) for value in values if value.isdecimal())
    return len(numbers) == len(values) > 1 and numbers in (
        list(range(len(numbers))),
        list(range(1, 1 + len(numbers))),
    )


def _label_column(head: Table, others: list[str], settings: DataSettings) -> str:
    """The column with the labels, by the settings, its name or its cells; empty if there is none."""
    if settings.label_column:
        return settings.label_column if settings.label_column in others else ""
    texts = [name for name in others if not all(map(_is_byte_like, head.column(name)))]
    candidates = label_candidates(others) or ([] if head.header else texts or others)
    return candidates[0] if candidates else ""


def _read_columns(
    path: Path, head: Table, chosen: list[int], wanted: list[str]
) -> tuple[np.ndarray, dict[str, list[str]]]:
    """The pixels in the columns at ``chosen``, uint8 [N, P], and the cells of the ``wanted`` columns."""
    at = [head.names.index(name) for name in wanted]
    blocks = []
    cells: list[list[str]] = []
    line = 1 + head.header
    try:
        with open_text(path, "utf-8-sig", newline="") as file:
            first = file.readline()
            separator = max(",;\t", key=first.count)
            lines = [] if head.header else [first]
            while lines := lines + list(islice(file, 1000)):
                block, found = _block(path, lines, separator, line, (chosen, at, len(head.names)))
                blocks.append(block)
                cells += found
                line += len(lines)
                lines = []
    except UnicodeDecodeError as error:
        raise DataError(f"{printable(str(path))} is not text: {error}") from None
    if not blocks:
        raise DataError(f"{printable(path.name)} has no rows")
    return np.concatenate(blocks), {name: [row[i] for row in cells] for i, name in enumerate(wanted)}


def _block(
    path: Path, lines: list[str], separator: str, first: int, columns: tuple[list[int], list[int], int]
) -> tuple[np.ndarray, list[list[str]]]:
    """Parse lines into pixels, uint8 [N, P], and the cells of other columns of each row.

    ``first`` is the number of the first line. ``columns`` has the positions of the pixels, those of the other
    columns that are wanted, and the number of cells per row.
    """
    chosen, wanted, width = columns
    only_label = len(wanted) == 1 and len(chosen) == width - 1
    rows, others = [], []
    for number, line in enumerate(lines, first):
        row = line.strip("\r\n").replace('"', "")
        if not row.strip():
            continue
        if row.count(separator) != width - 1:
            raise DataError(
                f"{printable(str(path))}, line {number}: {row.count(separator) + 1} cells instead of {width}"
            )
        if only_label and wanted[0] == 0:  # faster than to split the row
            label, _, row = row.partition(separator)
            other = [label]
        elif only_label and wanted[0] == width - 1:
            row, _, label = row.rpartition(separator)
            other = [label]
        else:
            cells = row.split(separator)
            other = [cells[at] for at in wanted]
            row = separator.join([cells[at] for at in chosen])
        others.append([cell.strip() for cell in other])
        rows.append(row)
    values = _numbers(separator.join(rows), separator)
    if values is None or values.size != len(rows) * len(chosen):
        last = first + len(lines) - 1
        raise DataError(f"{printable(str(path))}, lines {first} to {last}: a cell is not a number")
    return _as_bytes(values.reshape(len(rows), len(chosen)), path, first), others


def _numbers(text: str, separator: str) -> np.ndarray | None:
    """The numbers in a text, or None if it holds anything else. Parsing whole numbers first is faster."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        for kind in (np.int64, np.float64):
            try:
                return np.fromstring(text, dtype=kind, sep=separator)
            except (ValueError, DeprecationWarning):
                continue
    return None


def _as_bytes(values: np.ndarray, path: Path, first: int) -> np.ndarray:
    good = (values >= 0) & (values <= 255) & (values == np.floor(values))
    if not good.all():
        row, column = np.argwhere(~good)[0]
        raise DataError(
            f"{printable(str(path))}, near line {first + row}: {values[row, column]:g} is not a pixel; "
            "expected whole numbers from 0 to 255"
        )
    return values.astype(np.uint8)


def _read_strings(path: Path, column: str, wanted: list[str]) -> tuple[np.ndarray, dict[str, list[str]]]:
    """The pixels in the cells of one column, uint8 [N, P], and the cells of the ``wanted`` columns."""
    table = read_table(path)
    pixels: list[np.ndarray] = []
    for line, cell in zip(table.lines, table.column(column), strict=True):
        try:
            row = np.array(cell.split(), dtype=np.float64)
        except ValueError:
            raise DataError(f"{printable(str(path))}, line {line}: a pixel is not a number") from None
        if pixels and len(row) != pixels[0].shape[1]:
            raise DataError(
                f"{printable(str(path))}, line {line}: {len(row)} pixels instead of {pixels[0].shape[1]}"
            )
        pixels.append(_as_bytes(row[None], path, line))
    return np.concatenate(pixels), {name: table.column(name) for name in wanted}
