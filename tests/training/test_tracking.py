"""A training's numbers reach its trackers, and no tracker can harm the training."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from thumbnet.errors import InterruptedRunError, MissingExtraError, ThumbnetError
from thumbnet.recipes.recipe import load_recipe
from thumbnet.training import tracking
from thumbnet.training.epochs import EpochResult, Score
from thumbnet.training.fit import StepResult
from thumbnet.training.listener import Listener
from thumbnet.training.tracker import Facts
from thumbnet.training.tracking import (
    Guarded,
    InBackground,
    final_values,
    parameters_of,
    reason_of,
    tracked,
    values_of,
)
from tracking_helpers import NOTHING, epoch, run_in, state_of


class Recorded:
    """A tracker that writes down what it is asked to do, and fails or hangs where it is told to."""

    name, where = "Recorded", ""

    def __init__(self, has: int = -1, fails: str = "", hangs: str = "") -> None:
        self.has, self.fails, self.hangs = has, fails, hangs
        self.calls: list[Any] = []
        self.released = threading.Event()

    def _call(self, what: str, *values: Any) -> None:
        if what == self.hangs:
            self.released.wait(30)
        if what == self.fails:
            raise OSError("no space left at http://user:secret@host/api\nmore")
        self.calls.append((what, *values))

    def begin(self, facts: Facts) -> int:
        self._call("begin", dict(facts.tags))
        return self.has

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._call("log", step)

    def finish(self, values: Mapping[str, float], tags: Mapping[str, str], files: Sequence[Path]) -> None:
        self._call("finish", values["final_accuracy"], tags["split"], [path.name for path in files])

    def close(self, how: str) -> None:
        self._call("close", how)


def follow(tracker: Recorded, folder: Path, *history: EpochResult, wait: float = 20) -> list[str]:
    """Two more epochs with this tracker; returns the notes for the user."""
    notes: list[str] = []
    run, first = run_in(folder), len(history) + 1
    with InBackground(tracker, notes.append, wait) as listener:
        listener.on_start(run, state_of(*history), NOTHING)
        for number in (first, first + 1):
            listener.on_epoch(epoch(number))
        listener.on_finish(run)
    return notes


def test_a_tracker_is_told_everything_in_order(tmp_path: Path) -> None:
    tracker = Recorded()
    assert follow(tracker, tmp_path) == []
    (what, tags), *others = tracker.calls
    assert (what, tags["data"], tags["data_fingerprint"], tags["git_commit"]) == (
        "begin", "digits", "f00d", "abc123+",
    )  # fmt: skip
    finish = ("finish", 0.75, "test", ["recipe.toml", "summary.json"])
    assert others == [("log", 10), ("log", 20), finish, ("close", "finished")]


def test_a_resumed_training_adds_the_epochs_that_the_tracker_lacks(tmp_path: Path) -> None:
    for has, steps in ((-1, [10, 20, 30, 40]), (10, [20, 30, 40]), (30, [40])):
        tracker = Recorded(has)
        follow(tracker, tmp_path, epoch(1), epoch(2))
        assert [call[1] for call in tracker.calls if call[0] == "log"] == steps


@pytest.mark.parametrize("fails", ["begin", "log", "finish", "close"])
def test_a_tracker_that_fails_costs_one_note_and_no_password(fails: str, tmp_path: Path) -> None:
    tracker = Recorded(fails=fails)
    note = "Recorded failed: no space left at http://***@host/api; the training goes on without it"
    assert follow(tracker, tmp_path) == [note]
    done = [call[0] for call in tracker.calls]
    assert done == ["begin", "log", "log", "finish", "close"][: len(done) - (fails != "close")] + [
        "close"
    ] * (fails != "close")


def test_a_failure_is_told_while_the_training_runs(tmp_path: Path) -> None:
    notes: list[str] = []
    with InBackground(Recorded(fails="begin"), notes.append) as listener:
        listener.on_start(run_in(tmp_path), state_of(), NOTHING)
        until = time.monotonic() + 20
        while not notes and time.monotonic() < until:
            listener.on_step(StepResult(1, 1, 2, 1, 2, 8, None))
        assert len(notes) == 1


def test_a_tracker_that_hangs_is_left_behind(tmp_path: Path) -> None:
    tracker = Recorded(hangs="log")
    (note,) = follow(tracker, tmp_path, wait=0.05)
    assert "did not answer within 0.05 s" in note
    tracker.released.set()


def test_a_stopped_training_is_not_a_failed_one(tmp_path: Path) -> None:
    for error, how in ((InterruptedRunError(tmp_path, 1, 1), "stopped"), (ValueError("bug"), "failed")):
        tracker = Recorded()
        with pytest.raises(type(error)), InBackground(tracker, print):
            raise error
        assert tracker.calls == [("close", how)]


def test_without_trackers_and_in_other_processes_nothing_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Listener()
    with tracked([], own) as listener:
        assert listener is own
    monkeypatch.setenv("RANK", "1")
    with tracked(["mlflow"], own) as listener:
        assert listener is own


def test_a_tracker_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for names in (["mlfow"], "mlfow"):
        with (
            pytest.raises(ThumbnetError, match="'mlfow': expected one of tensorboard, mlflow, wandb"),
            tracked(names, Listener()),
        ):
            pass
    monkeypatch.setattr(tracking, "find_spec", lambda _: None)
    with (
        pytest.raises(MissingExtraError, match=r"--track wandb needs the extra 'wandb'"),
        tracked(["wandb"], Listener()),
    ):
        pass


def test_a_folder_that_is_called_like_a_library_is_no_library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.delitem(__import__("sys").modules, "wandb", raising=False)
    with pytest.raises(MissingExtraError, match="wandb"), tracked(["wandb"], Listener()):
        pass


class Broken(Listener):
    """A writer whose disk is full."""

    calls = 0

    def __enter__(self) -> Broken:
        return self

    def __exit__(self, *_: object) -> None:
        raise AssertionError("it is not asked again")

    def on_epoch(self, result: EpochResult) -> None:
        Broken.calls += 1
        raise OSError(28, "No space left on device")


def test_a_writer_that_fails_is_not_asked_again() -> None:
    notes: list[str] = []
    with Guarded(Broken(), "TensorBoard", notes.append) as listener:
        listener.on_epoch(epoch(1))
        listener.on_epoch(epoch(2))
    assert Broken.calls == 1
    assert notes == [
        "TensorBoard failed: [Errno 28] No space left on device; the training goes on without it"
    ]


def test_the_recipe_becomes_parameters_by_key() -> None:
    found = parameters_of(load_recipe("fast"))
    assert (found["optimizer.name"], found["training.epochs"]) == ("muon", 15)
    assert str(found["optimizer.groups"]).startswith('[{"match"')
    assert "training.init" not in found


def test_a_score_on_a_sample_has_another_name_than_one_on_all_pictures() -> None:
    nan = float("nan")
    result = EpochResult(1, 4, 1.5, 0.1, 2.0, 16.0, None, nan, Score("test", 0.5, 0.7, 10, 0.4))
    assert values_of(result) == {
        "epoch": 1, "train_loss": 1.5, "learning_rate": 0.1, "pictures_per_second": 16,
        "test_sample_accuracy": 0.5, "test_sample_loss": 0.7, "test_sample_map": 0.4,
    }  # fmt: skip
    balanced = EpochResult(1, 4, 1.5, 0.1, 2.0, 16.0, Score("val", 0.5, 0.7, 10, balanced_accuracy=0.4))
    assert values_of(balanced)["val_balanced_accuracy"] == 0.4


def test_the_final_numbers_are_those_that_are_known() -> None:
    summary = {"accuracy": 0.75, "accuracy_interval": [0.7, 0.8], "map": None, "loss": float("nan")}
    assert final_values(summary) == {
        "final_accuracy": 0.75, "final_accuracy_low": 0.7, "final_accuracy_high": 0.8,
    }  # fmt: skip
    assert final_values({"accuracy": None, "accuracy_interval": None}) == {}


def test_an_error_without_a_message_is_named_by_its_kind() -> None:
    assert reason_of(TimeoutError()) == "TimeoutError"
