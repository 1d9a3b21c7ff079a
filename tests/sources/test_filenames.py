from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sources.trees import meaning, some
from thumbnet.errors import DataError
from thumbnet.sources.filenames import labels_from_names, number_first


@pytest.mark.parametrize(
    ("form", "first", "second", "expected"),
    [
        ("NUMBER_CLASS", "{}_frog.png", "{}_cat.png", ("cat", "frog")),
        ("CLASS.NUMBER", "cat.{}.jpg", "dog.{}.jpg", ("cat", "dog")),
        ("CLASS_NUMBER", "cat_{}.jpg", "dog_{}.jpg", ("cat", "dog")),
        ("CLASS_NUMBER", "cat-{}.png", "polar bear-{}.png", ("cat", "polar bear")),
        ("CLASS_NUMBER", "Abyssinian_{}.jpg", "american_bulldog_{}.jpg", ("Abyssinian", "american_bulldog")),
        ("CLASS_NUMBER", "tractor 0{}.jpg", "truck 0{}.jpg", ("tractor", "truck")),
        ("CLASSNUMBER", "cat{}.jpg", "dog{}.jpg", ("cat", "dog")),
        ("CLASS (NUMBER)", "cat ({}).jpg", "dog ({}).jpg", ("cat", "dog")),
        ("CLASS_NUMBER", "猫_{}.jpg", "犬_{}.jpg", ("犬", "猫")),
    ],
)
def test_known_forms_of_names_give_their_labels(
    form: str, first: str, second: str, expected: tuple[str, ...]
) -> None:
    names = some(first, 4, 10) + some(second, 3, 20)
    found = labels_from_names(names)
    assert found is not None
    assert found.form == form
    for folder in ("", "train/", "wrap/train/"):
        layout = meaning([folder + name for name in names])
        assert layout.layout.class_names == expected
        assert layout.counts == {"train": 7}
    layout = meaning([f"train/{name}" for name in names] + [f"test/{name}" for name in names[:5]])
    assert layout.counts == {"train": 7, "test": 5}


@pytest.mark.parametrize(
    "names",
    [
        some("IMG_{}.jpg", 5),
        some("IMG_{}.jpg", 5) + some("DSC_{}.jpg", 5),  # two cameras are not two classes
        some("{}.jpg", 5),
        some("ab{}.jpg", 5) + some("cd{}.jpg", 5),  # too short to be words; perhaps hashes
        some("cat_{}.jpg", 5),  # one class only
        ["holiday_1.jpg", "beach_2.jpg", "party_3.jpg"],  # a different word in each name
        [
            f"{digit}_{number:03}.png" for digit in range(10) for number in range(3)
        ],  # either number could be the class
        ["a1b2c3.png", "d4e5f6.png"],
        some("Screenshot 2021-05-0{}.png", 4) + some("Photo {}.png", 3),
    ],
)
def test_names_without_labels_are_an_error_that_shows_some(names: list[str]) -> None:
    assert labels_from_names(names) is None
    with pytest.raises(DataError, match=r"no labels were recognised.*--label-pattern") as error:
        meaning([f"train/{name}" for name in names])
    assert min(names) in str(error.value)


def test_the_error_lists_names_that_break_the_form_of_the_others() -> None:
    names = [*some("cat.{}.jpg", 5), *some("dog.{}.jpg", 5), "readme.jpg"]
    with pytest.raises(DataError, match=r"10 of 11 names have the form CLASS.NUMBER.*not readme.jpg"):
        labels_from_names(names)


def test_a_pattern_finds_labels_by_its_first_group_or_its_group_called_label() -> None:
    names = ["subj7-happy-01.png", "subj8-sad-02.png"]
    for pattern in ("-([a-z]+)-", r"^(\w+)-(?P<label>[a-z]+)", "(?<=-)[a-z]+"):
        found = labels_from_names(names, pattern)
        assert found is not None
        assert found.labels == ["happy", "sad"]
    with pytest.raises(DataError, match=r"finds no class in 1 of 3 names, such as other.png"):
        labels_from_names([*names, "other.png"], "-([a-z]+)-")


def test_a_pattern_reads_names_in_any_folders() -> None:
    paths = ["train/a/x-cat-1.png", "train/b/x-dog-1.png", "train/x-cat-2.png", "test/q/x-dog-9.png"]
    found = meaning(paths, label_pattern="-([a-z]+)-")
    assert found.layout.class_names == ("cat", "dog")
    assert found.label_of("test/q/x-dog-9.png") == ("test", "dog")


def test_a_test_split_without_labels_in_its_names_is_unlabelled() -> None:
    found = meaning(some("train/cat.{}.jpg", 3) + some("train/dog.{}.jpg", 3) + some("test/{}.jpg", 4))
    assert found.counts == {"train": 6}
    assert "test/ has no labels (4 pictures, such as test/0.jpg)" in found.notes
    with pytest.raises(DataError, match=r"1 name\(s\) have no label of the form CLASS.NUMBER"):
        meaning(some("train/cat.{}.jpg", 3) + some("train/dog.{}.jpg", 3) + ["test/cat.1.jpg", "test/x.jpg"])


def test_numbers_sort_by_value() -> None:
    assert sorted(["train/10_a.png", "train/2_b.png"], key=number_first) == [
        "train/2_b.png",
        "train/10_a.png",
    ]


LABELS = st.from_regex(r"[a-z]{3,8}( [a-z]{2,5})?", fullmatch=True).filter(lambda name: name != "not a class")


@given(
    st.sets(LABELS, min_size=2, max_size=4),
    st.sampled_from(
        ["{label}.{n}.jpg", "{label}_{n}.jpg", "{label}-{n}.png", "{label} ({n}).jpg", "{n}_{label}.png"]
    ),
)
def test_words_in_a_known_form_are_the_labels(labels: set[str], form: str) -> None:
    names = [form.format(label=label, n=number) for label in labels for number in range(3)]
    found = labels_from_names(names)
    if found is not None:  # None if a label is a camera's word, such as img
        assert found.labels == [label for label in labels for _ in range(3)]
