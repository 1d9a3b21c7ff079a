"""Decisions are in the file before anyone hears of them, and nothing that was decided is lost."""

from __future__ import annotations

import errno
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from review_helpers import CLASSES, correction, item, made_review
from thumbnet import files
from thumbnet.data.corrections import read_corrections
from thumbnet.data.splits import FileSplit
from thumbnet.errors import DataError, FailedReadError, RunError
from thumbnet.reviewing import session
from thumbnet.reviewing.session import lock_labels, settled_pictures, suspicious_items, unlabelled_items


def rows(path: Path) -> list[tuple[str, ...]]:
    return [(one.name, one.label, one.split, one.was, one.decision) for one in read_corrections(path)]


def test_each_decision_is_in_the_file_at_once(tmp_path: Path) -> None:
    review = made_review(tmp_path)
    assert not review.path.exists()
    expected: list[tuple[str, ...]] = []
    for position, decision, label, row in (
        (0, "relabel", 2, ("0.png", "blue", "train", "red", "relabel")),
        (1, "confirm", None, ("1.png", "red", "test", "red", "confirm")),
        (2, "drop", None, ("2.png", "", "train", "red", "drop")),
        (3, "unsure", None, ("3.png", "", "test", "red", "unsure")),
    ):
        review.decide(position, decision, label)
        expected.append(row)
        assert rows(review.path) == expected
    assert (review.decided, review.revision) == (4, 4)


