from __future__ import annotations

import contextlib
import copy
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from helpers import coloured, open_image, write_class_folders, write_picture
from thumbnet.data import plugins
from thumbnet.data.images import load_picture
from thumbnet.data.splits import FileSplit
from thumbnet.errors import MissingPluginError, UnknownFormatError, UnreadableImageError
from thumbnet.sources.load import load_data

heif: Any = pytest.importorskip("pillow_heif", reason="the extra 'formats' is not installed")


def heic(pixels: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    heif.from_pillow(Image.fromarray(pixels)).save(buffer, quality=100, **options)
    return buffer.getvalue()


def jpeg(precision: int = 8, marker: int = 0xC0) -> bytes:
    """A JPEG whose frame header says that it has another precision or another process."""
    buffer = io.BytesIO()
    Image.fromarray(coloured(0, 0)).save(buffer, "JPEG")
    data = bytearray(buffer.getvalue())
    at = data.index(b"\xff\xc0")
    data[at + 1], data[at + 4] = marker, precision
    return bytes(data)


@pytest.fixture
def without_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "installed", lambda kind: False)


def test_heic_pictures_are_read_as_they_look(tmp_path: Path) -> None:
    pixels = np.zeros((48, 64, 3), dtype=np.uint8)
    pixels[:24] = (220, 40, 30)
    pixels[24:] = (30, 60, 210)
    read = np.asarray(open_image(heic(pixels), "x.heic")).astype(int)
    assert read.shape == pixels.shape
    assert np.abs(read - pixels).mean() < 6


def test_a_heic_picture_lies_upright_by_its_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[:, :30] = 240
    path = tmp_path / "phone.heic"
    path.write_bytes(heic(pixels, exif=exif.tobytes()))
    read = np.asarray(open_image(str(path), "phone.heic"))
    assert read.shape == (60, 40, 3)
    assert read[:25].mean() > 230
    assert read[35:].mean() < 20
    assert FileSplit(tmp_path, [path.name], np.zeros(1)).peek(0)[0] == (60, 40)


def test_class_folders_may_have_heic_pictures_among_others(tmp_path: Path) -> None:
    write_class_folders(tmp_path, ["train", "test"])
    (tmp_path / "train" / "red" / "PHONE.HEIC").write_bytes(heic(coloured(0, 9)))
    data = load_data(tmp_path)
    train = data.splits["train"]
    assert len(train) == 19
    at = [Path(train.name(index)).name for index in range(19)].index("PHONE.HEIC")
    assert np.asarray(train.read(at)).shape == (16, 16, 3)


