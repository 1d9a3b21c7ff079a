from __future__ import annotations

import copy
import io
import lzma
import os
import pickle
import sys
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import noise, write_class_folders
from thumbnet.batches.decoding import decode_split
from thumbnet.data.splits import Split
from thumbnet.errors import DataError, UnreadableImagesError
from thumbnet.sources import archives
from thumbnet.sources.archives import unpack
from thumbnet.sources.load import load_data
from thumbnet.sources.packed import PackedSplit


def tar_with(path: Path, *members: tarfile.TarInfo, content: bytes = b"x") -> Path:
    with tarfile.open(path, "w") as tar:
        for member in members:
            member.size = len(content) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(content) if member.isreg() else None)
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    "member",
    [
        tarfile.TarInfo("../outside.png"),
        tarfile.TarInfo("a/../../outside.png"),
        special("link.png", tarfile.SYMTYPE, "/etc/passwd"),
        special("hard.png", tarfile.LNKTYPE, "../outside.png"),
        special("device.png", tarfile.CHRTYPE),
        special("pipe.png", tarfile.FIFOTYPE),
    ],
    ids=lambda member: member.name,
)
def test_a_tar_with_a_hostile_member_is_refused_and_writes_nothing(
    member: tarfile.TarInfo, tmp_path: Path
) -> None:
    archive = tar_with(tmp_path / "evil.tar", member)
    with pytest.raises(DataError, match="evil.tar"):
        unpack(archive, tmp_path / "cache")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [archive]


def test_a_tar_with_links_says_how_to_pack_it_without(tmp_path: Path) -> None:
    archive = tar_with(tmp_path / "linked.tar", special("b.png", tarfile.LNKTYPE, "a.png"))
    with pytest.raises(DataError, match=r"'b\.png' is not a plain file.*--hard-dereference"):
        unpack(archive, tmp_path / "cache")


def test_an_archive_that_cannot_be_unpacked_there_names_the_option_for_another_folder(
    tmp_path: Path,
) -> None:
    archive = tar_with(tmp_path / "pictures.tar", tarfile.TarInfo("a.png"))
    (tmp_path / "cache").write_text("a file in place of the folder")
    with pytest.raises(DataError, match=r"cannot unpack .*pictures\.tar into .*: --data-dir"):
        unpack(archive, tmp_path / "cache")


def test_absolute_names_in_a_tar_stay_inside(tmp_path: Path) -> None:
    # The leading slash is stripped, as tar itself does.
    outside = tmp_path / "outside.png"
    archive = tar_with(tmp_path / "evil.tar", tarfile.TarInfo(str(outside)), tarfile.TarInfo("/notes.txt"))
    unpacked = unpack(archive, tmp_path / "cache")
    assert not outside.exists()
    assert list(unpacked.pictures.places) == [str(outside).lstrip("/")]
    assert [path.name for path in unpacked.folder.rglob("*") if path.is_file()] == ["notes.txt"]


@pytest.mark.parametrize("name", ["../outside.png", "/outside.png", "a/../../b.png", "..\\b.png", "C:/b.png"])
def test_a_zip_with_a_member_outside_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as zipped:
        zipped.writestr(zipfile.ZipInfo(name), b"x")
    with pytest.raises(DataError, match="outside"):
        unpack(tmp_path / "evil.zip", tmp_path / "cache")


def test_a_member_of_a_zip_with_content_and_no_name_is_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("x")
    info.filename = "pictures\\"
    with zipfile.ZipFile(tmp_path / "odd.zip", "w") as zipped:
        zipped.writestr(info, b"x")
    with pytest.raises(DataError, match="has content but no name"):
        unpack(tmp_path / "odd.zip", tmp_path / "cache")


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("link.png")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as zipped:
        zipped.writestr(info, b"/etc/passwd")
    with pytest.raises(DataError, match="link"):
        unpack(tmp_path / "evil.zip", tmp_path / "cache")


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.xz"])
def test_a_bomb_is_refused(kind: str, tmp_path: Path) -> None:
    archive = tmp_path / f"bomb.{kind}"
    zeros = bytes(8 << 20)
    if kind == "zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
            zipped.writestr("a.png", zeros)
    else:
        with tarfile.open(archive, f"w:{kind.partition('.')[2]}") as tar:  # type: ignore[call-overload]
            member = tarfile.TarInfo("a.png")
            member.size = len(zeros)
            tar.addfile(member, io.BytesIO(zeros))
    with pytest.raises(DataError, match="bomb"):
        unpack(archive, tmp_path / "cache")


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.xz"])
@pytest.mark.parametrize("content", [b"", b"rubbish" * 200])
def test_the_error_names_a_damaged_archive(kind: str, content: bytes, tmp_path: Path) -> None:
    archive = tmp_path / f"broken.{kind}"
    archive.write_bytes(content)
    with pytest.raises(DataError, match="broken"):
        unpack(archive, tmp_path / "cache")


