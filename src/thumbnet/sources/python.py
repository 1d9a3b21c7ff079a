"""Read data given as Python objects: arrays, tensors, lists of pictures or paths, data sets, data frames.

```python
thumbnet.train((images, labels))
thumbnet.train(((x_train, y_train), (x_test, y_test)))
thumbnet.train({"train": dataset, "test": (images, labels)})
```
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from thumbnet.data.multilabel import MultiLabelSplit
from thumbnet.data.reading import is_file
from thumbnet.data.spelling import places_in
from thumbnet.data.splits import ArraySplit, Data, FileSplit, Split
from thumbnet.errors import DataError, printable, some_of
from thumbnet.recipes.settings import AUTO
from thumbnet.sources.arrays import as_array, channels_last, class_labels, narrowed, pair_up, same_length
from thumbnet.sources.column_names import label_candidates
from thumbnet.sources.frames import is_frame, read_frame, several_in_cells, split_frame
from thumbnet.sources.label_matrices import label_matrices
from thumbnet.sources.objects import (
    DatasetSplit,
    PicturesSplit,
    decode_item,
    exceeds_bytes,
    picture_array,
    read_item,
    stamp_of,
    tensor_as_array,
)

IN_MEMORY = "data in Python"
"""The ``source`` of data that was given as Python objects."""

EXPECTED = (
    "Expected (images, labels); ((x_train, y_train), (x_test, y_test)); {'train': (images, labels), 'test': "
    "...}; a data set with __len__ and __getitem__, which returns (picture, label), or a Dataset of the Hub; "
    "or a pandas frame with a column of paths, one of labels and possibly one of splits. Images are an array "
    "[N, H, W] or [N, H, W, C], a tensor "
    "[N, C, H, W], or a list of PIL pictures, arrays or paths"
)
_SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_ORDER = {1: ("train",), 2: ("train", "test"), 3: ("train", "val", "test")}


@dataclass(frozen=True)
class _Part:
    """One split as the user gave it: its pictures (an array, a list or a data set) and its labels.

    The rest is set for a data set only: its class names, if they are known; whether its labels may not be
    positions in these, because something changed them; a digest of its pictures; and whether some of these
    are arrays of uint16 with values above 255.
    """

    pictures: Any
    labels: Any
    class_names: Sequence[str] | None = None
    relabelled: bool = False
    pixels_digest: str = ""
    deep: bool = False


def load_python(
    given: Any,
    class_names: Sequence[str] | None = None,
    multilabel: bool | str = AUTO,
    limits: tuple[float, float] | None = None,
) -> Data:
    """Build a data set from Python objects.

    Args:
        given: pictures and labels in one of the forms that ``EXPECTED`` describes.
        multilabel: see ``data.multilabel`` in :class:`~thumbnet.recipes.settings.DataSettings`.
        class_names: a network's class names. Labels that are numbers are positions in them, unless the
            network has classes by these names.
        limits: the range of values that a network expects of pictures of more than 8 bits, if it was trained
            on such. Arrays then keep their type: whole numbers from 0 to 255 are dark pictures.

    Raises:
        DataError: ``given`` has another form; the message says what was expected.
    """
    notes: list[str] = []
    values = _splits(given, notes)
    parts = {split: _part(value, split, notes) for split, value in values.items()}
    frames = [split for split in parts if is_frame(values[split])]
    parts |= _labelled(parts, frames, multilabel, notes)
    unlabelled = [split for split in frames if not len(parts[split].labels)]
    if "train" in unlabelled:
        raise DataError(f"{IN_MEMORY}, train: no row of the frame has a label")
    parts = {split: part for split, part in parts.items() if split not in unlabelled}
    if "train" not in parts:
        raise DataError(f"{IN_MEMORY}: there is no split 'train', only {', '.join(parts)}. {EXPECTED}")
    stated, labels = _stated_names(given), {split: part.labels for split, part in parts.items()}
    if stated is None:
        stated, labels = _joined_names(parts, notes)
    several = label_matrices(labels, stated or class_names, multilabel, IN_MEMORY)
    if several is None:
        names, numbers = _numbered(labels, stated, class_names, notes)
        if stated is not None and class_names is None:
            _note_unused(names, numbers["train"], notes)
    else:
        names = several[0]
        numbers = {split: np.zeros(len(rows), dtype=np.int64) for split, rows in several[1].items()}
    for split, part in parts.items():
        same_length(len(part.pictures), len(numbers[split]), f"{IN_MEMORY}, {split}")
    splits = _pictures(parts, numbers, notes, limits)
    if several is not None:
        splits = {split: MultiLabelSplit(one, several[1][split]) for split, one in splits.items()}
    kinds = ", ".join(dict.fromkeys(_describe(split) for split in splits.values()))
    return Data(IN_MEMORY, kinds, names, splits, tuple(dict.fromkeys(notes)))


def _joined_names(
    parts: Mapping[str, _Part], notes: list[str]
) -> tuple[Sequence[str] | None, dict[str, Any]]:
    """The names of all classes, if data sets tell them, and each split's labels as positions in these.

    A data set's numbers are positions in its own names, and those of another one may lack a class or have
    another order. Numbers of a split that has no names are positions in the names of the others.

    Raises:
        DataError: the names of the data sets differ, and the labels of one are no positions in its own.
    """
    labels = {split: part.labels for split, part in parts.items()}
    named: dict[str, list[str]] = {}
    for split, part in parts.items():
        if part.class_names and part.relabelled:
            notes.append(
                f"{split}: the class names of its data set are not used: its labels differ from those that "
                "the data set keeps, or cannot be compared with them, because of a target_transform or a "
                "data set around it. To name the classes, give {'train': ..., 'class_names': [...]}"
            )
        elif part.class_names:
            named[split] = list(part.class_names)
    if not named or parts["train"].relabelled:
        return None, labels
    first = "train" if "train" in named else next(iter(named))
    names = list(named[first])
    for split, own in named.items():
        if own != names[: len(own)]:
            labels[split] = _renumbered(parts[split].labels, own, names, f"{IN_MEMORY}, {split}")
    for split, part in parts.items():
        if split not in named and as_array(part.labels).dtype.kind in "biuf":
            notes.append(
                f"{split}: its labels are numbers without names, read as positions in the class names of "
                f"{first}: {some_of(names)}"
            )
    return names, labels


def _renumbered(labels: Sequence[Any], own: Sequence[str], names: list[str], where: str) -> list[Any]:
    """Labels that are positions in ``own`` as positions in ``names``; labels that are names stay.

    ``names`` gets the classes that it lacks, if they occur.
    """
    are_names = all(isinstance(label, str) for label in labels)
    if not are_names and not all(isinstance(label, int) and 0 <= label < len(own) for label in labels):
        raise DataError(
            f"{where}: the class names of this data set are not those of the others, and its labels are not "
            "positions in them. Give all data sets the same classes"
        )
    words = list(labels) if are_names else [own[label] for label in labels]
    used = set(words)
    names += [name for name in own if name in used and name not in names]
    position = {name: number for number, name in enumerate(names)}
    return words if are_names else [position[word] for word in words]


def _note_unused(names: Sequence[str], numbers: np.ndarray, notes: list[str]) -> None:
    """Say which named classes have no training pictures. The network has outputs for them all the same."""
    counts = np.bincount(numbers, minlength=len(names)).tolist()
    unused = [name for name, count in zip(names, counts, strict=True) if not count]
    if unused:
        notes.append(
            f"{len(unused)} of the {len(names)} classes have no training pictures: {some_of(unused)}"
        )


def _numbered(
    labels: Mapping[str, Any], stated: Sequence[str] | None, network: Sequence[str] | None, notes: list[str]
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    names, numbers = class_labels(labels, stated, IN_MEMORY, notes)
    if network is None:
        return names, numbers
    places = places_in(network, names)
    if None not in places:  # keep all of the network's classes, even if the data has just one
        position = np.array(places, dtype=np.int64)
        return tuple(network), {split: position[part] for split, part in numbers.items()}
    return class_labels(labels, network, IN_MEMORY, []) if stated is None else (names, numbers)


# --- what was given ---------------------------------------------------------------------------------------


def _splits(given: Any, notes: list[str]) -> dict[str, Any]:
    """What the user gave for each split."""
    if isinstance(given, Mapping):
        known = {str(key): _SPLIT_NAMES.get(str(key).lower()) for key in given}
        if any(known.values()):
            odd = [key for key, split in known.items() if split is None and key != "class_names"]
            if odd:
                raise DataError(
                    f"{IN_MEMORY}: the key {printable(odd[0])!r} is not a split: expected train, val or test "
                    "(and optionally class_names)"
                )
            return {split: given[key] for key, split in known.items() if split}
        paired = pair_up({str(key): as_array(value) for key, value in given.items()}, IN_MEMORY)
        notes += paired.notes
        return {split: (paired.images[split], paired.labels[split]) for split in paired.images}
    if isinstance(given, tuple | list) and len(given) in (2, 3):
        if all(_is_pair(one) or _is_dataset(one) or is_frame(one) for one in given):
            return dict(zip(_ORDER[len(given)], given, strict=True))
        if len(given) == 2:
            return {"train": tuple(given)}
    if is_frame(given):
        return split_frame(given, IN_MEMORY, notes)
    if _is_dataset(given):
        return {"train": given}
    if hasattr(given, "shape"):
        raise DataError(f"{IN_MEMORY}: an array alone has no labels. {EXPECTED}")
    hint = ""
    if hasattr(given, "dataset") and hasattr(given, "__iter__"):
        hint = "This looks like a DataLoader: pass its data set, loader.dataset. "
    raise DataError(f"{IN_MEMORY}: a {type(given).__name__} is not a data set. {hint}{EXPECTED}")


def _is_pair(one: Any) -> bool:
    """Whether this is (images, labels), not a list of pictures or of labels."""
    if not isinstance(one, tuple) or len(one) != 2 or isinstance(one[0], str | Image.Image):
        return False
    return hasattr(one[0], "__len__") and hasattr(one[1], "__len__") and not isinstance(one[1], str)


def _is_dataset(one: Any) -> bool:
    # A column of a data set of the Hub is a sequence, too.
    plain = isinstance(one, bytes | Path | Mapping | Sequence)
    # The Hub's data sets have a shape, as arrays and frames do, but neither of these.
    is_array = hasattr(one, "dtype") or hasattr(one, "dtypes")
    return not plain and not is_array and hasattr(one, "__getitem__") and hasattr(one, "__len__")


def _stated_names(given: Any) -> Sequence[str] | None:
    names = given.get("class_names") if isinstance(given, Mapping) else None
    return None if names is None else [str(name) for name in names]


def _part(given: Any, split: str, notes: list[str]) -> _Part:
    where = f"{IN_MEMORY}, {split}"
    if is_frame(given):
        return _Part(*read_frame(given, where, notes))
    if _is_dataset(given):
        return _from_dataset(given, split, where, notes)
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise DataError(f"{where}: a {type(given).__name__} is not a split. {EXPECTED}")
    pictures, labels = given
    if isinstance(labels, str) or not hasattr(labels, "__len__"):
        raise DataError(f"{where}: expected labels, got a {type(labels).__name__}. {EXPECTED}")
    if hasattr(pictures, "detach"):  # a tensor: channels come first
        pictures = channels_last(as_array(pictures), where, [], first=True)
    elif hasattr(pictures, "columns"):  # a frame with the pixels of a picture in each row
        pictures = as_array(pictures)
    elif hasattr(pictures, "to_numpy"):  # a column of paths or pictures
        pictures = list(pictures)
    elif isinstance(pictures, str | bytes) or not hasattr(pictures, "__len__"):
        raise DataError(f"{where}: expected pictures, got a {type(pictures).__name__}. {EXPECTED}")
    return _Part(pictures, labels)


def _labelled(
    parts: Mapping[str, _Part], frames: Sequence[str], multilabel: bool | str, notes: list[str]
) -> dict[str, _Part]:
    """The splits that came as frames, without the rows that have no label, unless there are several each.

    A split without any label loses all of its rows.
    """
    cells = {split: parts[split].labels for split in frames}
    several = several_in_cells(cells, multilabel, IN_MEMORY, notes) if len(frames) == len(parts) else None
    found = {}
    for split in frames:
        labels = cells[split] if several is None else several[split]
        kept = [row for row, label in enumerate(cells[split]) if not isinstance(label, str) or label]
        if several is not None and kept:
            kept = list(range(len(labels)))  # the others are pictures without any of the labels
        if len(kept) < len(labels):
            notes.append(f"{IN_MEMORY}, {split}: skipped {len(labels) - len(kept):,} row(s) without a label")
        found[split] = _Part([parts[split].pictures[row] for row in kept], [labels[row] for row in kept])
    return found


def _from_dataset(dataset: Any, split: str, where: str, notes: list[str]) -> _Part:
    """Read the labels of a data set in torchvision's or the Hub's style, and a digest of its pictures.

    It goes through the items one at a time and keeps no pictures in memory.
    """
    labels: list[Any] = []
    digest = hashlib.blake2b(digest_size=16)
    first, deep = b"", False
    for index in range(len(dataset)):
        picture, label = read_item(dataset, index, where)
        is_deep = exceeds_bytes(picture)
        deep |= is_deep
        content = stamp_of(decode_item(picture, f"{split}[{index}]", deep=is_deep))
        first = first or content
        digest.update(content)
        labels.append(label.item() if hasattr(label, "item") and np.ndim(label) == 0 else label)
    if not labels:
        raise DataError(f"{where}: the data set is empty")
    again = read_item(dataset, 0, where)[0]
    if stamp_of(decode_item(again, f"{split}[0]", deep=exceeds_bytes(again))) != first:
        notes.append(
            f"warning: {split}: the same item of the data set is a different picture each time. Remove its "
            "random transform: the recipe's augment settings do the same, but only in training"
        )
    return _Part(dataset, labels, *_names_of(dataset, labels), digest.hexdigest(), deep)


def _names_of(dataset: Any, labels: Sequence[Any]) -> tuple[Sequence[str] | None, bool]:
    """The class names of a data set, or of one that it wraps, and whether its labels may be others.

    A ``target_transform`` or a data set around the named one may have changed ``labels``. So they are
    compared with those that the named one keeps. If it keeps none, only a Subset is trusted.
    """
    positions: np.ndarray | None = np.arange(len(labels))
    wrapped = may_differ = False
    for _ in range(5):
        may_differ |= getattr(dataset, "target_transform", None) is not None
        names = _own_names(dataset)
        if names is not None:
            if not wrapped and not may_differ:
                return names, False
            kept = _picked(_kept_labels(dataset), positions)
            return names, _are_others(labels, names, kept, unknown=may_differ)
        inner = getattr(dataset, "dataset", None)
        if inner is None:
            break
        if hasattr(dataset, "indices"):  # as a Subset of PyTorch has
            positions = _picked(dataset.indices, positions)
        else:
            may_differ = True
            if not hasattr(inner, "__len__") or len(inner) != len(dataset):
                positions = None
        wrapped, dataset = True, inner
    return None, False


def _are_others(
    labels: Sequence[Any], names: Sequence[str], kept: np.ndarray | None, *, unknown: bool
) -> bool:
    """Whether labels differ from the ``kept`` ones, which are positions in ``names``.

    The answer is ``unknown`` if they cannot be compared. Labels that are names need no comparison.
    """
    if all(isinstance(label, str) for label in labels):
        return not set(labels) <= set(names)
    if kept is None or not all(isinstance(label, int) for label in labels):
        return unknown
    return list(labels) != kept.tolist()


def _kept_labels(dataset: Any) -> Any:
    """The labels that a data set keeps, in torchvision's or the Hub's style; None if there are none."""
    for name in ("targets", "labels", "_labels"):
        kept = getattr(dataset, name, None)
        if kept is not None:
            return kept
    column = _label_column(dataset)
    if not column:
        return None
    try:
        plain = dataset.with_format(None) if hasattr(dataset, "with_format") else dataset
        return plain[column][:]
    except Exception:  # another library's data set, which may raise anything
        return None


def _picked(values: Any, positions: np.ndarray | None) -> np.ndarray | None:
    """``values[positions]``; None if ``values`` are not whole numbers in a row, or too few."""
    if values is None or positions is None:
        return None
    found = as_array(values)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        return None
    return found[positions] if ((positions >= 0) & (positions < len(found))).all() else None


def _own_names(dataset: Any) -> Sequence[str] | None:
    """The class names that a data set has itself, in torchvision's or the Hub's style."""
    positions = getattr(dataset, "class_to_idx", None)
    if isinstance(positions, Mapping) and sorted(positions.values()) == list(range(len(positions))):
        return [str(name) for name in sorted(positions, key=lambda name: int(positions[name]))]
    names = getattr(dataset, "classes", None)
    if isinstance(names, Sequence) and not isinstance(names, str) and len(names):
        return [str(name) for name in names]
    column = _label_column(dataset)
    if column and hasattr(dataset.features[column], "names"):
        return [str(name) for name in dataset.features[column].names]
    return None


def _label_column(dataset: Any) -> str:
    """The column of labels of a data set in the Hub's style; empty if there is none."""
    features = getattr(dataset, "features", None)
    return next(iter(label_candidates(map(str, features))), "") if isinstance(features, Mapping) else ""


