from __future__ import annotations

from pathlib import Path

import pytest

from helpers import coloured, write_picture
from thumbnet.sources.lookup import Pictures
from thumbnet.sources.place import Place


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    for path in ("images/a.png", "images/b.jpg", "train/cat/same.png", "train/dog/same.png"):
        write_picture(tmp_path / path, coloured(0, 1))
    return Pictures(Place(tmp_path), trusted=True)


@pytest.mark.parametrize("cell", ["images/a.png", "images\\a.png", "./images/a.png", "a.png", "A.PNG", "a"])
def test_a_cell_names_a_picture_by_its_path_or_its_name(cell: str, pictures: Pictures) -> None:
    assert pictures.find(cell, "", "", "") == "images/a.png"


def test_another_suffix_of_the_same_picture_is_found(pictures: Pictures) -> None:
    assert pictures.find("b.png", "", "", "") == "images/b.jpg"


def test_folder_or_label_decides_between_pictures_of_the_same_name(pictures: Pictures) -> None:
    assert pictures.find("dog/same.png", "", "", "") == "train/dog/same.png"
    assert pictures.find("same.png", "", "", "cat") == "train/cat/same.png"
    assert pictures.find("same.png", "", "", "") is None


def test_a_missing_picture_is_none(pictures: Pictures) -> None:
    assert pictures.find("nothing.png", "", "", "") is None
    assert pictures.find("", "", "", "") is None


def test_other_pictures_in_the_same_folders_are_listed(pictures: Pictures) -> None:
    assert pictures.neighbours({"images/a.png"}) == ["images/b.jpg"]
