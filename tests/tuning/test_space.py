from __future__ import annotations

import json
import tomllib
from dataclasses import replace

import pytest

from thumbnet.recipes.networks import is_timm
from thumbnet.recipes.recipe import Recipe, load_recipe, recipe_from_dict, recipe_names
from thumbnet.recipes.settings import OptimizerSettings
from thumbnet.tuning.space import GROWTH, Knob, knobs, recipe_at, start_of

SEARCHED = [name for name in recipe_names() if not load_recipe(name).training.frozen]


def of(recipe: Recipe, *named: str, takes_width: bool | None = None, epochs: bool = True) -> dict[str, Knob]:
    found = knobs(
        recipe,
        frozenset(named),
        2000,
        (32, 32),
        takes_width=not is_timm(recipe.model.name) if takes_width is None else takes_width,
        epochs=epochs,
    )
    return {knob.name: knob for knob in found}


@pytest.mark.parametrize("name", SEARCHED)
def test_the_point_where_a_search_starts_is_the_recipe_to_the_last_digit(name: str) -> None:
    recipe = load_recipe(name)
    varied = of(recipe)
    assert recipe_at(recipe, start_of(list(varied.values()))) == recipe
    assert all(knob.low <= knob.start <= knob.high for knob in varied.values())


@pytest.mark.parametrize("name", SEARCHED)
def test_both_ends_of_every_knob_are_valid_recipes(name: str) -> None:
    recipe = load_recipe(name)
    varied = list(of(recipe).values())
    start = start_of(varied)
    points = [
        {**start, knob.name: end} for knob in varied for end in (knob.low, knob.high) if end != knob.start
    ]
    points += [{knob.name: knob.low for knob in varied}, {knob.name: knob.high for knob in varied}]
    for point in points:
        found = recipe_at(recipe, point)
        assert found != recipe
        assert recipe_from_dict(tomllib.loads(found.to_toml())) == found


def test_what_the_user_set_is_not_searched() -> None:
    recipe = load_recipe("small")
    everything = of(recipe)
    assert {"learning rate", "width", "shift", "epochs", "light", "batch size"} <= everything.keys()
    named = ("optimizer.lr", "model.width", "augment.translate", "training.epochs", "augment.contrast")
    left = of(recipe, *named)
    assert everything.keys() - left.keys() == {"learning rate", "width", "shift", "epochs", "light"}
    assert "width" not in of(recipe, takes_width=False)
    assert "epochs" not in of(recipe, epochs=False)


def test_in_the_same_time_a_wider_network_has_fewer_epochs() -> None:
    recipe = load_recipe("small")
    epochs = {width: recipe_at(recipe, {"width": width}, True).training.epochs for width in (0.5, 1.0, 1.5)}
    assert epochs == {0.5: round(30 * 2**GROWTH), 1.0: 30, 1.5: round(30 / 1.5**GROWTH)}
    assert recipe_at(recipe, {"width": 0.5}).training.epochs == 30
    assert recipe_at(recipe, {"width": 8.0}, True).training.epochs == 1


def test_all_learning_rates_and_decays_keep_their_ratios() -> None:
    recipe = load_recipe("small")
    found = recipe_at(recipe, {"learning rate": 2.0, "weight decay": 0.5}).optimizer
    before = recipe.optimizer
    assert found.lr == pytest.approx(2 * before.lr)
    for group, old in zip(found.groups, before.groups, strict=True):
        assert old.lr is not None
        assert old.weight_decay is not None
        assert group.lr == pytest.approx(2 * old.lr, rel=1e-3)
        assert group.weight_decay == pytest.approx(old.weight_decay / 2, rel=1e-3)


def test_a_recipe_without_weight_decay_has_nothing_to_scale() -> None:
    without = replace(Recipe(), optimizer=OptimizerSettings(weight_decay=0.0))
    assert "weight decay" not in of(without)
    assert "weight decay" in of(Recipe())


def test_the_learning_rate_follows_the_batch_size() -> None:
    recipe = load_recipe("small")
    found = recipe_at(recipe, {"batch size": 32})
    assert found == recipe.with_batch_size(32)
    both = recipe_at(recipe, {"batch size": 32, "learning rate": 2.0})
    assert both.optimizer.lr == pytest.approx(recipe.optimizer.lr, rel=1e-3)


def test_a_knob_survives_json() -> None:
    for knob in of(load_recipe("fast")).values():
        assert Knob.from_dict(json.loads(json.dumps(knob.to_dict()))) == knob
