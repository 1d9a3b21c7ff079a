from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cli_helpers import run_cli
from helpers import TINY, write_class_folders
from thumbnet.api import train
from thumbnet.errors import InterruptedRunError, MissingExtraError
from thumbnet.runs.folder import Run
from thumbnet.training.epochs import EpochResult, Score
from thumbnet.training.fit import StepResult
from thumbnet.training.tensorboard import TensorBoardWriter
from training_helpers import StopAfter


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("data"), ["train", "test"], per_class=20)


def next_second() -> None:
    """Wait for it: TensorBoard orders files by the second of their names."""
    now = int(time.time())
    while int(time.time()) == now:
        time.sleep(0.01)


def test_tensorboard_events_go_on_after_a_resume(folder: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "run"
    with pytest.raises(InterruptedRunError):
        train(
            folder,
            "tutorial",
            overrides=[*TINY, "training.epochs=4"],
            out=out,
            device="cpu",
            listener=StopAfter(10),  # in the third epoch
            track="tensorboard",
        )
    next_second()
    assert run_cli("train", "--resume", out, "--device", "cpu", "--tensorboard")[0] == 0
    events = accumulator.EventAccumulator(str(out / "tensorboard")).Reload()
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for tag, key in (("Accuracy/test", "test_accuracy"), ("Loss/test", "test_loss"), ("Learning rate", "lr")):
        found = [(one.step, one.value) for one in events.Scalars(tag)]
        assert found == [(line["step"], pytest.approx(line[key])) for line in metrics]
    assert len(events.Scalars("Loss/train")) >= 2


def test_without_tensorboard_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match="tensorboard"):
        TensorBoardWriter()


class Recipe:
    def to_toml(self) -> str:
        return "seed = 0"


class State:
    step = 0
    recipe = Recipe()


def test_losses_and_scores_are_written_under_their_steps(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    state: Any = State()
    nothing: Any = None
    with TensorBoardWriter() as writer:
        writer.on_start(Run(tmp_path), state, nothing)
        for step, loss in enumerate([None, 2.0, 2.0, 1.5], start=1):  # the same loss twice: not read again
            writer.on_step(StepResult(1, step, 4, step, 4, 8 * step, loss))
        score = Score("test", 0.75, 0.5, 8)
        writer.on_epoch(EpochResult(1, 4, 1.75, 0.1, 2.0, 16.0, None, 0.5, score))
        writer.on_epoch(EpochResult(2, 8, 1.25, 0.05, 2.0, 16.0, score, 0.6))
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()

    def scalars(tag: str) -> list[tuple[int, float]]:
        return [(one.step, round(one.value, 6)) for one in events.Scalars(tag)]

    assert scalars("Loss/train") == [(2, 2.0), (4, 1.5)]
    assert scalars("Learning rate") == [(4, 0.1), (8, 0.05)]
    assert scalars("Accuracy/test sample") == [(4, 0.75)]
    assert scalars("Loss/test") == [(8, 0.5)]
    assert scalars("Speed/pictures per second") == [(4, 16.0), (8, 16.0)]


def test_a_training_that_begins_again_hides_what_was_written_before(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    state: Any = State()
    nothing: Any = None
    for last in (2, 1):  # the first process ended without a checkpoint
        with TensorBoardWriter() as writer:
            writer.on_start(Run(tmp_path), state, nothing)
            for epoch in range(1, last + 1):
                writer.on_epoch(EpochResult(epoch, 4 * epoch, 1.75, 0.1 * last, 2.0, 16.0, None))
        if last == 2:
            next_second()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(one.step, round(one.value, 6)) for one in events.Scalars("Learning rate")] == [(4, 0.1)]


def test_nothing_is_written_before_the_first_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with TensorBoardWriter():
        pass
    assert list(tmp_path.iterdir()) == []
