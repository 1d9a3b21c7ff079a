from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from faults.broken import png, scans
from helpers import noise, open_image, write_picture
from thumbnet.data import images
from thumbnet.data.images import (
    PICTURE_SUFFIXES,
    load_picture,
    memory_to_decode,
    peek_image,
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


def test_a_peek_tells_the_upright_size_and_the_mode_without_decoding() -> None:
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (8, 4)).save(buffer, "JPEG", exif=exif)
    assert peek_image(io.BytesIO(buffer.getvalue()), "x.jpg") == ((8, 4), "L")
    with pytest.raises(UnreadableImageError, match=r"x\.jpg"):
        peek_image(io.BytesIO(b"no picture"), "x.jpg")


def test_a_lack_of_memory_is_not_taken_for_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    split = BytesSplit([buffer.getvalue()], np.array([0]), ["x.png"])

    def refuse(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "open", refuse)
    for read in (split.load, split.peek):
        with pytest.raises(MemoryError):
            read(0)


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


def test_a_high_narrow_picture_is_squashed_in_two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = Image.fromarray(noise(0, 3000, 3))
    directly = np.asarray(fit_image(narrow, (16, 24), "squash")).astype(int)
    sizes, original = list[Any](), Image.Image.resize

    def watched(self: Image.Image, size: tuple[int, int], *more: Any, **named: Any) -> Image.Image:
        sizes.append(size)
        return original(self, size, *more, **named)

    monkeypatch.setattr(Image.Image, "resize", watched)
    monkeypatch.setattr("thumbnet.data.rendering.BAND_PIXELS", 10_000)
    found = np.asarray(fit_image(narrow, (16, 24), "squash")).astype(int)
    assert sizes == [(3, 16), (24, 16)]  # never 24 x 3000
    assert np.abs(found - directly).max() <= 1
    fit_image(Image.fromarray(noise(0, 30, 3)), (16, 24), "squash")
    assert sizes[2:] == [(24, 16)]


# --- the memory that decoding takes


