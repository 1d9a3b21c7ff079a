from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args, get_type_hints

import pytest

from thumbnet.recipes.networks import is_timm
from thumbnet.recipes.recipe import Recipe, load_recipe, recipe_from_dict, recipe_names
from thumbnet.recipes.settings import DataSettings, OptimizerSettings
from thumbnet.training.speed import GROWTH
from thumbnet.tuning.space import FITS, Knob, guesses, knobs, recipe_at, start_of

SEARCHED = [name for name in recipe_names() if not load_recipe(name).training.frozen]


OWN = [(32, 32)]  # the sizes of the pictures
PHOTOS = [(375, 500), (500, 375), (100, 100)]


def of(
    recipe: Recipe,
    *named: str,
    own: Sequence[tuple[int, int]] = OWN,
    takes_width: bool | None = None,
    epochs: bool = True,
) -> dict[str, Knob]:
    found = knobs(
        recipe,
        frozenset(named),
        2000,
        (32, 32),
        own=own,
        takes_width=not is_timm(recipe.model.name) if takes_width is None else takes_width,
        epochs=epochs,
    )
    return {knob.name: knob for knob in found}


@pytest.mark.parametrize("name", SEARCHED)
def test_the_point_where_a_search_starts_is_the_recipe_to_the_last_digit(name: str) -> None:
    recipe = load_recipe(name)
    varied = of(recipe, own=PHOTOS)
    assert recipe_at(recipe, start_of(list(varied.values())), size=(32, 32), same_time=True) == recipe
    assert all(knob.low <= knob.start <= knob.high for knob in varied.values())


@pytest.mark.parametrize("name", SEARCHED)
def test_both_ends_of_every_knob_are_valid_recipes(name: str) -> None:
    recipe = load_recipe(name)
    varied = list(of(recipe, own=PHOTOS).values())
    start = start_of(varied)
    low, high = ({knob.name: end_of(knob, end) for knob in varied} for end in ("low", "high"))
    points = [
        {**start, name: ends[name]} for ends in (low, high) for name in ends if ends[name] != start[name]
    ]
    for point in [*points, low, high]:
        found = recipe_at(recipe, point, size=(32, 32))
        assert found != recipe
        assert recipe_from_dict(tomllib.loads(found.to_toml())) == found


def end_of(knob: Knob, end: Literal["low", "high"]) -> float | str:
    value: float = getattr(knob, end)
    return knob.options[int(value)] if knob.options else value


def test_large_pictures_may_be_seen_larger_and_those_of_another_shape_fitted_otherwise() -> None:
    recipe = load_recipe("small")
    photos = of(recipe, own=PHOTOS)
    assert photos["size"].options == ("32x32", "48x48", "64x64", "96x96")
    assert photos["size"].start == 0
    assert photos["fit"].options == FITS == get_args(get_type_hints(DataSettings)["fit"])
    assert photos["fit"].options[int(photos["fit"].start)] == recipe.data.fit
    assert of(recipe, own=[(50, 50)] * 9 + [(90, 50)])["size"].options == ("32x32", "48x48")
    assert not {"size", "fit"} & of(recipe).keys()
    assert not {"size", "fit"} & of(recipe, own=[]).keys()  # decoded during the training
    assert "fit" not in of(recipe, own=[(64, 64)] * 10 + [(64, 32)])
    assert not {"size", "fit"} & of(recipe, "data.image_size", "data.fit", own=PHOTOS).keys()
    assert "size" not in of(recipe.override(["data.image_size=32"]), own=PHOTOS)
    assert "size" not in of(recipe.override(["model.name=own:network"]), own=PHOTOS)


def test_the_sizes_keep_the_shape_of_the_input() -> None:
    def size_of(side: tuple[int, int], epochs: bool) -> Knob | None:
        found = knobs(
            load_recipe("small"),
            frozenset(),
            2000,
            side,
            own=[(480, 640)],
            takes_width=True,
            epochs=epochs,
        )
        return next((knob for knob in found if knob.name == "size"), None)

    for side, epochs, start in (((72, 96), True, 3), ((24, 32), True, 0), ((24, 32), False, 0)):
        size = size_of(side, epochs)
        assert size is not None
        assert size.options == ("24x32", "36x48", "48x64", "72x96")
        assert size.start == start
    assert size_of((72, 96), epochs=False) is None


@pytest.mark.parametrize("name", SEARCHED)
def test_a_given_time_tries_no_narrower_network_and_no_smaller_input(name: str) -> None:
    recipe = load_recipe(name)
    varied = of(recipe, own=PHOTOS, epochs=False)
    for key in {"width", "size"} & varied.keys():
        assert varied[key].low == varied[key].start < varied[key].high
    if "width" in varied:
        assert of(recipe)["width"].low == recipe.model.width / 2


