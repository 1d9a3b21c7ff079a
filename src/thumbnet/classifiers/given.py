"""Pictures as a user gives them to ``predict``: paths, PIL images, arrays or tensors, one or several."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image

from thumbnet.data.images import Picture as DecodedPicture
from thumbnet.data.images import decode_given, load_picture
from thumbnet.data.survey import expected_values, is_off_scale
from thumbnet.errors import DataError, UnreadableImageError, printable

if TYPE_CHECKING:
    from torch import Tensor

CHANNELS = (1, 3, 4)  # the numbers of channels that a picture may have
ROUNDING = 1e-3  # floats may exceed [0, 1] by this, for rounding errors; it is less than half a level of 255
Picture: TypeAlias = "str | Path | Image.Image | np.ndarray | Tensor"


def one_by_one(pictures: Any) -> Iterable[Any]:
    """What a user gave as pictures, picture by picture. :func:`decoded` checks each of them.

    Raises:
        DataError: an array [3, H, W] may be three grey pictures, or one picture with channels first.
    """
    if getattr(pictures, "ndim", 0) == 4 or _is_grey_batch(pictures):
        return list(pictures)
    return pictures if _are_several(pictures) else [pictures]


def _are_several(pictures: Any) -> bool:
    """Whether this is an iterable of pictures: a list, a generator, a column of a table.

    A set has no order, and iterating a file gives lines of text: those are refused like any other thing that
    is not a picture.
    """
    unordered = isinstance(pictures, Mapping | Set)
    encoded = isinstance(pictures, str | bytes | bytearray | memoryview) or hasattr(pictures, "read")
    values = _is_tensor(pictures) or (isinstance(pictures, np.ndarray) and pictures.dtype.kind not in "OUT")
    column = getattr(pictures, "ndim", 1) == 1  # a data frame iterates over the names of its columns
    return isinstance(pictures, Iterable) and column and not (unordered or encoded or values)


def _is_grey_batch(pictures: Any) -> bool:
    """Tell whether an array or tensor of three axes is [B, H, W], that is, if no axis can be the channels."""
    if getattr(pictures, "ndim", 0) != 3:
        return False
    shape = tuple(pictures.shape)
    if shape[2] == 2:  # grey with alpha, and not pictures of two columns
        return False
    if _is_tensor(pictures):
        return not any(side in CHANNELS for side in (shape[0], shape[2]))
    if shape[2] in CHANNELS:
        return False
    if shape[0] in CHANNELS:
        raise DataError(
            f"an array of shape {list(shape)} is not a picture [H, W, channels]: move the channels to the "
            f"end (array.transpose(1, 2, 0)), or give {shape[0]} grey pictures as [{shape[0]}, H, W, 1]"
        )
    return True


def is_path(picture: Any) -> bool:
    """Whether a picture is given as the path of its file."""
    return isinstance(picture, str | Path)


def decoded(picture: Any, limits: tuple[float, float] | None) -> DecodedPicture:
    """Decode a picture given in any form.

    Args:
        picture: a :data:`Picture`, or anything else that the user gave instead.
        limits: the value range that the network was trained on, if its pictures had more than 8 bits.

    Raises:
        UnreadableImageError: it cannot be decoded.
        FailedReadError: the system failed to read it.
        DataError: it is a folder or no picture, or has an unknown shape or type, or values out of range.
    """
    if isinstance(picture, Image.Image):
        image = decode_given(picture)
        return _checked(np.asarray(image), limits) if image.mode == "F" else image
    if is_path(picture):
        return _load_given(str(picture))
    if _is_tensor(picture):
        tensor = picture.detach().cpu()
        if str(tensor.dtype) == "torch.bfloat16":
            tensor = tensor.float()
        picture = tensor.numpy()
        if picture.ndim == 3:
            if picture.shape[0] not in CHANNELS:
                hint = ", which must come first" if picture.shape[2] in CHANNELS else ""
                raise DataError(
                    f"a tensor of shape {list(picture.shape)} is not a picture: expected [C, H, W] with 1, 3 "
                    f"or 4 channels{hint}"
                )
            picture = picture.transpose(1, 2, 0)
    if not isinstance(picture, np.ndarray):
        encoded = isinstance(picture, bytes | bytearray | memoryview) or hasattr(picture, "read")
        raise DataError(
            f"expected a picture (a path, PIL image, array or tensor), got a {type(picture).__name__}"
            f"{': open encoded pictures with PIL.Image.open first' if encoded else ''}"
        )
    shape = picture.shape
    ok = picture.ndim == 2 or (picture.ndim == 3 and shape[2] in CHANNELS)
    if not ok or 0 in shape or picture.dtype.kind not in "buif":
        raise DataError(
            f"an array of {picture.dtype} {list(shape)} is not a picture: expected [H, W] or [H, W, 1, 3 or "
            f"4], or a tensor [C, H, W], of {expected_values(limits)}"
        )
    if picture.ndim == 3 and shape[2] == 1:
        picture = picture[:, :, 0]
    return _checked(picture, limits)


def _load_given(path: str) -> DecodedPicture:
    try:
        return load_picture(path, path)
    except UnreadableImageError:
        if os.path.isdir(path):
            raise DataError(
                f"{printable(path)} is a folder: use predict_files to classify the pictures in it"
            ) from None
        raise


def _is_tensor(thing: Any) -> bool:
    """Whether ``thing`` is a torch tensor, told without importing torch. Files have a ``detach``, too."""
    return hasattr(thing, "detach") and hasattr(thing, "dtype")


def _checked(values: np.ndarray, limits: tuple[float, float] | None) -> np.ndarray:
    """Convert a picture's values to a type that :class:`thumbnet.data.rendering.Rendering` takes.

    Nothing is clipped, and values on an unknown scale are refused. Whole numbers from 0 to 255 are as good as
    uint8 in floats, too, if one of them is above 1. In uint16 they may be a dark picture of 16 bits.

    Raises:
        DataError: the values are not finite, or out of range.
    """
    kind = values.dtype.kind
    if kind == "b":
        return np.where(values, np.uint8(255), np.uint8(0))
    if values.dtype == np.uint8:
        return values
    if kind == "f" and not np.isfinite(values).all():
        raise DataError(
            f"a picture has values that are not finite (NaN or infinity): expected {expected_values(limits)}"
        )
    low, high = values.min().item(), values.max().item()
    wrong = DataError(
        f"a picture of {values.dtype} has values from {low:g} to {high:g}: expected {expected_values(limits)}"
    )
    if limits is not None:
        if is_off_scale(low, high, limits, floats=kind == "f"):
            raise wrong
        return values if values.dtype == np.uint16 or kind == "f" else values.astype(np.float64)
    if kind == "f" and low >= -ROUNDING and high <= 1 + ROUNDING:
        return values
    if kind == "f" and (values != np.rint(values)).any():
        raise wrong
    if values.dtype == np.uint16 and (high > 255 or high == 0):
        return values
    if values.dtype == np.uint16 or low < 0 or high > 255:
        raise wrong
    return values.astype(np.uint8)
