from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from helpers import coloured, write_picture
from sources.trees import watch_listing
from thumbnet.errors import DataError
from thumbnet.sources import index
from thumbnet.sources.index import Index, fuse_devices, is_output_folder, is_picture_name, is_picture_start
from thumbnet.sources.load import load_data


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


@pytest.fixture
def listed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that were listed, and not taken from the index, which trusts what changed a moment ago."""
    monkeypatch.setattr(index, "_SURE_AFTER", 0)
    return watch_listing(monkeypatch, folder, folder / "cache")


def pictures_in_a(folder: Path) -> list[str]:
    found = Index(folder)
    pictures = found.pictures_below("a")
    found.keep()
    return pictures


def test_folders_of_mounted_buckets_are_always_listed_again(
    folder: Path, listed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        pictures_in_a(folder)
    assert listed == ["a"]
    monkeypatch.setattr(Index, "_fuse", {os.stat(folder).st_dev})
    for _ in range(2):
        pictures_in_a(folder)
    assert listed == ["a"] * 3


def test_a_folder_whose_modification_time_was_set_back_is_listed_again(
    folder: Path, listed: list[str]
) -> None:
    """As ``rsync -t`` and tar leave it, with other pictures than before."""
    os.utime(folder / "a", (1e9, 1e9))
    assert pictures_in_a(folder) == ["a/1.png", "a/2.png"]
    write_picture(folder / "a" / "new.png", coloured(0, 1))
    os.utime(folder / "a", (1e9, 1e9))
    assert pictures_in_a(folder) == ["a/1.png", "a/2.png", "a/new.png"]
    assert listed == ["a", "a"]


def test_fuse_file_systems_are_found_among_the_mounts() -> None:
    mounts = """\
22 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw
40 22 0:57 / /data/my\\040bucket rw,nosuid - fuse.mountpoint-s3 mountpoint-s3 rw,user_id=0
41 22 0:58 / /old rw - fuse goofys rw
42 22 8:1 / /windows rw - fuseblk /dev/sda1 rw
"""
    assert fuse_devices(mounts) == {os.makedev(0, 57), os.makedev(0, 58)}


@pytest.mark.parametrize(
    "files", [("recipe.toml", "run.json"), ("tune.json", "journal.jsonl", "recipe.toml")]
)
@pytest.mark.parametrize("place", ["first", "runs/first", "study/seeds/first"])
def test_the_folder_of_a_run_or_search_is_no_class(place: str, files: tuple[str, ...], folder: Path) -> None:
    before = load_data(folder)
    assert before.class_names == ("a", "b")
    write_picture(folder / place / "confusion.png", coloured(0, 7))
    write_picture(folder / place / "run" / "more.png", coloured(0, 8))
    assert load_data(folder).class_names == ("a", "b", place.split("/")[0])
    for name in files:
        (folder / place / name).write_text("")
    data = load_data(folder)
    assert (data.class_names, data.fingerprint()) == (before.class_names, before.fingerprint())
    assert f"skipped 2 pictures in 1 folder(s) that thumbnet has written, such as {place}/" in data.notes
    assert not any("no pictures" in note for note in data.notes)
    tree = Index(folder).tree()
    assert [each.path for each in tree.folders] == ["a", "b"]
    assert tree.outputs == [(place, 2)]
    assert Index(folder / place).pictures_below("") == ["confusion.png", "run/more.png"]


def test_a_folder_of_nothing_but_runs_is_known(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "recipe.toml").write_text("")
        assert not is_output_folder(tmp_path / "runs" / name)
        (tmp_path / "runs" / name / "run.json").write_text("")
        assert is_output_folder(tmp_path / "runs" / name)
    (tmp_path / "runs" / ".DS_Store").write_text("")
    assert is_output_folder(tmp_path / "runs")
    (tmp_path / "runs" / "data.npz").write_text("")
    assert not is_output_folder(tmp_path / "runs")
    assert not is_output_folder(tmp_path)
