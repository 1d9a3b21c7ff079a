from __future__ import annotations

import pytest

from sources.trees import meaning, some, tree_of
from thumbnet.errors import DataError
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources.split_folders import SplitFinder, picture_count


def classes(split: str) -> list[str]:
    return some(f"{split}/cat/{{}}.png", 3) + some(f"{split}/dog/{{}}.png", 3)


def test_folders_called_train_and_test_are_splits() -> None:
    assert meaning(classes("Training") + classes("Testing")).counts == {"train": 6, "test": 6}


def test_a_folder_that_wraps_everything_is_entered() -> None:
    assert meaning(classes("archive/data/train") + classes("archive/data/val")).counts == {
        "train": 6,
        "val": 6,
    }


def test_two_folders_for_one_split_are_refused_by_name() -> None:
    with pytest.raises(DataError, match="dev"):
        meaning(classes("train") + classes("val") + classes("dev"))


def test_a_class_called_train_among_other_classes_is_a_class() -> None:
    found = meaning(some("train/{}.png", 4) + some("car/{}.png", 4) + some("bus/{}.png", 4))
    assert found.layout.class_names == ("bus", "car", "train")


def test_here_means_that_the_named_folders_are_classes() -> None:
    paths = some("train/{}.png", 4) + some("test/{}.png", 4)
    assert meaning(paths, classes_from="here").layout.class_names == ("test", "train")


def test_a_finder_begins_at_the_tree_and_has_nothing_to_say() -> None:
    tree = tree_of(classes("train"))
    finder = SplitFinder(tree, "data/", DataSettings(), packed=False)
    assert (finder.top, finder.base, finder.notes) == (tree, "data", [])


def test_counts_in_words() -> None:
    assert picture_count(1).startswith("1 ")
    assert "1,000" in picture_count(1000)
