"""Turn arrays of pictures and labels into :class:`Data`. idx, npz, mat and Python input share this code.

Pictures come as uint8, as wider integers or as floats, grey or in colour, channels first or last. Labels come
as numbers, names or one-hot rows. This module reads all these forms and refuses others with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from thumbnet.data.splits import ArraySplit, Data
from thumbnet.errors import DataError, printable
from thumbnet.sources.labels import lacking_help, notes_on_minus_one

CHANNELS = (1, 3, 4)
EXPECTED_PICTURES = "[N, H, W], [N, H, W, 1, 3 or 4] or [N, 3, H, W]"
EXPECTED_LABELS = "one whole number or name per picture ([N] or [N, 1]), or one-hot rows [N, classes]"
_CHUNK = 1024  # pictures converted at a time

_SPLITS = {
    "train": ("train", "training", "tr"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "te", "t10k"),
}
_ROLES = {
    "images": ("images", "image", "imgs", "img", "x", "pictures", "features", "pixels", "data"),
    "labels": ("labels", "label", "y", "targets", "target"),
}
_NAMES = ("class_names", "label_names", "target_names", "classnames", "names", "classes")
_GLUED = re.compile(r"([xy])(train|test|val|valid|tr|te)|(train|test|val|valid)([xy])", re.IGNORECASE)


@dataclass
class Arrays:
    """Pictures and labels by split, and what is known about them.

    Attributes:
        images: for each split, an array of pictures.
        labels: for each split, the pictures' classes: numbers, names or one-hot rows.
        class_names: the names of all classes, if known.
        notes: what the user should know.
    """

    images: dict[str, np.ndarray] = field(default_factory=dict)
    labels: dict[str, Any] = field(default_factory=dict)
    class_names: Sequence[str] | None = None
    notes: list[str] = field(default_factory=list)


def data_from_arrays(arrays: Arrays, source: str, layout: str, where: str | None = None) -> Data:
    """Build a data set of one class per picture from arrays.

    Args:
        arrays: pictures and labels; there must be a ``train`` split.
        source: what the user named.
        layout: a description of what was recognised.
        where: what error messages name, if not ``source``.

    Raises:
        DataError: the pictures or labels have no known form, or their numbers differ.
    """
    names, labels = class_labels(arrays.labels, arrays.class_names, where or source, arrays.notes)
    splits, notes = array_splits(arrays, labels, where or source)
    return Data(source, layout, names, dict(splits), tuple(notes))


def array_splits(
    arrays: Arrays, labels: Mapping[str, np.ndarray], where: str
) -> tuple[dict[str, ArraySplit], list[str]]:
    """The splits of arrays with ``labels`` (int64 [N] for each split), and notes.

    Raises:
        DataError: the pictures have no known form, or their number is not that of the labels.
    """
    notes = list(arrays.notes)
    if "train" not in arrays.images:
        found = ", ".join(arrays.images) or "nothing"
        raise DataError(f"{where}: there are no training pictures, only {found}")
    shaped = {
        split: channels_last(np.asanyarray(images), f"{where}, {split}", notes)
        for split, images in arrays.images.items()
    }
    for split, images in shaped.items():
        same_length(len(images), len(labels[split]), f"{where}, {split}")
    splits = {
        split: ArraySplit(images, labels[split], split) for split, images in narrowed(shaped, where).items()
    }
    return splits, list(dict.fromkeys(notes))


def same_length(pictures: int, labels: int, where: str) -> None:
    """Refuse a split with more or fewer labels than pictures."""
    if pictures != labels:
        raise DataError(f"{where}: there are {pictures:,} pictures but {labels:,} labels")


# --- pictures ---------------------------------------------------------------------------------------------


def channels_last(images: np.ndarray, where: str, notes: list[str], first: bool = False) -> np.ndarray:
    """Return a view of the pictures as [N, H, W] or [N, H, W, C].

    ``first`` decides where the shape is ambiguous: if it is True, channels come first.

    Raises:
        DataError: the array does not hold pictures.
    """
    shape = images.shape
    if images.dtype.kind not in "biuf":
        raise DataError(
            f"{where}: the pictures are an array of {images.dtype}, expected numbers (uint8, uint16 or float)"
        )
    if images.ndim == 2 and shape[1]:
        side = round(shape[1] ** 0.5)
        if side * side == shape[1] and side > 1:
            notes.append(f"each row of {shape[1]} values was read as a grey picture of {side}x{side}")
            return images.reshape(-1, side, side)
        raise DataError(
            f"{where}: the pictures are rows of {shape[1]} values, which do not make a square grey picture. "
            f"Reshape them to {EXPECTED_PICTURES}"
        )
    is_first = images.ndim == 4 and shape[1] in CHANNELS and (first or shape[3] not in CHANNELS)
    if is_first:
        if not first:
            notes.append(f"pictures of shape {list(shape)} were read as [N, channels, height, width]")
        images = images.transpose(0, 2, 3, 1)
    fits = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in CHANNELS)
    if not fits or 0 in images.shape[1:]:
        hint = ""
        if images.ndim == 4:
            hint = ". Volumes (3-D) and pictures with more than four channels are not supported"
        raise DataError(
            f"{where}: the pictures have the shape {list(shape)}, expected {EXPECTED_PICTURES}{hint}"
        )
    return images


def narrowed(images: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """Convert pictures to uint8 if those of all splits are whole numbers from 0 to 255.

    Otherwise they keep their type. Deep and float pictures are mapped to 0 to 255 when they are decoded, with
    one range that :mod:`thumbnet.data.survey` measures on the training split.

    Raises:
        DataError: some splits are uint8 and others are not.
    """
    if all(_are_bytes(part) for part in images.values()):
        return {split: part if part.dtype == np.uint8 else _to_bytes(part) for split, part in images.items()}
    bytes_only = [split for split, part in images.items() if part.dtype == np.uint8]
    if bytes_only:
        other = next(split for split in images if split not in bytes_only)
        raise DataError(
            f"{where}: the pictures of {bytes_only[0]} are uint8, but those of {other} are "
            f"{images[other].dtype}: give all splits the same type"
        )
    return dict(images)


def _chunks(images: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(images), _CHUNK):
        yield np.asarray(images[start : start + _CHUNK])


def _are_bytes(images: np.ndarray) -> bool:
    """Whether all values are whole numbers from 0 to 255.

    Except for uint8, False if no value is above 1, because 1 may then mean white.
    """
    if images.dtype == np.uint8:
        return True
    highest = 0.0
    for part in _chunks(images):
        if part.dtype.kind not in "iuf" or not np.isfinite(part).all():
            return False
        if part.min() < 0 or part.max() > 255 or (part.dtype.kind == "f" and (part != np.rint(part)).any()):
            return False
        highest = max(highest, float(part.max()))
    return highest > 1


def _to_bytes(images: np.ndarray) -> np.ndarray:
    converted = np.empty(images.shape, dtype=np.uint8)
    for start, part in zip(range(0, len(images), _CHUNK), _chunks(images), strict=True):
        converted[start : start + len(part)] = part
    return converted


# --- labels -----------------------------------------------------------------------------------------------


def class_labels(
    labels: Mapping[str, Any], class_names: Sequence[str] | None, where: str, notes: list[str]
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Return the class names, and each split's labels as positions in them, int64 [N].

    Args:
        labels: for each split, whole numbers, names or one-hot rows.
        class_names: the names of all classes, if known. Labels that are numbers are then positions in them.
        where: what error messages name.
        notes: gets what the user should know.

    Raises:
        DataError: labels have none of these forms, are not among the known classes, or do not occur in train.
    """
    values = {split: _flat(part, f"{where}, {split}", notes) for split, part in labels.items()}
    if class_names is None:
        one_hot = {np.shape(part)[1] for part in labels.values() if _is_wide(part)}
        if len(one_hot) == 1:
            class_names = [str(number) for number in range(one_hot.pop())]
    kinds = {part.dtype.kind == "U" for part in values.values() if len(part)}
    if len(kinds) > 1:
        raise DataError(f"{where}: the labels of some splits are numbers and those of others are names")
    if class_names is None:
        found = sorted({value for part in values.values() for value in np.unique(part).tolist()})
        class_names = [str(value) for value in found]
        position: dict[Any, int] = {value: number for number, value in enumerate(found)}
        if -1 in position:
            every = np.concatenate(list(values.values()))
            notes += notes_on_minus_one({str(value): int((every == value).sum()) for value in found})
    else:
        class_names = [str(name) for name in class_names]
        position = {number: number for number in range(len(class_names))}
        position.update({name.strip(): number for number, name in enumerate(class_names)})
        position.update({name: number for number, name in enumerate(class_names)})
    numbered = {}
    for split, part in values.items():
        distinct, inverse = np.unique(part, return_inverse=True)
        unknown = [value for value in distinct.tolist() if value not in position]
        if unknown:
            shown = ", ".join(printable(str(value)) for value in unknown[:10])
            raise DataError(
                f"{where}, {split}: the labels {shown} are not among the {len(class_names)} classes"
            )
        table = np.array([position[value] for value in distinct.tolist()], dtype=np.int64)
        numbered[split] = table[inverse.reshape(-1)] if len(part) else np.empty(0, dtype=np.int64)
    if "train" in numbered:
        trained = set(numbered["train"].tolist())
        for split, part in numbered.items():
            strange = sorted(set(part.tolist()) - trained)
            if strange:
                shown = ", ".join(printable(class_names[label]) for label in strange[:10])
                raise DataError(
                    f"{where}: {split} has classes that train lacks: {shown}. {lacking_help(split)}"
                )
    return tuple(class_names), numbered


