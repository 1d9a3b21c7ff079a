from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from helpers import coloured, write_picture
from thumbnet.errors import DataError
from thumbnet.sources import index
from thumbnet.sources.index import Index, fuse_devices, is_picture_name, is_picture_start


@pytest.mark.parametrize("name", ["a.png", "A.JPEG", "x.y.jpg", "b.webp"])
def test_a_name_with_a_picture_suffix_is_a_picture_name(name: str) -> None:
    assert is_picture_name(name)


@pytest.mark.parametrize("name", [".a.png", "a.txt", "png", "a.png.part"])
def test_hidden_and_other_names_are_not_picture_names(name: str) -> None:
    assert not is_picture_name(name)


def test_the_first_bytes_tell_whether_a_file_is_a_picture() -> None:
    assert is_picture_start(b"\x89PNG\r\n\x1a\n")
    assert is_picture_start(b"\xff\xd8\xff\xe0")
    assert not is_picture_start(b"%PDF-1.7")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path in ("a/1.png", "a/2.png", "b/deep/3.png", ".hidden/4.png", "__MACOSX/5.png"):
        write_picture(tmp_path / path, coloured(0, 1))
    (tmp_path / "a" / "notes.txt").write_text("x")
    return tmp_path


def test_pictures_are_listed_sorted_and_other_files_are_recorded_as_ignored(folder: Path) -> None:
    index = Index(folder)
    assert index.pictures_below("") == ["a/1.png", "a/2.png", "b/deep/3.png"]
    assert index.ignored == ["a/notes.txt"]
    assert index.pictures_below("b") == ["b/deep/3.png"]
    assert index.pictures_below("nowhere") == []


def test_a_split_has_the_pictures_that_were_listed(folder: Path) -> None:
    split = Index(folder).split(["a/2.png", "a/1.png"], np.array([1, 0]))
    assert [split.name(0), split.labels.tolist()] == ["a/2.png", [1, 0]]
    assert np.asarray(split.read(0)).shape == (16, 16, 3)


def test_a_cycle_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    with pytest.raises(DataError, match="again"):
        Index(tmp_path).tree()


def test_a_link_to_a_folder_is_followed_if_its_own_folder_has_no_pictures(
    folder: Path, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "cats").symlink_to(folder / "a")
    assert Index(root).pictures_below("") == ["cats/1.png", "cats/2.png"]


def test_links_that_are_not_followed_are_recorded_with_the_reason(folder: Path) -> None:
    (folder / "a" / "more").symlink_to(folder / "b")
    (folder / "gone").symlink_to(folder / "nowhere")
    (folder / "read.me").symlink_to(folder / "a" / "notes.txt")
    tree = Index(folder).tree()
    assert {link for each in tree.walk() for link in each.links} == {
        ("a/more", "pictures lie next to it"),
        ("gone", "it leads nowhere"),
    }
    assert tree.ignored_below() == ["read.me", "a/notes.txt"]


def listed_again(folder: Path) -> list[str]:
    """The pictures after one was added without another modification time of the folder, as in a bucket."""
    os.utime(folder / "a", (1e9, 1e9))
    first = Index(folder)
    first.tree()
    first.keep()
    write_picture(folder / "a" / "new.png", coloured(0, 1))
    os.utime(folder / "a", (1e9, 1e9))
    return Index(folder).pictures_below("a")


def test_folders_of_mounted_buckets_are_always_listed_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THUMBNET_CACHE", str(folder / "cache"))
    monkeypatch.setattr(index, "WORTH_KEEPING", 1)
    assert listed_again(folder) == ["a/1.png", "a/2.png"]  # the cached listing of a local folder
    monkeypatch.setattr(Index, "_fuse", {os.stat(folder).st_dev})
    assert listed_again(folder) == ["a/1.png", "a/2.png", "a/new.png"]


def test_fuse_file_systems_are_found_among_the_mounts() -> None:
    mounts = """\
22 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw
40 22 0:57 / /data/my\\040bucket rw,nosuid - fuse.mountpoint-s3 mountpoint-s3 rw,user_id=0
41 22 0:58 / /old rw - fuse goofys rw
42 22 8:1 / /windows rw - fuseblk /dev/sda1 rw
"""
    assert fuse_devices(mounts) == {os.makedev(0, 57), os.makedev(0, 58)}
