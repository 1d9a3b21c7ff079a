from __future__ import annotations

import io
import lzma
import tarfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thumbnet.sources import tar
from thumbnet.sources.tar import members

MODES = ("w", "w:gz", "w:bz2", "w:xz")
FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
NOISE = np.random.default_rng(0).bytes(3 << 20)


def write(path: Path, contents: dict[str, bytes], mode: str = "w", form: int = tarfile.GNU_FORMAT) -> Path:
    options = {"preset": 0} if mode == "w:xz" else {}  # the default takes a second for the noise
    with tarfile.open(path, mode, format=form, **options) as archive:  # type: ignore[call-overload]
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def read(path: Path) -> dict[str, bytes | None]:
    return {name: content.read() if content else None for name, content in members(path)}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", FORMATS)
def test_members_of_all_sizes_and_names_are_read(mode: str, form: int, tmp_path: Path) -> None:
    contents = {
        "a.png": b"1", "deep/er/b.png": b"", "c.png": NOISE[:512], "d.png": NOISE[:513], "e.png": NOISE,
        "é.png": b"x", "x" * 90 + "/" + "y" * 90: b"long", "z.png": b"after",
    }  # fmt: skip
    assert read(write(tmp_path / "x", contents, mode, form)) == contents


@settings(max_examples=60, deadline=None)
@given(
    contents=st.dictionaries(
        st.text("ab/é.", min_size=1, max_size=200).filter(lambda name: not name.endswith("/")),
        st.binary(max_size=2000),
        max_size=8,
    ),
    mode=st.sampled_from(MODES),
    form=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_the_result_is_that_of_tarfile(
    tmp_path_factory: pytest.TempPathFactory, contents: dict[str, bytes], mode: str, form: int
) -> None:
    path = write(tmp_path_factory.mktemp("tar") / "x", contents, mode, form)
    with tarfile.open(path) as archive:
        expected = [(info.name, archive.extractfile(info)) for info in archive]
        assert [(name, content and content.read()) for name, content in members(path)] == [
            (name, content and content.read()) for name, content in expected
        ]


def test_ordinary_members_do_without_tarfile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(tmp_path / "x", "w:xz", format=tarfile.GNU_FORMAT) as archive:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for size in range(600):
            info = tarfile.TarInfo(f"folder/{size}.png")
            info.size = size
            archive.addfile(info, io.BytesIO(NOISE[:size]))
    path = tmp_path / "x"

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(tarfile, "open", refuse)
    assert len(read(path)) == 600


def test_folders_are_left_out_and_links_have_no_content(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x", "w") as archive:
        for name, kind in (
            ("folder", tarfile.DIRTYPE),
            ("link", tarfile.SYMTYPE),
            ("pipe", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "elsewhere"
            archive.addfile(info)
        info = tarfile.TarInfo("file")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    assert read(tmp_path / "x") == {"link": None, "pipe": None, "file": b"abc"}


def test_a_member_that_is_not_read_is_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "x", {"a": NOISE, "b": b"1", "c": NOISE[:5]}, "w:xz")
    assert [name for name, _ in members(path)] == ["a", "b", "c"]
    found = members(path)
    _, content = next(found)
    assert content is not None
    assert content.read(10) == NOISE[:10]
    assert next(found).name == "b"


@pytest.mark.parametrize("mode", MODES)
def test_an_archive_that_ends_too_early_raises_an_error(mode: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x", {"a": NOISE[:70_000], "b": NOISE}, mode)
    path.write_bytes(path.read_bytes()[:600_000])
    with pytest.raises((tarfile.ReadError, EOFError)):
        read(path)


@pytest.mark.parametrize(
    "content", [b"", b"rubbish", bytes(100), b"\xfd7zXZ\0rubbish", b"BZhrubbish", b"\x1f\x8b"]
)
def test_a_file_that_is_not_an_archive_raises_an_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises((tarfile.ReadError, lzma.LZMAError, EOFError, OSError)):
        read(tmp_path / "x")


@pytest.mark.parametrize("header", [bytes(512), b"\xff" * 512, bytes(range(256)) * 2, NOISE[:512]])
def test_the_sum_of_a_header_is_exact(header: bytes) -> None:
    assert tar._sum(header) == sum(header)


def test_a_header_with_a_wrong_checksum_is_not_believed(tmp_path: Path) -> None:
    path = write(tmp_path / "x", {"a": b"123", "b": b"456"})
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    with pytest.raises(tarfile.ReadError):
        read(path)


def test_several_compressed_streams_are_read_as_one_file(tmp_path: Path) -> None:
    whole = write(tmp_path / "plain", {"a": NOISE, "b": b"1"}).read_bytes()
    parts = [lzma.compress(whole[:1000]), bytes(8), lzma.compress(whole[1000:], preset=0)]
    (tmp_path / "x").write_bytes(b"".join(parts))
    assert read(tmp_path / "x") == {"a": NOISE, "b": b"1"}


def test_leaving_early_ends_the_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "_AHEAD", 4)
    big = write(tmp_path / "x", {f"{i}": bytes(1 << 20) for i in range(3 * tar._AHEAD)}, "w:xz")
    before = threading.active_count()
    found = members(big)
    next(found)
    assert threading.active_count() == before + 1
    found.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
