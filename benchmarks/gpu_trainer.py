"""A training that can be repeated warm: compiling and recording CUDA graphs do not count."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any
from unittest import mock

import numpy as np
import torch
from gpu import Options
from measure import wait
from torch.utils.flop_counter import FlopCounterMode

from thumbnet.batches.batches import Batches
from thumbnet.batches.prepare import prepare
from thumbnet.classifiers.logits import collect_logits
from thumbnet.data.splits import Data
from thumbnet.hardware import choose_device, deterministic
from thumbnet.recipes.recipe import Recipe
from thumbnet.sources.load import load_data
from thumbnet.training import fit as fit_module
from thumbnet.training.build import build_state
from thumbnet.training.choose import choose_recipe
from thumbnet.training.fit import StepResult, fit
from thumbnet.training.graphed import why_not_graphed
from thumbnet.training.listener import Listener
from thumbnet.training.recording import Recorder
from thumbnet.training.schedules import done_at, size_at
from thumbnet.training.state import TrainingState
from thumbnet.training.steps import EagerSteps, Steps

SMOKE = ("training.batch_size=50", "training.epochs=2", "training.min_steps=0", "model.width=0.125")
SMOKE_PICTURES = 400


@dataclass(frozen=True)
class Taken:
    """How ``fit`` takes the steps of a training.

    Attributes:
        steps: the name of the class that takes them: ``GraphedSteps`` or ``EagerSteps``.
        why_eager: why not as CUDA graphs: a rule of thumbnet's, or CUDA's refusal; empty for graphs.
        refused: whether it was CUDA's refusal.
        compiled: whether ``torch.compile`` is in use.
        seconds: how long recording CUDA graphs took, or the attempt; 0 without one.
    """

    steps: str
    why_eager: str
    refused: bool
    compiled: bool
    seconds: float

    def __str__(self) -> str:
        """The steps, and why."""
        return f"{self.steps}: {self.why_eager}" if self.why_eager else self.steps


@dataclass(frozen=True)
class Trained:
    """One training: accuracy (0 to 1), seconds in all and of each phase, and how the steps were taken.

    ``seconds_recording`` is how long recording the CUDA graphs of this training took, or the attempt. Rivals
    record theirs once, before their clock starts, so it is in neither ``seconds`` nor ``seconds_training``.
    For ``steps`` and ``why_eager`` see :class:`Taken`.
    """

    accuracy: float
    seconds: float
    seconds_starting: float
    seconds_training: float
    seconds_evaluating: float
    seconds_recording: float
    steps: str
    why_eager: str


class Trainer:
    """Trains the same network again and again, each time from new weights and in the same memory.

    So what the first training compiles serves all later ones. As in ``thumbnet train``, cuDNN is limited to
    deterministic algorithms. There is no evaluation during the training.
    """

    def __init__(self, recipe: Recipe, data: Data, device: torch.device) -> None:
        self.recipe, self.data, self.device = recipe, data, device
        self.prepared = prepare(data, recipe, device)
        self.state = build_state(recipe, self.prepared, data.class_names, device)

    def restart(self, seed: int) -> None:
        """Put the state at the beginning of a training with ``seed``."""
        recipe = replace(self.recipe, seed=seed)
        self.prepared = self.prepared.with_recipe(recipe)
        fresh = build_state(recipe, self.prepared, self.data.class_names, self.device)
        self.state.recipe, self.state.selection = recipe, self.prepared.train.selection
        self.state.load_state_dict(fresh.state_dict())

    def train(self, on_step: Callable[[StepResult], None] | None = None) -> Taken:
        """Train from where the state is to the end; return how the steps were taken."""
        with deterministic(), watched_steps(self.device) as taken:
            for _ in fit(self.state, self.prepared.train, on_step=on_step):
                pass
            wait(self.device)
        return taken[0]

    def evaluate(self) -> float:
        """The test accuracy, 0 to 1, with the recipe's test-time augmentation."""
        tta, batches = self.recipe.evaluation.tta, self.prepared.evaluation["test"]
        with deterministic():
            logits, labels = collect_logits(
                self.state.evaluated_model, batches, dtype=self.state.dtype, tta=tta
            )
        return float((logits.argmax(1) == labels).double().mean())

    def run(self, seed: int) -> Trained:
        """Train and evaluate. The clock runs from making new weights until the accuracy is on the host."""
        wait(self.device)
        times = [time.perf_counter()]
        self.restart(seed)
        wait(self.device)
        times.append(time.perf_counter())
        taken = self.train()
        times.append(time.perf_counter())
        accuracy = self.evaluate()
        times.append(time.perf_counter())
        starting, training, evaluating = (after - before for before, after in pairwise(times))
        recording = taken.seconds
        seconds = times[-1] - times[0] - recording
        return Trained(
            accuracy, seconds, starting, training - recording, evaluating, recording,
            taken.steps, taken.why_eager,
        )  # fmt: skip

    @property
    def pictures(self) -> int:
        """Pictures in all steps of a training."""
        return self.state.total_steps * self.recipe.training.batch_size

    def flops(self) -> float:
        """FLOPs of a training's convolutions and matrix products, forwards and backwards.

        Counted by torch. Smaller pictures count with what they cost. The optimizer's products do not count.
        """
        size, total = self.prepared.preprocessing.size, self.state.total_steps
        schedule = self.recipe.schedule
        sizes = [size_at(schedule, done_at(schedule, step, total), size) for step in range(total)]
        per_picture = {one: self._flops_per_picture(one) for one in dict.fromkeys(sizes)}
        return self.recipe.training.batch_size * sum(per_picture[one] for one in sizes)

    def _flops_per_picture(self, size: tuple[int, int]) -> float:
        some = torch.randn(8, 3, *size, device=self.device)
        with FlopCounterMode(display=False) as counter:
            self.state.model(some).sum().backward()
        self.state.optimizer.zero_grad()
        return float(counter.get_total_flops()) / len(some)


