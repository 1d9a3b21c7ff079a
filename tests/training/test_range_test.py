from __future__ import annotations

import pytest
import torch

from helpers import TINY, coloured_data
from thumbnet.batches.prepare import prepare
from thumbnet.errors import ThumbnetError
from thumbnet.recipes.recipe import load_recipe
from thumbnet.training.range_test import RangeTest, learning_rate_range_test
from thumbnet.training.train import build_state

CPU = torch.device("cpu")


def range_test(lowest: float, highest: float, steps: int = 60) -> RangeTest:
    recipe = load_recipe("resnet18", TINY)
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
    with pytest.raises(ThumbnetError):
        range_test(1e5, 1e7)
