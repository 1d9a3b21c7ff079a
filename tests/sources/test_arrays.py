from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from thumbnet.errors import DataError
from thumbnet.sources.arrays import (
    as_array,
    channels_last,
    class_labels,
    narrowed,
    pair_up,
    part_of,
    same_length,
)


def test_there_must_be_as_many_labels_as_pictures() -> None:
    same_length(3, 3, "x")
    with pytest.raises(DataError, match="3 pictures but 1,000 labels"):
        same_length(3, 1000, "x")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5, 16, 16), (5, 16, 16)),
        ((5, 16, 16, 3), (5, 16, 16, 3)),
        ((5, 3, 16, 16), (5, 16, 16, 3)),
        ((5, 1, 16, 16), (5, 16, 16, 1)),
        ((5, 784), (5, 28, 28)),
    ],
)
def test_every_known_shape_becomes_channels_last(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    notes: list[str] = []
    assert channels_last(np.zeros(shape, np.uint8), "x", notes).shape == expected
    assert bool(notes) is (shape != expected)


def test_the_caller_decides_about_ambiguous_shapes() -> None:
    images = np.arange(5 * 3 * 4 * 3, dtype=np.uint8).reshape(5, 3, 4, 3)
    assert np.array_equal(channels_last(images, "x", []), images)
    assert channels_last(images, "x", [], first=True).shape == (5, 4, 3, 3)


@pytest.mark.parametrize("shape", [(5, 783), (5, 2, 16, 16, 3), (5, 16, 16, 7), (5, 0, 16), (5,)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="x: the pictures"):
        channels_last(np.zeros(shape, np.uint8), "x", [])


def test_text_is_refused_as_pictures() -> None:
    with pytest.raises(DataError, match="expected numbers"):
        channels_last(np.array([["a", "b"]]), "x", [])


def test_whole_numbers_up_to_255_become_bytes_and_others_keep_their_type() -> None:
    whole = narrowed({"train": np.full((2, 4, 4), 200, np.int64), "test": np.full((1, 4, 4), 7.0)}, "x")
    assert {one.dtype for one in whole.values()} == {np.dtype(np.uint8)}
    deep = narrowed({"train": np.full((2, 4, 4), 700, np.int64)}, "x")
    assert deep["train"].dtype == np.int64
    unit = narrowed({"train": np.ones((2, 4, 4))}, "x")
    assert unit["train"].dtype == np.float64  # 1.0 may be white
    with pytest.raises(DataError, match="are uint8, but those of test are float64"):
        narrowed({"train": np.zeros((1, 4, 4), np.uint8), "test": np.full((1, 4, 4), 0.5)}, "x")


def test_tensors_and_ragged_lists_become_arrays() -> None:
    assert as_array(torch.ones(2, dtype=torch.bfloat16)).dtype == np.float32
    assert as_array([1, 2]).tolist() == [1, 2]
    assert as_array([[1], [1, 2]]).dtype == object


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("x_train", ("", "train", "images")),
        ("y_test", ("", "test", "labels")),
        ("trainImages", ("", "train", "images")),
        ("val_labels", ("", "val", "labels")),
        ("kmnist-test-labels", ("kmnist", "test", "labels")),
    ],
)
def test_split_and_role_are_parsed_from_array_names(name: str, expected: tuple[str, str, str]) -> None:
    assert part_of(name) == expected


def test_a_split_without_labels_is_left_out_with_a_note() -> None:
    pictures, labels = np.zeros((4, 8, 8)), np.zeros(4)
    arrays = pair_up({"x_train": pictures, "y_train": labels, "x_test": pictures[:3]}, "x")
    assert list(arrays.images) == ["train"]
    assert arrays.notes == ["test has no labels, so its 3 picture(s) are not used"]
    with pytest.raises(DataError, match="train has no labels"):
        pair_up({"x_train": pictures, "x_test": pictures, "y_test": labels}, "x")
    with pytest.raises(DataError, match="test has no pictures"):
        pair_up({"x_train": pictures, "y_train": labels, "y_test": labels}, "x")


@pytest.mark.parametrize("labels", [["cat", float("nan"), "dog"], ("cat", 3, "dog"), ["cat", None, "dog"]])
def test_names_and_other_things_are_not_all_taken_for_names(labels: Any) -> None:
    assert as_array(["cat", np.str_("dog")]).dtype.kind == "U"
    with pytest.raises(DataError, match="x, train: (label 1 is (nan|None)|the labels are of mixed types)"):
        class_labels({"train": labels}, None, "x", [])


@pytest.mark.parametrize("labels", [np.array([2**63, 1], np.uint64), [2**63, 1], [2**70, 1], [1e30, 1]])
def test_numbers_that_no_class_can_have_are_refused(labels: object) -> None:
    with pytest.raises(
        DataError, match="x, train: the labels are too large to be classes|expected one whole"
    ):
        class_labels({"train": labels}, None, "x", [])


def test_large_numbers_are_classes_of_their_own() -> None:
    names, _ = class_labels({"train": np.array([2**63 - 1, 2**63 - 2], np.uint64)}, None, "x", [])
    assert names == (str(2**63 - 2), str(2**63 - 1))


@pytest.mark.parametrize("kind", ["U8", "S8", object])
def test_outer_spaces_of_names_do_not_count(kind: object) -> None:
    notes: list[str] = []
    labels = np.array(["cat ", "dog", "cat", " dog\t"], kind)  # type: ignore[call-overload]
    names, numbers = class_labels({"train": labels}, None, "x", notes)
    assert (names, numbers["train"].tolist()) == (("cat", "dog"), [0, 1, 0, 1])
    assert notes == ["x, train: 2 label(s) lose the spaces around them: 'cat ' is 'cat'"]
    names, numbers = class_labels({"train": labels}, ["dog", "cat "], "x", [])
    assert (names, numbers["train"].tolist()) == (("dog", "cat "), [1, 0, 1, 0])


@pytest.mark.parametrize(
    ("labels", "noted"), [([-1, 0, 1, -1], True), ([-1, 1], False), ([-1, -2, 0], False), ([0, 1], False)]
)
def test_minus_one_next_to_numbers_from_zero_may_mean_nothing(labels: list[int], noted: bool) -> None:
    notes: list[str] = []
    names, _ = class_labels({"train": np.array(labels), "test": np.array(labels[:1])}, None, "x", notes)
    assert names == tuple(str(label) for label in sorted(set(labels)))
    assert [note.partition(",")[0] for note in notes] == ["warning: 3 label(s) are -1"] * noted
