"""On the simulated GPU, no step copies anything between host and GPU, and no step waits for the GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helpers import TURNED, coloured_data, coloured_labels
from simulated_device import CUDA, Copy, Log, Wait, simulated_gpu
from thumbnet.batches.prepare import prepare
from thumbnet.data.splits import Data
from thumbnet.recipes.recipe import load_recipe
from thumbnet.training import fit as fit_module
from thumbnet.training import graphed
from thumbnet.training.build import build_state
from thumbnet.training.fit import StepResult, fit
from thumbnet.training.graphed import GraphedSteps, why_not_recorded
from thumbnet.training.recording import Recorder
from thumbnet.training.state import TrainingState

CPU = torch.device("cpu")
SMALL = [
    "training.epochs=3",
    "training.batch_size=16",
    "training.min_steps=0",
    "training.precision=fp32",
    "model.width=0.125",
]
RESNET = ["model.name=resnet20", "model.width=0.25", "data.image_size=16", *SMALL[:-1]]
RECIPES = {
    "fast": ("fast", SMALL),
    "average and weights": (
        "fast",
        [*SMALL, "training.ema_decay=0.9", "training.class_weights=balanced", "augment.cutout=6"],
    ),
    "sgd": ("one-cycle", [*RESNET, "augment.flip=random", "training.drop_last=false"]),
    "adamw": ("one-cycle", [*RESNET, "optimizer.name=adamw", "optimizer.lr=0.003", "data.skip_easy=0"]),
}
every_recipe = pytest.mark.parametrize("name", RECIPES)


class Event:
    """A CUDA event; waiting for it is not a wait for all of the GPU's work."""

    def __init__(self) -> None:
        self.recorded = False

    def record(self) -> None:
        self.recorded = True

    def synchronize(self) -> None:
        assert self.recorded


GROUPED = torch.optim.Optimizer._group_tensors_by_device_and_dtype


def grouped(tensors: Any, with_indices: bool = False) -> Any:
    """PyTorch's grouping of an optimizer's tensors, which looks below Python, where all are on the CPU."""
    found = GROUPED(tensors, with_indices)
    return {(CUDA, kind): members for (_, kind), members in found.items()}


@contextlib.contextmanager
def gpu_with_graphs(patch: pytest.MonkeyPatch) -> Iterator[Log]:
    """A simulated GPU on which a recorded step is called directly."""
    patch.setattr(graphed, "FEWEST_STEPS", 0)
    patch.setattr(Recorder, "record", lambda self, work: work)
    with simulated_gpu() as log:
        patch.setattr(torch.cuda, "Event", Event)
        patch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
        patch.setattr(torch.optim.Optimizer, "_group_tensors_by_device_and_dtype", staticmethod(grouped))
        yield log


def build(name: str, device: torch.device) -> tuple[TrainingState, SimpleNamespace]:
    recipe = load_recipe(RECIPES[name][0], RECIPES[name][1])
    data = coloured_data(70, side=32)
    prepared = prepare(data, recipe, device)
    return build_state(recipe, prepared, data.class_names, device), SimpleNamespace(train=prepared.train)


def watched_steps(log: Log, monkeypatch: pytest.MonkeyPatch) -> list[list[Copy | Wait]]:
    """From now on, the copies and the waits within each step."""
    step, seen = GraphedSteps._step, list[list[Copy | Wait]]()

    def watched(self: GraphedSteps, size: tuple[int, int], count: int) -> None:
        copies, waits = len(log.copies), len(log.waits)
        step(self, size, count)
        seen.append([*log.copies[copies:], *log.waits[waits:]])

    monkeypatch.setattr(GraphedSteps, "_step", watched)
    return seen


@every_recipe
def test_a_step_copies_nothing_and_waits_for_nothing_and_an_epoch_sends_one_copy_and_waits_at_its_end(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_module, "LOOK_EVERY", 2)
    sent: list[list[Copy]] = []
    waits: list[int] = []
    with gpu_with_graphs(monkeypatch) as log:
        state, prepared = build(name, CUDA)

        def at_step(step: StepResult) -> None:
            if step.step_in_epoch == 1:
                sent.append(list(log.copies))
            if step.step_in_epoch == step.steps_per_epoch - 1:
                waits.append(len(log.waits))

        steps = watched_steps(log, monkeypatch)
        results = fit(state, prepared.train, on_step=at_step)
        next(results)  # also prepares
        log.clear()
        for _ in results:
            log.clear()
    assert len(steps) == state.step > 5
    assert not any(steps)
    assert [len(copies) for copies in sent[1:]] == [1, 1]
    assert not any(copy.blocking for copies in sent[1:] for copy in copies)
    assert waits[1:] == [0, 0]


@pytest.mark.parametrize("name", ["fast", "sgd"])
def test_it_learns_there_what_it_learns_on_the_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    state, prepared = build(name, CPU)
    with monkeypatch.context() as patch:
        patch.setattr(graphed, "DEVICES", ("cpu",))
        patch.setattr(graphed, "FEWEST_STEPS", 0)
        expected = [result.loss for result in fit(state, prepared.train)]
    with gpu_with_graphs(monkeypatch):
        state, prepared = build(name, CUDA)
        found = [result.loss for result in fit(state, prepared.train)]
    assert found == pytest.approx(expected, rel=0.05)
    assert found[0] == pytest.approx(expected[0], rel=1e-4)


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_the_device_may_be_named_without_its_number(device: str) -> None:
    """``torch.device("cuda")`` differs from ``cuda:0``, where its tensors are."""
    with simulated_gpu():
        state, prepared = build("fast", torch.device(device))
        assert why_not_recorded(state, prepared.train) is None
        assert state.device == state.losses.device == prepared.train.engine.home == CUDA


def test_a_gpu_that_cannot_record_trains_with_the_ordinary_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulated GPU has no streams, so recording fails at once, as it may on a real one."""
    monkeypatch.setattr(graphed, "FEWEST_STEPS", 0)
    notes: list[str] = []
    with simulated_gpu():
        state, prepared = build("fast", CUDA)
        results = list(fit(state, prepared.train, on_note=notes.append))
    assert len(results) == 3
    (note,) = notes
    assert "could not be recorded as a CUDA graph" in note


@pytest.mark.parametrize(
    ("data", "settings"),
    [
        (coloured_data(70, 32), [*TURNED, "augment.mixup=0.4", "augment.cutmix=1.0", "data.skip_easy=0"]),
        (coloured_labels(70, ("train", "test"), 32), []),
    ],
    ids=["every change of the pictures", "several labels"],
)
def test_neither_changed_pictures_nor_several_labels_make_a_step_copy_or_wait(
    data: Data, settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with gpu_with_graphs(monkeypatch) as log:
        recipe = load_recipe("fast", [*SMALL, *settings])
        prepared = prepare(data, recipe, CUDA)
        state = build_state(recipe, prepared, data.class_names, CUDA)
        steps = watched_steps(log, monkeypatch)
        list(fit(state, prepared.train))
    assert len(steps) == state.step > 5
    assert not any(steps)
