"""Read STL-10 (Coates, Ng and Lee 2011) in its binary version: 96x96 pictures stored column by column."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from thumbnet.data.reading import is_file, is_folder, read_error
from thumbnet.data.splits import Data
from thumbnet.errors import DataError
from thumbnet.files import read_whole
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources.arrays import Arrays, data_from_arrays
from thumbnet.sources.place import Place
from thumbnet.sources.tiny_imagenet import read_lines

SIDE = 96
PICTURE_BYTES = 3 * SIDE * SIDE
CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
_FILES = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "unlabeled_X.bin", "class_names.txt")


def recognise(place: Place, settings: DataSettings) -> bool:
    """Whether ``place`` is a folder with STL-10's training pictures, or one of the files in it."""
    return _folder(place.path) is not None


def read(place: Place, source: str, settings: DataSettings) -> Data:
    """STL-10's labelled pictures, mapped into memory.

    Raises:
        DataError: a file is missing or cut short, or a label has no class.
    """
    folder = _folder(place.path)
    assert folder is not None
    arrays = Arrays(class_names=_class_names(folder))
    for split in ("train", "test"):
        pictures, labels = folder / f"{split}_X.bin", folder / f"{split}_y.bin"
        if split == "test" and not is_file(pictures) and not is_file(labels):
            continue
        if not is_file(labels):
            raise DataError(f"{pictures} has no labels: {labels.name} belongs in the same folder")
        try:
            stored = pictures.stat().st_size
            if stored == 0 or stored % PICTURE_BYTES:
                raise DataError(
                    f"{pictures} has {stored} bytes, not a multiple of {PICTURE_BYTES}: it is cut short or "
                    "damaged"
                )
            columns = np.memmap(pictures, np.uint8, "c").reshape(-1, 3, SIDE, SIDE)
            numbers = np.frombuffer(read_whole(labels), np.uint8).astype(np.int64)
        except OSError as error:
            raise read_error(error, pictures) from None
        except ValueError as error:
            raise DataError(f"cannot read {pictures}: {error}") from None
        arrays.images[split] = columns.transpose(0, 3, 2, 1)
        if len(numbers) and numbers.min() == 0:
            raise DataError(f"{labels} has the label 0, but STL-10's labels are 1 to 10")
        arrays.labels[split] = numbers - 1
    if is_file(folder / "unlabeled_X.bin"):
        arrays.notes.append("unlabeled_X.bin was left out: its pictures have no labels")
    return data_from_arrays(arrays, source, "STL-10, binary version", str(folder))


def _folder(path: Path) -> Path | None:
    """The folder with STL-10's files; None if ``path`` is neither it nor a file in it."""
    if is_file(path):
        path = path.parent if path.name in _FILES else path
    return path if is_folder(path) and is_file(path / _FILES[0]) else None


def _class_names(folder: Path) -> tuple[str, ...]:
    path = folder / "class_names.txt"
    if not is_file(path):
        return CLASSES
    names = tuple(line.strip() for line in read_lines(path) if line.strip())
    if len(set(names)) != len(names):
        raise DataError(f"{path} has the same class name twice")
    return names
