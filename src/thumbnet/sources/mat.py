"""Read pictures and labels from MATLAB's ``.mat`` files with SciPy: those of SVHN, and similar ones."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from thumbnet.data.splits import Data
from thumbnet.errors import DataError, MissingExtraError, printable
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources.archives import MAX_EXPANSION
from thumbnet.sources.arrays import CHANNELS, Arrays, data_from_arrays, pair_up, part_of
from thumbnet.sources.place import Place, has_pictures

_SVHN = re.compile(r"(train|test|extra)_32x32\.mat", re.IGNORECASE)
_HDF5 = b"\x89HDF\r\n\x1a\n"
_NUMBERS = {
    "uint8",
    "int8",
    "uint16",
    "int16",
    "uint32",
    "int32",
    "uint64",
    "int64",
    "single",
    "double",
    "logical",
}


def recognise(place: Place, settings: DataSettings) -> bool:
    """Whether ``place`` is a ``.mat`` file, or a folder with one and no pictures.

    A ``.mat`` file next to pictures may only be a list of them.
    """
    return bool(_files(place.path)) and (place.path.is_file() or not has_pictures(place))


def read(place: Place, source: str, settings: DataSettings) -> Data:
    """The pictures and labels in ``.mat`` files.

    Raises:
        MissingExtraError: SciPy is not installed.
        DataError: a file is damaged, has version 7.3, or has no pictures and labels.
    """
    files = _files(place.path)
    folder = files[0].parent
    svhn = {match[1].lower(): path for path in files if (match := _SVHN.fullmatch(path.name))}
    if svhn and (place.path.is_dir() or place.path in svhn.values()):
        return _read_svhn(svhn, place.path.name.lower().startswith("extra"), source, folder)
    if len(files) > 1:
        splits = {part_of(path.stem)[1] for path in files}
        if None in splits or len(splits) != len(files):
            names = ", ".join(printable(path.name) for path in files[:10])
            raise DataError(
                f"{folder} has several .mat files: {names}. Name the file with the pictures and labels"
            )
    paired = Arrays()
    for path in files:
        one = _orient(pair_up(_load(path), str(path)), path)
        for split in one.images:
            key = split if len(files) == 1 else str(part_of(path.stem)[1])
            paired.images[key], paired.labels[key] = one.images[split], one.labels[split]
        paired.notes += one.notes
    return data_from_arrays(paired, source, "MATLAB arrays", str(files[0] if len(files) == 1 else folder))


def _read_svhn(files: dict[str, Path], with_extra: bool, source: str, folder: Path) -> Data:
    """Street View House Numbers: X [32, 32, 3, N], y [N, 1]. Labels are 1 to 10; 10 means the digit 0."""
    arrays = Arrays(class_names=[str(digit) for digit in range(10)])
    for part, path in files.items():
        if part == "extra" and not with_extra:
            arrays.notes.append(f"{path.name} was left out; to train on it too, name it: {path}")
            continue
        one = _orient(pair_up(_load(path), str(path)), path)
        if len(one.images) != 1:
            raise DataError(f"{path} has pictures of {' and '.join(one.images)}, expected SVHN's arrays X and y")
        (images,), (labels,) = one.images.values(), one.labels.values()
        labels = labels.reshape(-1) % 10
        split = "test" if part == "test" else "train"
        if split in arrays.images:
            if images.shape[1:] != arrays.images[split].shape[1:]:
                raise DataError(f"{path} has pictures of another shape than the other files: {list(images.shape)}")
            images = np.concatenate([arrays.images[split], images])
            labels = np.concatenate([arrays.labels[split], labels])
        arrays.images[split], arrays.labels[split] = images, labels
    arrays.notes.append("the label 10 means the digit 0")
    return data_from_arrays(arrays, source, "SVHN, MATLAB version", str(folder))


def _files(path: Path) -> list[Path]:
    try:
        if path.is_dir():
            return sorted(p for p in path.iterdir() if p.suffix.lower() == ".mat" and p.is_file())
        if path.suffix.lower() != ".mat" or not path.is_file():
            return []
        named = _SVHN.fullmatch(path.name)
        return [p for p in _files(path.parent) if _SVHN.fullmatch(p.name)] if named else [path]
    except OSError:
        return []


def _load(path: Path) -> dict[str, np.ndarray]:
    """The arrays of numbers in a file, by name.

    Raises:
        MissingExtraError: SciPy is not installed.
        DataError: the file is damaged, has version 7.3, or declares more values than it can hold.
    """
    try:
        from scipy.io import loadmat, whosmat
    except ImportError:
        raise MissingExtraError(f"reading {path.name}", "formats") from None
    try:
        with path.open("rb") as file:
            head = file.read(520)
        if head.startswith((b"MATLAB 7.3", _HDF5)) or head[512:] == _HDF5:
            raise DataError(
                f"{path} is a MATLAB file of version 7.3 (HDF5), which thumbnet cannot read. In MATLAB, save "
                "it with save(FILE, ..., '-v7'). In Python, read it with h5py and save it with numpy.savez"
            )
        found = [(name, shape) for name, shape, kind in whosmat(path) if kind in _NUMBERS]
        limit = MAX_EXPANSION * path.stat().st_size + (1 << 20)
        if sum(math.prod(map(int, shape)) for _, shape in found) > limit:
            raise DataError(f"{path} declares more values than its {path.stat().st_size:,} bytes can hold")
        loaded = loadmat(path, variable_names=[name for name, _ in found])
        return {name: loaded[name] for name, _ in found}
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:  # SciPy can raise almost any exception for a damaged file
        reason = str(error).split("\n")[0] or type(error).__name__
        raise DataError(f"{path} is not a MATLAB file, or is damaged: {printable(reason)}") from None


def _orient(arrays: Arrays, path: Path) -> Arrays:
    """Move the pictures to the first axis: MATLAB usually has them along the last."""
    for split, images in arrays.images.items():
        labels: Any = arrays.labels[split]
        count = max(labels.shape) if 1 in labels.shape or labels.ndim == 1 else labels.shape[0]
        if (images.ndim >= 3 and images.shape[0] != count and images.shape[-1] == count) or (
            images.ndim == 4 and images.shape[0] == images.shape[-1] == count and images.shape[2] in CHANNELS
        ):
            arrays.images[split] = np.moveaxis(images, -1, 0)
    return arrays