def test_the_plugin_is_loaded_for_heic_alone(tmp_path: Path) -> None:
    plain = write_picture(tmp_path / "a.png", coloured(0, 0))
    phone = tmp_path / "b.heic"
    phone.write_bytes(heic(coloured(0, 0)))
    code = (
        "import sys; from thumbnet.data.images import load_picture\n"
        "for path in sys.argv[1:]: load_picture(path, path); print('pillow_heif' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, plain, phone], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "True"]


@pytest.mark.usefixtures("without_heif")
def test_without_the_plugin_a_heic_picture_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(UnknownFormatError, match="a HEIC picture; to read it, pip install pillow-heif"):
        open_image(heic(coloured(0, 0)), "x.heic")
    (tmp_path / "x.heic").write_bytes(heic(coloured(0, 0)))
    with pytest.raises(UnknownFormatError, match="pip install pillow-heif"):
        FileSplit(tmp_path, ["x.heic"], np.zeros(1)).peek(0)


@pytest.mark.usefixtures("without_heif")
def test_the_error_about_a_missing_plugin_names_it_and_passes_between_processes() -> None:
    with pytest.raises(MissingPluginError) as caught:
        open_image(heic(coloured(0, 0)), "x.heic")
    again = copy.copy(caught.value)  # as a pickle would make it
    assert isinstance(again, MissingPluginError)
    assert (again.name, again.kind, again.package) == ("x.heic", "a HEIC picture", "pillow-heif")
    assert str(again) == str(caught.value)


def test_a_picture_of_the_plugins_that_declares_too_much_is_refused() -> None:
    with pytest.raises(UnreadableImageError, match="64x64 pixels are more than the limit"):
        load_picture(heic(np.zeros((64, 64, 3), dtype=np.uint8)), "x.heic", 1000)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (jpeg(12), "a JPEG with 12 bits per sample"),
        (jpeg(12, 0xC1), "a JPEG with 12 bits per sample"),
        (jpeg(16, 0xC3), "a lossless JPEG with 16 bits per sample"),
        (jpeg(8, 0xF7), "a JPEG-LS picture"),
        (b"\xff\x0a" + bytes(40), "JPEG XL picture; to read it, pip install pillow-jxl-plugin"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40), "JPEG XL"),
        (b"\0\0\0\x18ftypisom" + bytes(40), "a video; save its frames"),
        (b"\0\0\0\x18ftypcrx " + bytes(40), "camera's raw picture"),
        (bytes(128) + b"DICM" + bytes(40), "a DICOM file; convert it to PNG first"),
        (bytes(344) + b"n+1\0", "a NIfTI volume"),
        (b"8BPS\0\1", "a Photoshop document"),
        (b"%PDF-1.7\n", "a PDF document; export its pages"),
        (b"<?xml version='1.0'?>\n<svg width='3'/>", r"a vector drawing \(SVG\)"),
        (b"v/1\x01" + bytes(40), "high-dynamic-range"),
        (b"<!DOCTYPE html><html>", "a web page, not a picture"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"", "the file is empty"),
        (b"hello", "not a picture in a format that thumbnet reads"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(UnreadableImageError, match=says):
        open_image(content, "x")
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(UnreadableImageError, match=says):
        FileSplit(tmp_path, ["x.jpg"], np.zeros(1)).peek(0)


def test_files_of_such_kinds_among_the_pictures_are_counted_with_advice(tmp_path: Path) -> None:
    write_class_folders(tmp_path, ["train", "test"])
    for name in ("a.jxl", "b.JXL", "c.dcm", "d.mp4", "e.txt"):
        (tmp_path / "train" / "red" / name).write_bytes(b"x")
    notes = load_data(tmp_path).notes
    assert any(n.startswith("warning: 2 file(s)") and "pip install pillow-jxl-plugin" in n for n in notes)
    assert any("1 file(s)" in n and "DICOM" in n and "pydicom" in n for n in notes)
    assert any("1 file(s)" in n and "a video" in n and "ffmpeg" in n for n in notes)


def test_a_heic_picture_whose_codec_is_named_late_is_none_of_avif() -> None:
    assert plugins.kind_of(b"\0\0\0\x1cftypmif1\0\0\0\0mif1heic") is plugins.HEIC
    assert plugins.kind_of(b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif") is plugins.AVIF


STARTS = [
    b"",
    b"\xff\xd8\xff\xc0\0\x11\x0c",
    b"\0\0\0\x18ftypheic",
    b"\xff\xd8\xff",
    b"<?xml",
    b"\xff\xd8\xff\xff",
]


@given(st.sampled_from(STARTS), st.binary(max_size=300))
@example(b"", b"")
@example(b"\0\0\0\x18ftypheic", b"")
def test_hostile_bytes_are_refused_in_words(start: bytes, noise: bytes) -> None:
    with pytest.raises(UnreadableImageError) as caught:
        open_image(start + noise, "x\x1b[2J\n.heic")
    assert str(caught.value).isprintable()
    assert str(caught.value).startswith(r"cannot read the picture x\x1b[2J\n.heic: ")


@given(st.integers(0, 2000), st.integers(0, 255))
def test_damaged_heic_is_read_or_refused(at: int, value: int) -> None:
    content = bytearray(SAMPLE)
    content[at % len(content)] = value
    with contextlib.suppress(UnreadableImageError):
        assert open_image(bytes(content), "x.heic").mode == "RGB"


SAMPLE = heic(coloured(1, 1, 32))
