from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import noise, write_picture
from thumbnet.data import images
from thumbnet.data.images import (
    PICTURE_SUFFIXES,
    load_picture,
    open_image,
    picture_suffix,
    read_plain_jpeg,
    to_rgb,
)
from thumbnet.data.rendering import Fit, Preprocessing, fit_image, fit_pixels
from thumbnet.data.splits import BytesSplit
from thumbnet.errors import TooManyPixelsError, UnreadableImageError


def reopened(image: Image.Image, kind: str, **options: object) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return open_image(buffer.getvalue(), "test")


def test_grey_palette_and_cmyk_become_rgb() -> None:
    grey = reopened(Image.new("L", (4, 3), 100), "PNG")
    assert (grey.mode, grey.size, grey.getpixel((0, 0))) == ("RGB", (4, 3), (100, 100, 100))
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    assert reopened(palette, "PNG").getpixel((0, 0)) == (10, 200, 30)
    cmyk = reopened(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF")
    red, green, blue = np.asarray(cmyk)[0, 0].tolist()
    assert red > 200
    assert max(green, blue) < 60
    assert reopened(Image.new("1", (2, 2), 1), "PNG").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"quality": 20, "exif": True}],
)
def test_jpegs_are_read_as_pillow_reads_them(mode: str, options: dict[str, object]) -> None:
    if "exif" in options:
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by a quarter
        options = {**options, "exif": exif}
    picture = Image.fromarray(noise(9, 7)).resize((45, 31)).convert(mode)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", **options)
    buffer.seek(0)
    with Image.open(buffer) as plain:
        expected = np.asarray(to_rgb(plain))
    assert expected.shape == ((45, 31, 3) if "exif" in options else (31, 45, 3))
    assert np.array_equal(np.asarray(open_image(buffer.getvalue(), "test")), expected)
    fast = read_plain_jpeg(buffer.getvalue())
    assert (fast is None) == (mode == "CMYK" or "exif" in options)


def test_pictures_are_read_without_the_fast_reader(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_picture(tmp_path / "a.jpg", noise(8, 8))
    fast = np.asarray(open_image(str(tmp_path / "a.jpg"), "a.jpg"))
    monkeypatch.setattr(images, "simplejpeg", None)
    assert np.array_equal(np.asarray(open_image(str(tmp_path / "a.jpg"), "a.jpg")), fast)


def test_transparency_is_laid_on_white() -> None:
    rgba = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    rgba.putpixel((1, 0), (255, 0, 0, 255))
    out = reopened(rgba, "PNG")
    assert [out.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (255, 0, 0)]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([9, 9, 9, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    out = reopened(palette, "PNG", transparency=0)
    assert [out.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (0, 0, 255)]


def test_sixteen_bit_grey_keeps_its_upper_byte() -> None:
    values = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    out = reopened(Image.fromarray(values), "PNG")
    assert np.asarray(out)[0, :, 0].tolist() == [0, 1, 128, 255]
    assert np.asarray(reopened(Image.fromarray(values), "TIFF"))[0, 2, 0] == 128


def test_float_pictures_in_zero_to_one_are_stretched() -> None:
    image = Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32))
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 128, 255]


def test_exif_orientation_turns_the_picture() -> None:
    image = Image.fromarray(noise(1, height=4, width=9))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned 90 degrees clockwise
    out = reopened(image, "PNG", exif=exif)
    assert out.size == (4, 9)
    assert np.array_equal(np.asarray(out), np.rot90(np.asarray(image), -1))
    jpeg = reopened(image, "JPEG", exif=exif)
    assert jpeg.size == (4, 9)


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (3, 3), colour) for colour in ("red", "blue")]
    out = reopened(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert out.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 30])
def test_what_is_no_picture_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match="bad.png"):
        open_image(str(path), str(path))


