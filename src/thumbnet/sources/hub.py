"""``hf:OWNER/NAME``: any image-classification data set of the Hugging Face Hub, by ``datasets``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from thumbnet.data.splits import BytesSplit, Data, Split
from thumbnet.errors import DataError, MissingExtraError, nearest

_SPLIT_NAMES = {"train": "train", "validation": "val", "valid": "val", "val": "val", "test": "test"}


def load_hub(name: str, source: str, cache: Path | None) -> Data:
    """A data set of the Hub with one image column and one class-label column.

    Args:
        name: ``OWNER/NAME``, with ``:CONFIG`` where it has several and ``#COLUMN`` where it has
            several labels, as in ``hf:uoft-cs/cifar100#coarse_label``.
        source: what the user wrote.
        cache: where to keep it; None is the library's own place.

    Raises:
        MissingExtraError: the library ``datasets`` is not installed.
        DataError: it cannot be had, or is not of that kind.
    """
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("reading from the Hugging Face Hub", "hub") from None
    path, _, label_column = name.partition("#")
    path, _, config = path.partition(":")
    try:
        tables = datasets.load_dataset(path, config or None, cache_dir=str(cache) if cache else None)
    except Exception as error:  # the library raises a different class for every way to fail
        first = str(error).strip().split("\n")[0]
        raise DataError(f"cannot load {source} from the Hub: {first or type(error).__name__}") from None
    splits: dict[str, Split] = {}
    class_names: tuple[str, ...] = ()
    notes = []
    for split_name, table in tables.items():
        target = _SPLIT_NAMES.get(str(split_name))
        if target is None or target in splits:
            notes.append(f"the Hub's split {split_name!r} was left out")
            continue
        image_column, labels, class_names = _columns(table, label_column, source, datasets)
        encoded = table.cast_column(image_column, datasets.Image(decode=False))[image_column]
        files, names = [], []
        for index, item in enumerate(encoded):
            content = item["bytes"] if item["bytes"] is not None else Path(item["path"]).read_bytes()
            files.append(content)
            names.append(
                f"{target}[{index}]" if not item.get("path") else f"{target}/{item['path']}[{index}]"
            )
        splits[target] = BytesSplit(files, labels, names)
    if "train" not in splits:
        raise DataError(
            f"{source}: the Hub's data set has no train split, only {', '.join(map(str, tables))}"
        )
    return Data(source, "Hugging Face Hub", class_names, splits, tuple(notes))


def _columns(
    table: Any, label_column: str, source: str, datasets: Any
) -> tuple[str, np.ndarray, tuple[str, ...]]:
    """The image column's name, the labels [N], and the class names."""
    features = table.features
    images = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if label_column and label_column not in labels:
        raise DataError(f"{source}: no class-label column {label_column!r}. {nearest(label_column, labels)}")
    if not images or not labels:
        listing = ", ".join(f"{key} ({type(kind).__name__})" for key, kind in features.items())
        raise DataError(f"{source} is no image-classification data set: its columns are {listing}")
    # CIFAR-100's come as fine_label, coarse_label: the first is the one that is meant.
    column = label_column or labels[0]
    values = np.asarray(table[column], dtype=np.int64)
    if values.size and values.min() < 0:
        raise DataError(f"{source}: {int((values < 0).sum())} pictures have no label (-1)")
    return images[0], values, tuple(features[column].names)
