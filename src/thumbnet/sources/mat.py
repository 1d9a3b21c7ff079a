"""Read pictures and labels from MATLAB's ``.mat`` files: those of SVHN, and similar ones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from thumbnet.data.reading import inside, is_file, is_folder
from thumbnet.data.splits import Data
from thumbnet.errors import DataError, printable
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources.arrays import CHANNELS, Arrays, data_from_arrays, pair_up, part_of
from thumbnet.sources.matlab import numeric_arrays
from thumbnet.sources.place import Place, has_pictures

_SVHN = re.compile(r"(train|test|extra)_32x32\.mat", re.IGNORECASE)


def recognise(place: Place, settings: DataSettings) -> bool:
    """Whether ``place`` is a ``.mat`` file, or a folder with one and no pictures.

    A ``.mat`` file next to pictures may only be a list of them.
    """
    return bool(_files(place.path)) and (is_file(place.path) or not has_pictures(place))


def read(place: Place, source: str, settings: DataSettings) -> Data:
    """The pictures and labels in ``.mat`` files.

    Raises:
        DataError: a file is damaged, has version 7.3, or has no pictures and labels.
    """
    files = _files(place.path)
    folder = files[0].parent
    svhn = {match[1].lower(): path for path in files if (match := _SVHN.fullmatch(path.name))}
    if svhn and (is_folder(place.path) or place.path in svhn.values()):
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
        one = _orient(pair_up(numeric_arrays(path), str(path)))
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
        one = _orient(pair_up(numeric_arrays(path), str(path)))
        if len(one.images) != 1:
            raise DataError(
                f"{path} has pictures of {' and '.join(one.images)}, expected SVHN's arrays X and y"
            )
        (images,), (labels,) = one.images.values(), one.labels.values()
        labels = labels.reshape(-1) % 10
        split = "test" if part == "test" else "train"
        if split in arrays.images:
            if images.shape[1:] != arrays.images[split].shape[1:]:
                raise DataError(
                    f"{path} has pictures of another shape than the other files: {list(images.shape)}"
                )
            images = np.concatenate([arrays.images[split], images])
            labels = np.concatenate([arrays.labels[split], labels])
        arrays.images[split], arrays.labels[split] = images, labels
    arrays.notes.append("the label 10 means the digit 0")
    return data_from_arrays(arrays, source, "SVHN, MATLAB version", str(folder))


def _files(path: Path) -> list[Path]:
    if is_folder(path):
        return [p for p in inside(path) if p.suffix.lower() == ".mat" and is_file(p)]
    if path.suffix.lower() != ".mat" or not is_file(path):
        return []
    named = _SVHN.fullmatch(path.name)
    return [p for p in _files(path.parent) if _SVHN.fullmatch(p.name)] if named else [path]


def _orient(arrays: Arrays) -> Arrays:
    """Move the pictures to the first axis: MATLAB usually has them along the last."""
    for split, images in arrays.images.items():
        labels: Any = arrays.labels[split]
        count = max(labels.shape) if 1 in labels.shape or labels.ndim == 1 else labels.shape[0]
        if (images.ndim >= 3 and images.shape[0] != count and images.shape[-1] == count) or (
            images.ndim == 4 and images.shape[0] == images.shape[-1] == count and images.shape[2] in CHANNELS
        ):
            arrays.images[split] = np.moveaxis(images, -1, 0)
    return arrays
