"""A failure of the system is not taken for a damaged or missing file."""

from __future__ import annotations

import copy
import errno
import io
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers import coloured, write_picture
from thumbnet import files
from thumbnet.data import images, reading
from thumbnet.data.images import load_picture
from thumbnet.data.reading import damage_as_data_error, read_error, reads
from thumbnet.data.splits import FileSplit
from thumbnet.errors import (
    DataError,
    FailedReadError,
    MissingExtraError,
    UnreadableFilesError,
    UnreadableImageError,
)
from thumbnet.files import WholeFile, open_whole, open_zip, read_whole

FAILURES = (errno.EIO, errno.EACCES, errno.ENOMEM, errno.EMFILE, errno.ESTALE)
ABSENCES = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


def failing(number: int) -> Callable[..., Any]:
    """A call of the system that fails."""

    def fail(path: object, *_: object, **__: object) -> object:
        raise OSError(number, os.strerror(number), path if isinstance(path, str) else os.fspath(path))  # type: ignore[call-overload]

    return fail


@pytest.mark.parametrize("ask", [reading.is_file, reading.is_folder, reading.exists])
def test_what_is_there_is_told_from_what_the_system_cannot_tell(
    ask: Callable[[Path], bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "loop").symlink_to("loop")
    expected = {"is_file": (True, False), "is_folder": (False, True), "exists": (True, True)}[ask.__name__]
    assert (ask(tmp_path / "file"), ask(tmp_path)) == expected
    for absent in ("nowhere", "file/below", "loop", "long" * 100, "a\0b"):
        assert not ask(tmp_path / absent)
    for number in FAILURES:
        with monkeypatch.context() as patch:
            patch.setattr(os, "stat", failing(number))
            with pytest.raises(FailedReadError, match=rf"{tmp_path}/file: {os.strerror(number)}"):
                ask(tmp_path / "file")


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b", "a"):
        (tmp_path / name).write_bytes(b"")
    assert reading.inside(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    assert reading.inside(tmp_path / "nowhere") == reading.inside(tmp_path / "a") == []
    monkeypatch.setattr(os, "listdir", failing(errno.EIO))
    with pytest.raises(FailedReadError, match=str(tmp_path)):
        reading.inside(tmp_path)


def test_the_folders_in_a_folder_are_told_without_looking_at_each_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_bytes(b"")
    assert reading.folders_in(tmp_path / "nowhere") == reading.folders_in(tmp_path / "file") == []
    monkeypatch.setattr(os, "stat", failing(errno.EIO))
    assert reading.folders_in(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    monkeypatch.setattr(os, "scandir", failing(errno.EIO))
    with pytest.raises(FailedReadError, match=str(tmp_path)):
        reading.folders_in(tmp_path)


def test_an_error_of_the_system_becomes_one_that_names_the_file() -> None:
    for number in FAILURES:
        assert type(read_error(OSError(number, "why"), "x.png")) is FailedReadError
    for number in ABSENCES:
        assert type(read_error(OSError(number, "why"), "x.png")) is DataError
    assert type(read_error(OSError("a library's own"), "x.png")) is DataError
    with pytest.raises(FailedReadError, match=r"cannot read y\.png: why\.\n") as caught, reads("x.png"):
        raise OSError(errno.EIO, "why", "y.png")
    again = copy.copy(caught.value)  # as a process that decodes passes it on
    assert (str(again), again.name, again.reason) == (str(caught.value), "y.png", "why")


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (ValueError("an odd\x1b header\nand more"), DataError, r"x\.npz is damaged: an odd\\x1b header"),
        (KeyError(), DataError, r"x\.npz is damaged: KeyError"),
        (OSError("a library's own"), DataError, r"x\.npz is damaged: a library's own"),
        (OSError(errno.EIO, "why"), FailedReadError, r"cannot read x\.npz: why"),
        (OSError(errno.ENOENT, "why"), DataError, r"cannot read x\.npz: why"),
        (MissingExtraError("it", "formats"), MissingExtraError, "it needs the extra"),
        (MemoryError(), MemoryError, ""),
    ],
)
def test_only_damage_is_called_damage(error: Exception, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=f"^{words}") as caught, damage_as_data_error("x.npz", "x.npz is damaged"):
        raise error
    assert "and more" not in str(caught.value)


def test_an_error_about_very_many_files_lists_some() -> None:
    errors = [FailedReadError(f"{number}.png", "Stale file handle") for number in range(1200)]
    lines = str(UnreadableFilesError(errors)).splitlines()
    assert lines[0] == "1,200 files cannot be read:"
    assert lines[10:12] == ["  9.png: Stale file handle", "  and 1,190 more"]
    assert len(lines) == 13


class Early:
    """``os.fstat`` of a file that is longer than what can be read of it."""

    def __init__(self, state: os.stat_result) -> None:
        self.st_size = state.st_size + 5
        self.st_mode, self.st_mtime_ns = state.st_mode, state.st_mtime_ns


def test_a_file_that_ends_before_its_size_is_a_failed_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(b"a,b\r\n1,2\r\n")
    assert read_whole(path) == b"a,b\r\n1,2\r\n"
    assert reading.read_text(path) == "a,b\n1,2\n"
    with reading.open_text(path, "ascii", newline="") as text:
        assert text.readlines() == ["a,b\r\n", "1,2\r\n"]
    fstat = os.fstat
    monkeypatch.setattr(os, "fstat", lambda number: Early(fstat(number)))
    with open_whole(path) as file:
        assert file.read(4) == b"a,b\r"
        with pytest.raises(OSError, match=r"only 10 of its 15 bytes could be read.*table\.csv"):
            file.read()
    for read in (read_whole, reading.read_text):
        with pytest.raises(OSError, match="only 10 of its 15 bytes"):
            read(path)


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="no file whose reads fail")
def test_a_read_that_fails_names_its_file() -> None:
    for read in (read_whole, reading.read_text):
        with pytest.raises(OSError, match=re.escape("Input/output error: '/proc/self/mem'")):
            read("/proc/self/mem")