def as_array(values: Any) -> np.ndarray:
    """Convert an array, tensor, series or list to a NumPy array.

    A list of texts and other things becomes an array of objects: NumPy would make the text ``nan`` of a NaN.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
        return np.asarray(values.numpy())
    if isinstance(values, np.ndarray):
        return values
    if hasattr(values, "to_numpy"):
        return np.asarray(values.to_numpy())
    try:
        array = np.asarray(values)
    except ValueError:  # rows of different lengths
        return _objects(values)
    mixed = array.dtype.kind == "U" and array.ndim == 1 and not all(isinstance(one, str) for one in values)
    return _objects(values) if mixed else array


def _objects(values: Any) -> np.ndarray:
    return np.asarray([*values, None], dtype=object)[:-1]


def _is_wide(labels: Any) -> bool:
    shape = np.shape(as_array(labels))
    return len(shape) == 2 and shape[1] > 1 and shape[0] > 1


def _flat(labels: Any, where: str, notes: list[str]) -> np.ndarray:
    """Flatten labels to whole numbers (int64) or names without outer spaces, [N].

    Raises:
        DataError: the labels are neither numbers nor names.
    """
    values = as_array(labels)
    if values.ndim == 2 and 1 in values.shape:
        values = values.reshape(-1)
    if values.ndim == 2:
        return _from_one_hot(values, where)
    if values.ndim != 1:
        raise DataError(
            f"{where}: the labels have the shape {list(values.shape)}, expected {EXPECTED_LABELS}"
        )
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "replace")
    if values.dtype.kind == "O":
        values = _from_objects(values, where)
    if values.dtype.kind == "f" and (not np.isfinite(values).all() or (values != np.rint(values)).any()):
        raise DataError(f"{where}: the labels are fractions or NaN, expected {EXPECTED_LABELS}")
    if values.dtype.kind not in "biufU":
        raise DataError(f"{where}: the labels are of type {values.dtype}, expected {EXPECTED_LABELS}")
    if values.dtype.kind != "U":
        largest = 2**53 if values.dtype.kind == "f" else np.iinfo(np.int64).max
        if values.dtype.kind in "uf" and np.abs(values).max(initial=0) > largest:
            raise DataError(f"{where}: the labels are too large to be classes, expected {EXPECTED_LABELS}")
        return values.astype(np.int64)
    stripped = np.char.strip(values)
    changed = np.flatnonzero(stripped != values)
    if len(changed):
        first = str(values[changed[0]])
        notes.append(
            f"{where}: {len(changed):,} label(s) lose the spaces around them: {printable(first)!r} is "
            f"{printable(first.strip())!r}"
        )
    return stripped


def _from_objects(values: np.ndarray, where: str) -> np.ndarray:
    """Convert labels that are Python objects to an array of whole numbers or names."""
    items = [item.item() if isinstance(item, np.generic) else item for item in values.tolist()]
    items = [item.decode("utf-8", "replace") if isinstance(item, bytes) else item for item in items]
    if all(isinstance(item, str) for item in items):
        return np.array(items, dtype=str)
    if all(isinstance(item, int) for item in items):
        if max(map(abs, items), default=0) > np.iinfo(np.int64).max:
            raise DataError(f"{where}: the labels are too large to be classes, expected {EXPECTED_LABELS}")
        return np.array(items, dtype=np.int64)
    odd = next((i for i, item in enumerate(items) if not isinstance(item, str | int)), None)
    what = "the labels are of mixed types" if odd is None else f"label {odd} is {items[odd]!r:.40}"
    raise DataError(f"{where}: {what}, expected {EXPECTED_LABELS}")


def _from_one_hot(values: np.ndarray, where: str) -> np.ndarray:
    if values.dtype.kind not in "biuf":
        raise DataError(
            f"{where}: the labels have the shape {list(values.shape)}, expected {EXPECTED_LABELS}"
        )
    ones = (values == 1).sum(axis=1)
    others = ((values != 0) & (values != 1)).any(axis=1)
    wrong = np.flatnonzero((ones != 1) | others)
    if len(wrong):
        if not others.any():
            reason = f"picture {wrong[0]} has {ones[wrong[0]]} classes, expected one"
            if ones.max() <= 1:  # in no row too many
                reason += ". If a picture may have no label, set data.multilabel = true"
        else:
            reason = f"expected {EXPECTED_LABELS}"
        raise DataError(f"{where}: the labels of shape {list(values.shape)} are not one-hot: {reason}")
    return values.argmax(axis=1).astype(np.int64)


# --- names of arrays --------------------------------------------------------------------------------------


def part_of(name: str) -> tuple[str, str | None, str | None]:
    """Parse an array's name into the rest of the name, its split and its role.

    The role is ``images``, ``labels`` or ``names`` (of the classes).

    >>> part_of("x_train"), part_of("kmnist-test-labels")
    (('', 'train', 'images'), ('kmnist', 'test', 'labels'))
    """
    if name.lower() in _NAMES:
        return "", None, "names"
    spaced = _GLUED.sub(lambda m: "_".join(part for part in m.groups() if part), name)
    tokens = re.findall(r"[A-Z]?[a-z]+\d*[a-z]*|[A-Z]+\d*|\d+", spaced)
    rest, split, role = [], None, None
    for token in tokens:
        word = token.lower()
        as_split = next((key for key, words in _SPLITS.items() if word in words), None)
        as_role = next((key for key, words in _ROLES.items() if word in words), None)
        if as_split and split is None:
            split = as_split
        elif as_role and (role is None or role == "images"):
            role = as_role if role is None or word not in ("data",) else role
        else:
            rest.append(word)
    return "-".join(rest), split, role


def pair_up(named: Mapping[str, Any], where: str) -> Arrays:
    """Find pictures and labels among named arrays, by their names or else by their shapes.

    A split other than train that has no labels is left out, with a note.

    Args:
        named: arrays, or other objects with a ``shape``. The result holds the chosen ones, unchanged.
        where: what error messages name.

    Raises:
        DataError: there is no clear match; the message says what was found and what is expected.
    """
    arrays = Arrays()
    for name, value in named.items():
        _, split, role = part_of(name)
        if role == "names" and len(value.shape) == 1:
            arrays.class_names = value
        elif role in ("images", "labels"):
            found = arrays.images if role == "images" else arrays.labels
            if (split or "train") in found:
                raise DataError(
                    f"{where}: it is unclear which of these arrays are the {role} of {split or 'train'}: "
                    f"{', '.join(map(printable, named))}"
                )
            found[split or "train"] = value
    if not arrays.images and not arrays.labels:
        _by_shape(named, arrays)
    for split in [split for split in arrays.images if split not in ("train", *arrays.labels)]:
        count = len(arrays.images.pop(split))
        arrays.notes.append(f"{split} has no labels, so its {count:,} picture(s) are not used")
    lacking = sorted(set(arrays.images) ^ set(arrays.labels))
    if lacking or not arrays.images:
        listing = ", ".join(f"{printable(name)} {list(value.shape)}" for name, value in named.items())
        what = "no pictures with labels were found"
        if lacking:
            what = f"{lacking[0]} has no {'labels' if lacking[0] in arrays.images else 'pictures'}"
        raise DataError(
            f"{where}: {what}. The arrays found: {listing or 'none'}. Expected pictures and labels under "
            "names such as x_train and y_train, train_images and train_labels, images and labels, data and "
            "target, X and y"
        )
    return arrays


def _by_shape(named: Mapping[str, Any], arrays: Arrays) -> None:
    """Assign arrays with meaningless names, such as those of ``numpy.savez(path, x, y)``, by their shapes."""
    pictures = [value for value in named.values() if len(value.shape) >= 3]
    labels = [value for value in named.values() if len(value.shape) in (1, 2)]
    if not pictures or len(pictures) != len(labels) or len(pictures) > 3:
        return
    order = {1: ("train",), 2: ("train", "test"), 3: ("train", "val", "test")}[len(pictures)]
    for split, x, y in zip(order, pictures, labels, strict=True):
        arrays.images[split], arrays.labels[split] = x, y
    arrays.notes.append(
        f"judging by their shapes, the arrays {', '.join(map(printable, named))} are "
        + ", ".join(f"pictures and labels of {split}" for split in order)
    )
