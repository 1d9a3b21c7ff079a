"""Pictures below a folder, whatever its subfolders mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers import noise, write_picture
from thumbnet.errors import DataError
from thumbnet.sources.unlabelled import find_pictures


def test_all_pictures_are_listed_sorted_with_their_paths(tmp_path: Path) -> None:
    for name in ("b.png", "train/x/1.jpg", "a.bmp", ".hidden/c.png"):
        write_picture(tmp_path / name, noise(1))
    (tmp_path / "notes.txt").write_text("x")
    assert find_pictures(tmp_path) == (["a.bmp", "b.png", "train/x/1.jpg"], [])


def test_files_that_need_a_plug_in_are_noted(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", noise(1))
    (tmp_path / "scan.dcm").write_bytes(b"x")
    found, notes = find_pictures(str(tmp_path))
    assert found == ["a.png"]
    assert len(notes) == 1
    assert "scan.dcm" in notes[0]


def test_a_folder_without_pictures_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are no pictures in the folder"):
        find_pictures(tmp_path)
    with pytest.raises(DataError, match="there is no folder"):
        find_pictures(tmp_path / "gone")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="there is no folder"):
        find_pictures(tmp_path / "file")
