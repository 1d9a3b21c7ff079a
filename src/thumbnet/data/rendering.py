"""Turn a decoded picture into RGB pixels of the network's size.

*Rendering* (:class:`Rendering`) makes 8-bit RGB of it. *Fitting* (:func:`fit_pixels`) brings that to the
network's size. Training, evaluation and prediction all go through :func:`fit_pixels`, so they cannot differ.
:mod:`thumbnet.data.images` decodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from thumbnet.data.images import Picture

Fit = Literal["pad", "crop", "squash"]
WHITE = (255, 255, 255)
BAND_PIXELS = 1 << 20  # pixels that are converted at a time
ALPHA_MODES = frozenset({"RGBA", "LA", "PA", "RGBa", "La"})


@dataclass(frozen=True)
class Rendering:
    """How decoded pictures become 8-bit RGB, the same way for a whole data set.

    Attributes:
        range: the values (low, high) that become 0 and 255 in pictures of more than 8 bits or floats. None
            goes by type: 0 to 65535 for integers, 0 to 1 for floats. 8-bit pictures keep their values.
        background: the colour behind transparent pixels, RGB.
    """

    range: tuple[float, float] | None = None
    background: tuple[int, int, int] = WHITE

    def rgb(self, picture: Picture) -> Picture:
        """Render a decoded picture: uint8 [H, W, 3], or a Pillow image in mode RGB."""
        if isinstance(picture, np.ndarray):
            if picture.ndim == 3 and picture.shape[2] == 3 and picture.dtype == np.uint8:
                return picture
            return self._array(picture)
        clear = "transparency" in picture.info
        if picture.mode == "RGB" and not clear:
            return picture
        if is_deep(picture):
            return _in_bands(picture, self._from_deep)
        if clear or picture.mode in ALPHA_MODES:
            return _in_bands(picture, self._on_background)
        return picture.convert("RGB")

    def _array(self, picture: np.ndarray) -> np.ndarray:
        """Render an array, in bands if it is large: uint8 [H, W, 3]."""
        colour = picture.ndim == 3
        boxes = bands(picture.shape[1], picture.shape[0])
        if len(boxes) <= 1:
            return np.asarray(self.arrays(picture[None], colour=colour)[0])
        whole = np.empty((*picture.shape[:2], 3), np.uint8)
        for _, top, _, bottom in boxes:
            whole[top:bottom] = self.arrays(picture[None, top:bottom], colour=colour)[0]
        return whole

    def arrays(self, images: np.ndarray, *, colour: bool) -> np.ndarray:
        """Render many pictures of one size: uint8 [N, H, W, 3].

        Args:
            images: [N, H, W], or [N, H, W, 1, 3 or 4] with ``colour``, of any type that a picture can have.
            colour: whether the last axis holds the channels.
        """
        if not colour:
            images = images[..., None]
        channels = images.shape[3]
        grey_or_rgb = self.levels(images[..., :3])
        if channels == 1:
            return np.repeat(grey_or_rgb, 3, axis=3)
        if channels == 3:
            return grey_or_rgb
        layer = np.concatenate([grey_or_rgb, Rendering().levels(images[..., 3:])], axis=3)
        flat = Image.fromarray(layer.reshape(-1, *layer.shape[2:]))
        return np.asarray(_in_bands(flat, self._on_background)).reshape(*layer.shape[:3], 3)

    def levels(self, values: np.ndarray) -> np.ndarray:
        """Map values of any type and shape to uint8, linearly from ``range`` to 0..255."""
        if values.dtype == np.uint8:
            return values
        low, high = self.range or type_range(values.dtype)
        if values.dtype.kind == "u" and values.dtype.itemsize == 2:
            return _table(low, high)[values]
        return _straight(values, low, high)

    def _from_deep(self, band: Image.Image) -> Image.Image:
        values = np.asarray(band)
        grey = Image.fromarray(self.levels(values))
        key = band.info.get("transparency")
        if not isinstance(key, int):
            return grey.convert("RGB")
        layer = grey.convert("RGBA")
        layer.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
        return self._on_background(layer)

    def _on_background(self, band: Image.Image) -> Image.Image:
        layer = with_alpha(band)
        ground = Image.new("RGBA", layer.size, self.background)
        return Image.alpha_composite(ground, layer).convert("RGB")


BY_TYPE = Rendering()


def with_alpha(image: Image.Image) -> Image.Image:
    """Convert an 8-bit picture to RGBA."""
    if image.mode == "La":  # Pillow converts it to LA only
        image = image.convert("LA")
    return image.convert("RGBA")


def is_deep(picture: Picture) -> bool:
    """Whether a decoded picture has more than 8 bits or is float."""
    if isinstance(picture, np.ndarray):
        return picture.dtype != np.uint8
    return picture.mode.startswith("I") or picture.mode == "F"


def type_range(dtype: np.dtype[Any]) -> tuple[float, float]:
    """The values that become 0 and 255 if no range was measured or set."""
    return (0.0, 1.0) if dtype.kind == "f" else (0.0, 65535.0)


def _straight(values: np.ndarray, low: float, high: float) -> np.ndarray:
    scaled = np.subtract(values, low, dtype=np.float64)
    scaled *= 255.0 / (high - low)
    np.rint(scaled, out=scaled)
    np.clip(scaled, 0, 255, out=scaled)
    return np.asarray(scaled, dtype=np.uint8)


@lru_cache(maxsize=8)
def _table(low: float, high: float) -> np.ndarray:
    """The result of :func:`_straight` for each 16-bit value."""
    return _straight(np.arange(65536), low, high)


def bands(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Cut a picture into boxes of full width, to limit the memory for intermediate results."""
    rows = max(1, BAND_PIXELS // max(1, width))
    return [(0, y, width, min(y + rows, height)) for y in range(0, height, rows)]


def _in_bands(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """``convert`` a picture to RGB, band by band if it is large."""
    boxes = bands(*image.size)
    if len(boxes) == 1:
        return convert(image)
    whole = Image.new("RGB", image.size)
    for box in boxes:
        whole.paste(convert(image.crop(box)), box)
    return whole


def fit_image(image: Image.Image, size: tuple[int, int], fit: Fit) -> Image.Image:
    """Resize an RGB picture to ``size``, antialiased. A picture of that size is returned unchanged.

    Args:
        image: in mode RGB.
        size: height, width in pixels.
        fit: ``pad`` scales to fit within and centres on black; ``crop`` scales to cover and keeps the
            centre; ``squash`` changes the aspect ratio.
    """
    height, width = size
    if image.size == (width, height):
        return image
    if fit == "squash":
        if image.width < width and image.height > height and width * image.height > 4 * BAND_PIXELS:
            # Pillow 12 changes the width first: a high, narrow picture would take gigabytes at its full
            # height. Later versions change the height first, with this result.
            image = image.resize((image.width, height), Image.Resampling.BILINEAR)
        return image.resize((width, height), Image.Resampling.BILINEAR)
    ratios = (width / image.width, height / image.height)
    scale = min(ratios) if fit == "pad" else max(ratios)
    if fit == "pad":
        scaled = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        canvas = Image.new("RGB", (width, height))
        inner = image.resize(scaled, Image.Resampling.BILINEAR)
        canvas.paste(inner, ((width - scaled[0]) // 2, (height - scaled[1]) // 2))
        return canvas
    # The part to keep, in source pixels. Resizing only this part avoids a huge intermediate picture.
    kept = (width / scale, height / scale)
    left, top = max(0.0, (image.width - kept[0]) / 2), max(0.0, (image.height - kept[1]) / 2)
    box = (left, top, min(left + kept[0], image.width), min(top + kept[1], image.height))
    return image.resize((width, height), Image.Resampling.BILINEAR, box=box)


def fit_pixels(
    picture: Picture, size: tuple[int, int], fit: Fit, rendering: Rendering | None = None
) -> np.ndarray:
    """Render a decoded picture and bring it to ``size``, the network's input: uint8 [height, width, 3].

    Args:
        picture: from :func:`~thumbnet.data.images.load_picture` or :func:`~thumbnet.data.images.decode`.
        size: height, width in pixels.
        fit: see :func:`fit_image`.
        rendering: None renders by the picture's type.
    """
    picture = (rendering or BY_TYPE).rgb(picture)
    if isinstance(picture, np.ndarray):
        if picture.shape[:2] == size:
            return picture
        picture = Image.fromarray(picture)
    return np.asarray(fit_image(picture, size, fit))


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes the network's input; stored with the weights.

    Attributes:
        size: height, width in pixels.
        fit: how other aspect ratios are handled, see :func:`fit_image`.
        mean, std: mean and standard deviation of each channel, for pixels in [0, 1].
        range, background: see :class:`Rendering`.
    """

    size: tuple[int, int]
    fit: Fit
    mean: tuple[float, ...]
    std: tuple[float, ...]
    range: tuple[float, float] | None = None
    background: tuple[int, int, int] = WHITE

    @property
    def rendering(self) -> Rendering:
        """How decoded pictures become 8-bit RGB."""
        return Rendering(self.range, self.background)

    def pixels(self, picture: Picture) -> np.ndarray:
        """Render and resize a decoded picture of any mode and size: uint8 [height, width, 3]."""
        return fit_pixels(picture, self.size, self.fit, self.rendering)
