"""From decoded pictures of every kind to 8-bit RGB."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from helpers import noise, open_image
from thumbnet.data.images import is_plain, load_picture
from thumbnet.data.rendering import Fit, Preprocessing, Rendering, fit_pixels
from thumbnet.errors import UnreadableImageError

BLUE = (10, 20, 200)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rgb(picture: Image.Image | np.ndarray, rendering: Rendering = Rendering()) -> np.ndarray:  # noqa: B008
    return np.asarray(rendering.rgb(picture))


def png16(values: np.ndarray, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG of uint16 [H, W, channels], which Pillow cannot write for colour; filter Sub on every other row."""
    height, width, channels = values.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    step, rows = 2 * channels, []
    for number, row in enumerate(values):
        raw = np.frombuffer(row.astype(">u2").tobytes(), np.uint8)
        if number % 2:
            before = np.concatenate([np.zeros(step, np.uint8), raw[:-step]])
            rows.append(b"\x01" + (raw - before).tobytes())
        else:
            rows.append(b"\0" + raw.tobytes())

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"".join(rows))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunk(*one) for one in extra) + body


def tiff16(values: np.ndarray, order: str = "<", deflate: bool = False) -> bytes:
    """A TIFF of uint16 [H, W, 3]: little- or big-endian, plain or compressed by zlib."""
    height, width, channels = values.shape
    data = values.astype(f"{order}u2").tobytes()
    data = zlib.compress(data) if deflate else data
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, 0), (259, 3, 1, 8 if deflate else 1),
        (262, 3, 1, 2), (273, 4, 1, 0), (277, 3, 1, channels), (278, 4, 1, height), (279, 4, 1, len(data)),
    ]  # fmt: skip
    start = 8 + 2 + 12 * len(entries) + 4
    places = {258: start, 273: start + 6}
    directory = struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        value = places.get(tag, value)
        short = kind == 3 and count == 1
        directory += struct.pack(f"{order}HHI", tag, kind, count)
        directory += struct.pack(f"{order}HH", value, 0) if short else struct.pack(f"{order}I", value)
    mark = b"II*\0" if order == "<" else b"MM\0*"
    tail = struct.pack(f"{order}I", 0) + struct.pack(f"{order}3H", 16, 16, 16)
    return mark + struct.pack(f"{order}I", 8) + directory + tail + data


# --- decoding keeps all bits


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_a_16_bit_colour_png_is_read_with_all_its_bits(channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (7, 9, channels), dtype=np.uint16)
    expected = values if channels > 2 else values[..., [0, 0, 0, 1]]
    found = load_picture(png16(values), "x.png")
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.uint16
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("deflate", [False, True])
def test_a_16_bit_colour_tiff_is_read_with_all_its_bits(order: str, deflate: bool) -> None:
    values = np.random.default_rng(1).integers(0, 65536, (5, 8, 3), dtype=np.uint16)
    found = load_picture(tiff16(values, order, deflate), "x.tif")
    assert np.array_equal(np.asarray(found), values)
    assert np.asarray(found).dtype == np.uint16


def test_a_transparent_colour_of_a_16_bit_png_is_compared_in_all_its_bits() -> None:
    values = np.full((1, 2, 3), 1000, dtype=np.uint16)
    values[0, 1] = 1001  # the same upper byte
    found = load_picture(png16(values, (b"tRNS", struct.pack(">3H", 1000, 1000, 1000))), "x.png")
    assert rgb(found, Rendering((0, 65535), BLUE))[0].tolist() == [list(BLUE), [4, 4, 4]]


@pytest.mark.parametrize(
    ("channels", "extra", "becomes"),
    [(2, [], 4), (3, [], 3), (3, [(b"tRNS", struct.pack(">3H", 1000, 1000, 1000))], 4), (4, [], 4)],
)
def test_16_bit_colour_is_decoded_in_parts_to_the_same(
    channels: int, extra: list[tuple[bytes, bytes]], becomes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (21, 9, channels), dtype=np.uint16)
    values[5:15] = 1000
    whole = load_picture(png16(values, *extra), "x.png")
    monkeypatch.setattr("thumbnet.data.rendering.BAND_PIXELS", 30)
    parts = load_picture(png16(values, *extra), "x.png")
    assert np.asarray(parts).shape == (21, 9, becomes)
    assert np.array_equal(np.asarray(parts), np.asarray(whole))
    if becomes > channels == 3:
        assert np.array_equal(np.asarray(parts)[..., 3] == 0, (values == 1000).all(axis=2))


