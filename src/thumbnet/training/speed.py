"""Measure for a few seconds how fast this computer trains a network, before the training begins."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import torch

from thumbnet.batches.batches import Batch
from thumbnet.batches.prepare import Prepared
from thumbnet.errors import memory_guard
from thumbnet.hardware import autocast, can_compile, seeded
from thumbnet.models import build_model
from thumbnet.recipes.recipe import Recipe
from thumbnet.recipes.settings import kept_per_epoch
from thumbnet.training.graphed import why_not_recorded
from thumbnet.training.optimizers import device_rates, drop_device_state, make_device_state
from thumbnet.training.recording import Recorder
from thumbnet.training.schedules import smaller_sizes
from thumbnet.training.state import TrainingState
from thumbnet.training.step import accumulate_gradients, update_weights

Size: TypeAlias = tuple[int, int]

FEWEST = 32  # pictures in the batches that are timed at first
ROUNDS = 2  # how often a part of a step is timed
REPLAYS = 10  # of a CUDA graph between two looks at the clock, because one takes about a millisecond
# A batch that is timed may take so many seconds, judging by FEWEST pictures, unless more is asked for. Small
# batches are slow: with 80 pictures of 20x20, a picture takes two cores twice as long as with 1,000, of 32x32
# only 1.4 times as long.
LONGEST_BATCH = 0.5
GROWTH = 1.7  # a training takes as many times as long as this power of the width


@dataclass(frozen=True)
class Speed:
    """How fast this computer trains and evaluates a network.

    Attributes:
        per_picture: seconds to train on one picture, by its size (height, width).
        per_step: seconds that a step takes in addition, mostly for the optimizer.
        evaluating: seconds to classify one picture in one view.
    """

    per_picture: Mapping[Size, float]
    per_step: float
    evaluating: float

    def step(self, size: Size, batch_size: int) -> float:
        """Seconds of a step of ``batch_size`` pictures of ``size``."""
        return self.per_picture[size] * batch_size + self.per_step


def batch_of(recipe: Recipe, pictures: int) -> int:
    """How many of the training ``pictures`` a batch has: not more than an epoch."""
    return min(recipe.training.batch_size, kept_per_epoch(pictures, recipe.data.skip_easy))


def own_batch(recipe: Recipe, prepared: Prepared) -> int:
    """How many pictures of a batch one process has, at most."""
    return -(-batch_of(recipe, prepared.train.count) // prepared.train.world.size)


def slowdown(width: float, before: float) -> float:
    """How many times as long a training takes with a network of ``width`` instead of ``before``."""
    return float((width / before) ** GROWTH)


def measure_speed(
    recipe: Recipe,
    prepared: Prepared,
    classes: int,
    device: torch.device,
    longest: float = LONGEST_BATCH,
) -> Speed:
    """Time a new network of ``recipe`` on random pictures. Takes a few seconds.

    If the training will replay its steps as CUDA graphs, so does this: launching their operations one by one
    would take longer.

    Args:
        recipe: all settings.
        prepared: the batches. None of their pictures are used, only how many and how large they are.
        classes: number of classes.
        device: where to compute.
        longest: seconds that a batch may take, judging by ``FEWEST`` pictures, which makes it seem slow.

    Raises:
        OutOfMemoryError: a step does not fit into the device's memory.
    """
    size = prepared.preprocessing.size
    sizes = [*smaller_sizes(recipe.schedule, size), size]
    # Weights of the classes would take no time that counts.
    plain = replace(recipe, training=replace(recipe.training, compile=False, class_weights="none"))
    advice = "Use a narrower network: --set model.width=0.5"
    with seeded(0, device), memory_guard(str(device), "measuring the speed", advice):
        state = TrainingState(build_model(plain.model, classes, sizes=sizes), plain, 1, device)
        alone = prepared.train.world.size == 1
        compiled = recipe.training.compile and can_compile(device)
        replayed = alone and not compiled and why_not_recorded(state, prepared.train) is None
        several = prepared.train.engine.labels.ndim == 2
        timer = _Timer(state, classes, longest, replayed, several)
        own = own_batch(recipe, prepared)
        at_once = min(recipe.training.micro_batch or own, own, prepared.train.count)
        per_picture = timer.per_picture(timer.train_on, sizes, at_once)
        per_step = timer.fastest(timer.optimize, [timer.batch(size, FEWEST)])[0]
        timer.replayed = False  # evaluations are not
        state.model.eval()
        at_once = min(recipe.evaluation.batch_size, prepared.train.count)
        evaluating = timer.per_picture(timer.classify, [size], at_once)[size]
        return Speed(per_picture, per_step, evaluating)


class _Timer:
    """Times the parts of a step on random pictures, with several random labels each if ``several``.

    Attributes:
        replayed: whether what is timed is recorded as CUDA graphs and replayed, as in the training.
    """

    def __init__(
        self,
        state: TrainingState,
        classes: int,
        longest: float,
        replayed: bool = False,
        several: bool = False,
    ) -> None:
        self._state, self._classes, self._longest = state, classes, longest
        self._several = several
        self.replayed = replayed
        self._rates = torch.zeros(len(state.optimizer.param_groups), device=state.device)
        if replayed:
            make_device_state(state.optimizer)

    def batch(self, size: Size, count: int) -> Batch:
        """A batch of ``count`` random pictures."""
        device, layout = self._state.device, self._state.layout
        images = torch.randn(count, 3, *size, device=device).contiguous(memory_format=layout)
        if self._several:
            labels = torch.randint(2, (count, self._classes), dtype=torch.int8, device=device)
        else:
            labels = torch.randint(self._classes, (count,), device=device)
        return Batch(images, labels)

    def train_on(self, batch: Batch) -> None:
        self._state.optimizer.zero_grad()
        accumulate_gradients(self._state, batch)

    def classify(self, batch: Batch) -> None:
        with torch.inference_mode(), autocast(self._state.dtype, self._state.device):
            self._state.model(batch.images)

    def optimize(self, _: Batch) -> None:
        optimizer = self._state.optimizer
        with device_rates(optimizer, self._rates) if self.replayed else nullcontext():
            update_weights(self._state)

    def per_picture(
        self, work: Callable[[Batch], None], sizes: Sequence[Size], most: int
    ) -> dict[Size, float]:
        """Seconds of ``work`` for a picture, by its size, in batches of ``most`` or, if slow, fewer."""
        few = min(FEWEST, most)
        batches = {size: self.batch(size, few) for size in sizes}
        for size, batch in batches.items():
            act = partial(work, batch)
            self.seconds(act)  # a warm-up
            count = min(most, int(few * self._longest / self.seconds(act)))
            if count > few:
                batches[size] = self.batch(size, count)
        seconds = self.fastest(work, list(batches.values()))
        return {size: one / len(batches[size].labels) for size, one in zip(batches, seconds, strict=True)}

    def fastest(self, work: Callable[[Batch], None], batches: Sequence[Batch]) -> list[float]:
        """Seconds of ``work`` on each of ``batches``.

        They take turns, and the fastest time counts: at the start of a process, other work ends and memory is
        prepared, which would look as if the batch that comes first were slow.
        """
        acts: list[Callable[[], None]] = [partial(work, batch) for batch in batches]
        times = 1
        if self.replayed:
            recorder = Recorder(self._state.device, [])  # the network is thrown away, whatever changes
            try:
                acts, times = [recorder.record(act) for act in acts], REPLAYS
            except RuntimeError:  # then the training cannot record its steps either
                self.replayed = False
                drop_device_state(self._state.optimizer)
        rounds = [[self.seconds(act, times) for act in acts] for _ in range(ROUNDS)]
        return [min(seconds) for seconds in zip(*rounds, strict=True)]

    def seconds(self, act: Callable[[], None], times: int = 1) -> float:
        """The mean time of ``act``, done so many times in a row, until the device has finished."""
        started = time.perf_counter()
        for _ in range(times):
            act()
        self._state.hits.item()  # waits for the device
        return (time.perf_counter() - started) / times
