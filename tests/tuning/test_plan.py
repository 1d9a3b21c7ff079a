from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from helpers import coloured_data
from thumbnet.errors import ThumbnetError
from thumbnet.recipes.recipe import Recipe, load_recipe
from thumbnet.training.time_budget import Speed
from thumbnet.tuning.parts import Parts, divide
from thumbnet.tuning.plan import FINAL_SHARE, GROWTH, TRIALS, WRITING, Cost, Plan, final_share, plan
from thumbnet.tuning.study import Record

RECIPE = load_recipe("small", ["training.batch_size=32"])
COST = Cost(Speed({(16, 16): 0.001}, 0.002, 0.0005), 1.0)


@pytest.fixture(scope="module")
def parts() -> Parts:
    return divide(coloured_data(120), RECIPE, torch.device("cpu"))


def planned(parts: Parts, minutes: float, recipe: Recipe = RECIPE, fixed: bool = False) -> Plan:
    narrow = recipe.model.width == 1
    return plan(recipe, parts, COST, minutes, 60 * minutes - 5, fixed=fixed, may_narrow=narrow)


def of_length(recipe: Recipe, epochs: int) -> Recipe:
    return replace(recipe, training=replace(recipe.training, epochs=epochs))


def test_with_enough_time_the_recipe_stays_as_it_is_and_longer_trainings_are_searched(parts: Parts) -> None:
    found = planned(parts, 10)
    assert found.recipe == RECIPE
    assert not found.shortened
    assert found.most_epochs > RECIPE.training.epochs
    at_most = (600 * (1 - FINAL_SHARE) - 5 - WRITING) / TRIALS * 2
    assert COST.trial(of_length(RECIPE, found.most_epochs), parts.parts) <= at_most
    assert COST.trial(of_length(RECIPE, found.most_epochs + 2), parts.parts) > at_most


def test_with_less_time_trials_are_shorter_so_that_enough_of_them_fit(parts: Parts) -> None:
    whole = COST.trial(RECIPE, parts.parts)
    minutes = (whole * 3 + 5 + WRITING) / (1 - FINAL_SHARE) / 60
    found = planned(parts, minutes, replace(RECIPE, model=replace(RECIPE.model, width=0.999)))
    assert found.shortened
    assert found.recipe.training.epochs == found.most_epochs < RECIPE.training.epochs
    assert TRIALS * COST.trial(found.recipe, parts.parts) < 60 * minutes * (1 - final_share(True))
    assert final_share(True) > final_share(False)
    assert f"{found.recipe.training.epochs} epochs instead of 30" in found.note


def test_a_short_time_starts_from_the_network_of_half_the_width_as_train_does(parts: Parts) -> None:
    assert planned(parts, 0.8).recipe.model.width == 0.5
    assert planned(parts, 10).recipe.model.width == 1


def test_a_length_that_the_user_set_is_kept(parts: Parts) -> None:
    found = planned(parts, 1.0, fixed=True)
    assert found.recipe == RECIPE
    assert found.most_epochs == RECIPE.training.epochs


def test_too_little_time_is_an_error_that_says_how_much_is_needed(parts: Parts) -> None:
    with pytest.raises(
        ThumbnetError, match=r"--minutes 0.2 is too short: .*at least --minutes (\d+\.\d+)"
    ) as e:
        planned(parts, 0.2)
    needed = float(str(e.value).partition("at least --minutes ")[2].partition(",")[0])
    assert planned(parts, needed).recipe.training.epochs >= 1


def test_a_wider_network_and_a_slower_computer_are_expected_to_take_longer(parts: Parts) -> None:
    base = COST.trial(RECIPE, parts.parts)
    wide = replace(RECIPE, model=replace(RECIPE.model, width=2.0))
    overhead = 0.3 * len(parts.parts)
    assert COST.trial(wide, parts.parts) - overhead == pytest.approx(2**GROWTH * (base - overhead))
    records = [Record(n, "complete", {}, 0.5, 1.0, 2.0 * n, 1.0, 1.0) for n in (1, 2, 3)]
    assert COST.learn(records).trial(RECIPE, parts.parts) == pytest.approx(4 * base)
    assert COST.learn([]) == COST


def test_the_final_training_is_expected_to_see_all_pictures_and_every_view(parts: Parts) -> None:
    less = COST.final(RECIPE, parts.parts, 80, 0)
    assert COST.final(RECIPE, parts.parts, 160, 0) > 1.5 * less
    assert COST.final(RECIPE, parts.parts, 80, 1000) > less + 1000 * 0.0005