# --- pictures ---------------------------------------------------------------------------------------------


def _pictures(
    parts: Mapping[str, _Part],
    labels: Mapping[str, np.ndarray],
    notes: list[str],
    limits: tuple[float, float] | None,
) -> dict[str, Split]:
    """Turn each part into a split. If one data set is deep, or the network is, all are."""
    deep = limits is not None or any(part.deep for part in parts.values())
    arrays: dict[str, np.ndarray] = {}
    splits: dict[str, Split] = {}
    for split, part in parts.items():
        where = f"{IN_MEMORY}, {split}"
        pictures: Any = part.pictures
        if part.pixels_digest:
            splits[split] = DatasetSplit(
                pictures, np.arange(len(pictures)), labels[split], split, part.pixels_digest, deep=deep
            )
            continue
        if not isinstance(pictures, np.ndarray):
            pictures = _listed(list(pictures), where)
        if isinstance(pictures, np.ndarray):
            arrays[split] = channels_last(pictures, where, notes)
        elif all(isinstance(one, str) for one in pictures):
            splits[split] = _files(pictures, labels[split], where)
        else:
            splits[split] = PicturesSplit(pictures, labels[split], split)
    kept = arrays if limits is not None else narrowed(arrays, IN_MEMORY)
    for split, images in kept.items():
        splits[split] = ArraySplit(images, labels[split], split)
    return {split: splits[split] for split in parts}


