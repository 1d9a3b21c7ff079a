from __future__ import annotations

import numpy as np
import pytest

from thumbnet.errors import DataError
from thumbnet.sources.labels import are_quantities, as_class, class_names, number_classes, one_spelling


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("cat", "cat"), (" cat ", "cat"), ("7", 7), ("-7", -7), ("07", "07"), ("", None), (b"dog", "dog"),
        (3, 3), (np.int64(3), 3), (3.0, 3), (3.5, None), (True, 1), (np.float32(2), 2), (None, None), ([1], None),
        ("\u0663", "\u0663"),
    ],
)  # fmt: skip
def test_labels_are_integers_words_or_none(value: object, expected: str | int | None) -> None:
    found = as_class(value)
    assert found == expected
    assert type(found) is type(expected)


def test_integers_are_sorted_by_value_and_words_alphabetically() -> None:
    assert number_classes({"train": [10, 9, 100]}, "x").class_names == ("9", "10", "100")
    found = number_classes({"train": ["b", "a", "b"], "test": ["b"]}, "x")
    assert found.class_names == ("a", "b")
    assert found.labels["train"].tolist() == [1, 0, 1]
    assert found.labels["test"].tolist() == [1]
    assert found.labels["test"].dtype == np.int64


@pytest.mark.parametrize(
    "labels", [["100", "1E2"], ["1E2", "2E1"], ["+1", "1"], ["-0", "0"], ["1", "1.0", "cat"], [".0", "1"]]
)
def test_only_whole_numbers_in_plain_digits_are_numbers(labels: list[str]) -> None:
    """``1E2`` may be a well of a plate, and ``+1`` a grade."""
    assert class_names(labels) == {label: label for label in labels}
    assert list(class_names(labels)) == sorted(labels)


def test_names_replace_integers_and_names_without_pictures_are_left_out() -> None:
    found = number_classes({"train": [2, 0, 2]}, "x", ["zero", "one", "two"])
    assert found.class_names == ("zero", "two")
    assert found.labels["train"].tolist() == [1, 0, 1]
    assert found.notes == ["1 of the 3 classes have no training pictures"]


def test_labels_without_a_name_or_missing_from_train_or_like_captions_are_refused() -> None:
    with pytest.raises(DataError, match="labels such as 3, but only 2 class names"):
        number_classes({"train": [0, 3]}, "x", ["a", "b"])
    with pytest.raises(DataError, match="train has no pictures of c"):
        number_classes({"train": ["a", "b"], "test": ["c"]}, "x")
    with pytest.raises(DataError, match="captions"):
        number_classes({"train": [f"a picture of number {n}" for n in range(40)]}, "x")


def test_labels_of_another_split_are_trains_in_another_case_or_unicode_form() -> None:
    respelt, notes = one_spelling({"train": ["caf\u00e9", "dog", 3], "test": ["cafe\u0301", "Dog", "cow", 4]})
    assert respelt == {"cafe\u0301": "caf\u00e9", "Dog": "dog"}
    assert notes == [
        "test: 1 label(s) are spelt differently from train's but taken as the same classes: 'Dog' is 'dog'"
    ]
    found = number_classes({"train": ["cat", "dog"], "test": ["DOG", "cat"]}, "x")
    assert found.labels["test"].tolist() == [1, 0]
    assert any("'DOG' is 'dog'" in note for note in found.notes)


def test_words_that_may_mean_nothing_are_classes_with_a_warning() -> None:
    found = number_classes(
        {"train": ["cat"] * 10 + ["NA"] * 3 + [7], "test": ["NA", "cat", "cat", "cat"]}, "x"
    )
    assert found.class_names == ("7", "NA", "cat")
    assert [note.partition(",")[0] for note in found.notes] == ["warning: 4 label(s) are NA"]
    assert one_spelling({"train": ["na", "none", "Nadine", 0]}) == ({}, [])


@pytest.mark.parametrize(
    ("labels", "noted"),
    [
        ([-1, 0, 1], True),
        (["-1", "0", "1"], True),
        (["-1.0", "0.0", "1.0"], True),
        ([-1, 1], False),
        (["-1", "cat", "dog"], False),
        ([0, 1], False),
    ],
)
def test_minus_one_is_a_class_with_a_warning(labels: list[str | int], noted: bool) -> None:
    respelt, notes = one_spelling({"train": labels, "val": labels[:1]})
    assert respelt == {}
    assert [note.partition(",")[0] for note in notes] == ["warning: 2 label(s) are -1"] * noted


def test_labels_of_train_that_differ_in_case_stay_different_and_are_noted() -> None:
    respelt, notes = one_spelling({"train": ["cat", "Cat", "dog", "e\u0301", "\u00e9"], "val": ["CAT"]})
    assert respelt == {"e\u0301": "\u00e9"}
    assert notes == ["2 classes differ only in case or spaces, but stay different: 'Cat' and 'cat'"]


def test_labels_that_differ_in_the_spaces_between_words_are_alike() -> None:
    one, two = "golden retriever", "golden  retriever"
    assert one_spelling({"train": [one], "val": [two]})[0] == {two: one}
    respelt, notes = one_spelling({"train": [one, two]})
    assert respelt == {}
    assert notes == [f"2 classes differ only in case or spaces, but stay different: {two!r} and {one!r}"]


def test_whole_number_classes_are_ordered_by_value_and_fractions_are_refused() -> None:
    assert list(class_names(["10", "9", "2.0"]).values()) == ["2", "9", "10"]
    assert list(class_names(["b", "a", ""])) == ["a", "b"]
    assert list(class_names(["007", "7"])) == ["007", "7"]
    assert class_names(["-1.0", "0.", "-1"]) == {"-1": "-1", "-1.0": "-1", "0.": "0"}
    with pytest.raises(DataError, match=r"fractions, such as 2\.5"):
        class_names(["1", "2.5"])
    assert are_quantities({"1", "2.5"})
    assert not any(map(are_quantities, ({"1", "2.0"}, {"old", "2.5"}, set[str]())))
