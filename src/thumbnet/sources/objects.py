"""Pictures that are Python objects: PIL pictures in a list, and the items of a data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from thumbnet.data.images import Picture, decode_given, load_picture, to_rgb
from thumbnet.data.reading import first_line, is_not_there, is_of_the_system, read_error
from thumbnet.data.rendering import ALPHA_MODES, BY_TYPE, Rendering, is_deep
from thumbnet.data.splits import Split
from thumbnet.errors import DataError, FailedReadError, UnreadableImageError, printable
from thumbnet.sources.arrays import as_array
from thumbnet.sources.column_names import label_candidates

_ON_BLACK = Rendering(background=(0, 0, 0))


def read_item(dataset: Any, index: int, where: str) -> tuple[Any, Any]:
    """Read the picture and the label of a data set's item.

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


def tensor_as_array(array: np.ndarray) -> np.ndarray:
    """Move the channels of a tensor [C, H, W] to the end; [H, W] stays unchanged."""
    return array.transpose(1, 2, 0) if array.ndim == 3 and array.shape[0] in (1, 3, 4) else array


def exceeds_bytes(picture: Any) -> bool:
    """Whether a picture is an array or tensor of uint16 with a value above 255."""
    kind = str(getattr(picture, "dtype", "")).removeprefix("torch.")
    return kind == "uint16" and bool(as_array(picture).max(initial=0) > 255)


def picture_array(picture: Any, name: str, *, deep: bool = False) -> np.ndarray:
    """Convert an array or tensor to a picture, uint8 [H, W] or [H, W, C]; uint16 stays as it is if ``deep``.

    Raises:
        UnreadableImageError: it is not a picture, or has floats outside [0, 1] or integers outside 0 to 255.
    """
    array = as_array(picture)
    array = tensor_as_array(array) if hasattr(picture, "detach") else array
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
    if deep and array.dtype == np.uint16:
        return np.ascontiguousarray(array)
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


def decode_item(picture: Any, name: str, *, deep: bool) -> Picture:
    """Decode a data set's picture, at the full depth of a file or a PIL picture.

    Args:
        picture: an array, a tensor, a PIL picture or a path.
        name: its name in errors.
        deep: see :func:`picture_array`.

    Raises:
        UnreadableImageError, FailedReadError: it cannot be decoded, or is not a picture.
    """
    if isinstance(picture, Image.Image):
        return decode_given(picture, name)
    if isinstance(picture, str | Path):
        return load_picture(str(picture), str(picture))
    return picture_array(picture, name, deep=deep)


def stamp_of(picture: Picture) -> bytes:
    """Bytes that tell a decoded picture from others: the shape and the pixels of an array, else RGB."""
    pixels = picture if isinstance(picture, np.ndarray) else np.asarray(BY_TYPE.rgb(picture))
    return f"{pixels.shape}".encode() + pixels.tobytes() + _hidden(picture)


def _rgb_stamp(picture: Picture) -> bytes:
    """Bytes that tell a decoded picture from others, the same for each form in which it may be given."""
    rgb = to_rgb(picture)
    return f"{rgb.size}".encode() + rgb.tobytes() + _hidden(picture)


def _hidden(picture: Picture) -> bytes:
    """What rendering by type does not tell of a picture; nothing if it is opaque and has 8 bits."""
    if is_deep(picture):
        values = np.asarray(picture)
        return f"{values.dtype} {values.shape}".encode() + values.tobytes()
    if isinstance(picture, np.ndarray):
        may_be_clear = picture.shape[2:] == (4,)
    else:
        may_be_clear = picture.mode in ALPHA_MODES or "transparency" in picture.info
    if not may_be_clear:
        return b""
    on_white, on_black = (np.asarray(how.rgb(picture)).tobytes() for how in (BY_TYPE, _ON_BLACK))
    return b"" if on_black == on_white else on_black


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
        self.threadable = len({id(picture) for picture in pictures}) == len(pictures)
        self._numbers = np.arange(len(pictures)) if numbers is None else numbers
        self.labels = np.asarray(labels, dtype=np.int64)

    def name(self, index: int) -> str:
        return f"{self.prefix}[{self._numbers[index]}]"

    def key(self, index: int) -> str:
        """The name with the position in this split, so that older runs find the same held-out pictures."""
        return f"{self.prefix}[{index}]"

    def load(self, index: int) -> Image.Image:
        return decode_given(self.pictures[index], self.name(index))

    def content(self, index: int) -> bytes:
        return _rgb_stamp(self.load(index))

    def peek(self, index: int) -> tuple[tuple[int, int], str]:
        picture = self.load(index)
        return (picture.height, picture.width), self.pictures[index].mode

    def subset(self, indices: np.ndarray) -> PicturesSplit:
        pictures = [self.pictures[i] for i in indices]
        return PicturesSplit(pictures, self.labels[indices], self.prefix, self._numbers[indices])

    def content_stamp(self) -> Iterable[bytes]:
        return (self.content(index) for index in range(len(self)))


class DatasetSplit(Split):
    """Pictures that are read from a data set when they are needed, one at a time, as PyTorch does.

    Args:
        dataset: ``dataset[i]`` returns a picture and a label.
        positions: the positions of this split's pictures in the data set, int [N].
        labels: int [N].
        prefix: pictures are named ``prefix[position]``.
        digest: a digest of all pictures in the data set.
        deep: whether arrays of uint16 have more than 8 bits, also those without a value above 255.
    """

    threadable = False

    def __init__(
        self,
        dataset: Any,
        positions: np.ndarray,
        labels: np.ndarray,
        prefix: str,
        digest: str,
        *,
        deep: bool = False,
    ) -> None:
        self._dataset, self._positions, self.prefix, self._digest = dataset, positions, prefix, digest
        self._deep = deep
        self.labels = np.asarray(labels, dtype=np.int64)

    def name(self, index: int) -> str:
        return f"{self.prefix}[{self._positions[index]}]"

    def load(self, index: int) -> Picture:
        name = self.name(index)
        try:
            picture, _ = read_item(self._dataset, int(self._positions[index]), self.prefix)
        except DataError as error:
            raise UnreadableImageError(name, str(error)) from None
        return decode_item(picture, name, deep=self._deep)

    def content(self, index: int) -> bytes:
        return _rgb_stamp(self.load(index))

    def peek(self, index: int) -> tuple[tuple[int, int], str]:
        picture = self.load(index)
        if isinstance(picture, Image.Image):
            return (picture.height, picture.width), picture.mode
        height, width = picture.shape[:2]
        return (height, width), "RGB"

    def subset(self, indices: np.ndarray) -> DatasetSplit:
        chosen = self._positions[indices]
        return DatasetSplit(
            self._dataset, chosen, self.labels[indices], self.prefix, self._digest, deep=self._deep
        )

    def content_stamp(self) -> Iterable[bytes]:
        # Arrays of uint16 without a value above 255 have the same digest whether or not they are deep.
        yield f"{self._digest}\0{'deep' if self._deep else ''}".encode()
        yield self._positions.astype(np.int64).tobytes()
