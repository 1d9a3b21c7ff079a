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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from thumbnet.data.images import open_image, to_rgb
from thumbnet.data.multilabel import MultiLabelSplit
from thumbnet.data.reading import first_line, is_file, is_not_there, is_of_the_system, read_error
from thumbnet.data.splits import ArraySplit, Data, FileSplit, Split
from thumbnet.errors import DataError, FailedReadError, UnreadableImageError, printable
from thumbnet.recipes.settings import AUTO
from thumbnet.sources.arrays import as_array, channels_last, class_labels, narrowed, pair_up, same_length
from thumbnet.sources.column_names import label_candidates
from thumbnet.sources.frames import is_frame, read_frame, several_in_cells, split_frame
from thumbnet.sources.label_matrices import label_matrices

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

    ``pixels_digest`` is set for a data set only.
    """

    pictures: Any
    labels: Any
    class_names: Sequence[str] | None = None
    pixels_digest: str = ""


def load_python(given: Any, class_names: Sequence[str] | None = None, multilabel: bool | str = AUTO) -> Data:
    """Build a data set from Python objects.

    Args:
        given: pictures and labels in one of the forms that ``EXPECTED`` describes.
        multilabel: see ``data.multilabel`` in :class:`~thumbnet.recipes.settings.DataSettings`.
        class_names: a network's class names. Labels that are numbers are positions in them, unless the
            network has classes by these names.

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
    stated = _stated_names(given) or next((p.class_names for p in parts.values() if p.class_names), None)
    labels = {split: part.labels for split, part in parts.items()}
    several = label_matrices(labels, stated or class_names, multilabel, IN_MEMORY)
    if several is None:
        names, numbers = _numbered(labels, stated, class_names)
    else:
        names = several[0]
        numbers = {split: np.zeros(len(rows), dtype=np.int64) for split, rows in several[1].items()}
    for split, part in parts.items():
        same_length(len(part.pictures), len(numbers[split]), f"{IN_MEMORY}, {split}")
    splits = _pictures(parts, numbers, notes)
    if several is not None:
        splits = {split: MultiLabelSplit(one, several[1][split]) for split, one in splits.items()}
    kinds = ", ".join(dict.fromkeys(_describe(split) for split in splits.values()))
    return Data(IN_MEMORY, kinds, names, splits, tuple(dict.fromkeys(notes)))