def test_an_archive_that_is_cut_short_leaves_no_files(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "whole.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("a.png")
        member.size = 1 << 20
        tar.addfile(member, io.BytesIO(bytes(range(256)) * 4096))
    whole = (tmp_path / "whole.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cut"):
        unpack(tmp_path / "cut.tar.gz", tmp_path / "cache")
    assert not any(path.is_file() for path in (tmp_path / "cache").rglob("*"))


def zipped_folders(tmp_path: Path, splits: list[str]) -> tuple[Path, Path]:
    """A folder of pictures, and a zip whose members are below the folder ``data``."""
    root = write_class_folders(tmp_path / "data", splits)
    (root / "notes.txt").write_text("hello")
    (root / splits[0] / "red" / "notes.txt").write_text("hello")
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as zipped:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                zipped.write(path, path.relative_to(tmp_path))
    return root, tmp_path / "data.zip"


def train_split(archive: Path) -> Split:
    return load_data(archive, data_dir=archive.parent / "cache").splits["train"]


@pytest.mark.parametrize("splits", [["train", "test"], [""]])
def test_an_archive_gives_the_same_data_as_its_folder(splits: list[str], tmp_path: Path) -> None:
    root, archive = zipped_folders(tmp_path, splits)
    plain, packed = (load_data(source, data_dir=tmp_path / "cache") for source in (root, archive))
    assert (packed.layout, packed.class_names, packed.notes) == (plain.layout, plain.class_names, plain.notes)
    assert packed.fingerprint() == plain.fingerprint()
    for name, split in packed.splits.items():
        other = plain.splits[name]
        assert isinstance(split, PackedSplit)
        for index in range(len(split)):
            assert split.name(index) == other.name(index)
            assert split.content(index) == other.content(index)
            assert np.array_equal(np.asarray(split.read(index)), np.asarray(other.read(index)))
            assert split.peek(index) == other.peek(index)


def test_the_layout_of_the_tutorial_is_read_from_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as zipped:
        zipped.writestr("labels.txt", "red\ngreen\n")
        for number in range(4):
            for split in ("train", "test"):
                encoded = io.BytesIO()
                Image.fromarray(noise(number)).save(encoded, "png")
                zipped.writestr(f"{split}/{number}_{('red', 'green')[number % 2]}.png", encoded.getvalue())
    data = load_data(tmp_path / "data.zip", data_dir=tmp_path / "cache")
    assert data.class_names == ("red", "green")
    assert data.splits["test"].labels.tolist() == [0, 1, 0, 1]
    assert np.array_equal(np.asarray(data.splits["train"].read(3)), noise(3))


def test_a_packed_split_can_be_pickled_for_another_process(tmp_path: Path) -> None:
    split = train_split(zipped_folders(tmp_path, ["train", "test"])[1])
    before = split.content(5)
    assert pickle.loads(pickle.dumps(split)).content(5) == before  # noqa: S301


def test_the_content_key_depends_on_the_archive_and_the_pictures(tmp_path: Path) -> None:
    archive = zipped_folders(tmp_path, ["train", "test"])[1]
    first = train_split(archive)
    assert first.content_key() == train_split(archive).content_key()
    assert first.content_key() != first.subset(np.arange(3)).content_key()
    os.utime(archive, ns=(1, 1))
    assert first.content_key() != train_split(archive).content_key()


def test_another_archive_of_the_same_size_and_time_is_unpacked_anew(tmp_path: Path) -> None:
    """As archives are that are built reproducibly."""
    archive, contents = tmp_path / "data.tar", []
    for shade in (1, 2):
        with tarfile.open(archive, "w") as tar:
            for name in (f"{split}/{label}/0.bmp" for split in ("train", "test") for label in "ab"):
                encoded = io.BytesIO()
                Image.new("RGB", (8, 8), (shade,) * 3).save(encoded, "bmp")
                member = tarfile.TarInfo(name)
                member.size = encoded.tell()
                encoded.seek(0)
                tar.addfile(member, encoded)
        os.utime(archive, (1, 1))
        contents.append((archive.stat().st_size, train_split(archive).content(0)[-1]))
    assert contents[0][0] == contents[1][0]
    assert [shade for _, shade in contents] == [1, 2]
    assert train_split(archive).content_key() == train_split(archive).content_key()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no umask")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o755), (0o002, 0o775), (0o077, 0o700)])
def test_other_users_may_read_an_unpacked_archive_if_the_umask_allows_that(
    umask: int, mode: int, tmp_path: Path
) -> None:
    archive = zipped_folders(tmp_path, ["train", "test"])[1]
    before = os.umask(umask)
    try:
        train_split(archive)
    finally:
        os.umask(before)
    below = [path for path in (tmp_path / "cache" / "unpacked").rglob("*") if path.is_dir()]
    assert {path.stat().st_mode & 0o777 for path in below} == {mode}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_an_unpacked_archive_that_may_not_be_read_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    archive = zipped_folders(tmp_path, ["train", "test"])[1]
    train_split(archive)
    (unpacked,) = (tmp_path / "cache" / "unpacked").iterdir()
    unpacked.chmod(0)
    try:
        with pytest.raises(DataError, match=r"which you may not read\. .*another folder with --data-dir"):
            train_split(archive)
    finally:
        unpacked.chmod(0o700)


@pytest.mark.parametrize("name", ["pictures.bin", "pictures.json"])
@pytest.mark.parametrize("damage", ["remove", "cut"])
def test_a_damaged_unpacked_archive_is_unpacked_again(name: str, damage: str, tmp_path: Path) -> None:
    archive = zipped_folders(tmp_path, ["train", "test"])[1]
    before = train_split(archive).content(0)
    (kept,) = (tmp_path / "cache").rglob(name)
    if damage == "remove":
        kept.unlink()
    else:
        kept.write_bytes(kept.read_bytes()[:-5])
    assert train_split(archive).content(0) == before


def test_the_error_names_empty_pictures(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as zipped:
        for name in ("train/a/1.png", "train/b/2.png", "test/a/3.png"):
            zipped.writestr(name, b"")
    split = train_split(tmp_path / "empty.zip")
    with pytest.raises(UnreadableImagesError, match=r"train/b/2\.png"):
        decode_split(split, (16, 16), "pad")


def test_the_error_names_a_damaged_picture_in_an_archive(tmp_path: Path) -> None:
    root, _ = zipped_folders(tmp_path, ["train", "test"])
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as zipped:
        for path in root.rglob("*.png"):
            content = path.read_bytes()
            zipped.writestr(str(path.relative_to(root)), content[:30] if path.stem == "2" else content)
    split = train_split(tmp_path / "bad.zip")
    with pytest.raises(UnreadableImagesError, match=r"train/green/2\.png"):
        decode_split(split, (16, 16), "pad")


def header(kind: bytes, size: int, name: str) -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


HUGE, TOO_LONG = 40_000_000, "a header has 40,000,000 bytes"


@pytest.mark.parametrize(
    ("content", "message"),  # each test makes its content: together, they have 100 MB
    [
        (lambda: header(tarfile.GNUTYPE_LONGNAME, HUGE, "././@LongLink") + b"a" * HUGE, TOO_LONG),
        (lambda: header(tarfile.XHDTYPE, HUGE, "x") + b"40000000 comment=" + b"a" * HUGE, TOO_LONG),
        (lambda: header(b"5", 0, "a/") * 40_000, "far more than its own size"),
        (lambda: b"".join(header(b"0", 0, f"{number}.txt") for number in range(3000)), "refused as a bomb"),
    ],
    ids=["long name", "extended attributes", "folders", "empty files"],
)  # fmt: skip
def test_headers_and_empty_members_cannot_fill_memory_or_disk(
    content: Callable[[], bytes], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MAX_EXPANSION", 20)
    (tmp_path / "x.tar.xz").write_bytes(lzma.compress(content() + bytes(1024), preset=0))
    tracemalloc.start()
    with pytest.raises(DataError, match=message):
        unpack(tmp_path / "x.tar.xz", tmp_path / "cache")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60 << 20
    assert list((tmp_path / "cache" / "unpacked").iterdir()) == []


def test_an_xz_archive_that_asks_for_gigabytes_is_refused(tmp_path: Path) -> None:
    content = bytearray(lzma.compress(bytes(1024), preset=0))
    place = content.index(b"\x21\x01", 12) + 2  # LZMA2's properties: one byte for the size of its dictionary
    content[place] = 36  # 1 GiB
    end = 12 + (content[12] + 1) * 4 - 4  # the block's header ends with its checksum
    content[end : end + 4] = zlib.crc32(content[12:end]).to_bytes(4, "little")
    (tmp_path / "x.tar.xz").write_bytes(content)
    with pytest.raises(DataError, match="[Mm]emory"):
        unpack(tmp_path / "x.tar.xz", tmp_path / "cache")


def test_overlapping_members_of_a_zip_count_each_time(tmp_path: Path) -> None:
    """Many entries of the directory point at the same compressed bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("0.bin", bytes(1 << 20))
        first = zipped.infolist()[0]
        for number in range(1, 400):
            again = copy.copy(first)
            again.filename = f"{number}.bin"
            zipped.filelist.append(again)
        zipped._didModify = True  # type: ignore[attr-defined]
    (tmp_path / "overlap.zip").write_bytes(stream.getvalue())
    with pytest.raises(DataError, match=r"overlap\.zip"):
        unpack(tmp_path / "overlap.zip", tmp_path / "cache")


def test_names_that_only_normalisation_makes_equal_stay_two_pictures(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (16, 16)).save(picture, "PNG")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as zipped:
        zipped.writestr("a/\u00c9.png", picture.getvalue())
        zipped.writestr("a/E\u0301.png", picture.getvalue())
    assert len(unpack(tmp_path / "x.zip", tmp_path / "cache").pictures.places) == 2


def zip_with_names(path: Path, names: list[bytes], flag: int) -> Path:
    """A zip of two class folders per name, whose names are written as these bytes."""
    stand_ins = [bytes([97 + at]) * len(name) for at, name in enumerate(names)]
    with zipfile.ZipFile(path, "w") as zipped:
        for at, stand_in in enumerate(stand_ins):
            for number in range(5):
                buffer = io.BytesIO()
                Image.fromarray(noise(10 * at + number)).save(buffer, "png")
                zipped.writestr(f"{stand_in.decode()}/{number}.png", buffer.getvalue())
    content = path.read_bytes()
    for stand_in, name in zip(stand_ins, names, strict=True):
        content = content.replace(stand_in + b"/", name + b"/")
    if flag:
        content = content.replace(b"PK\x03\x04\x14\0\0\0", b"PK\x03\x04\x14\0\0\x08")
        content = content.replace(b"PK\x01\x02\x14\x03\x14\0\0\0", b"PK\x01\x02\x14\x03\x14\0\0\x08")
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("flag", [0, 1])
def test_utf_8_names_in_a_zip_are_read_even_if_no_flag_says_so(tmp_path: Path, flag: int) -> None:
    path = zip_with_names(tmp_path / "a.zip", ["猫".encode(), "狗".encode()], flag)
    data = load_data(path, data_dir=tmp_path)
    assert data.class_names == ("狗", "猫")
    assert not any("encoded" in note for note in data.notes)


@pytest.mark.parametrize(("names", "read"), [("猫 狗", ("├¿", "╣╖")), ("猫 猫猫", ("è", "èè"))])
def test_a_warning_says_that_names_in_a_zip_may_be_wrong(
    tmp_path: Path, names: str, read: tuple[str, ...]
) -> None:
    path = zip_with_names(tmp_path / "a.zip", [name.encode("gbk") for name in names.split()], 0)
    data = load_data(path, data_dir=tmp_path)
    assert data.class_names == read
    assert any("a.zip does not say how its file names are encoded" in note for note in data.notes)


def test_messages_name_the_archive_and_not_the_folder_it_was_unpacked_to(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for name, members in (
        ("empty.zip", {}),
        ("zips.zip", {"train.zip": b"PK", "test.zip": b"PK"}),
        ("arrays.zip", {"x_train.npy": b"\x93NUMPY"}),
    ):
        with zipfile.ZipFile(tmp_path / name, "w") as zipped:
            for member, content in members.items():
                zipped.writestr(member, content)
        with pytest.raises(DataError) as caught:
            load_data(tmp_path / name, data_dir=cache)
        assert str(tmp_path / name) in str(caught.value)
        assert str(cache) not in str(caught.value)