def test_a_truncated_picture_is_refused(tmp_path: Path) -> None:
    whole = write_picture(tmp_path / "whole.jpg", noise(0, 64, 64)).read_bytes()
    with pytest.raises(UnreadableImageError, match="cut"):
        open_image(whole[: len(whole) // 2], "cut.jpg")


@pytest.mark.parametrize(("side", "words"), [(9_000, "9000x9000"), (60_000, "its")])
def test_a_picture_that_declares_absurd_sizes_is_refused_undecoded(side: int, words: str) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    bomb += chunk(b"IEND", b"")
    refused = rf"bomb\.png: {words} pixels are more than the limit of 64,000,000"
    with pytest.raises(TooManyPixelsError, match=refused):
        open_image(bomb, "bomb.png")
    with pytest.raises(TooManyPixelsError, match=refused):
        BytesSplit([bomb], np.zeros(1), ["bomb.png"]).peek(0)


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        ("PNG", ".png"),
        ("JPEG", ".jpg"),
        ("GIF", ".gif"),
        ("BMP", ".bmp"),
        ("PPM", ".ppm"),
        ("WEBP", ".webp"),
        ("TIFF", ".tif"),
        ("TGA", ".tga"),
        ("ICO", ".ico"),
    ],
)
def test_a_suffix_is_found_by_the_content(kind: str, suffix: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, kind)
    assert picture_suffix(buffer.getvalue(), "x") == suffix
    assert suffix in PICTURE_SUFFIXES


def test_what_is_no_picture_has_no_suffix() -> None:
    with pytest.raises(UnreadableImageError, match="x: not a picture"):
        picture_suffix(b"no picture", "x")


def test_a_missing_file_is_an_unreadable_picture() -> None:
    with pytest.raises(UnreadableImageError, match="no such file"):
        open_image("/nowhere/at-all.png", "/nowhere/at-all.png")


def test_padding_loses_nothing_and_centres_on_black() -> None:
    image = Image.new("RGB", (40, 20), "white")
    out = np.asarray(fit_image(image, (32, 32), "pad"))
    assert out.shape == (32, 32, 3)
    assert (out[8:24] == 255).all()
    assert (out[:8] == 0).all()
    assert (out[24:] == 0).all()


def test_cropping_keeps_the_centre_and_squashing_the_whole() -> None:
    image = Image.new("RGB", (60, 20), "red")
    image.paste((0, 0, 255), (20, 0, 40, 20))
    cropped = np.asarray(fit_image(image, (20, 20), "crop"))
    assert (cropped == (0, 0, 255)).all()
    squashed = np.asarray(fit_image(image, (20, 20), "squash"))
    assert squashed[10, 1].tolist() == [255, 0, 0]
    assert squashed[10, 10].tolist() == [0, 0, 255]


@pytest.mark.parametrize("fit", ["pad", "crop", "squash"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (7, 13), (100, 32)])
@pytest.mark.parametrize("size", [(32, 32), (32, 64), (48, 16)])
def test_every_shape_becomes_the_asked_size(fit: Fit, shape: tuple[int, int], size: tuple[int, int]) -> None:
    out = fit_image(Image.fromarray(noise(0, *shape)), size, fit)
    assert (out.height, out.width) == size
    assert out.mode == "RGB"


@pytest.mark.parametrize("fit", ["pad", "crop", "squash"])
def test_a_picture_of_the_right_size_is_untouched(fit: Fit) -> None:
    image = Image.fromarray(noise(3, 32, 64))
    assert np.array_equal(np.asarray(fit_image(image, (32, 64), fit)), noise(3, 32, 64))


def test_preprocessing_takes_any_mode() -> None:
    preprocessing = Preprocessing((16, 16), "pad", (0.5,) * 3, (0.5,) * 3)
    assert preprocessing.pixels(Image.new("LA", (30, 10), (10, 255))).shape == (16, 16, 3)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("size", [(20, 30), (16, 16)])
@pytest.mark.parametrize("fit", ["pad", "crop", "squash"])
def test_a_picture_loaded_as_pixels_is_the_picture(
    suffix: str, size: tuple[int, int], fit: Fit, tmp_path: Path
) -> None:
    path = str(write_picture(tmp_path / f"a.{suffix}", noise(8, 20, 30)))
    expected = np.asarray(fit_image(open_image(path, path), size, fit))
    assert np.array_equal(fit_pixels(load_picture(path, path), size, fit), expected)
