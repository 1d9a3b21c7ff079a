from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers import TINY, coloured_data
from thumbnet.batches.prepare import Prepared
from thumbnet.distributed import World
from thumbnet.errors import InterruptedRunError, OutOfMemoryError
from thumbnet.runs.folder import Run
from thumbnet.training import session as session_module
from thumbnet.training.fit import StepResult
from thumbnet.training.listener import Listener
from thumbnet.training.state import TrainingState
from thumbnet.training.train import resume, train
from training_helpers import StopAfter

SMALLEST = [*TINY, "model.name=fastnet", "model.width=0.1", "training.min_steps=0"]


def test_a_stop_saves_the_very_step_and_leaves_no_summary(tmp_path: Path) -> None:
    data = coloured_data()
    with pytest.raises(InterruptedRunError) as caught:
        train(data, "fast", overrides=SMALLEST, out=tmp_path / "run", device="cpu", listener=StopAfter(6))
    assert caught.value.exit_status == 130
    run = Run.open(tmp_path / "run")
    assert not run.is_complete
    checkpoint: Any = run.load_checkpoint()
    assert checkpoint["state"]["step"] == 6
    assert resume(run.path, data=data, device="cpu").is_complete


class WhileItEvaluates(Listener):
    """Asks to stop at the second batch of the first evaluation."""

    def __init__(self) -> None:
        self.asked_after: list[int] = []
        self.step = 0

    def on_step(self, step: StepResult) -> None:
        self.step = step.step

    def should_stop(self) -> bool:
        self.asked_after.append(self.step)
        return self.asked_after.count(self.step) == 3


@pytest.mark.parametrize("of_a_sample", [False, True])
def test_a_stop_in_an_evaluation_saves_the_epochs_last_step(of_a_sample: bool, tmp_path: Path) -> None:
    data = coloured_data()
    settings = [*SMALLEST, "evaluation.batch_size=10", "training.ema_decay=0.9"]
    settings += ["evaluation.every=2", "evaluation.sample=30"] if of_a_sample else []
    call = partial(train, data, "fast", overrides=settings, device="cpu")
    calm = call(out=tmp_path / "calm")
    with pytest.raises(InterruptedRunError):
        call(out=tmp_path / "run", listener=WhileItEvaluates())
    checkpoint: Any = Run.open(tmp_path / "run").load_checkpoint()
    assert (checkpoint["state"]["step"], checkpoint["state"]["history"]) == (3, [])
    run = resume(tmp_path / "run", data=data, device="cpu")
    assert run.weights_path.read_bytes() == calm.weights_path.read_bytes()
    rows = [
        [
            {key: value for key, value in json.loads(line).items() if "second" not in key}
            for line in (one.path / "metrics.jsonl").read_text().splitlines()
        ]
        for one in (calm, run)
    ]
    assert rows[0] == rows[1]
    assert run.summary["accuracy"] == calm.summary["accuracy"]


@dataclass(frozen=True)
class CountingWorld(World):
    """Claims to be the first of two processes; the other one has nothing to say."""

    sums: list[int] = field(default_factory=list)
    broadcasts: list[int] = field(default_factory=list)

    def share(self, items: torch.Tensor) -> torch.Tensor:
        return items

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        self.sums.append(1)
        return values

    def from_first(self, value: Any) -> Any:
        self.broadcasts.append(1)
        return value

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        return rows

    def send_buffers(self, module: nn.Module) -> None:
        pass


class InTwo(Listener):
    """Lets a training believe from its first step on that it has two processes."""

    def __init__(self, stop_at: int = 0) -> None:
        self.world = CountingWorld(0, 2)
        self.stop_at, self.step = stop_at, 0

    def on_start(self, run: Run, state: TrainingState, prepared: Prepared) -> None:
        state.world = self.world
        self.world.sums.clear()
        self.world.broadcasts.clear()

    def on_step(self, step: StepResult) -> None:
        self.step = step.step

    def should_stop(self) -> bool:
        return self.step == self.stop_at  # asked only once


SHORT_STEPS = [
    *TINY,
    "model.name=fastnet",
    "model.width=0.05",
    "training.min_steps=0",
    "training.batch_size=2",
]


def test_several_processes_exchange_nothing_after_most_steps(tmp_path: Path) -> None:
    listener = InTwo()
    overrides = [*SHORT_STEPS, "evaluation.every=0", "evaluation.sample=0"]
    train(coloured_data(), "fast", overrides=overrides, out=tmp_path / "r", device="cpu", listener=listener)
    assert listener.step == 90
    assert 0 < len(listener.world.sums) + len(listener.world.broadcasts) < 90 / 2


def test_a_request_to_stop_between_two_meetings_is_not_forgotten(tmp_path: Path) -> None:
    listener = InTwo(stop_at=17)
    data = coloured_data()
    with pytest.raises(InterruptedRunError) as caught:
        train(data, "fast", overrides=SHORT_STEPS, out=tmp_path / "r", device="cpu", listener=listener)
    checkpoint: Any = Run(caught.value.path).load_checkpoint()
    assert 17 <= checkpoint["state"]["step"] == listener.step <= 30, "at the end of the epoch at the latest"
    assert resume(tmp_path / "r", data=data, device="cpu").is_complete


@pytest.mark.parametrize(
    ("splits", "watched"), [(("train", "val", "test"), "val"), (("train", "test"), "test")]
)
def test_val_is_watched_if_there_is_one_and_the_summary_is_about_test(
    splits: tuple[str, ...], watched: str, tmp_path: Path
) -> None:
    overrides = [*SMALLEST, "training.epochs=2"]
    run = train(coloured_data(splits=splits), "fast", overrides=overrides, out=tmp_path / "r", device="cpu")
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [f"{watched}_accuracy" in row for row in rows] == [True, True]
    assert run.summary["split"] == "test"
    assert run.summary["kept_by"] == ("best on val" if watched == "val" else "last")


def test_without_anything_held_out_a_training_still_ends_with_weights(tmp_path: Path) -> None:
    data = coloured_data(splits=("train",))
    overrides = [*SMALLEST, "training.epochs=1", "data.calibration_pictures=0"]
    run = train(data, "fast", overrides=overrides, out=tmp_path / "r", device="cpu")
    assert (run.summary["split"], run.summary["accuracy"], run.summary["temperature"]) == (None, None, 1.0)
    assert run.weights_path.is_file()


def test_memory_refused_to_an_evaluation_names_its_batch_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("could not execute a primitive")

    monkeypatch.setattr(session_module, "collect_logits", refuse)
    overrides = [*SMALLEST, "training.epochs=1", "evaluation.batch_size=64"]
    with pytest.raises(
        OutOfMemoryError, match=r"evaluating 64 .*\n.*--set evaluation.batch_size=32"
    ) as caught:
        train(coloured_data(), "fast", overrides=overrides, out=tmp_path / "r", device="cpu")
    assert caught.value.exit_status == 2


def test_a_training_leaves_torchs_flags_threads_and_random_numbers_as_they_were(tmp_path: Path) -> None:
    flags = torch.backends.cudnn
    before = flags.deterministic, flags.benchmark
    try:
        flags.deterministic, flags.benchmark = False, True
        threads, numbers = torch.get_num_threads(), torch.get_rng_state()
        others = (
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(),
        )
        train(coloured_data(), "fast", overrides=SMALLEST, out=tmp_path / "r", device="cpu")
        assert (flags.deterministic, flags.benchmark) == (False, True)
        assert torch.get_num_threads() == threads
        assert torch.equal(torch.get_rng_state(), numbers)
        assert others == (
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(),
        )
    finally:
        flags.deterministic, flags.benchmark = before
