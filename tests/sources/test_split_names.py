from __future__ import annotations

import pytest

from thumbnet.sources.split_names import is_train_and_val, plainer_names, split_name, splits_named


@pytest.mark.parametrize(
    ("name", "split", "rank"),
    [
        ("train", "train", 0),
        ("Training", "train", 0),
        ("TEST", "test", 0),
        ("valid", "val", 0),
        ("validation", "val", 0),
        ("test_set", "test", 1),
        ("seg_train", "train", 1),
        ("01_test", "test", 1),
        ("trainSet", "train", 1),
        ("holdout", "test", 0),
        ("hold-out", "test", 0),
        ("trainlist", "train", 1),
        ("test_list", "test", 1),
        ("trn", "train", 0),
        ("test-multiple_fruits", "test", 2),
    ],
)
def test_common_names_of_splits_are_recognised(name: str, split: str, rank: int) -> None:
    found = split_name(name)
    assert found is not None
    assert (found.split, found.rank) == (split, rank)


@pytest.mark.parametrize("name", ["cat", "trainers", "contest", "testify", "train_test", "", "2019"])
def test_other_names_are_not_splits(name: str) -> None:
    assert split_name(name) is None


def test_train_and_val_together_mean_train() -> None:
    found = split_name("trainval") or split_name("train_val")
    assert found is not None
    assert found.split == "train"


@pytest.mark.parametrize(
    ("name", "both"),
    [("trainval", True), ("Train-Val_2", True), ("trainingValidation", True), ("train", False), ("val", False),
     ("training_set", False), ("train_mini", False), ("values", False)],
)  # fmt: skip
def test_names_of_train_that_say_val_too_are_known(name: str, both: bool) -> None:
    assert is_train_and_val(name) is both


def test_plain_words_rank_before_affixes_and_affixes_before_other_words() -> None:
    ranks = [found.rank for name in ("test", "test_set", "test-fruits") if (found := split_name(name))]
    assert ranks == [0, 1, 2]


def test_names_that_may_be_of_val_or_test_stand_for_both() -> None:
    assert splits_named("eval") == {"val", "test"}
    assert splits_named("test_images") == {"test"}
    assert splits_named("train_station") == splits_named("cat") == frozenset()


@pytest.mark.parametrize(
    ("names", "plainer"),
    [
        ("train val test", {}),
        ("train trainval val test", {"trainval": "train"}),
        ("trainval test", {}),
        ("Train train_mini train_mini_2 test test_hard", {"train_mini": "train", "train_mini_2": "train", "test_hard": "test"}),
        ("train_0 train_1 train-2 Train3", {}),
        ("train_a train_b val", {}),
        ("train-3f2a train-4839 train-00ff test-beef test-0000", {}),
        ("train-3F2A-00 train-4839-aB train_mini", {"train_mini": "train"}),
        ("train_0 train_9 train_a train_f", {}),
        ("train_1 train_bad", {"train_bad": "train"}),
        ("train-face-1 train-face-2", {}),
        ("train train_a", {"train_a": "train"}),
        ("pets-train pets-trainval birds-train", {"pets-trainval": "pets train"}),
        ("train test eval", {"eval": "test"}),
        ("train_small train_set", {"train_small": "train set"}),
    ],
)  # fmt: skip
def test_the_plainest_name_of_a_split_is_found(names: str, plainer: dict[str, str]) -> None:
    splits = {name: found.split for name in names.split() if (found := split_name(name))}
    assert len(splits) == len(names.split())
    assert plainer_names(splits) == plainer
