"""Folds have the same share of each class, keep copies together, and leave no class without pictures to learn from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thumbnet.reviewing.folds import fold_numbers, joined


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