def test_at_another_size_shifts_grow_with_the_pictures_and_the_time_stays() -> None:
    recipe = load_recipe("small")
    point = {
        **start_of(list(of(recipe, own=PHOTOS).values())),
        "size": "64x64",
        "cutout": 10,
        "fit": "squash",
    }
    found = recipe_at(recipe, point, size=(32, 32), same_time=True)
    assert (found.data.image_size, found.data.fit) == ("64x64", "squash")
    assert (found.augment.translate, found.augment.cutout) == (2 * recipe.augment.translate, 20)
    assert found.training.epochs == round(30 / 4)
    assert recipe_at(recipe, point, size=(32, 32)).training.epochs == 30


@pytest.mark.parametrize("epochs", [False, True])
@pytest.mark.parametrize(("own", "expected"), [(OWN, 3), (PHOTOS, 6), ([(64, 64)], 5)])
@pytest.mark.parametrize("name", SEARCHED)
def test_every_guess_is_another_recipe_and_the_first_one_is_the_start(
    name: str, own: list[tuple[int, int]], expected: int, epochs: bool
) -> None:
    recipe = load_recipe(name)
    expected += epochs  # a narrower network
    varied = list(of(recipe, own=own, epochs=epochs).values())
    tried = guesses(varied)
    assert tried[0] == start_of(varied)
    found = [recipe_at(recipe, point, size=(32, 32), same_time=True) for point in tried]
    assert all(found.count(one) == 1 for one in found)
    if is_timm(recipe.model.name):  # it has neither another size nor another width
        expected = 4 if own == PHOTOS else 3
    assert len(found) == expected
    for point in tried:
        assert all(knob.low <= knob.at(point) <= knob.high for knob in varied)
    assert guesses([]) == [{}]


def test_what_the_user_set_is_not_searched() -> None:
    recipe = load_recipe("small")
    everything = of(recipe)
    assert {"learning rate", "width", "shift", "epochs", "light", "batch size"} <= everything.keys()
    named = ("optimizer.lr", "model.width", "augment.translate", "training.epochs", "augment.contrast")
    left = of(recipe, *named)
    assert everything.keys() - left.keys() == {
        "learning rate",
        "batch size",
        "width",
        "shift",
        "epochs",
        "light",
    }
    assert "width" not in of(recipe, takes_width=False)
    assert "epochs" not in of(recipe, epochs=False)


@pytest.mark.parametrize("name", SEARCHED)
def test_no_point_changes_a_setting_that_the_user_named(name: str) -> None:
    recipe = load_recipe(name)
    for key in sorted({key for knob in of(recipe, own=PHOTOS).values() for key in knob.keys}):
        section, _, setting = key.partition(".")
        varied = of(recipe, key, own=PHOTOS).values()
        start = start_of(list(varied))
        for knob in varied:
            for end in ("low", "high"):
                found = recipe_at(recipe, {**start, knob.name: end_of(knob, end)}, size=(32, 32))
                own, used = (getattr(getattr(one, section), setting) for one in (recipe, found))
                assert used == own, (key, knob.name)


@pytest.mark.parametrize("key", ["model.width", "training.label_smoothing", "optimizer.lr"])
def test_a_value_with_many_digits_stays_as_it_is_until_the_search_changes_it(key: str) -> None:
    recipe = load_recipe("small", [f"{key}=0.123456789"])
    for varied in (of(recipe), of(recipe, key)):
        start = start_of(list(varied.values()))
        assert recipe_at(recipe, start, same_time=True) == recipe
        assert recipe_at(recipe, {**start, "shift": 5}).to_toml().count("0.123456789") == 1
    light = load_recipe("small", ["augment.brightness=0.123456", "augment.contrast=0.123456"])
    assert recipe_at(light, start_of(list(of(light).values()))) == light


def test_in_the_same_time_a_wider_network_has_fewer_epochs() -> None:
    recipe = load_recipe("small")
    epochs = {
        width: recipe_at(recipe, {"width": width}, same_time=True).training.epochs
        for width in (0.5, 1.0, 1.5)
    }
    assert epochs == {0.5: round(30 * 2**GROWTH), 1.0: 30, 1.5: round(30 / 1.5**GROWTH)}
    assert recipe_at(recipe, {"width": 0.5}).training.epochs == 30
    assert recipe_at(recipe, {"width": 8.0}, same_time=True).training.epochs == 1


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
    for knob in of(load_recipe("fast"), own=PHOTOS).values():
        assert Knob.from_dict(json.loads(json.dumps(knob.to_dict()))) == knob


@pytest.mark.parametrize(
    "wrong",
    [{"options": []}, {"options": ["a"]}, {"kind": "int"}, {"high": 5}, {"options": "ab"}, {"kind": 3}],
)
def test_a_damaged_choice_is_refused(wrong: dict[str, object]) -> None:
    knob = Knob("fit", "choice", 0, 1, 0, False, ("data.fit",), ("pad", "crop"))
    with pytest.raises(ValueError, match=r"."):
        Knob.from_dict({**knob.to_dict(), **wrong})