def test_a_transparent_grey_of_a_16_bit_png_is_laid_on_the_background() -> None:
    values = np.array([[[1000], [40000]]], dtype=np.uint16)
    found = load_picture(png16(values, (b"tRNS", struct.pack(">H", 1000))), "x.png")
    assert rgb(found, Rendering((0, 65535), BLUE))[0].tolist() == [list(BLUE), [156, 156, 156]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_16_bit_colour_is_turned_by_its_exif_as_8_bit_colour_is(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    values = noise(3, 5, 8)
    plain = open_image(encoded(Image.fromarray(values), "PNG", exif=exif), "a")
    deep = load_picture(png16(values.astype(np.uint16) * 257, (b"eXIf", exif.tobytes()[6:])), "b")
    assert np.array_equal(rgb(deep), np.asarray(plain))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_picture_with_values_that_are_not_finite_is_refused_by_name(bad: float, tmp_path: Path) -> None:
    values = np.zeros((4, 4), dtype=np.float32)
    values[2, 3] = bad
    path = tmp_path / "field.tif"
    Image.fromarray(values).save(path)
    with pytest.raises(UnreadableImageError, match=r"field\.tif.*not finite"):
        load_picture(str(path), str(path))


def test_a_tiff_of_float_colour_is_refused_as_such() -> None:
    values = tiff16(np.zeros((2, 2, 3), dtype=np.uint16))
    odd = values.replace(struct.pack("<3H", 16, 16, 16), struct.pack("<3H", 32, 32, 32))
    with pytest.raises(UnreadableImageError, match="a TIFF of a kind that thumbnet does not read"):
        load_picture(odd, "x.tif")


# --- one range


def deep_pictures() -> dict[str, Image.Image | np.ndarray]:
    values = np.array([[500, 600, 700, 1000]], dtype=np.uint16)
    return {
        "I;16": Image.fromarray(values),
        "I;16B": load_picture(_big_endian_tiff(values), "b.tif"),
        "I": Image.fromarray(values.astype(np.int32)),
        "F": Image.fromarray(values.astype(np.float32)),
        "uint16": values,
        "int32": values.astype(np.int32)[..., None],
        "float64": values.astype(np.float64),
        "float16": values.astype(np.float16),
        "rgb16": np.repeat(values[..., None], 3, axis=2),
    }


def _big_endian_tiff(values: np.ndarray) -> bytes:
    grey = tiff16(np.repeat(values[..., None], 3, axis=2), ">")
    # One sample in a pixel: grey. The data that follow are a third as long.
    for tag, old, new in ((262, 2, 1), (277, 3, 1)):
        entry = struct.pack(">HHIHH", tag, 3, 1, old, 0)
        assert entry in grey
        grey = grey.replace(entry, struct.pack(">HHIHH", tag, 3, 1, new, 0))
    bits = struct.pack(">HHI", 258, 3, 3) + grey[grey.index(struct.pack(">HHI", 258, 3, 3)) + 8 :][:4]
    grey = grey.replace(bits, struct.pack(">HHIHH", 258, 3, 1, 16, 0))
    return grey[: -values.size * 6] + values.astype(">u2").tobytes()


@pytest.mark.parametrize("kind", list(deep_pictures()))
def test_every_kind_of_deep_picture_is_rendered_by_the_same_straight_line(kind: str) -> None:
    picture = deep_pictures()[kind]
    if isinstance(picture, Image.Image):
        assert picture.mode == kind
    assert rgb(picture, Rendering((500, 1000)))[0].tolist() == [[0] * 3, [51] * 3, [102] * 3, [255] * 3]


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(noise(1)[..., 0]), Image.fromarray(noise(1)), Image.fromarray(noise(2)).quantize(8),
        Image.fromarray(noise(1)).convert("1"), Image.fromarray(noise(1)).convert("CMYK"),
        Image.fromarray(noise(1)).convert("YCbCr"),
    ],
    ids=lambda image: image.mode,
)  # fmt: skip
def test_pictures_of_8_bits_are_never_rescaled(image: Image.Image) -> None:
    assert np.array_equal(rgb(image, Rendering((10, 20), BLUE)), np.asarray(image.convert("RGB")))


