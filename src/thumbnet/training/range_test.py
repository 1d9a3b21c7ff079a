"""A learning-rate range test (Smith 2015, https://arxiv.org/abs/1506.01186).

The learning rate rises exponentially from step to step. The loss falls, flattens, then blows up. A good full
rate is the one at which the loss falls fastest. The test takes the same steps as a training
(:func:`~thumbnet.training.step.train_step`), so it measures the same loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from thumbnet.batches.batches import Batch, Batches
from thumbnet.batches.cores import within_quota
from thumbnet.errors import DivergedError, ThumbnetError, memory_guard
from thumbnet.hardware import deterministic
from thumbnet.training.fit import LOOK_EVERY
from thumbnet.training.state import TrainingState
from thumbnet.training.step import train_step

SMOOTHING = 0.9  # the weight of a loss one step away in the mean that is judged; two steps away, its square
RUNNING = 0.95  # of the running mean, which decides when the test ends
FEWEST = 10  # losses; fewer suggest nothing
LIMITS = (1e-30, 1e30)  # of the rates; float32 can express their products with gradients
# The test ends when the running mean exceeds its minimum by this factor. A loss of one's own may be negative
# and has no such end.
BLOW_UP = 3.0


@dataclass(frozen=True)
class RangeTest:
    """The result of a range test.

    Attributes:
        rates: learning rate of each step, for the recipe's main ``lr``; groups keep their ratio to it.
        losses: loss of each step, smoothed over the steps before and after it.
        suggestion: the rate at which the loss falls fastest.
        least: the rate at which the loss is lowest, which is already too high for a training.
    """

    rates: list[float]
    losses: list[float]
    suggestion: float
    least: float


def check_asked(lowest: float, highest: float, steps: int) -> None:
    """Check what a user asks of a range test.

    Raises:
        ThumbnetError: the rates do not rise or are out of range, or the steps are too few.
    """
    if not LIMITS[0] <= lowest < highest <= LIMITS[1]:
        raise ThumbnetError(
            f"--from {lowest:g} and --to {highest:g}: expected {LIMITS[0]:g} <= FROM < TO <= {LIMITS[1]:g}"
        )
    if steps < FEWEST:
        raise ThumbnetError(
            f"--steps {steps}: expected {FEWEST} or more, because fewer losses suggest no rate"
        )


def learning_rate_range_test(
    state: TrainingState,
    batches: Batches,
    *,
    lowest: float = 1e-4,
    highest: float = 100.0,
    steps: int = 100,
    progress: Callable[[int, int | None], None] | None = None,
) -> RangeTest:
    """Train ``state`` for ``steps`` steps at rising rates. This ruins its weights.

    A loss or, with ``training.on_nonfinite = "skip"``, a gradient that is not finite ends the test.

    Args:
        state: a new state, before its first step.
        batches: batches of the training split.
        lowest, highest: learning rates of the first and the last step.
        steps: number of steps, unless the loss blows up earlier.
        progress: called with the number of steps done and ``steps``.

    Raises:
        ThumbnetError: the loss blew up within ten steps or never fell, so there is no rate to suggest.
        OutOfMemoryError: a step does not fit into the device's memory.
    """
    base = state.recipe.optimizer.lr
    curve = _Curve()
    unread: list[tuple[float, Tensor]] = []  # rates and losses that are still on the device
    # Reading a loss makes the host wait for a GPU. The steps that are taken after the end do not count.
    look_every = 1 if state.device.type == "cpu" else LOOK_EVERY
    state.model.train()
    size = state.recipe.training.batch_size
    advice = f"Use a smaller batch: --batch-size {max(2, size // 2)}"
    guard = memory_guard(str(state.device), f"in a step of {size} pictures", advice)
    with deterministic(), within_quota(), guard:
        for step, batch in zip(range(steps), _endless(batches), strict=False):
            rate = lowest * (highest / lowest) ** (step / max(1, steps - 1))
            loss = _step(state, batch, rate / base)
            if progress:
                progress(step + 1, steps)
            if loss is None:
                break
            unread.append((rate, loss))
            if len(unread) == look_every and not curve.read(unread):
                break
        curve.read(unread)
    return _judge(curve.rates, curve.smoothed())


@dataclass
class _Curve:
    """The losses by rate, up to where the loss blows up."""

    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    _average: float = 0.0
    _least: float = math.inf  # of the running mean

    def read(self, steps: list[tuple[float, Tensor]]) -> bool:
        """Add the rates and losses of ``steps``, which becomes empty; return whether the test goes on."""
        values = torch.stack([loss for _, loss in steps]).tolist() if steps else []
        rates = [rate for rate, _ in steps]
        steps.clear()
        return all(self._add(rate, value) for rate, value in zip(rates, values, strict=True))

    def _add(self, rate: float, value: float) -> bool:
        if not math.isfinite(value):
            return False
        self.rates.append(rate)
        self.losses.append(value)
        self._average = RUNNING * self._average + (1 - RUNNING) * value
        running = self._average / (1 - RUNNING ** len(self.losses))  # the first value was 0
        self._least = min(self._least, running)
        return not (len(self.losses) > 11 and running > BLOW_UP * self._least >= 0)

    def smoothed(self) -> list[float]:
        """The mean of the losses around each step: a running mean would place the fall too late.

        After the lowest loss, none counts more than the highest before it: a single huge one would hide all
        others.
        """
        lowest = self.losses.index(min(self.losses)) if self.losses else 0
        most = max(self.losses[: lowest + 1], default=0.0)
        sums = _decaying_sums([min(loss, most) for loss in self.losses])
        weights = _decaying_sums([1.0] * len(self.losses))
        return [loss / weight for loss, weight in zip(sums, weights, strict=True)]


def _decaying_sums(values: list[float]) -> list[float]:
    """For each value the sum of all, each weighted by ``SMOOTHING`` to the power of its distance."""

    def until(values: Iterable[float]) -> list[float]:
        return list(accumulate(values, lambda total, value: SMOOTHING * total + value))

    both = zip(until(values), reversed(until(reversed(values))), values, strict=True)
    return [before + after - value for before, after, value in both]


def _step(state: TrainingState, batch: Batch, factor: float) -> Tensor | None:
    """The loss of one training step, float32 [] on the device; None if the step was skipped."""
    try:
        loss = train_step(state, batch, factor)
    except DivergedError:
        return None
    state.step += 1
    return None if state.skipped else loss


def _judge(rates: list[float], losses: list[float]) -> RangeTest:
    if len(losses) < FEWEST:
        raise ThumbnetError(
            f"the loss blew up after {len(losses)} steps, and {FEWEST} are needed: start at a lower rate "
            "(--from 1e-6), end at a lower one (--to 1), or rise more slowly (--steps 200)"
        )
    bottom = min(range(len(losses)), key=losses.__getitem__)
    # Slopes over a window, because single steps are noisy. The first tenth does not count, because the
    # mean covers too few batches there.
    reach = max(2, len(losses) // 20)
    slopes = {
        i: (losses[i + reach] - losses[i - reach]) / math.log(rates[i + reach] / rates[i - reach])
        for i in range(max(reach, len(losses) // 10), min(bottom + 1, len(losses) - reach))
    }
    steepest = min(slopes, key=slopes.__getitem__, default=0)
    if not slopes or slopes[steepest] >= 0:
        raise ThumbnetError("the loss never fell: widen the range (--from, --to) or look at the data")
    return RangeTest(rates, losses, rates[steepest], rates[bottom])


def _endless(batches: Batches) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from batches.epoch(epoch)
        epoch += 1
