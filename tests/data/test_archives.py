from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from thumbnet.data.archives import unpack
from thumbnet.errors import DataError


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
def test_a_tar_that_reaches_out_is_refused_and_leaves_nothing(
    member: tarfile.TarInfo, tmp_path: Path
) -> None:
    archive = tar_with(tmp_path / "evil.tar", member)
    with pytest.raises(DataError, match="evil.tar"):
        unpack(archive, tmp_path / "cache")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [archive]


def test_absolute_names_in_a_tar_stay_inside(tmp_path: Path) -> None:
    # The "data" filter strips the leading slash, as tar itself does.
    outside = tmp_path / "outside.png"
    folder = unpack(tar_with(tmp_path / "evil.tar", tarfile.TarInfo(str(outside))), tmp_path / "cache")
    assert not outside.exists()
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 1


@pytest.mark.parametrize("name", ["../outside.png", "/outside.png", "a/../../b.png", "..\\b.png", "C:/b.png"])
def test_a_zip_that_reaches_out_is_refused(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as zipped:
        zipped.writestr(zipfile.ZipInfo(name), b"x")
    with pytest.raises(DataError, match="outside"):
        unpack(tmp_path / "evil.zip", tmp_path / "cache")


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
    zeros = b"\0" * (64 << 20)
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
def test_a_damaged_archive_is_named(kind: str, content: bytes, tmp_path: Path) -> None:
    archive = tmp_path / f"broken.{kind}"
    archive.write_bytes(content)
    with pytest.raises(DataError, match="broken"):
        unpack(archive, tmp_path / "cache")


def test_an_archive_cut_short_leaves_no_folder(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "whole.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("a.png")
        member.size = 1 << 20
        tar.addfile(member, io.BytesIO(bytes(range(256)) * 4096))
    whole = (tmp_path / "whole.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cut"):
        unpack(tmp_path / "cut.tar.gz", tmp_path / "cache")
    assert not any(path.is_file() for path in (tmp_path / "cache").rglob("*"))
