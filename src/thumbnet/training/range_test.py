"""A learning-rate range test (Smith 2015, https://arxiv.org/abs/1506.01186).

The learning rate rises exponentially from step to step. The loss falls, flattens, then blows up. A good full
rate is the one at which the loss falls fastest. The test takes the same steps as a training
(:func:`~thumbnet.training.step.train_step`), so it measures the same loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from thumbnet.batches.batches import Batch, Batches
from thumbnet.batches.cores import within_quota
from thumbnet.errors import DivergedError, ThumbnetError, memory_guard
from thumbnet.hardware import deterministic
from thumbnet.training.state import TrainingState
from thumbnet.training.step import train_step

SMOOTHING = 0.95
FEWEST = 10  # losses; fewer suggest nothing
LIMITS = (1e-30, 1e30)  # of the rates; float32 can express their products with gradients
# The test ends when the smoothed loss exceeds its minimum by this factor. A loss of one's own may be negative
# and has no such end.
BLOW_UP = 3.0


@dataclass(frozen=True)
class RangeTest:
    """The result of a range test.

    Attributes:
        rates: learning rate of each step, for the recipe's main ``lr``; groups keep their ratio to it.
        losses: loss of each step, smoothed and bias-corrected like Adam's moments.
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
    rates: list[float] = []
    losses: list[float] = []
    average, least = 0.0, math.inf
    state.model.train()
    size = state.recipe.training.batch_size
    advice = f"Use a smaller batch: --batch-size {max(2, size // 2)}"
    guard = memory_guard(str(state.device), f"in a step of {size} pictures", advice)
    with deterministic(), within_quota(), guard:
        for step, batch in zip(range(steps), _endless(batches), strict=False):
            rate = lowest * (highest / lowest) ** (step / max(1, steps - 1))
            value = _step(state, batch, rate / base)
            if progress:
                progress(step + 1, steps)
            if not math.isfinite(value):
                break
            average = SMOOTHING * average + (1 - SMOOTHING) * value
            smoothed = average / (1 - SMOOTHING ** (step + 1))
            rates.append(rate)
            losses.append(smoothed)
            least = min(least, smoothed)
            if step > 10 and smoothed > BLOW_UP * least >= 0:
                break
    return _judge(rates, losses)


def _step(state: TrainingState, batch: Batch, factor: float) -> float:
    """The loss of one training step; nan if the step was skipped."""
    try:
        loss = float(train_step(state, batch, factor))
    except DivergedError:
        return math.nan
    state.step += 1
    return math.nan if state.skipped else loss


def _judge(rates: list[float], losses: list[float]) -> RangeTest:
    if len(losses) < FEWEST:
        raise ThumbnetError(
            f"the loss blew up after {len(losses)} steps, and {FEWEST} are needed: start at a lower rate "
            "(--from 1e-6), end at a lower one (--to 1), or rise more slowly (--steps 200)"
        )
    bottom = min(range(len(losses)), key=losses.__getitem__)
    # Slopes over a window, because single steps are noisy. The first tenth does not count, because the
    # running mean covers too few batches there.
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
