from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers import TINY, coloured_data
from thumbnet.batches.batches import Batch
from thumbnet.batches.prepare import prepare
from thumbnet.errors import OutOfMemoryError, ThumbnetError
from thumbnet.recipes.recipe import load_recipe
from thumbnet.training import range_test as range_module
from thumbnet.training.build import build_state
from thumbnet.training.fit import fit
from thumbnet.training.range_test import RangeTest, learning_rate_range_test
from thumbnet.training.state import TrainingState

CPU = torch.device("cpu")


def range_test(lowest: float, highest: float, steps: int = 60) -> RangeTest:
    recipe = load_recipe("one-cycle", TINY)
    prepared = prepare(coloured_data(), recipe, CPU)
    state = build_state(recipe, prepared, "rgb", CPU)
    return learning_rate_range_test(state, prepared.train, lowest=lowest, highest=highest, steps=steps)


def test_the_suggestion_lies_where_the_loss_falls_below_where_it_is_least() -> None:
    test = range_test(1e-4, 10)
    assert test.rates[0] == pytest.approx(1e-4)
    assert test.rates == sorted(test.rates)
    assert 1e-3 < test.suggestion < test.least <= test.rates[-1]
    assert min(test.losses) < 0.8 * test.losses[0]


def test_a_rising_rate_ends_the_test_when_the_loss_blows_up() -> None:
    test = range_test(1e-3, 1e6, steps=100)
    assert len(test.rates) < 100


def test_a_range_in_which_nothing_falls_is_explained() -> None:
    explained = r"the loss (blew up after \d+ steps, and 10 are needed|never fell: widen the range)"
    with pytest.raises(ThumbnetError, match=explained):
        range_test(1e5, 1e7)


@functools.cache
def first_losses(*overrides: str) -> tuple[list[float], list[float]]:
    """The first losses of a training at a constant rate, and of a range test that stays at that rate."""
    recipe = load_recipe("one-cycle", [*TINY, "schedule.name=constant", "schedule.warmup=0.0", *overrides])
    recipe = replace(recipe, training=replace(recipe.training, epochs=6))
    data = coloured_data(30)
    uneven = data.splits["train"].subset(torch.arange(24).numpy())  # so that balanced weights differ from one
    data = replace(data, splits={"train": uneven})
    trained: list[float] = []
    prepared = prepare(data, recipe, CPU)
    state = build_state(recipe, prepared, data.class_names, CPU)
    for _ in fit(
        state,
        prepared.train,
        on_step=lambda step: trained.append(float(state.losses[step.step_in_epoch - 1])),
    ):
        pass
    raw: list[float] = []
    step = range_module._step

    def remember(state: TrainingState, batch: Batch, factor: float) -> Tensor | None:
        loss = step(state, batch, factor)
        assert loss is not None
        raw.append(float(loss))
        return loss

    prepared = prepare(data, recipe, CPU)
    state = build_state(recipe, prepared, data.class_names, CPU)
    rate = recipe.optimizer.lr
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(range_module, "_step", remember)
        with pytest.raises(ThumbnetError, match="blew up after 6 steps"):  # so few steps suggest nothing
            learning_rate_range_test(state, prepared.train, lowest=rate, highest=rate, steps=6)
    return trained[:6], raw


@pytest.mark.parametrize(
    "overrides",
    [
        ["training.class_weights=balanced"],
        ["training.micro_batch=2"],
        ["schedule.small_until=1.0", "schedule.small_sides=[0.5]", "data.image_size=32"],
        ["training.label_smoothing=0.3"],
        ["data.skip_easy=0.4"],
    ],
)
def test_the_range_test_has_the_very_losses_of_a_training(overrides: list[str]) -> None:
    trained, tested = first_losses(*overrides)
    assert len(tested) == 6
    assert tested == trained
    plain, _ = first_losses()
    assert plain != trained  # the setting matters here


@pytest.mark.parametrize("width", [0.2, 0.5])  # of the fall, in decades
@pytest.mark.parametrize("steepest", [-2.5, -1.5, -0.5])  # power of ten
@pytest.mark.parametrize("ends", [3.0, 1e8])  # the last loss
def test_the_suggestion_is_where_a_known_curve_is_steepest(
    width: float, steepest: float, ends: float
) -> None:
    curve = range_module._Curve()
    rates = [10 ** (-4 + 6 * step / 99) for step in range(100)]
    for rate in rates:
        place = (math.log10(rate) - steepest) / width
        loss = ends if rate > 30 else 2.3 - 2 / (1 + math.exp(-place))
        if not curve.read([(rate, torch.tensor(loss))]):
            break
    found = range_module._judge(curve.rates, curve.smoothed())
    assert math.log10(found.suggestion) == pytest.approx(steepest, abs=0.15)


class Spoilt:
    """Batches of which every one from the given step on has a picture that is not a number."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __len__(self) -> int:
        return 100

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(0)
        for step in range(100):
            images = torch.rand(8, 3, 16, 16, generator=generator)
            labels = torch.arange(8) % 3
            images += labels[:, None, None, None]
            yield Batch(images * (torch.nan if step >= self.first else 1), labels)


@pytest.mark.parametrize("handling", ["stop", "skip"])
def test_a_loss_that_is_not_finite_ends_the_test_with_what_it_has(handling: str) -> None:
    settings = [f"training.on_nonfinite={handling}", "training.max_skips=0"]
    recipe = load_recipe("one-cycle", [*TINY, *settings])
    state = build_state(recipe, prepare(coloured_data(), recipe, CPU), "rgb", CPU)
    test = learning_rate_range_test(state, Spoilt(40), lowest=1e-3, highest=1.0, steps=80)
    assert len(test.losses) == 40
    assert all(loss == loss for loss in test.losses)


def test_memory_that_is_refused_is_our_error() -> None:
    class Greedy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(1, 3)

        def forward(self, x: Any) -> Any:
            raise RuntimeError("could not create a primitive")

    state = TrainingState(Greedy(), load_recipe("one-cycle", TINY), 100, CPU)
    with pytest.raises(OutOfMemoryError, match=r"8 pictures in a forward pass.*\n.*--micro-batch 4"):
        learning_rate_range_test(state, Spoilt(100))
