"""Read STL-10 (Coates, Ng and Lee 2011) in its binary version: 96x96 pictures stored column by column."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from thumbnet.data.splits import Data
from thumbnet.errors import DataError
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources.arrays import Arrays, data_from_arrays
from thumbnet.sources.place import Place

SIDE = 96
PICTURE_BYTES = 3 * SIDE * SIDE
CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
_FILES = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "unlabeled_X.bin", "class_names.txt")


def recognise(place: Place, settings: DataSettings) -> bool:
    """Whether ``place`` is a folder with STL-10's training pictures, or one of the files in it."""
    try:
        return _folder(place.path) is not None
    except OSError:
        return False


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
        if split == "test" and not pictures.is_file() and not labels.is_file():
            continue
        if not labels.is_file():
            raise DataError(f"{pictures} has no labels: {labels.name} belongs in the same folder")
        try:
            stored = pictures.stat().st_size
            if stored == 0 or stored % PICTURE_BYTES:
                raise DataError(
                    f"{pictures} has {stored} bytes, not a multiple of {PICTURE_BYTES}: it is cut short or "
                    "damaged"
                )
            columns = np.memmap(pictures, np.uint8, "c").reshape(-1, 3, SIDE, SIDE)
            numbers = np.fromfile(labels, np.uint8).astype(np.int64)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise DataError(f"cannot read {getattr(error, 'filename', None) or folder}: {reason}") from None
        arrays.images[split] = columns.transpose(0, 3, 2, 1)
        if len(numbers) and numbers.min() == 0:
            raise DataError(f"{labels} has the label 0, but STL-10's labels are 1 to 10")
        arrays.labels[split] = numbers - 1
    if (folder / "unlabeled_X.bin").is_file():
        arrays.notes.append("unlabeled_X.bin was left out: its pictures have no labels")
    return data_from_arrays(arrays, source, "STL-10, binary version", str(folder))


def _folder(path: Path) -> Path | None:
    """The folder with STL-10's files; None if ``path`` is neither it nor a file in it."""
    if path.is_file():
        path = path.parent if path.name in _FILES else path
    return path if path.is_dir() and (path / _FILES[0]).is_file() else None


def _class_names(folder: Path) -> tuple[str, ...]:
    path = folder / "class_names.txt"
    if not path.is_file():
        return CLASSES
    try:
        names = tuple(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from None
    if len(set(names)) != len(names):
        raise DataError(f"{path} has the same class name twice")
    return names