def test_without_a_range_the_type_decides_and_never_the_picture() -> None:
    dark, bright = np.full((2, 2), 200, np.uint16), np.full((2, 2), 200, np.uint16)
    bright[0, 0] = 65535
    assert rgb(dark)[1, 1, 0] == rgb(bright)[1, 1, 0] == 1
    assert rgb(np.full((2, 2), 0.5))[0, 0, 0] == rgb(np.array([[0.5, 1.001]]))[0, 0, 0] == 128


def test_r05_one_brighter_pixel_changes_no_other_pixel() -> None:
    for kind, fill, tops in ((np.uint16, 200, (255, 256)), (np.float32, 0.5, (1.0, 1.001))):
        found = []
        for top in tops:
            values = np.full((4, 4), fill, kind)
            values[0, 0] = top
            picture = open_image(encoded(Image.fromarray(values), "TIFF"), "x.tif")
            found.append(np.asarray(picture)[1:].tolist())
        assert found[0] == found[1]


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from([np.uint16, np.int32, np.float32]),
        (6, 7),
        elements={"min_value": 0, "max_value": 60000},
    ),
    st.floats(-1e4, 5e4),
    st.floats(1, 1e5),
)
def test_rendering_is_monotone_and_crops_have_the_scale_of_the_whole(
    values: np.ndarray, low: float, span: float
) -> None:
    rendering = Rendering((low, low + span))
    levels = rgb(values, rendering)[..., 0]
    order = np.argsort(values, axis=None, kind="stable")
    assert (np.diff(levels.reshape(-1)[order].astype(int)) >= 0).all()
    assert np.array_equal(rgb(values[2:5, 1:6], rendering)[..., 0], levels[2:5, 1:6])


@settings(max_examples=50, deadline=None)
@given(st.floats(-1e4, 5e4), st.floats(1, 1e5))
def test_the_table_for_16_bits_is_the_straight_line(low: float, span: float) -> None:
    values = np.arange(0, 65536, 97, dtype=np.uint16)
    rendering = Rendering((low, low + span))
    assert np.array_equal(rendering.levels(values), rendering.levels(values.astype(np.int32)))


def test_a_large_deep_picture_is_rendered_in_parts_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (50, 40), dtype=np.uint16))
    whole = rgb(image, Rendering((100, 50_000)))
    monkeypatch.setattr("thumbnet.data.rendering.BAND_PIXELS", 400)
    assert np.array_equal(rgb(image, Rendering((100, 50_000))), whole)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_large_deep_array_is_rendered_in_parts_to_the_same(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.random.default_rng(0).integers(0, 65536, (51, 40, channels), dtype=np.uint16)
    pictures: list[np.ndarray] = [array, array.astype(np.float32) / 65535, array[..., 0]]
    renderings = [Rendering(), Rendering((100, 50_000)), Rendering((0.1, 0.9), BLUE)]
    whole = [rgb(picture, rendering) for picture in pictures for rendering in renderings]
    monkeypatch.setattr("thumbnet.data.rendering.BAND_PIXELS", 400)
    parts = [rgb(picture, rendering) for picture in pictures for rendering in renderings]
    for found, expected in zip(parts, whole, strict=True):
        assert found.dtype == np.uint8
        assert np.array_equal(found, expected)


# --- the background


def transparent_pictures() -> dict[str, Image.Image | np.ndarray]:
    rgba = np.zeros((1, 3, 4), dtype=np.uint8)
    rgba[0, 1], rgba[0, 2] = (255, 255, 255, 255), (90, 90, 90, 128)
    palette = Image.new("P", (3, 1), 0)
    palette.putpalette([9, 9, 9, 255, 255, 255, 90, 90, 90])
    palette.putdata([0, 1, 2])
    grey = Image.fromarray(rgba).convert("LA")
    return {
        "RGBA": Image.fromarray(rgba),
        "LA": grey,
        "La": grey.convert("La"),
        "RGBa": Image.fromarray(rgba).convert("RGBa"),
        "PA": Image.fromarray(rgba).convert("PA"),
        "P": Image.open(io.BytesIO(encoded(palette, "PNG", transparency=bytes([0, 255, 128])))),
        "uint8": rgba,
        "uint16": rgba.astype(np.uint16) * 257,
        "float32": (rgba / 255).astype(np.float32),
    }


@pytest.mark.parametrize("kind", list(transparent_pictures()))
@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), BLUE])
def test_transparency_is_laid_on_the_background(kind: str, background: tuple[int, int, int]) -> None:
    found = rgb(transparent_pictures()[kind], Rendering(None, background))[0].astype(int)
    assert found[0].tolist() == list(background)
    assert found[1].tolist() == [255] * 3
    mixed = (90 * 128 + np.array(background) * 127) / 255
    assert np.abs(found[2] - mixed).max() <= (1.5 if kind in ("La", "RGBa") else 1)