def file_of(kind: str, image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    try:
        image.save(buffer, kind, **options)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow cannot write {kind}")
    return buffer.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def icon(content: bytes) -> bytes:
    """An icon that says 16x16, with a PNG in it."""
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(content), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + content


@pytest.mark.parametrize(
    ("kind", "options", "plain"),
    [
        ("PNG", {}, True),
        ("PNG", {"exif": turned()}, True),
        ("JPEG", {}, True),
        ("JPEG", {"progressive": True, "exif": turned()}, True),
        ("GIF", {}, True),
        ("BMP", {}, True),
        ("WEBP", {}, False),
        ("TIFF", {}, False),
        ("TGA", {}, False),
        ("ICO", {}, False),
        ("ICO", {"bitmap_format": "bmp"}, False),
    ],
)
def test_memory_is_claimed_before_a_picture_is_decoded(
    kind: str, options: dict[str, Any], plain: bool
) -> None:
    content, claims = file_of(kind, Image.fromarray(noise(0, 24, 24)), **options), list[int]()
    load_picture(content, "x", claim=claims.append)
    assert set(claims) == {memory_to_decode((24, 24), plain=plain)}

    def refuse(memory: int) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        load_picture(content, "x", claim=refuse)


def test_16_bit_colour_takes_more_memory_than_8_bits() -> None:
    claims = list[int]()
    for depth in (8, 16):
        row = bytes(1 + 3 * 50 * depth // 8)
        load_picture(png(50, 40, depth=depth, body=row * 40), "x.png", claim=claims.append)
    assert claims == [memory_to_decode((50, 40), plain=True), memory_to_decode((50, 40))]
    assert claims[1] > claims[0]


def test_a_picture_that_one_decoder_gives_up_claims_memory_for_the_next() -> None:
    content, claims = file_of("JPEG", Image.fromarray(noise(0, 64, 64))), list[int]()
    with pytest.raises(UnreadableImageError):
        load_picture(content[: len(content) // 2], "cut.jpg", claim=claims.append)
    assert set(claims) == {memory_to_decode((64, 64), plain=True)}


def test_a_picture_that_is_too_large_claims_nothing() -> None:
    claims = list[int]()
    for kind in ("PNG", "JPEG", "TIFF"):
        with pytest.raises(TooManyPixelsError):
            load_picture(file_of(kind, Image.new("RGB", (40, 40))), "x", 1000, claims.append)
    assert claims == []


def test_an_icon_with_a_larger_picture_than_it_says_is_refused_undecoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small, large = (file_of("PNG", Image.new("RGB", (side, side))) for side in (16, 300))
    assert np.asarray(load_picture(icon(small), "small.ico", 10_000)).shape[:2] == (16, 16)
    assert peek_image(io.BytesIO(icon(small)), "small.ico")[0] == (16, 16)
    decoded = list[Any]()
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda self: decoded.append(self.size))
    with pytest.raises(TooManyPixelsError, match="300x300 pixels are more than the limit of 10,000"):
        load_picture(icon(large), "large.ico", 10_000)
    assert picture_suffix(icon(large), "large.ico") == ".ico"
    monkeypatch.setattr(images, "MAX_PIXELS", 10_000)
    with pytest.raises(TooManyPixelsError, match="300x300 pixels are more than the limit of 10,000"):
        peek_image(io.BytesIO(icon(large)), "large.ico")
    assert decoded == []


def test_a_jpeg_with_too_many_scans_is_refused_undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    claims = list[int]()
    with pytest.raises(UnreadableImageError, match="more than 500 scans"):
        load_picture(scans(501), "x.jpg", claim=claims.append)
    assert claims == []
    usual = file_of("JPEG", Image.fromarray(noise(0, 24, 24)), progressive=True)
    monkeypatch.setattr(images, "MAX_SCANS", usual.count(images.JPEG_SCAN))
    load_picture(usual, "x.jpg", claim=claims.append)
    assert len(claims) == 1


def test_what_follows_a_jpeg_is_not_taken_for_scans() -> None:
    usual = file_of("JPEG", Image.fromarray(noise(0, 24, 24)))
    random = np.random.default_rng(0)
    video = b"".join(images.JPEG_SCAN + random.bytes(30) for _ in range(2_000))
    found, expected = (np.asarray(open_image(one, "x.jpg")) for one in (usual + video, usual))
    np.testing.assert_array_equal(found, expected)


def tiled(side: int, tile: int) -> bytes:
    """A grey TIFF that consists of one tile, compressed by zlib."""
    data = zlib.compress(bytes(tile * tile))
    entries = [
        (256, side), (257, side), (258, 8), (259, 8), (262, 1), (277, 1), (322, tile), (323, tile), (324, 0),
        (325, len(data)),
    ]  # fmt: skip
    start = 8 + 2 + 12 * len(entries) + 4
    rows = [struct.pack("<HHII", tag, 4, 1, start if tag == 324 else value) for tag, value in entries]
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(rows) + bytes(4) + data


def test_a_tiff_whose_tiles_are_too_large_is_refused_undecoded() -> None:
    claims = list[int]()
    found = load_picture(tiled(16, 32), "x.tif", 10_000, claims.append)
    assert np.asarray(found).shape == (16, 16)
    assert claims == [memory_to_decode((32, 32))]
    with pytest.raises(TooManyPixelsError, match="304x304 pixels are more than the limit of 10,000"):
        load_picture(tiled(16, 304), "x.tif", 10_000, claims.append)
    assert len(claims) == 1


def tells_peak() -> bool:
    status = Path("/proc/self/status")
    return status.is_file() and "VmHWM" in status.read_text()


# Measured in a process of its own, so what else runs here does not matter.
MEASURE = r"""
import re, sys
from thumbnet.data.images import load_picture
from thumbnet.data.rendering import Preprocessing

def kilobytes(name):
    with open("/proc/self/status") as status:
        return int(re.search(name + r":\s+(\d+) kB", status.read())[1])

half = (0.5,) * 3
preprocessing = Preprocessing((32, 32), "squash", half, half)
small, large = (open(path, "rb").read() for path in sys.argv[1:])
preprocessing.pixels(load_picture(small, "small"))  # imports the decoder
claims = []
before = kilobytes("VmRSS")
preprocessing.pixels(load_picture(large, "large", claim=claims.append))
print(1024 * (kilobytes("VmHWM") - before), claims[-1])
"""


@pytest.mark.skipif(not tells_peak(), reason="this system does not tell how much memory a process has used")
@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("png16", "RGB", {}),
        ("png16", "RGBA", {}),
        ("PNG", "RGBA", {"exif": turned()}),
        ("PNG", "narrow", {}),
        ("JPEG", "RGB", {"progressive": True}),
        ("JPEG", "CMYK", {"progressive": True, "exif": turned()}),
        ("WEBP", "RGBA", {"lossless": True}),
        ("TIFF", "RGBA", {"exif": turned()}),
        ("JPEG2000", "RGBA", {}),
        ("AVIF", "RGBA", {}),
    ],
)
def test_decoding_takes_no_more_memory_than_was_claimed(
    kind: str, mode: str, options: dict[str, Any], tmp_path: Path
) -> None:
    paths = [tmp_path / "small", tmp_path / "large"]
    for path, side in zip(paths, (64, 2000), strict=True):  # the larger one is rendered in several parts
        if kind == "png16":
            channels = len(mode)
            body = bytes(1 + 2 * channels * side) * side
            path.write_bytes(png(side, side, depth=16, colour={3: 2, 4: 6}[channels], body=body))
        elif mode == "narrow":
            path.write_bytes(file_of(kind, Image.new("L", (1, side * side // 2)), **options))
        else:
            path.write_bytes(file_of(kind, Image.new(mode, (side, side)), **options))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *paths], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    took, claimed = map(int, done.stdout.split())
    assert took <= claimed
    assert took > claimed / 8  # or this would measure nothing
