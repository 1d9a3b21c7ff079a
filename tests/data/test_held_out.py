from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thumbnet.data import held_out
from thumbnet.data.held_out import NOTHING_SET_ASIDE, with_held_out
from thumbnet.data.splits import BytesSplit, Data
from thumbnet.errors import DataError


def data_of(names: dict[str, list[str]], **more: object) -> Data:
    """A data set of these pictures by split; a picture's class is what its name begins with."""
    classes = sorted({name.partition("/")[0] for several in names.values() for name in several})
    splits = {
        split: BytesSplit(
            [b""] * len(several), np.array([classes.index(n.partition("/")[0]) for n in several]), several
        )
        for split, several in names.items()
    }
    return Data("made", "made", tuple(classes), dict(splits), **more)  # type: ignore[arg-type]


def people(classes: int, count: int, each: int) -> list[str]:
    """Pictures of ``count`` people in every class."""
    return [f"c{c}/person{p}_{i}.png" for c in range(classes) for p in range(count) for i in range(each)]


def names_of(data: Data, split: str) -> list[str]:
    return [data.splits[split].name(index) for index in range(len(data.splits[split]))]


def test_a_class_with_one_picture_stays_in_train_with_a_note() -> None:
    names = [f"{c}/{i}" for c in "ab" for i in range(40)] + ["z/0"]
    data = with_held_out(data_of({"train": names}), 0.2, 0.0, 0)
    assert len(data.splits["train"]) == 65
    assert "z/0" in names_of(data, "train")
    assert any(
        "1 class(es) with only one picture stay in train" in note and "z" in note for note in data.notes
    )
    assert data.set_aside == ("test",)


def test_only_single_pictures_cannot_be_measured_but_trained_on() -> None:
    data = data_of({"train": ["a/0", "b/0"]})
    with pytest.raises(DataError, match="--test-fraction 0"):
        with_held_out(data, 0.2, 0.0, 0)
    assert len(with_held_out(data, 0.0, 0.0, 0).splits["train"]) == 2


def test_with_nothing_set_aside_everything_is_trained_on() -> None:
    data = data_of({"train": [f"{c}/{i}" for c in "ab" for i in range(10)]})
    whole = with_held_out(data, 0.0, 0.0, 0)
    assert set(whole.splits) == {"train"}
    assert whole.notes == (NOTHING_SET_ASIDE,)
    assert whole.set_aside == ()
    val = with_held_out(data, 0.0, 0.2, 0)
    assert {name: len(split) for name, split in val.splits.items()} == {"train": 16, "val": 4}
    assert NOTHING_SET_ASIDE not in val.notes


def test_groups_found_by_an_expression_stay_together() -> None:
    data = with_held_out(data_of({"train": people(3, 20, 4)}), 0.25, 0.25, 0, r"(person\d+)_")
    found = {s: {n.split("/")[1].partition("_")[0] for n in names_of(data, s)} for s in data.splits}
    assert not found["train"] & found["test"]
    assert not found["train"] & found["val"]
    assert not found["test"] & found["val"]
    assert len(found["test"]) == 5
    assert np.bincount(data.splits["test"].labels).tolist() == [20, 20, 20]
    assert any("5 of 20 groups" in note for note in data.notes)
    assert {s: len(g) for s, g in data.groups.items()} == {s: len(x) for s, x in data.splits.items()}


def test_an_expression_is_tried_once_on_the_pictures_of_all_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[list[str]] = []  # each trial may start a process

    def compiled(pattern: str, names: Sequence[str], option: str) -> re.Pattern[str]:
        tried.append(list(names))
        return re.compile(pattern)

    monkeypatch.setattr(held_out, "compile_pattern", compiled)
    names = {"train": people(2, 3, 2), "val": ["c0/person4_9.png"], "test": ["c1/person5_0.png"]}
    data = with_held_out(data_of(names), 0.2, 0.0, 0, r"(person\d+)_")
    assert tried == [[*names["train"], *names["val"], *names["test"]]]
    assert data.groups["test"].tolist() == ["person5"]


def test_a_new_picture_or_group_moves_hardly_any_other() -> None:
    first = with_held_out(data_of({"train": people(2, 30, 3)}), 0.2, 0.0, 0, r"(person\d+)_")
    more = [*people(2, 30, 3), "c0/person99_0.png", "c1/person99_0.png"]
    second = with_held_out(data_of({"train": more}), 0.2, 0.0, 0, r"(person\d+)_")
    before, after = set(names_of(first, "test")), set(names_of(second, "test"))
    assert len(before & after) >= len(before) - 6


