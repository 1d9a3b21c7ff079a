"""One picture: from the bytes of a file to RGB pixels of the size that the network takes.

Training, evaluation and prediction all come through :class:`Preprocessing`, so they cannot differ.
"""

from __future__ import annotations

import base64
import io
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import IO, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from thumbnet.data import plugins
from thumbnet.errors import TooManyPixelsError, UnknownFormatError, UnreadableImageError

try:
    import simplejpeg
except ImportError:  # there is none for this processor: Pillow reads every picture
    simplejpeg = None  # type: ignore[assignment,unused-ignore]

Fit = Literal["pad", "crop", "squash"]
MAX_PIXELS = 64_000_000  # a picture that declares more is taken for a decompression bomb
BAND_PIXELS = 1 << 20  # converted at a time
MAX_JPEG_BYTES = 64_000_000  # a larger file is read by Pillow, which takes it in parts
JPEG_START = b"\xff\xd8"
APP1 = b"\xff\xe1"  # the marker of the part of a JPEG file that may hold an orientation
# Not all that Pillow knows: for some (EPS) it starts other programs, and many are seldom tested.
FORMATS = ["PNG", "JPEG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "TGA", "ICO", "JPEG2000"]
FORMATS += ["AVIF"] if find_spec("PIL.AvifImagePlugin") else []  # since Pillow 11.3
Image.preinit()  # the first five; the others are looked up when it is none of these
PICTURE_SUFFIXES = frozenset({
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".ico", ".jp2", ".avif",
} | plugins.readable_suffixes())  # fmt: skip


def open_image(source: str | IO[bytes] | bytes, name: str) -> Image.Image:
    """The picture in a file, a stream or bytes, decoded: as RGB, upright, its first frame.

    Transparent pixels are laid on white; 16-bit grey keeps its upper 8 bits.

    Args:
        source: path, binary stream or bytes.
        name: what an error calls the picture.

    Raises:
        UnreadableImageError: not a picture, damaged, or larger than ``MAX_PIXELS``.
    """
    picture = load_picture(source, name)
    return picture if isinstance(picture, Image.Image) else Image.fromarray(picture)


def load_picture(
    source: str | IO[bytes] | bytes, name: str, max_pixels: int = MAX_PIXELS
) -> Image.Image | np.ndarray:
    """As :func:`open_image`, but a plain JPEG file as uint8 [H, W, 3].

    A Pillow picture made of these pixels, and pixels of that again, would cost as much as to decode them.
    """
    try:
        if isinstance(source, str):
            if not stat.S_ISREG(os.stat(source).st_mode):  # to open a pipe would be to wait for a writer
                raise UnreadableImageError(name, "not an ordinary file")
            with open(source, "rb") as file:
                return _open(file, name, max_pixels)
        return _open(io.BytesIO(source) if isinstance(source, bytes) else source, name, max_pixels)
    except FileNotFoundError:
        raise UnreadableImageError(name, "there is no such file") from None
    except OSError as error:
        raise UnreadableImageError(name, error.strerror or str(error)) from None


def _open(
    stream: IO[bytes], name: str, max_pixels: int, formats: list[str] = FORMATS
) -> Image.Image | np.ndarray:
    start = stream.tell()
    if stream.read(2) == JPEG_START:
        stream.seek(start)
        pixels = read_plain_jpeg(stream.read(MAX_JPEG_BYTES), max_pixels)
        if pixels is not None:
            return pixels
    stream.seek(start)
    try:
        with Image.open(stream, formats=formats) as image:
            if image.width * image.height > max_pixels:  # below Pillow's own limit, which only warns
                raise TooManyPixelsError(name, f"declares {image.width}x{image.height} pixels")
            return to_rgb(image)
    except UnreadableImageError:
        raise
    except UnidentifiedImageError:
        return _open(stream, name, max_pixels, other_formats(stream, start, name, formats))
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        stream.seek(start)
        reason = plugins.special_jpeg(stream) or str(error) or type(error).__name__
        raise UnreadableImageError(name, reason) from None


def other_formats(stream: IO[bytes], start: int, name: str, formats: list[str]) -> list[str]:
    """Which other formats to read a picture with that is in none of ``formats``: those of a plug-in.

    ``stream`` is at ``start`` again afterwards.

    Raises:
        UnknownFormatError: there is none; it says what the file is, and what to do.
    """
    stream.seek(start)
    found = plugins.load_formats(stream.read(plugins.HEAD_BYTES))
    stream.seek(start)
    if not found or found == formats:
        raise UnknownFormatError(name, plugins.reason(stream)) from None
    return found


def read_plain_jpeg(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray | None:
    """What Pillow would give for a JPEG file, to the bit, in a seventh of the time.

    Pillow takes 90 microseconds for a JPEG of 32 by 32 pixels, of which decoding is 10. Both decode with
    libjpeg-turbo.

    Returns:
        uint8 [H, W, 3]; None where Pillow is to look at the file: other colours, turned by EXIF, damaged, or
        large.
    """
    if simplejpeg is None or APP1 in data:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "Gray") or height * width > max_pixels:
            return None
        pixels: np.ndarray = simplejpeg.decode_jpeg(data, "RGB")
        return pixels
    except ValueError:
        return None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow picture as RGB: turned upright by its EXIF, transparency laid on white.

    Returns:
        A new, loaded picture in mode ``RGB``.
    """
    image.seek(0)
    image.load()
    if may_be_turned(image):
        image = _upright(image)
    rgb = _in_rgb(image)
    rgb.info.clear()  # turned and laid on white: what said so has had its effect
    return rgb


def lies_on_its_side(image: Image.Image) -> bool:
    """Whether its EXIF says that height and width are to be exchanged (5 to 8, see the standard)."""
    try:
        return may_be_turned(image) and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except Exception:  # see _upright
        return False


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says, if that is to be understood."""
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # Pillow's reader of EXIF raises nearly anything on rubbish
        return image


def _in_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()
    if image.mode.startswith("I") or image.mode == "F":
        return _in_bands(image, _from_many_levels(image))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _in_bands(image, _on_white)
    return image.convert("RGB")


def _bands(image: Image.Image) -> list[tuple[int, int, int, int]]:
    """A picture cut into boxes of its whole width: what a conversion makes on its way costs memory."""
    rows = max(1, BAND_PIXELS // image.width)
    return [(0, y, image.width, min(y + rows, image.height)) for y in range(0, image.height, rows)]


def _in_bands(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """``convert`` to RGB, band by band where the picture is large."""
    bands = _bands(image)
    if len(bands) == 1:
        return convert(image)
    whole = Image.new("RGB", image.size)
    for box in bands:
        whole.paste(convert(image.crop(box)), box)
    return whole


def _on_white(image: Image.Image) -> Image.Image:
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer).convert("RGB")


def _from_many_levels(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """To RGB for grey of more than 8 bits: 16-bit grey by its upper byte, floats in [0, 1] by 255."""
    greatest = max(np.nan_to_num(np.asarray(image.crop(box))).max() for box in _bands(image))

    def convert(band: Image.Image) -> Image.Image:
        values = np.asarray(band)
        if np.issubdtype(values.dtype, np.floating):
            values = np.rint(np.nan_to_num(values) * (255.0 if greatest <= 1.0 else 1.0))
        elif greatest > 255:
            values = np.right_shift(values, 8)
        return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).convert("RGB")

    return convert


def may_be_turned(image: Image.Image) -> bool:
    """Whether to look for an EXIF orientation. Looking costs as much as decoding a small JPEG."""
    plain = image.format in ("JPEG", "PNG", "GIF", "BMP", "PPM")
    return not plain or any(key in image.info for key in ("exif", "xmp", "XML:com.adobe.xmp"))


def fit_image(image: Image.Image, size: tuple[int, int], fit: Fit) -> Image.Image:
    """An RGB picture at ``size``, antialiased; untouched where it has that size already.

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
        return image.resize((width, height), Image.Resampling.BILINEAR)
    ratios = (width / image.width, height / image.height)
    scale = min(ratios) if fit == "pad" else max(ratios)
    if fit == "pad":
        scaled = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        canvas = Image.new("RGB", (width, height))
        inner = image.resize(scaled, Image.Resampling.BILINEAR)
        canvas.paste(inner, ((width - scaled[0]) // 2, (height - scaled[1]) // 2))
        return canvas
    # The part that stays, in source pixels: resizing just that never makes a huge intermediate picture.
    kept = (width / scale, height / scale)
    left, top = (image.width - kept[0]) / 2, (image.height - kept[1]) / 2
    box = (left, top, min(left + kept[0], image.width), min(top + kept[1], image.height))
    return image.resize((width, height), Image.Resampling.BILINEAR, box=box)


def fit_pixels(picture: Image.Image | np.ndarray, size: tuple[int, int], fit: Fit) -> np.ndarray:
    """What :func:`load_picture` gave, at ``size`` (height, width): uint8 [height, width, 3]."""
    if isinstance(picture, np.ndarray):
        if picture.shape[:2] == size:
            return picture
        picture = Image.fromarray(picture)
    return np.asarray(fit_image(picture, size, fit))


def as_data_address(pixels: np.ndarray, *, lossless: bool = False) -> str:
    """Pixels, uint8 [height, width, 3], as a ``data:`` address for a page."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=80, method=4, lossless=lossless)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes what the network takes; stored with the weights.

    Attributes:
        size: height, width in pixels.
        fit: what happens to another aspect ratio, see :func:`fit_image`.
        mean, std: of each channel, for pixels in [0, 1].
    """

    size: tuple[int, int]
    fit: Fit
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def pixels(self, image: Image.Image) -> np.ndarray:
        """A picture of any mode and size as uint8 [height, width, 3]."""
        rgb = to_rgb(image)
        return np.asarray(fit_image(rgb, self.size, self.fit))
