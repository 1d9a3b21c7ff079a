from __future__ import annotations

import pytest

from sources.trees import meaning, some, tree_of
from thumbnet.errors import DataError
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources.split_folders import SplitFinder, picture_count, sole


def classes(split: str) -> list[str]:
    return some(f"{split}/cat/{{}}.png", 3) + some(f"{split}/dog/{{}}.png", 3)


def test_folders_called_train_and_test_are_splits() -> None:
    assert meaning(classes("Training") + classes("Testing")).counts == {"train": 6, "test": 6}


def test_a_folder_that_wraps_everything_is_entered() -> None:
    assert meaning(classes("archive/data/train") + classes("archive/data/val")).counts == {
        "train": 6,
        "val": 6,
    }


def test_an_error_names_two_folders_for_the_same_split() -> None:
    with pytest.raises(DataError, match="dev"):
        meaning(classes("train") + classes("val") + classes("dev"))


def test_a_class_called_train_among_other_classes_is_a_class() -> None:
    found = meaning(some("train/{}.png", 4) + some("car/{}.png", 4) + some("bus/{}.png", 4))
    assert found.layout.class_names == ("bus", "car", "train")


def test_here_makes_the_folders_inside_the_named_one_classes() -> None:
    paths = some("train/{}.png", 4) + some("test/{}.png", 4)
    assert meaning(paths, classes_from="here").layout.class_names == ("test", "train")


def test_a_new_finder_starts_at_the_tree_without_notes() -> None:
    tree = tree_of(classes("train"))
    finder = SplitFinder(tree, "data/", DataSettings(), packed=False)
    assert (finder.top, finder.base, finder.notes) == (tree, "data", [])


def test_picture_counts_are_formatted() -> None:
    assert picture_count(1).startswith("1 ")
    assert "1,000" in picture_count(1000)


def test_the_sole_folder_of_pictures_is_found_below_those_that_wrap_it() -> None:
    assert sole(tree_of(some("a/b/{}.png", 3))).path == "a/b"
    assert sole(tree_of(classes("train"))).path == "train"  # with its two classes


def test_folders_with_the_same_classes_are_versions_or_classes_that_share_subfolders() -> None:
    with pytest.raises(DataError, match=r"color/, gray/ contain the same 2 folders.*data/color"):
        meaning(classes("color") + classes("gray"))
    found = meaning(classes("indoors") + classes("outdoors"))
    assert found.layout.class_names == ("indoors", "outdoors")
    assert "which were merged" in found.notes