def test_groups_of_the_source_count_before_the_expression() -> None:
    names = people(2, 10, 2)
    groups = np.array([str(index % 5) for index in range(len(names))], dtype=object)
    data = with_held_out(data_of({"train": names}, groups={"train": groups}), 0.2, 0.0, 0, "patient")
    assert not set(data.groups["train"].tolist()) & set(data.groups["test"].tolist())


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("nobody(x)", "matches none of the pictures, such as c0/person0_0"), ("(pers)", "the same group")],
)
def test_an_expression_that_finds_no_groups_is_refused_with_the_way_on(pattern: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        with_held_out(data_of({"train": people(2, 5, 2)}), 0.2, 0.0, 0, pattern)


def test_each_picture_that_the_expression_does_not_match_is_alone() -> None:
    names = people(2, 10, 2) + [f"c{c}/loose{i}" for c in range(2) for i in range(10)]
    data = with_held_out(data_of({"train": names}), 0.2, 0.0, 0, r"(person\d+)_")
    assert any(
        "matches 40 training pictures; each of the other 20 forms its own group" in note
        for note in data.notes
    )
    assert any("of 30 groups" in note for note in data.notes)


def test_a_class_in_one_group_stays_in_train() -> None:
    names = people(2, 10, 3) + [f"only/person77_{i}.png" for i in range(5)]
    data = with_held_out(data_of({"train": names}), 0.2, 0.0, 0, r"(person\d+)_")
    assert not any(name.startswith("only") for name in names_of(data, "test"))
    assert any("with only one group stay in train" in note and "only" in note for note in data.notes)


def test_given_splits_that_share_groups_are_warned_of() -> None:
    names = {"train": people(2, 5, 2), "test": ["c0/person4_9.png", "c1/person8_0.png"]}
    data = with_held_out(data_of(names), 0.2, 0.0, 0, r"(person\d+)_")
    (warning,) = (note for note in data.notes if note.startswith("warning: "))
    assert "1 group(s)" in warning
    assert "person4" in warning
    apart = with_held_out(data_of({**names, "test": ["c1/person8_0.png"]}), 0.2, 0.0, 0, r"(person\d+)_")
    assert not any(note.startswith("warning: ") for note in apart.notes)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=8, max_size=60),
    st.floats(0.05, 0.6),
    st.integers(0, 5),
)
def test_no_group_is_divided_and_train_keeps_every_class(
    pictures: list[tuple[int, int]], fraction: float, seed: int
) -> None:
    names = [f"c{label}/g{group}_{number}" for number, (label, group) in enumerate(pictures)]
    labels = {name.partition("/")[0] for name in names}
    groups = {name.split("/")[1].partition("_")[0] for name in names}
    if len(labels) < 2 or len(groups) < 2:
        return
    try:  # the expression repeats nothing: else, each example would start a process that tries it out
        data = with_held_out(data_of({"train": names}), fraction, 0.0, seed, r"/(g\d)_")
    except DataError as error:
        assert "each class is in only one group" in str(error)  # noqa: PT017
        return
    split = {s: names_of(data, s) for s in data.splits}
    assert Counter(split["train"] + split["test"]) == Counter(names)
    by = {s: {n.split("/")[1].partition("_")[0] for n in several} for s, several in split.items()}
    assert not by["train"] & by["test"]
    assert {n.partition("/")[0] for n in split["train"]} == labels


def test_a_new_picture_moves_at_most_one_other() -> None:
    names = [f"{c}/{i}" for c in "ab" for i in range(20)]
    before = set(names_of(with_held_out(data_of({"train": names}), 0.2, 0.0, 0), "test"))
    moved = []
    for number in range(20, 60):
        names.append(f"a/{number}")
        after = set(names_of(with_held_out(data_of({"train": names}), 0.2, 0.0, 0), "test"))
        moved.append(len((before ^ after) - {names[-1]}))
        before = after
    assert set(moved) == {0, 1}


def test_a_fold_takes_the_place_of_the_fraction_and_val_is_set_aside_from_the_rest() -> None:
    data = data_of({"train": people(2, 30, 3), "test": ["c0/other_0.png"]})
    parts = [with_held_out(data, 0.2, 0.1, 0, r"(person\d+)_", (fold, 3)) for fold in (1, 2, 3)]
    tested = [name for part in parts for name in names_of(part, "test")]
    assert sorted(tested) == sorted(people(2, 30, 3))
    for part in parts:
        assert set(part.splits) == {"train", "test", "val"}
        assert part.set_aside == ("test", "val")
        found = {s: {n.split("/")[1].partition("_")[0] for n in names_of(part, s)} for s in part.splits}
        assert not found["test"] & (found["train"] | found["val"])
        assert not found["train"] & found["val"]
        assert not any("warning" in note for note in part.notes)
