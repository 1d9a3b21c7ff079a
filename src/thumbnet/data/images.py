"""Turn one picture from the bytes of a file into RGB pixels of the network's size.

There are three steps. *Decoding* (:func:`load_picture`) gives the first frame, upright, with all of its bits.
*Rendering* (:class:`Rendering`) makes 8-bit RGB of it. *Fitting* (:func:`fit_pixels`) brings that to the
network's size. Training, evaluation and prediction all go through :func:`fit_pixels`, so they cannot differ.
"""

from __future__ import annotations

import base64
import errno
import io
import os
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import IO, Any, Literal, TypeAlias, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from thumbnet.data import plugins
from thumbnet.data.reading import is_not_there, is_of_the_system, read_error
from thumbnet.errors import TooManyPixelsError, UnknownFormatError, UnreadableImageError
from thumbnet.files import check_reads, open_whole

try:
    import simplejpeg
except ImportError:  # simplejpeg has no wheel for this processor: Pillow reads every picture
    simplejpeg = None  # type: ignore[assignment,unused-ignore]

T = TypeVar("T")
Fit = Literal["pad", "crop", "squash"]
Picture: TypeAlias = "Image.Image | np.ndarray"
"""A decoded picture: a Pillow image of any mode, or an array [H, W] or [H, W, 1, 3 or 4] of uint8, uint16,
int32 or floats."""
WHITE = (255, 255, 255)
MAX_PIXELS = 64_000_000  # more could be a decompression bomb
BAND_PIXELS = 1 << 20  # pixels that are converted at a time
ALPHA_MODES = frozenset({"RGBA", "LA", "PA", "RGBa", "La"})
HEAD_BYTES = 4096  # the start of a file that :func:`is_plain` looks at
TIFF_STARTS = (b"II*\0", b"MM\0*")
TIFF_REFUSED = (
    "a TIFF of a kind that thumbnet does not read, such as floating-point colour: save it with 16 bits"
)
NOT_FINITE = "it has pixel values that are not finite (NaN or infinity)"
MAX_JPEG_BYTES = 64_000_000  # Pillow reads larger files, in parts
SMALL_FILE = 1 << 20  # bytes that :func:`from_file` reads at once
MAX_REREAD = 256_000_000  # bytes of a file that :func:`from_file` reads again; hardly a picture is larger
JPEG_START = b"\xff\xd8"
APP1 = b"\xff\xe1"  # marker of the JPEG segment that may hold an orientation
# Only some of Pillow's formats: it starts other programs for EPS, and many others are rarely tested.
FORMATS = ["PNG", "JPEG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "TGA", "ICO", "JPEG2000"]
FORMATS += ["AVIF"] if find_spec("PIL._avif") else []  # a build of Pillow may lack it
Image.preinit()  # loads the first five; Pillow loads the others when a file is in none of these
PICTURE_SUFFIXES = frozenset(
    {
        ".png",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".bmp",
        ".gif",
        ".webp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".tga",
        ".ico",
        ".jp2",
        ".avif",
    }
    | plugins.readable_suffixes()
)


def open_image(source: str | IO[bytes] | bytes, name: str) -> Image.Image:
    """Open the picture in a file, a stream or bytes: its first frame, upright, as RGB.

    Rendering goes by its type: white behind transparent pixels, 0..65535 for 16-bit values, 0..1 for floats.

    Args:
        source: path, binary stream or bytes.
        name: the picture's name in errors.

    Raises:
        UnreadableImageError: missing, not a picture, damaged, or larger than ``MAX_PIXELS``.
        FailedReadError: the system failed to read the file.
    """
    return to_rgb(load_picture(source, name))


def load_picture(source: str | IO[bytes] | bytes, name: str, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode the picture in a file, a stream or bytes: its first frame, upright, at its full bit depth.

    Returns:
        - uint8 [H, W, 3] for a plain JPEG file: converting to a Pillow image and back would take as long as
          decoding;
        - uint16 [H, W, 3 or 4] for 16-bit colour, because Pillow has no mode for it;
        - a loaded Pillow image in the file's own mode for everything else.

    Raises:
        UnreadableImageError: as for :func:`open_image`, and if a value is not finite.
        FailedReadError: the system failed to read the file.
    """
    if isinstance(source, str):
        return from_file(source, name, lambda stream: _open(stream, name, max_pixels))
    return _open(io.BytesIO(source) if isinstance(source, bytes) else source, name, max_pixels)


def from_file(path: str, name: str, read: Callable[[IO[bytes]], T]) -> T:
    """The result of ``read`` for the file at ``path``, whose bytes are all in memory if it is small.

    Pillow takes some failed reads for damage, and others for the end of a picture. So what it finds in a
    large file counts only if no read has failed. Damage also has to be found again in the bytes in memory,
    because libtiff reads the file by itself.

    Raises:
        UnreadableImageError: from ``read``; or there is no such file, or it is a pipe or a folder.
        FailedReadError: the system failed to read the file.
    """
    try:
        try:
            state = os.stat(path)
        except ValueError:  # a NUL or half of a surrogate pair in the name
            raise UnreadableImageError(name, "there is no such file") from None
        if not stat.S_ISREG(state.st_mode):  # opening a pipe would wait for a writer
            raise UnreadableImageError(name, "not an ordinary file")
        if state.st_size <= SMALL_FILE:
            return read(io.BytesIO(_all_of(path, state.st_size)))
        with open_whole(path) as file:
            try:
                found = read(file)
            except UnreadableImageError:
                check_reads(file)
                if state.st_size > MAX_REREAD:
                    raise
                return read(io.BytesIO(_all_of(path, state.st_size)))
            check_reads(file)
            return found
    except OSError as error:
        if is_not_there(error):
            raise UnreadableImageError(name, "there is no such file") from None
        raise read_error(error, name) from None


def _all_of(path: str, size: int) -> bytes:
    """Like :func:`~thumbnet.files.read_whole`, which takes twice as long: 12 µs for each small picture."""
    with open(path, "rb", buffering=0) as file:
        content = file.read()
    if len(content) < size:
        raise OSError(errno.EIO, f"only {len(content):,} of its {size:,} bytes could be read", path)
    return content


def _open(stream: IO[bytes], name: str, max_pixels: int, formats: list[str] = FORMATS) -> Picture:
    start = stream.tell()
    if stream.read(2) == JPEG_START:
        stream.seek(start)
        pixels = read_plain_jpeg(stream.read(MAX_JPEG_BYTES), max_pixels)
        if pixels is not None:
            return pixels
    stream.seek(start)
    try:
        with Image.open(stream, formats=formats) as image:
            if image.width * image.height > max_pixels:
                raise too_many_pixels(name, max_pixels, image.size)
            lower = _lower_bytes(image)
            picture = decode(image)
            if lower:
                stream.seek(start)
                with Image.open(stream, formats=formats) as again:
                    again.tile = lower
                    return _sixteen_bits(picture, decode(again), grey=lower[0].args == "RGBA")
            if picture.mode == "F" and not _is_finite(picture):
                raise UnreadableImageError(name, NOT_FINITE)
            return picture
    except UnreadableImageError:
        raise
    except UnidentifiedImageError:
        stream.seek(start)
        if stream.read(4) in TIFF_STARTS:
            raise UnknownFormatError(name, TIFF_REFUSED) from None
        return _open(stream, name, max_pixels, other_formats(stream, start, name, formats))
    except (MemoryError, KeyboardInterrupt):
        raise
    except Image.DecompressionBombError:  # Pillow has a limit of its own
        raise too_many_pixels(name, max_pixels) from None
    except Exception as error:  # Pillow's decoders raise almost any exception on damaged files
        if is_of_the_system(error):
            raise
        stream.seek(start)
        reason = plugins.special_jpeg(stream) or str(error) or type(error).__name__
        raise UnreadableImageError(name, reason) from None


def too_many_pixels(name: str, limit: int, size: tuple[int, ...] = ()) -> TooManyPixelsError:
    """The error for a picture of more than ``limit`` pixels; ``size`` is its width and height, if known."""
    which = "x".join(map(str, size)) or "its"
    return TooManyPixelsError(name, f"{which} pixels are more than the limit of {limit:,}")


def decode(image: Image.Image) -> Image.Image:
    """Load the first frame of an opened Pillow image, upright by its EXIF, in its own mode."""
    image.seek(0)
    image.load()
    return _upright(image) if may_be_turned(image) else image


def decode_given(image: Image.Image) -> Image.Image:
    """Like :func:`decode`, for a Pillow image that the user opened.

    Raises:
        UnreadableImageError: it is damaged, or closed already.
        FailedReadError: the system failed to read its file.
    """
    name = str(getattr(image, "filename", "") or "given as a PIL image")
    try:
        return decode(image)
    except MemoryError:
        raise
    except Exception as error:  # see _open
        if is_of_the_system(error):
            raise read_error(error, name) from None
        raise UnreadableImageError(name, str(error) or type(error).__name__) from None


def _lower_bytes(image: Image.Image) -> list[Any]:
    """Tiles that make Pillow decode the lower bytes of 16-bit colour; empty for any other picture.

    Pillow has no mode for 16-bit colour and keeps the upper byte of each value. If we declare the opposite
    byte order, it keeps the lower byte. A 16-bit grey PNG with alpha is decoded as 8-bit RGBA instead, which
    has as many bits per pixel.
    """
    swapped = []
    for tile in getattr(image, "tile", ()):
        args = (tile.args,) if isinstance(tile.args, str) else tuple(tile.args or ("",))
        if args[0] not in _LOWER or image.mode not in ("RGB", "RGBA"):
            return []
        args = (_LOWER[args[0]], *args[1:])
        swapped.append(tile._replace(args=args[0] if isinstance(tile.args, str) else args))
    return swapped


_NATIVE, _OTHER = ("L", "B") if sys.byteorder == "little" else ("B", "L")
_LOWER = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA")
    for order, other in (("B", "L"), ("L", "B"), ("N", _OTHER))
} | {"LA;16B": "RGBA"}


def _sixteen_bits(upper: Image.Image, lower: Image.Image, grey: bool) -> np.ndarray:
    """Combine the upper and lower bytes of 16-bit colour: uint16 [H, W, 3], or [H, W, 4] with alpha."""
    high, low = np.asarray(upper), np.asarray(lower)
    if grey:  # `low` has both bytes of grey and of alpha
        both = np.ascontiguousarray(low).view(">u2").astype(np.uint16)
        return np.dstack([both[..., :1], both[..., :1], both])
    values: np.ndarray = (high.astype(np.uint16) << 8) | low
    key = upper.info.get("transparency")
    if isinstance(key, tuple) and values.shape[2] == 3:
        clear = (values == np.array(key, dtype=np.uint16)).all(axis=2)
        values = np.dstack([values, np.where(clear, 0, 65535).astype(np.uint16)])
    return values


def _is_finite(image: Image.Image) -> bool:
    return all(bool(np.isfinite(np.asarray(image.crop(box))).all()) for box in _bands(image))


def other_formats(stream: IO[bytes], start: int, name: str, formats: list[str]) -> list[str]:
    """The formats of a plug-in that may read a picture that is in none of ``formats``.

    Leaves ``stream`` at ``start``.

    Raises:
        UnknownFormatError: no plug-in reads it. The message says what the file is and what to do.
    """
    stream.seek(start)
    found = plugins.load_formats(stream.read(plugins.HEAD_BYTES))
    stream.seek(start)
    if not found or found == formats:
        raise UnknownFormatError(name, plugins.reason(stream)) from None
    return found


def read_plain_jpeg(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray | None:
    """Decode a JPEG file to the same bits as Pillow, in a seventh of the time.

    Both use libjpeg-turbo. Pillow takes 90 microseconds for a JPEG of 32x32 pixels; 10 of them are decoding.

    Returns:
        uint8 [H, W, 3]; None for files that Pillow has to read: other colour spaces, pictures turned by EXIF,
        damaged and large files.
    """
    if simplejpeg is None or APP1 in data:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "Gray") or height * width > max_pixels:
            return None
        return simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        return None


def to_rgb(picture: Picture) -> Image.Image:
    """Convert any picture to RGB: upright by its EXIF, rendered by its type (see :class:`Rendering`).

    Returns:
        A new, loaded picture in mode ``RGB``.
    """
    decoded = decode(picture) if isinstance(picture, Image.Image) else picture
    rgb = Rendering().rgb(decoded)
    if isinstance(rgb, np.ndarray):
        return Image.fromarray(rgb)
    rgb = rgb.copy() if rgb is picture else rgb
    rgb.info.clear()  # it has been applied, such as a transparent colour
    return rgb


def lies_on_its_side(image: Image.Image) -> bool:
    """Whether the EXIF orientation swaps height and width (values 5 to 8)."""
    try:
        return may_be_turned(image) and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except Exception as error:  # see _upright
        if is_of_the_system(error):
            raise
        return False


def _upright(image: Image.Image) -> Image.Image:
    """Turn the picture upright by its EXIF, if the orientation is valid."""
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's EXIF reader raises almost any exception on invalid data
        if is_of_the_system(error):
            raise
        return image


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
            return np.asarray(self.arrays(picture[None], colour=picture.ndim == 3)[0])
        clear = "transparency" in picture.info
        if picture.mode == "RGB" and not clear:
            return picture
        if is_deep(picture):
            return _in_bands(picture, self._from_deep)
        if clear or picture.mode in ALPHA_MODES:
            return _in_bands(picture, self._on_background)
        return picture.convert("RGB")

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


def is_plain(head: bytes) -> bool:
    """Whether a file that begins with ``head`` certainly has 8 bits and no transparency.

    This is true of every JPEG that is read here; for a PNG the header tells.
    """
    if head.startswith(JPEG_START):
        return True
    if head[:8] != b"\x89PNG\r\n\x1a\n" or head[12:16] != b"IHDR" or len(head) < 26:
        return False
    depth, colour = head[24], head[25]
    pixels = head.find(b"IDAT")
    return depth <= 8 and colour in (0, 2, 3) and pixels > 0 and head.find(b"tRNS", 0, pixels) < 0


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


def _bands(image: Image.Image) -> list[tuple[int, int, int, int]]:
    """Cut a picture into boxes of full width, to limit the memory for intermediate results."""
    rows = max(1, BAND_PIXELS // image.width)
    return [(0, y, image.width, min(y + rows, image.height)) for y in range(0, image.height, rows)]


def _in_bands(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """``convert`` a picture to RGB, band by band if it is large."""
    bands = _bands(image)
    if len(bands) == 1:
        return convert(image)
    whole = Image.new("RGB", image.size)
    for box in bands:
        whole.paste(convert(image.crop(box)), box)
    return whole


def may_be_turned(image: Image.Image) -> bool:
    """Whether the picture may have an EXIF orientation. Reading it takes as long as decoding a small JPEG."""
    plain = image.format in ("JPEG", "PNG", "GIF", "BMP", "PPM")
    return not plain or any(key in image.info for key in ("exif", "xmp", "XML:com.adobe.xmp"))


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
        picture: from :func:`load_picture` or :func:`decode`.
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


BY_TYPE = Rendering()


def as_data_address(pixels: np.ndarray, *, lossless: bool = False) -> str:
    """Encode pixels, uint8 [height, width, 3], as a ``data:`` URL."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=80, method=4, lossless=lossless)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


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
