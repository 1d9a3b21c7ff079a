"""Folds have the same share of each class, keep copies together, and leave no class without pictures to learn from."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import coloured_data, coloured_labels
from thumbnet.data.folds import fold_numbers, joined, rarest_labels, with_test_fold
from thumbnet.data.multilabel import MultiLabelSplit
from thumbnet.data.splits import ArraySplit, Data, FileSplit
from thumbnet.errors import DataError
from thumbnet.seeds import derive_seed


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_every_fold_has_the_same_share_of_each_class(folds: int) -> None:
    labels = np.random.default_rng(0).integers(0, 4, 1000)
    numbers = fold_numbers(labels, np.arange(1000), folds, seed=1)
    assert set(numbers) == set(range(1, folds + 1))
    for label in range(4):
        counts = np.bincount(numbers[labels == label], minlength=folds + 1)[1:]
        assert counts.max() - counts.min() <= 1
    sizes = np.bincount(numbers)[1:]
    assert sizes.max() - sizes.min() <= 1


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), min_size=1, max_size=80),
    st.integers(2, 4),
    st.integers(0, 5),
)
def test_pictures_that_belong_together_share_a_fold_and_no_class_is_lost(
    pictures: list[tuple[int, int]], folds: int, seed: int
) -> None:
    labels, together = (np.array(one) for one in zip(*pictures, strict=True))
    numbers = fold_numbers(labels, together, folds, seed)
    for one in set(together):
        assert len(set(numbers[together == one])) == 1
    for fold in set(numbers) - {0}:
        assert set(labels[numbers != fold]) == set(labels)


def test_a_class_with_one_picture_is_never_held_out() -> None:
    labels = np.array([0] * 10 + [1] * 10 + [2])
    numbers = fold_numbers(labels, np.arange(21), 3, seed=0)
    assert numbers[-1] == 0
    assert (numbers[:-1] > 0).all()


def test_the_seed_decides_the_folds() -> None:
    labels = np.arange(300) % 3
    first, again, other = (fold_numbers(labels, np.arange(300), 2, seed) for seed in (7, 7, 8))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_chains_of_shared_numbers_are_joined() -> None:
    # 0 and 1 share a copy, 1 and 4 a group, 4 and 2 a copy again.
    copies, groups = np.array([3, 3, 9, 8, 9]), np.array([0, 1, 2, 3, 1])
    assert joined(copies, groups).tolist() == [0, 0, 0, 3, 0]
    assert joined(np.arange(4)).tolist() == [0, 1, 2, 3]


def data_of(labels: list[int], groups: list[str] | None = None) -> Data:
    """Pictures with these labels in train, and perhaps their groups."""
    split = ArraySplit(np.zeros((len(labels), 4, 4), np.uint8), np.array(labels), "train")
    given = {} if groups is None else {"train": np.array(groups, dtype=object)}
    names = tuple("abcdefgh"[: max(labels) + 1])
    return Data("made", "made by the tests", names, {"train": split}, groups=given)


def names(data: Data, split: str) -> list[str]:
    return [data.splits[split].name(index) for index in range(len(data.splits[split]))]


def test_each_training_picture_is_a_test_picture_of_one_fold_and_trained_on_in_all_others() -> None:
    data = coloured_data(60)
    tested: list[str] = []
    for fold in range(1, 6):
        part = with_test_fold(data, 5, fold, seed=0)
        assert set(names(part, "train")) | set(names(part, "test")) == set(names(data, "train"))
        assert not set(names(part, "train")) & set(names(part, "test"))
        assert np.bincount(part.splits["test"].labels).tolist() == [4, 4, 4]
        tested += names(part, "test")
    assert sorted(tested) == sorted(names(data, "train"))


def test_a_given_test_split_is_not_used_and_a_given_val_split_stays() -> None:
    data = coloured_data(60, splits=("train", "val", "test"))
    part = with_test_fold(data, 2, 1, seed=0)
    assert names(part, "val") == names(data, "val")
    assert all(name.startswith("train[") for name in names(part, "test"))
    assert part.set_aside == ("test",)
    assert part.unused_test is data.splits["test"]
    told = "\n".join(part.notes)
    assert "fold 1 of 2: 30 of the 60 training pictures are test" in told
    assert "the test split of the data (60 pictures) is not used" in told
    assert "the val split of the data stays val" in told


def test_the_division_is_the_same_for_all_folds_and_depends_on_the_seed() -> None:
    data = coloured_data(60)
    first, again, other = (names(with_test_fold(data, 3, 2, seed), "test") for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("grouped", [False, True])
def test_rows_that_name_one_file_share_a_fold(grouped: bool) -> None:
    number = np.arange(60) // 3  # each of 20 pictures is in three rows
    train = FileSplit(Path("pictures"), [f"{n}.png" for n in number], number % 2)
    # Each row is in another group, but a group has rows of two pictures.
    groups = {"train": np.array([f"{n // 2} {row % 3}" for row, n in enumerate(number)], dtype=object)}
    data = Data("made", "made by the tests", ("a", "b"), {"train": train}, groups=groups if grouped else {})
    for fold in (1, 2):
        part = with_test_fold(data, 2, fold, seed=0)
        assert len(part.splits["test"]) == 30
        assert not set(names(part, "train")) & set(names(part, "test"))


def test_without_such_rows_the_folds_are_those_of_the_groups_or_pictures() -> None:
    labels, groups = [index % 3 for index in range(60)], [f"person {index * 7 % 10}" for index in range(60)]
    for known, together in ((None, np.arange(60)), (groups, np.unique(groups, return_inverse=True)[1])):
        expected = fold_numbers(np.array(labels), together, 3, derive_seed(0, "test folds"))
        part = with_test_fold(data_of(labels, known), 3, 2, seed=0)
        assert names(part, "test") == [f"train[{index}]" for index in np.flatnonzero(expected == 2)]


def test_groups_are_undivided_and_go_with_their_pictures() -> None:
    groups = [f"person {index // 6}" for index in range(60)]
    data = data_of([index % 3 for index in range(60)], groups)
    data = replace(data, groups={**data.groups, "test": np.array([], dtype=object)})
    tested: Counter[str] = Counter()
    for fold in range(1, 4):
        part = with_test_fold(data, 3, fold, seed=0)
        assert set(part.groups) == {"train", "test"}
        assert not set(part.groups["train"].tolist()) & set(part.groups["test"].tolist())
        assert len(part.groups["test"]) == len(part.splits["test"])
        tested.update(part.groups["test"].tolist())
        assert any("training pictures are test, in whole groups" in note for note in part.notes)
    assert tested == Counter(groups)


def test_classes_with_few_pictures_are_tested_where_they_can_be_with_a_note() -> None:
    data = data_of([0] * 20 + [1] * 20 + [2] * 3 + [3])
    parts = [with_test_fold(data, 5, fold, seed=0) for fold in range(1, 6)]
    tested = Counter(label for part in parts for label in part.splits["test"].labels.tolist())
    assert tested == {0: 20, 1: 20, 2: 3}
    assert all(set(part.splits["train"].labels.tolist()) == {0, 1, 2, 3} for part in parts)
    told = "\n".join(parts[0].notes)
    assert (
        "1 picture(s) are in every training and never in test, because a training without them would lack a class: d"
        in told
    )
    assert (
        "the test pictures of some folds lack 1 class(es), which have too few pictures for 5 folds: c" in told
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (data_of([0, 0, 1, 1]), "too few pictures for 5 folds: only 4 would.*Use at most 4 folds"),
        (data_of([0, 1]), "only 0 would have test pictures.*Train without folds"),
        (data_of([0, 1] * 20, ["x", "x", "y", "y"] * 10), "too few groups for 5 folds: .* at most 2 folds"),
        (data_of([0, 1] * 20, ["x", "y"] * 20), "a class with a single group.*Train without folds"),
    ],
)
def test_more_folds_than_pictures_or_groups_are_refused_with_the_number_that_works(
    data: Data, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        with_test_fold(data, 5, 1, seed=0)


def test_with_several_labels_every_picture_is_tested_once_and_every_label_is_learned() -> None:
    data = coloured_labels(90, splits=("train",))
    tested: list[str] = []
    for fold in range(1, 4):
        part = with_test_fold(data, 3, fold, seed=0)
        assert part.multilabel
        assert part.splits["train"].class_counts(3).min() > 0
        tested += names(part, "test")
    assert sorted(tested) == sorted(names(data, "train"))


def test_a_label_whose_pictures_fall_into_one_fold_is_trained_on_in_all_folds() -> None:
    targets = np.zeros((40, 4), dtype=bool)
    targets[[5, 10], 0], targets[[6, 11], 1], targets[[5, 6], 2], targets[:, 3] = True, True, True, True
    pictures = ArraySplit(np.zeros((40, 4, 4), np.uint8), np.zeros(40, np.int64), "train")
    data = Data("made", "made", ("a", "b", "c", "d"), {"train": MultiLabelSplit(pictures, targets)})
    tested = set()
    for seed in range(12):
        parts = [with_test_fold(data, 2, fold, seed) for fold in (1, 2)]
        assert all(part.splits["train"].class_counts(4).min() > 0 for part in parts)
        tested.add(sum(len(part.splits["test"]) for part in parts))
    assert 40 in tested
    assert len(tested) > 1  # with some seeds, both pictures of the label c fall into one fold


def test_the_rarest_of_several_labels_counts() -> None:
    targets = np.array([[1, 0, 1], [1, 0, 0], [1, 1, 1], [0, 0, 0], [1, 0, 1]])
    assert rarest_labels(targets).tolist() == [1, 2, 0, 3, 1]