@pytest.mark.parametrize("call", ["stat", "open"])
def test_decisions_that_the_system_cannot_read_are_not_lost(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_review(tmp_path).decide(0, "drop")

    def fail(path: object, *_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "stat", fail) if call == "stat" else (files, "WholeFile", fail)))
        with pytest.raises(FailedReadError, match="Input/output error"):
            made_review(tmp_path)
    review = made_review(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", fail)
        with pytest.raises(FailedReadError, match="Input/output error"):
            review.decide(1, "drop")
    review.decide(1, "drop")
    assert [row[0] for row in rows(review.path)] == ["0.png", "1.png"]


def test_a_relabel_to_the_given_class_is_a_confirmation(tmp_path: Path) -> None:
    review = made_review(tmp_path)
    review.decide(0, "relabel", 0)
    assert rows(review.path) == [("0.png", "red", "train", "red", "confirm")]


def test_the_newest_decision_of_a_picture_wins_and_comes_last(tmp_path: Path) -> None:
    review = made_review(tmp_path)
    review.decide(0, "drop")
    review.decide(1, "drop")
    review.decide(0, "relabel", 1)
    assert [row[:2] for row in rows(review.path)] == [("1.png", ""), ("0.png", "green")]


def test_undo_takes_decisions_back_one_by_one(tmp_path: Path) -> None:
    review = made_review(tmp_path)
    review.decide(0, "drop")
    review.decide(1, "unsure")
    review.decide(0, "relabel", 1)
    assert review.undo() == 0
    assert [row[0::4] for row in rows(review.path)] == [("1.png", "unsure"), ("0.png", "drop")]
    assert review.undo() == 1
    assert review.undo() == 0
    assert rows(review.path) == []
    assert not review.can_undo
    assert review.undo() is None


def test_a_decision_that_is_repeated_changes_nothing(tmp_path: Path) -> None:
    review = made_review(tmp_path)
    review.decide(0, "drop")
    review.decide(0, "drop")
    assert review.revision == 1
    assert review.undo() == 0
    assert not review.can_undo


def test_a_new_review_continues_and_can_undo_what_an_earlier_one_decided(tmp_path: Path) -> None:
    first = made_review(tmp_path)
    first.decide(2, "relabel", 2)
    first.decide(5, "drop")
    del first  # as if the process had been killed
    second = made_review(tmp_path)
    assert second.decided == 2
    found = second.decision(2)
    assert found is not None
    assert found.label == "blue"
    assert second.undo() == 5
    assert second.undo() == 2
    assert second.undo() is None


ACTIONS = st.one_of(
    st.tuples(st.integers(0, 3), st.sampled_from(["confirm", "drop", "unsure"]), st.none()),
    st.tuples(st.integers(0, 3), st.just("relabel"), st.integers(0, 2)),
    st.sampled_from(["undo", "open again"]),
)


@settings(max_examples=30)
@given(st.lists(ACTIONS, max_size=12))
def test_the_file_always_has_what_was_decided_and_not_undone(actions: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        items = [item(number) for number in range(4)]
        review = made_review(Path(folder), items)
        expected: dict[int, tuple[str, str]] = {}  # newest last
        past: list[tuple[int, tuple[str, str] | None]] = []
        for action in actions:
            if action == "open again":
                review = made_review(Path(folder), items)
                past = [(position, None) for position in expected]
            elif action == "undo":
                position, before = past.pop() if past else (None, None)
                assert review.undo() == position
                if position is not None:
                    del expected[position]
                    expected |= {} if before is None else {position: before}
            else:
                position, decision, label = action
                review.decide(position, decision, label)
                given_class = decision == "confirm" or label == 0
                after = (
                    ("red", "confirm") if given_class else ("" if label is None else CLASSES[label], decision)
                )
                if expected.get(position) != after:
                    past.append((position, expected.pop(position, None)))
                    expected[position] = after
            found = rows(review.path) if review.path.exists() else []
            assert [(row[0], row[1], row[4]) for row in found] == [
                (f"{position}.png", *decided) for position, decided in expected.items()
            ]
            assert review.decided == len(expected)


def test_rows_about_other_pictures_stay_in_the_file(tmp_path: Path) -> None:
    made_review(tmp_path, [item(77)]).decide(0, "drop")
    review = made_review(tmp_path)
    assert not review.can_undo  # that picture is not in this review
    review.decide(0, "unsure")
    assert [row[0] for row in rows(review.path)] == ["77.png", "0.png"]


def test_the_file_begins_with_the_corrections_that_the_run_was_trained_with(tmp_path: Path) -> None:
    inherited = [correction("0.png", "blue"), correction("gone.png", "", decision="drop")]
    # The data that are reviewed are corrected already, so 0.png is blue there.
    items = [item(0, given=2), item(1)]
    review = made_review(tmp_path, items, inherited=inherited)
    assert (review.decided, review.can_undo) == (1, False)
    review.decide(1, "confirm")
    assert rows(review.path) == [
        ("0.png", "blue", "train", "red", "relabel"),
        ("gone.png", "", "train", "red", "drop"),
        ("1.png", "red", "test", "red", "confirm"),
    ]
    review.decide(0, "relabel", 0)  # back to the class that the source gives
    assert rows(review.path)[-1] == ("0.png", "red", "train", "red", "confirm")
    again = made_review(tmp_path, items, inherited=inherited)
    assert again.undo() == 0
    assert ("0.png", "blue", "train", "red", "relabel") in rows(again.path)


def test_a_picture_without_a_label_gets_one_but_cannot_be_confirmed(tmp_path: Path) -> None:
    review = made_review(tmp_path, [item(0, given=None)])
    with pytest.raises(DataError, match="no class to confirm"):
        review.decide(0, "confirm")
    review.decide(0, "relabel", 1)
    assert rows(review.path) == [("0.png", "green", "train", "", "relabel")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((6, "drop"), "there is no picture 6"),
        ((-1, "drop"), "there is no picture -1"),
        ((0, "burn"), "there is no decision 'burn', only confirm"),
        ((0, "relabel", 3), "there is no class 3"),
        ((0, "relabel", -1), "there is no class -1"),
        ((0, "relabel"), "there is no class None"),
    ],
)
def test_what_does_not_exist_cannot_be_decided(
    arguments: tuple[Any, ...], message: str, tmp_path: Path
) -> None:
    review = made_review(tmp_path)
    with pytest.raises(DataError, match=message):
        review.decide(*arguments)
    assert not review.path.exists()


def test_after_a_failed_write_nothing_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    review = made_review(tmp_path)
    review.decide(0, "drop")

    def fail(*_: object) -> None:
        raise RunError("cannot write labels.csv: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(session, "write_corrections", fail)
        with pytest.raises(RunError, match="No space"):
            review.decide(1, "drop")
        with pytest.raises(RunError, match="No space"):
            review.undo()
    assert (review.decided, review.decision(1), review.revision) == (1, None, 1)
    assert review.undo() == 0


def test_a_file_that_another_program_has_changed_is_not_overwritten(tmp_path: Path) -> None:
    review = made_review(tmp_path)
    review.decide(0, "drop")
    content = review.path.read_text() + "9.png,green,train,red,relabel\n"
    review.path.write_text(content)
    os.utime(review.path, ns=(1, 1))
    with pytest.raises(RunError, match="another program has changed"):
        review.decide(1, "drop")
    assert review.path.read_text() == content
    assert made_review(tmp_path).decided == 1


def test_a_second_review_of_the_same_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    with lock_labels(path), pytest.raises(RunError, match="another review is writing"), lock_labels(path):
        pass
    with lock_labels(path):
        pass


def test_copies_of_the_shown_pictures_count_neither_as_shown_nor_as_decided(tmp_path: Path) -> None:
    review = made_review(tmp_path, shown=3)
    review.decide(3, "drop")
    assert (review.shown, review.decided) == (3, 0)


@dataclass(frozen=True)
class Suspect:
    split: str
    index: int
    name: str = "x.png"
    given: int = 0
    suggested: int = 1
    reasons: tuple[str, ...] = ("label",)
    copies: tuple[tuple[str, int], ...] = ()

    @property
    def is_doubtful(self) -> bool:
        return "label" in self.reasons or "conflict" in self.reasons


@dataclass(frozen=True)
class Scores:
    probabilities: dict[str, np.ndarray]


def test_the_first_suspects_come_in_order_followed_by_their_copies() -> None:
    suspects: Any = [
        Suspect("train", 5, copies=(("test", 0), ("train", 7))),
        Suspect("train", 6),
        Suspect("train", 7, copies=(("train", 5), ("test", 0))),
        Suspect("test", 0, copies=(("train", 5), ("train", 7))),
    ]
    values = np.linspace(0, 1, 8 * 12, dtype=np.float32).reshape(8, 12)
    scores: Any = Scores({"train": values, "test": values})
    selected = suspicious_items(suspects, scores, 2)
    items = selected.items
    assert (selected.shown, selected.beyond) == (2, (("train", "x.png"), ("test", "x.png")))
    assert [(one.split, one.index) for one in items] == [
        ("train", 5),
        ("train", 6),
        ("test", 0),
        ("train", 7),
    ]
    assert [one.copies for one in items] == [(2, 3), (), (0, 3), (0, 2)]
    labels, probabilities = zip(*items[0].likely, strict=True)
    assert labels == (11, 10, 9, 8, 7, 6, 5, 4, 3, 2)
    assert probabilities[0] == pytest.approx(values[5, 11])


@dataclass(frozen=True)
class Unlabelled:
    split: FileSplit
    probabilities: np.ndarray


def test_new_pictures_are_named_relative_to_the_file_of_labels_if_they_are_below_it(tmp_path: Path) -> None:
    split = FileSplit(tmp_path / "new", ["a.png", "b/c.png"], np.array([-1, -1]))
    found: Any = Unlabelled(split, np.array([[0.1, 0.9], [0.6, 0.4]], dtype=np.float32))
    items = unlabelled_items(found, np.array([1, 0]), 5, tmp_path.resolve()).items
    assert [one.name for one in items] == ["new/b/c.png", "new/a.png"]
    assert [(one.given, one.suggested, one.split) for one in items] == [
        (None, 0, "train"),
        (None, 1, "train"),
    ]
    elsewhere = unlabelled_items(found, np.array([1, 0]), 1, tmp_path.resolve() / "other")
    assert [one.name for one in elsewhere.items] == [str(tmp_path.resolve() / "new" / "b" / "c.png")]
    assert (elsewhere.shown, elsewhere.reach) == (1, 2)
    assert elsewhere.beyond == (("train", str(tmp_path.resolve() / "new" / "a.png")),)


def test_each_folder_is_resolved_once_and_links_lead_to_their_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path.resolve()
    (folder / "real" / "b").mkdir(parents=True)
    (folder / "elsewhere.png").touch()
    (folder / "real" / "b" / "link.png").symlink_to(folder / "elsewhere.png")
    (folder / "new").symlink_to(folder / "real")
    split = FileSplit(folder / "new", ["a.png", "b/link.png", "b/c.png", "b/d.png"], np.full(4, -1))
    found: Any = Unlabelled(split, np.full((4, 2), 0.5, dtype=np.float32))
    asked: list[str] = []
    real = os.path.realpath

    def counted(path: Any, **more: Any) -> str:
        asked.append(str(path))
        return real(path, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os.path, "realpath", counted)
        items = unlabelled_items(found, np.arange(4), 5, folder).items
    assert [one.name for one in items] == ["real/a.png", "elsewhere.png", "real/b/c.png", "real/b/d.png"]
    new = str(folder / "new")
    assert asked == [new, f"{new}/b/link.png", f"{new}/b"]


def test_suspects_whose_decision_the_data_contain_come_last_and_doubtful_ones_remain() -> None:
    reasons = [("label",), ("label",), ("label",), ("copy",), ("copy", "conflict"), ()]
    suspects: Any = [
        Suspect("train", number, f"{number}.png", reasons=one) for number, one in enumerate(reasons)
    ]
    scores: Any = Scores({"train": np.full((6, 3), 0.3, dtype=np.float32)})
    settled = {("train", "0.png"), ("test", "2.png")}
    selected = suspicious_items(suspects, scores, 1, settled)
    assert [one.name for one in selected.items] == ["1.png"]
    assert [name for _, name in selected.beyond] == ["2.png", "4.png"]
    assert selected.reach == 4  # as many as there are before 5.png, the next one that is not doubtful
    reached = suspicious_items(suspects, scores, selected.reach, settled)
    assert [one.name for one in reached.items] == ["1.png", "2.png", "3.png", "4.png"]
    assert (reached.beyond, reached.reach) == ((), 4)
    everything = suspicious_items(suspects, scores, 500, settled)
    assert (everything.items[-1].name, everything.shown, everything.reach) == ("0.png", 6, 6)


def test_new_pictures_whose_label_the_run_has_learned_take_up_no_places(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(5)]
    split = FileSplit(tmp_path.resolve(), names, np.full(5, -1))
    found: Any = Unlabelled(split, np.full((5, 2), 0.5, dtype=np.float32))
    settled = {("train", "0.png"), ("train", "3.png")}
    selected = unlabelled_items(found, np.arange(5), 2, tmp_path.resolve(), settled)
    assert [one.name for one in selected.items] == ["1.png", "2.png"]
    assert (selected.shown, selected.beyond, selected.reach) == (2, (("train", "4.png"),), 3)
    everything = unlabelled_items(found, np.arange(5), 5, tmp_path.resolve(), settled)
    assert [one.name for one in everything.items] == ["1.png", "2.png", "4.png", "0.png", "3.png"]
    assert (everything.beyond, everything.reach) == ((), 5)


def test_a_decision_is_settled_as_long_as_the_file_says_nothing_else(tmp_path: Path) -> None:
    inherited = [correction("0.png", "blue"), correction("1.png", "", decision="unsure")]
    both = {("train", "0.png"), ("train", "1.png")}
    review = made_review(tmp_path, [item(0, given=2), item(2)], inherited=inherited)
    assert settled_pictures(review.path, inherited) == both
    review.decide(1, "drop")
    assert settled_pictures(review.path, inherited) == both
    review.decide(0, "relabel", 1)
    assert settled_pictures(review.path, inherited) == {("train", "1.png")}


def test_pictures_that_are_not_shown_remain_until_they_are_decided(tmp_path: Path) -> None:
    beyond = [("test", "3.png"), ("train", "4.png"), ("train", "77.png")]
    review = made_review(tmp_path, shown=3, beyond=beyond, inherited=[correction("77.png", "blue")])
    assert review.remaining == 2
    review.decide(3, "drop")  # a copy of the first picture
    assert (review.remaining, review.decided) == (1, 0)
    again = made_review(tmp_path, shown=3, beyond=beyond)
    assert again.remaining == 1
    again.undo()
    assert again.remaining == 2
    again.decide(1, "drop")  # one of the shown pictures
    again.undo()
    assert again.remaining == 2
