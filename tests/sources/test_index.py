from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers import coloured, write_picture
from thumbnet.errors import DataError
from thumbnet.sources.index import Index, is_picture_name, is_picture_start


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
