"""Read tables of pixels: Kaggle's Digit Recognizer, Sign Language MNIST, FER2013, A-Z Handwritten, ...

Each row is a picture. Its pixels fill one column each, or all of them are in one cell, as in FER2013.
"""

from __future__ import annotations

import csv
import math
import warnings
from itertools import islice
from pathlib import Path

import numpy as np

from thumbnet.data.reading import inside, is_file, is_folder, open_text
from thumbnet.data.splits import ArraySplit, Data, Split
from thumbnet.errors import DataError, printable
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources import manifest
from thumbnet.sources.columns import (
    class_names,
    in_class_order,
    label_candidates,
    named,
    split_of_name,
    split_word,
)
from thumbnet.sources.manifest import class_folders
from thumbnet.sources.place import Place
from thumbnet.sources.tables import Table, read_table

_MIN_PIXELS = 64  # 8x8
_SUFFIXES = (".csv", ".tsv")
_Read = tuple[np.ndarray, list[str] | None, list[str] | None]  # pixels [N, P], labels, splits


def recognise(place: Place, settings: DataSettings) -> bool:
    """Whether the place is a table of pixels, or a folder with one.

    A folder that also has class folders, or a table of picture files, does not count: in HAM10000 the tables
    of pixels are smaller copies of the pictures.
    """
    try:
        if is_folder(place.path) and (class_folders(place) or manifest.recognise(place, settings)):
            return False
        return any(_is_pixels(path) for path in _files(place.path))
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
    for path in _files(place.path):
        if not _is_pixels(path):
            notes.append(f"{printable(path.name)} was skipped: it has no pixels in its columns")
            continue
        pixels, labels, splits = _read_table(path, settings)
        if labels is None:
            if alone:
                raise DataError(
                    f"{printable(path.name)} has pixels but no label column. Pass a table with labels, "
                    "or name the column: --label-column NAME"
                )
            notes.append(f"{printable(path.name)} has no labels: its {len(pixels):,} rows were skipped")
            continue
        if "emnist" in path.name.lower():
            pixels = _upright(pixels)
            notes.append(
                f"{printable(path.name)}: EMNIST stores its pictures transposed; they are set upright"
            )
        by_row = splits or [split_of_name(path.stem) if not alone else "train"] * len(labels)
        used.append(f"{printable(path.name)} ({len(pixels):,} rows)")
        for split in dict.fromkeys(by_row):
            chosen = [row for row, name in enumerate(by_row) if name == split]
            if (split or "train") in found:
                raise DataError(
                    f"several tables have pixels for the split {split or 'train'!r}. "
                    "Pass the one to train on instead of the folder"
                )
            found[split or "train"] = (pixels[chosen], [labels[row] for row in chosen])
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
    source: str, used: list[str], found: dict[str, tuple[np.ndarray, list[str]]], notes: list[str]
) -> Data:
    names = class_names(label for _, labels in found.values() for label in labels)
    order, at = in_class_order(names)
    made: dict[str, Split] = {}
    shapes = []
    for split, (pixels, labels) in found.items():
        kept = [row for row, label in enumerate(labels) if label]
        if len(kept) < len(labels):
            notes.append(f"{split}: skipped {len(labels) - len(kept):,} row(s) without a label")
        images, shape = _images(pixels[kept], source)
        shapes.append(shape)
        made[split] = ArraySplit(images, np.array([at[labels[row]] for row in kept], dtype=np.int64), split)
    layout = f"pixels in {' + '.join(used)}: {shapes[0] if shapes else ''}"
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