def _numbered(
    labels: Mapping[str, Any], stated: Sequence[str] | None, network: Sequence[str] | None
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    names, numbers = class_labels(labels, stated, IN_MEMORY)
    if network is None:
        return names, numbers
    if not set(names) <= set(network) and stated is None:
        return class_labels(labels, network, IN_MEMORY)
    if set(names) <= set(network):  # keep all of the network's classes, even if the data has just one
        position = np.array([list(network).index(name) for name in names], dtype=np.int64)
        return tuple(network), {split: position[part] for split, part in numbers.items()}
    return names, numbers


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
    plain = isinstance(one, str | bytes | Path | Mapping | tuple | list)
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
    elif hasattr(pictures, "to_numpy"):  # a column of paths
        pictures = pictures.tolist()
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
    first = b""
    for index in range(len(dataset)):
        picture, label = _item(dataset, index, where)
        pixels = _pixels(picture, f"{split}[{index}]")
        content = f"{pixels.shape}".encode() + pixels.tobytes()
        first = first or content
        digest.update(content)
        labels.append(label.item() if hasattr(label, "item") and np.ndim(label) == 0 else label)
    if not labels:
        raise DataError(f"{where}: the data set is empty")
    again = _pixels(_item(dataset, 0, where)[0], f"{split}[0]")
    if f"{again.shape}".encode() + again.tobytes() != first:
        notes.append(
            f"warning: {split}: the same item of the data set is a different picture each time. Remove its "
            "random transform: the recipe's augment settings do the same, but only in training"
        )
    return _Part(dataset, labels, _names_of(dataset), digest.hexdigest())


def _item(dataset: Any, index: int, where: str) -> tuple[Any, Any]:
    """Read an item's picture and label.

    Raises:
        DataError: the data set fails or returns something else.
    """
    try:
        item = dataset[index]
    except (MemoryError, UnreadableImageError, FailedReadError):
        raise
    except Exception as error:
        if is_of_the_system(error) and not is_not_there(error):
            raise read_error(error, f"item {index} of {where}") from None
        raise DataError(f"{where}: the data set fails at item {index}: {first_line(error)}") from None
    if isinstance(item, Mapping):
        pictures = [item[key] for key in ("image", "img", "picture", "pixels") if key in item]
        labels = label_candidates(map(str, item))
        if pictures and labels:
            return pictures[0], item[labels[0]]
        keys = ", ".join(printable(str(key)) for key in item)
        raise DataError(f"{where}: an item has the keys {keys}, expected 'image' and 'label'")
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise DataError(f"{where}: item {index} of the data set is not (picture, label)")
    return item[0], item[1]


def _names_of(dataset: Any) -> Sequence[str] | None:
    """The class names of a data set, or of the one that it is a subset of; None if they are not known."""
    for _ in range(5):
        positions = getattr(dataset, "class_to_idx", None)
        if isinstance(positions, Mapping) and sorted(positions.values()) == list(range(len(positions))):
            return [str(name) for name in sorted(positions, key=lambda name: int(positions[name]))]
        names = getattr(dataset, "classes", None)
        if isinstance(names, Sequence) and not isinstance(names, str) and len(names):
            return [str(name) for name in names]
        features = getattr(dataset, "features", None)
        labels = label_candidates(map(str, features)) if isinstance(features, Mapping) else []
        if features and labels and hasattr(features[labels[0]], "names"):
            return [str(name) for name in features[labels[0]].names]
        dataset = getattr(dataset, "dataset", None)
        if dataset is None:
            return None
    return None


# --- pictures ---------------------------------------------------------------------------------------------


def _pictures(
    parts: Mapping[str, _Part], labels: Mapping[str, np.ndarray], notes: list[str]
) -> dict[str, Split]:
    """Turn each part into a split."""
    arrays: dict[str, np.ndarray] = {}
    splits: dict[str, Split] = {}
    for split, part in parts.items():
        where = f"{IN_MEMORY}, {split}"
        pictures: Any = part.pictures
        if part.pixels_digest:
            splits[split] = DatasetSplit(
                pictures, np.arange(len(pictures)), labels[split], split, part.pixels_digest
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
    for split, images in narrowed(arrays, IN_MEMORY).items():
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
        pictures = [_tensor_as_array(as_array(one)) for one in pictures]
    if all(isinstance(one, np.ndarray) for one in pictures):
        if len({(one.shape, one.dtype) for one in pictures}) == 1:
            return np.stack(pictures)
        return [Image.fromarray(_pixels(one, f"{where}, picture {i}")) for i, one in enumerate(pictures)]
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


def _tensor_as_array(array: np.ndarray) -> np.ndarray:
    """Move the channels of a tensor [C, H, W] to the end; [H, W] stays unchanged."""
    return array.transpose(1, 2, 0) if array.ndim == 3 and array.shape[0] in (1, 3, 4) else array


def _pixels(picture: Any, name: str) -> np.ndarray:
    """Convert one picture to uint8 [H, W] or [H, W, C].

    Raises:
        UnreadableImageError: it is not a picture, or has floats outside [0, 1] or integers outside 0 to 255.
    """
    if isinstance(picture, Image.Image):
        return np.asarray(to_rgb(picture))
    if isinstance(picture, str | Path):
        return np.asarray(open_image(str(picture), str(picture)))
    array = as_array(picture)
    array = _tensor_as_array(array) if hasattr(picture, "detach") else array
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype == bool:
        array = array.astype(np.float32)
    shape_fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if not shape_fits or 0 in array.shape or array.dtype.kind not in "uif":
        raise UnreadableImageError(
            name,
            f"{array.dtype} {list(array.shape)} is not a picture: expected [H, W] or [H, W, C], or a tensor "
            "[C, H, W]",
        )
    if array.dtype.kind == "f":
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise UnreadableImageError(
                name,
                f"its values range from {array.min():.3g} to {array.max():.3g}, expected [0, 1] or uint8. "
                "Remove transforms such as Normalize: thumbnet measures mean and std itself",
            )
        array = np.rint(array * 255)
    elif array.min() < 0 or array.max() > 255:
        raise UnreadableImageError(
            name, f"its values range from {array.min()} to {array.max()}, expected 0 to 255"
        )
    return np.ascontiguousarray(array.astype(np.uint8))


class PicturesSplit(Split):
    """PIL pictures in memory, of any size and mode."""

    def __init__(
        self,
        pictures: Sequence[Image.Image],
        labels: np.ndarray,
        prefix: str,
        numbers: np.ndarray | None = None,
    ) -> None:
        """``numbers`` are the positions in the whole list, int [N], if these pictures are a part of it."""
        self.pictures, self.prefix = pictures, prefix
        self._numbers = np.arange(len(pictures)) if numbers is None else numbers
        self.labels = np.asarray(labels, dtype=np.int64)

    def name(self, index: int) -> str:
        return f"{self.prefix}[{self._numbers[index]}]"

    def key(self, index: int) -> str:
        """The name with the position in this split, so that older runs find the same held-out pictures."""
        return f"{self.prefix}[{index}]"

    def read(self, index: int) -> Image.Image:
        try:
            return to_rgb(self.pictures[index])
        except MemoryError:
            raise
        except Exception as error:  # Pillow opens files lazily: they may fail here
            if is_of_the_system(error) and not is_not_there(error):
                raise read_error(error, self.name(index)) from None
            raise UnreadableImageError(self.name(index), str(error) or type(error).__name__) from None

    def content(self, index: int) -> bytes:
        picture = self.read(index)
        return f"{picture.size}".encode() + picture.tobytes()

    def peek(self, index: int) -> tuple[tuple[int, int], str]:
        picture = self.read(index)
        return (picture.height, picture.width), self.pictures[index].mode

    def subset(self, indices: np.ndarray) -> PicturesSplit:
        pictures = [self.pictures[i] for i in indices]
        return PicturesSplit(pictures, self.labels[indices], self.prefix, self._numbers[indices])

    def content_stamp(self) -> Iterable[bytes]:
        return (self.content(index) for index in range(len(self)))


class DatasetSplit(Split):
    """Pictures that are read from a data set when they are needed.

    Args:
        dataset: ``dataset[i]`` returns a picture and a label.
        positions: the positions of this split's pictures in the data set, int [N].
        labels: int [N].
        prefix: pictures are named ``prefix[position]``.
        digest: a digest of all pictures in the data set.
    """

    def __init__(
        self, dataset: Any, positions: np.ndarray, labels: np.ndarray, prefix: str, digest: str
    ) -> None:
        self._dataset, self._positions, self.prefix, self._digest = dataset, positions, prefix, digest
        self.labels = np.asarray(labels, dtype=np.int64)

    def name(self, index: int) -> str:
        return f"{self.prefix}[{self._positions[index]}]"

    def load(self, index: int) -> np.ndarray:
        return np.asarray(self.read(index))

    def read(self, index: int) -> Image.Image:
        name = self.name(index)
        try:
            picture, _ = _item(self._dataset, int(self._positions[index]), self.prefix)
        except DataError as error:
            raise UnreadableImageError(name, str(error)) from None
        return to_rgb(Image.fromarray(_pixels(picture, name)))

    def content(self, index: int) -> bytes:
        picture = self.read(index)
        return f"{picture.size}".encode() + picture.tobytes()

    def peek(self, index: int) -> tuple[tuple[int, int], str]:
        picture = self.read(index)
        return (picture.height, picture.width), "RGB"

    def subset(self, indices: np.ndarray) -> DatasetSplit:
        chosen = self._positions[indices]
        return DatasetSplit(self._dataset, chosen, self.labels[indices], self.prefix, self._digest)

    def content_stamp(self) -> Iterable[bytes]:
        yield f"{self._digest}\0".encode()
        yield self._positions.astype(np.int64).tobytes()


def _describe(split: Split) -> str:
    split = split.reader()
    if isinstance(split, ArraySplit):
        return f"arrays of {split.images.shape[1]}x{split.images.shape[2]} pictures"
    if isinstance(split, FileSplit):
        return "paths of pictures"
    return "a list of pictures" if isinstance(split, PicturesSplit) else "a data set"