def test_alpha_is_no_colour_and_is_not_rescaled() -> None:
    values = np.array([[[500, 500, 500, 65535], [1000, 1000, 1000, 65535]]], dtype=np.uint16)
    assert rgb(values, Rendering((500, 1000)))[0, :, 0].tolist() == [0, 255]


def test_grey_with_a_transparent_value_is_laid_on_the_background() -> None:
    image = Image.fromarray(np.array([[7, 8]], dtype=np.uint8))
    found = load_picture(encoded(image, "PNG", transparency=7), "x.png")
    assert rgb(found, Rendering(None, BLUE))[0].tolist() == [list(BLUE), [8, 8, 8]]


# --- all together


def test_preprocessing_goes_the_same_way_for_files_images_and_arrays() -> None:
    values = np.random.default_rng(5).integers(500, 900, (20, 30), dtype=np.uint16)
    pre = Preprocessing((16, 16), "pad", (0.5,) * 3, (0.5,) * 3, (500.0, 900.0))
    forms = [
        load_picture(encoded(Image.fromarray(values), "PNG"), "a"),
        load_picture(encoded(Image.fromarray(values), "TIFF"), "b"),
        Image.fromarray(values.astype(np.int32)),
        values,
        values.astype(np.float32)[..., None],
        np.repeat(values[..., None], 3, axis=2),
    ]
    first, *others = [pre.pixels(form) for form in forms]
    assert first.shape == (16, 16, 3)
    assert all(np.array_equal(first, other) for other in others)


@pytest.mark.parametrize(
    ("head", "plain"),
    [
        (encoded(Image.fromarray(noise(1)), "JPEG"), True),
        (encoded(Image.fromarray(noise(1)), "PNG"), True),
        (encoded(Image.fromarray(noise(1)[..., 0]), "PNG"), True),
        (encoded(Image.fromarray(noise(1)).quantize(8), "PNG"), True),
        (encoded(Image.fromarray(noise(1)).quantize(8), "PNG", transparency=3), False),
        (encoded(Image.fromarray(noise(1)[..., 0]), "PNG", transparency=3), False),
        (encoded(Image.fromarray(noise(1)).convert("RGBA"), "PNG"), False),
        (encoded(Image.fromarray(np.zeros((4, 4), np.uint16)), "PNG"), False),
        (encoded(Image.fromarray(noise(1)), "TIFF"), False),
        (b"", False),
    ],
)
def test_a_file_is_plain_only_where_its_beginning_says_so(head: bytes, plain: bool) -> None:
    assert is_plain(head[:4096]) is plain


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from(["pad", "crop", "squash"]))
def test_a_picture_of_any_shape_is_fitted(height: int, width: int, fit: Fit) -> None:
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    for size in ((32, 32), (72, 96)):  # a box of -1e-15 pixels was refused by Pillow
        assert fit_pixels(pixels, size, fit).shape == (*size, 3)