@contextmanager
def watched_steps(device: torch.device) -> Iterator[list[Taken]]:
    """In this block, note how each ``fit`` takes its steps. If CUDA refuses graphs, it goes on without.

    Only the recording itself is timed. Drawing the random choices of the first epoch, for example, is part of
    the training: rivals draw theirs after their clock has started.
    """
    found: list[Taken] = []
    choose: Callable[..., Steps] = vars(fit_module)["choose_steps"]

    def chosen(state: TrainingState, batches: Batches, on_note: Callable[[str], None]) -> Steps:
        notes: list[str] = []
        seconds = 0.0
        record = Recorder.record

        def told(text: str) -> None:
            notes.append(text)
            on_note(text)

        def timed(recorder: Recorder, work: Callable[[], None]) -> Callable[[], None]:
            nonlocal seconds
            wait(device)
            started = time.perf_counter()
            try:
                recorded = record(recorder, work)
                wait(device)  # not after a refusal, whose error it would hide
            finally:
                seconds += time.perf_counter() - started
            return recorded

        reason = why_not_graphed(state, batches)
        with mock.patch.object(Recorder, "record", timed):
            steps = choose(state, batches, told)
        eager = isinstance(steps, EagerSteps)
        why_eager = (reason or "; ".join(notes)) if eager else ""
        refused = eager and reason is None
        found.append(Taken(type(steps).__name__, why_eager, refused, state.compiled, seconds))
        return steps

    with mock.patch.object(fit_module, "choose_steps", chosen):
        yield found


def loaded(options: Options) -> Data:
    """The data that ``options`` name; only a few pictures of them in a smoke test."""
    data = load_data(options.data)
    if not options.smoke:
        return data
    few = {
        name: split.subset(np.random.default_rng(0).permutation(len(split))[:SMOKE_PICTURES])
        for name, split in data.splits.items()
    }
    return replace(data, splits=few)


def trainer(options: Options, data: Data, name: str, settings: tuple[str, ...] = ()) -> Trainer:
    """A trainer of the recipe ``name`` with more ``settings``."""
    overrides = [*options.overrides] if name == "fast" else []
    small = SMOKE if options.smoke else ()
    recipe, chosen = choose_recipe(data, name, [*overrides, *settings, *small], None, Listener())
    return Trainer(recipe, chosen, choose_device(options.device))


def options_from(values: dict[str, Any]) -> Options:
    """The options from JSON, in which tuples have become lists."""
    lists = {key: tuple(values[key]) for key in ("variants", "overrides")}
    return Options(**{**values, **lists})