def _is_pixels(path: Path) -> bool:
    try:
        table = read_table(path, 3)
    except DataError:
        return False
    return bool(_string_column(table)) or len(_pixel_columns(table)) >= _MIN_PIXELS


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

    They are all columns except those whose names suggest labels, ids or splits. If no name does and the
    columns do not make a square picture, the first one is taken as the label.
    """
    names = table.names
    if len(names) < _MIN_PIXELS or not all(_is_byte_like(cell) for row in table.rows for cell in row[1:-1]):
        return []
    ends = {names.index(name) for name in label_candidates(names)}
    ends |= {i for i, name in enumerate(names) if name.lower() in ("id", "", "index", "usage", "split")}
    chosen = [position for position in range(len(names)) if position not in ends]
    if len(chosen) == len(names) and not _is_square(len(chosen)):
        chosen = chosen[1:]
    return chosen if _is_square(len(chosen)) else []


def _is_square(count: int) -> bool:
    return math.isqrt(count) ** 2 == count or (count % 3 == 0 and math.isqrt(count // 3) ** 2 * 3 == count)


def _is_byte_like(cell: str) -> bool:
    return cell.replace(".", "", 1).lstrip("-").isdigit()


def _read_table(path: Path, settings: DataSettings) -> _Read:
    head = read_table(path, 3)
    column = _string_column(head)
    if column:
        return _read_strings(path, column, settings)
    chosen = _pixel_columns(head)
    others = [i for i in range(len(head.names)) if i not in set(chosen)]
    by_name = label_candidates(head.names[i] for i in others)
    label = settings.label_column or (by_name[0] if by_name else "" if head.header else head.names[0])
    if label and (label not in head.names or head.names.index(label) not in others):
        raise DataError(f"{printable(path.name)} has no label column {label!r} (data.label_column)")
    at = head.names.index(label) if label else -1
    pixels, labels = [], []
    line = 1 + head.header
    try:
        with open_text(path, "utf-8-sig", newline="") as file:
            first = file.readline()
            separator = max(",;\t", key=first.count)
            lines = [] if head.header else [first]
            while lines := lines + list(islice(file, 1000)):
                block, found = _block(path, lines, separator, line, (chosen, at, len(head.names)))
                pixels.append(block)
                labels += found
                line += len(lines)
                lines = []
    except UnicodeDecodeError as error:
        raise DataError(f"{printable(str(path))} is not text: {error}") from None
    if not pixels:
        raise DataError(f"{printable(path.name)} has no rows")
    return np.concatenate(pixels), (labels if label else None), None


def _block(
    path: Path, lines: list[str], separator: str, first: int, columns: tuple[list[int], int, int]
) -> tuple[np.ndarray, list[str]]:
    """Parse lines into pixels, uint8 [N, P], and labels. ``first`` is the number of the first line.

    ``columns`` has the positions of the pixels, the position of the label (-1 if there is no label), and the
    number of cells per row.
    """
    chosen, at, width = columns
    rows, labels = [], []
    for number, line in enumerate(lines, first):
        row = line.strip("\r\n").replace('"', "")
        if not row.strip():
            continue
        if row.count(separator) != width - 1:
            raise DataError(
                f"{printable(str(path))}, line {number}: {row.count(separator) + 1} cells instead of {width}"
            )
        if at == 0:
            label, _, row = row.partition(separator)
        elif at == width - 1:
            row, _, label = row.rpartition(separator)
        else:
            label = row.split(separator)[at] if at > 0 else ""
        if len(chosen) < width - (at in (0, width - 1)):
            cells = line.strip("\r\n").replace('"', "").split(separator)
            row = separator.join([cells[i] for i in chosen])
        labels.append(label.strip())
        rows.append(row)
    values = _numbers(separator.join(rows), separator)
    if values is None or values.size != len(rows) * len(chosen):
        last = first + len(lines) - 1
        raise DataError(f"{printable(str(path))}, lines {first} to {last}: a cell is not a number")
    return _as_bytes(values.reshape(len(rows), len(chosen)), path, first), labels


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


def _read_strings(path: Path, column: str, settings: DataSettings) -> _Read:
    table = read_table(path)
    rest = [name for name in table.names if name != column]
    label = settings.label_column or next(iter(label_candidates(rest)), "")
    if label and label not in rest:
        raise DataError(f"{printable(path.name)} has no label column {label!r} (data.label_column)")
    usage = next(iter(named(rest, ("usage", "split", "set", "subset"))), "")
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
    splits = [split_word(cell) or "train" for cell in table.column(usage)] if usage else None
    return np.concatenate(pixels), (table.column(label) if label else None), splits