def _listed(pictures: list[Any], where: str) -> np.ndarray | list[str] | list[Image.Image]:
    """Turn a list of pictures into one array, absolute paths or PIL pictures.

    Arrays become one array if they share a shape and a type, and PIL pictures otherwise.
    """
    if not pictures:
        raise DataError(f"{where}: the list of pictures is empty")
    if all(isinstance(one, str | Path) for one in pictures):
        return [os.path.abspath(os.path.expanduser(one)) for one in pictures]
    if all(isinstance(one, Image.Image) for one in pictures):
        return pictures
    if all(hasattr(one, "detach") for one in pictures):
        pictures = [tensor_as_array(as_array(one)) for one in pictures]
    if all(isinstance(one, np.ndarray) for one in pictures):
        if len({(one.shape, one.dtype) for one in pictures}) == 1:
            return np.stack(pictures)
        return [
            Image.fromarray(picture_array(one, f"{where}, picture {i}")) for i, one in enumerate(pictures)
        ]
    if all(isinstance(one, list | tuple) for one in pictures):  # numbers in nested lists
        return as_array(pictures)
    kinds = ", ".join(sorted({type(one).__name__ for one in pictures}))
    raise DataError(f"{where}: a list of {kinds} is not a list of pictures. {EXPECTED}")


def _files(paths: list[str], labels: np.ndarray, where: str) -> FileSplit:
    missing = [path for path in paths if not is_file(path)]
    if missing:
        raise DataError(
            f"{where}: {len(missing):,} of {len(paths):,} files do not exist, such as {missing[0]}"
        )
    try:
        root = os.path.commonpath([os.path.dirname(path) for path in paths])
    except ValueError:  # two drives of Windows have no folder in common
        return FileSplit(Path(os.path.dirname(paths[0])), paths, labels)
    return FileSplit(Path(root), [os.path.relpath(path, root) for path in paths], labels)


def _describe(split: Split) -> str:
    split = split.reader()
    if isinstance(split, ArraySplit):
        return f"arrays of {split.images.shape[1]}x{split.images.shape[2]} pictures"
    if isinstance(split, FileSplit):
        return "paths of pictures"
    return "a list of pictures" if isinstance(split, PicturesSplit) else "a data set"
