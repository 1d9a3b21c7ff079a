from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pytest

from helpers import coloured, write_picture
from thumbnet.sources.lookup import Pictures, Wanted
from thumbnet.sources.place import Place


def pictures_at(folder: Path, paths: Sequence[str]) -> Pictures:
    for path in paths:
        write_picture(folder / path, coloured(0, 1))
    return Pictures(Place(folder), trusted=True)


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    return pictures_at(tmp_path, ["images/a.png", "images/b.jpg", "train/cat/same.png", "train/dog/same.png"])


def find(pictures: Pictures, cell: str, split: str = "", label: str = "", base: str = "") -> str | None:
    (found,) = pictures.find_all([Wanted(cell, split, label)], base)
    return found.path


@pytest.mark.parametrize("cell", ["images/a.png", "images\\a.png", "./images/a.png", "a.png", "A.PNG", "a"])
def test_a_cell_names_a_picture_by_its_path_or_its_name(cell: str, pictures: Pictures) -> None:
    assert find(pictures, cell) == "images/a.png"


@pytest.mark.parametrize("cell", ["b.png", "images/b.png", "old/b.png", "C:\\pets\\b.png", "/home/bob/b.png"])
def test_another_suffix_or_outer_folder_of_the_same_picture_is_found(cell: str, pictures: Pictures) -> None:
    assert find(pictures, cell) == "images/b.jpg"


@pytest.mark.parametrize(
    "cell", ["caf\u00e9/th\u00e9.png", "Th\u00c9.png", "th\u00e9", "x/CAF\u00c9/th\u00e9.jpg"]
)
def test_a_name_in_another_unicode_form_is_found(cell: str, tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "caf\u00e9/th\u00e9.png")
    pictures = pictures_at(
        tmp_path, [decomposed, "chat/1.png", unicodedata.normalize("NFD", "\u00e9t\u00e9/2.png")]
    )
    assert find(pictures, cell) == decomposed


def test_the_very_name_comes_before_one_in_another_unicode_form(tmp_path: Path) -> None:
    names = ["a/caf\u00e9.png", "a/cafe\u0301.png"]
    pictures = pictures_at(tmp_path, names)
    assert [find(pictures, name) for name in names] == names


def test_folder_or_label_decides_between_pictures_of_the_same_name(pictures: Pictures) -> None:
    assert find(pictures, "dog/same.png") == "train/dog/same.png"
    assert find(pictures, "same.png", label="cat") == "train/cat/same.png"
    (found,) = pictures.find_all([Wanted("same.png")], "")
    assert (found.path, found.several) == (None, True)
    assert found.why == "train/cat/same.png, train/dog/same.png"


def test_a_missing_picture_is_none(pictures: Pictures) -> None:
    assert find(pictures, "nothing.png") is None
    assert find(pictures, "") is None


@pytest.mark.parametrize(
    ("cell", "split", "base", "there"),
    [
        ("train/3.png", "", "", ["train/1.png", "test/3.png"]),  # the folder in the cell exists
        ("train/3", "train", "", ["train/1.png", "test/3.png"]),
        ("3.png", "", "train", ["train/1.png", "test/3.png"]),  # the table's own folder
        ("3", "train", "", ["train/1.png", "test/3.png"]),  # the row's split has a folder
        ("3", "test", "", ["test_set/1.png", "train_set/3.png"]),
        ("3", "val", "", ["eval/1.png", "train/3.png"]),
        ("3", "train", "", ["test/3.png"]),  # a picture for test is never trained on
        ("train/3.png", "", "", ["test/3.png"]),
        ("old/dog/3.png", "", "", ["pics/dog/1.png", "pics/cat/3.png"]),  # another class
        ("dog/3.png", "", "", ["dog/1.png", "cat/3.jpg"]),
    ],
)
def test_a_picture_of_the_same_name_in_another_folder_or_split_is_not_taken(
    cell: str, split: str, base: str, there: list[str], tmp_path: Path
) -> None:
    assert find(pictures_at(tmp_path, there), cell, split, base=base) is None


@pytest.mark.parametrize(
    ("cell", "split", "there"),
    [
        ("3", "val", "train/3.png"),  # without a folder for val, its pictures are among those of train
        ("3", "test", "train/3.png"),
        ("3", "test", "eval/3.png"),
        ("3", "val", "eval/3.png"),
        ("3", "train", "trainval/3.png"),
        ("images/3.png", "train", "train/3.png"),
        ("images/train/3.png", "", "train/3.png"),
        ("train/3.png", "", "train/train/3.png"),
        ("old/dog/3.png", "", "photos/dog/3.png"),
    ],
)
def test_folders_that_do_not_contradict_the_row_are_searched(
    cell: str, split: str, there: str, tmp_path: Path
) -> None:
    assert find(pictures_at(tmp_path, [there]), cell, split) == there


def test_if_some_rows_are_paths_from_the_folder_so_are_the_others(tmp_path: Path) -> None:
    pictures = pictures_at(tmp_path, ["pics/cat/0.png", "pics/cat/1.png", "pics/cat/2.jpg"])
    rows = [Wanted(f"pics/{cell}") for cell in ("cat/0.png", "dog/1.png", "cat/2.png")]
    assert [one.path for one in pictures.find_all(rows, "")] == ["pics/cat/0.png", None, "pics/cat/2.jpg"]


def test_names_that_train_and_test_share_are_those_of_train(tmp_path: Path) -> None:
    pictures = pictures_at(tmp_path, ["train/0.png", "test/0.png", "test/1.png"])
    assert [one.path for one in pictures.find_all([Wanted("0"), Wanted("1")], "")] == ["train/0.png", None]
    assert find(pictures, "0", "test") == "test/0.png"


def test_other_pictures_in_the_same_folders_are_listed(pictures: Pictures) -> None:
    assert pictures.neighbours({"images/a.png"}) == ["images/b.jpg"]


@pytest.mark.parametrize("inner", ["", "color/", "color/raw/"])
def test_pictures_of_one_name_are_only_looked_for_in_the_folders_of_their_cells(
    inner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = [f"scenes/s{n}/{inner}rgb.png" for n in range(40)]
    pictures = pictures_at(tmp_path, [*scenes, "scenes/empty/depth.png"])
    asked: list[str] = []
    may_be_meant = Pictures._may_be_meant

    def counted(self: Pictures, folder: str, folders: tuple[str, ...], split: str) -> bool:
        asked.append(folder)
        return may_be_meant(self, folder, folders, split)

    monkeypatch.setattr(Pictures, "_may_be_meant", counted)
    for form in ("/old/{}", "C:\\old\\{}", "{}"):
        rows = [Wanted(form.format(path.removeprefix("scenes/"))) for path in scenes]
        assert [one.path for one in pictures.find_all(rows, "")] == scenes
    assert len(asked) == 3 * len(scenes)
    (found,) = pictures.find_all([Wanted("empty/rgb.jpg")], "")
    assert found == (None, False, f"{scenes[0]} is in another folder")
    (found,) = pictures.find_all([Wanted("nowhere/rgb.jpg")], "")
    assert found.several