class Flaky(io.FileIO):
    """Files of which the read number ``at`` fails, or finds the end of the file too early."""

    at, ends, done = 0, False, 0

    def readinto(self, buffer: Any, /) -> int:
        Flaky.done += 1
        if Flaky.done == Flaky.at:
            if Flaky.ends:
                return 0
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().readinto(memoryview(buffer)[:PIECE])

    def readall(self) -> bytes:
        content, piece = bytearray(), bytearray(PIECE)
        while count := Flaky.readinto(self, piece):
            content += piece[:count]
        return bytes(content)

    def read(self, size: int | None = -1, /) -> bytes:
        return self.readall() if size is None or size < 0 else super().read(size)


class FlakyWhole(WholeFile, Flaky):
    """The same, read as thumbnet reads files."""


PIECE = 64  # bytes that a read returns at most, so that there are many


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("png", {}),
        ("jpg", {}),
        ("jpg", {"progressive": True, "exif": True}),
        ("bmp", {}),
        ("gif", {}),
        ("webp", {}),
        ("tif", {"exif": True}),
        ("tif", {"compression": "tiff_lzw"}),
        ("tga", {}),
        ("ppm", {}),
        ("jp2", {}),
    ],
)
def test_any_read_of_a_picture_may_fail_and_it_is_read_right_or_not_at_all(
    suffix: str,
    options: dict[str, Any],
    small: bool,
    ends: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = dict(options)
    if options.pop("exif", False):
        exif = Image.Exif()
        exif[0x0112] = 6  # the picture lies on its side
        options["exif"] = exif
    image = Image.fromarray(coloured(1, 2, 40)).crop((0, 0, 40, 24))
    path = write_picture(tmp_path / f"x.{suffix}", image, **options)
    right, split = np.asarray(load_picture(str(path), "x")), FileSplit(tmp_path, [path.name], np.array([0]))
    header = split.peek(0)
    if not small:
        monkeypatch.setattr(images, "SMALL_FILE", 10)
    monkeypatch.setattr(files, "WholeFile", FlakyWhole)
    monkeypatch.setattr(images, "open", lambda path, *_, **__: Flaky(path), raising=False)
    monkeypatch.setattr(Flaky, "ends", ends)
    for read in (lambda: np.asarray(load_picture(str(path), "x")), lambda: split.peek(0)):
        Flaky.at = Flaky.done = 0
        while Flaky.done >= Flaky.at:
            Flaky.at, Flaky.done = Flaky.at + 1, 0
            try:
                found = read()
            except FailedReadError:
                assert Flaky.done >= Flaky.at
            else:
                assert ends or Flaky.done < Flaky.at  # where the file does end, nothing has failed
                assert found == header if isinstance(found, tuple) else (found == right).all()
        assert Flaky.at > 1


@pytest.mark.parametrize("ends", [False, True])
def test_any_read_of_a_zip_may_fail_and_it_is_not_called_damaged(
    ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, content = tmp_path / "x.zip", bytes(range(256)) * 4
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name in ("a", "b"):
            zipped.writestr(name, content)
    monkeypatch.setattr(files, "WholeFile", FlakyWhole)
    monkeypatch.setattr(Flaky, "ends", ends)
    Flaky.at = Flaky.done = 0
    while Flaky.done >= Flaky.at:
        Flaky.at, Flaky.done = Flaky.at + 1, 0
        failure = None
        try:
            with open_zip(path) as zipped:
                found = [zipped.read(name) for name in zipped.namelist()]
        except OSError as error:
            failure = error
        if failure is None:
            assert ends or Flaky.done < Flaky.at  # where the file does end, nothing has failed
            assert found == [content] * 2
        else:
            assert (failure.errno, failure.filename) == (errno.EIO, str(path))
    assert Flaky.at > 5


def test_a_damaged_zip_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"PK")
    with pytest.raises(zipfile.BadZipFile), open_zip(tmp_path / "x.zip"):
        pass


def test_a_missing_picture_is_not_a_failed_read(tmp_path: Path) -> None:
    split = FileSplit(tmp_path, ["nowhere.png", "nowhere/below.png"], np.array([0, 0]))
    for read in (split.load, split.peek, split.content):
        for index in range(2):
            with pytest.raises(UnreadableImageError, match="there is no such file"):
                read(index)
    assert split.head(0) == b""


@pytest.mark.parametrize("what", ["content_key", "stamp", "load", "head"])
def test_a_picture_whose_state_the_system_cannot_tell_is_not_a_missing_one(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_picture(tmp_path / "x.png", coloured(0, 0))
    split = FileSplit(tmp_path, ["x.png"], np.array([0]))
    work: dict[str, Callable[[], object]] = {
        "content_key": split.content_key,
        "stamp": lambda: list(split.stamp()),
        "load": lambda: split.load(0),
        "head": lambda: split.head(0),
    }
    right = work[what]()
    again = FileSplit(tmp_path, ["x.png"], np.array([0]))
    split.__dict__.update({"_root": again.__dict__["_root"]})
    split.__dict__.pop("_versions", None)
    split.__dict__.pop("_content_key", None)
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", failing(errno.EIO))
        with pytest.raises(FailedReadError, match=r"x\.png: Input/output error"):
            work[what]()
    found = work[what]()
    assert np.array_equal(np.asarray(found), np.asarray(right)) if what == "load" else found == right
