"""A learning-rate range test (Smith 2015, https://arxiv.org/abs/1506.01186).

The rate rises exponentially from step to step while the loss is watched: it falls, flattens, and
blows up. A good full rate lies where it falls fastest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch.nn.functional as F

from thumbnet.batches.batches import Batch, Batches
from thumbnet.batches.decoding import Count
from thumbnet.errors import ThumbnetError
from thumbnet.hardware import autocast
from thumbnet.training.fit import TrainingState
from thumbnet.training.optimizers import set_learning_rate

SMOOTHING = 0.95
BLOW_UP = 3.0  # times the least smoothed loss: then it is over


@dataclass(frozen=True)
class RangeTest:
    """What the test saw.

    Attributes:
        rates: of each step, for the recipe's main ``lr``; groups keep their proportion to it.
        losses: smoothed, bias-corrected (as Adam's moments).
        suggestion: the rate at which the loss falls fastest.
        least: the rate at which the loss is least: already too high to train with.
    """

    rates: list[float]
    losses: list[float]
    suggestion: float
    least: float


def learning_rate_range_test(
    state: TrainingState,
    batches: Batches,
    *,
    lowest: float = 1e-4,
    highest: float = 100.0,
    steps: int = 100,
    progress: Count | None = None,
) -> RangeTest:
    """Train ``state`` (whose weights are spoilt by it) for ``steps`` steps at rising rates.

    Raises:
        ThumbnetError: the loss never fell, so that there is nothing to suggest.
    """
    base = state.recipe.optimizer.lr
    rates: list[float] = []
    losses: list[float] = []
    average, least = 0.0, math.inf
    state.model.train()
    for step, batch in zip(range(steps), _endless(batches), strict=False):
        rate = lowest * (highest / lowest) ** (step / max(1, steps - 1))
        set_learning_rate(state.optimizer, rate / base)
        state.optimizer.zero_grad()
        with autocast(state.bf16, state.device):
            logits = state.forward(batch.images.contiguous(memory_format=state.layout))
        loss = F.cross_entropy(
            logits.float(), batch.labels, label_smoothing=state.recipe.training.label_smoothing
        )
        loss.backward()
        state.optimizer.step()
        if progress:
            progress(step + 1, steps)
        value = float(loss.detach())
        if not math.isfinite(value):
            break
        average = SMOOTHING * average + (1 - SMOOTHING) * value
        smoothed = average / (1 - SMOOTHING ** (step + 1))
        rates.append(rate)
        losses.append(smoothed)
        least = min(least, smoothed)
        if step > 10 and smoothed > BLOW_UP * least:
            break
    return _judge(rates, losses)


def _judge(rates: list[float], losses: list[float]) -> RangeTest:
    if len(losses) < 10:
        raise ThumbnetError(
            f"the loss left all bounds after {len(losses)} steps: begin with a lower rate (--from 1e-6)"
        )
    bottom = min(range(len(losses)), key=losses.__getitem__)
    # Slopes over a window, since single steps are noise; not in the first tenth, where the running
    # mean is still of few batches.
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
