from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers import coloured_data
from thumbnet.data.splits import ArraySplit, Data
from thumbnet.errors import DataError, RecipeError
from thumbnet.recipes.recipe import load_recipe
from thumbnet.training import choose
from thumbnet.training.choose import FEW_PICTURES, choose_recipe, default_recipe, load_for
from thumbnet.training.listener import Listener

QUIET = Listener()


def data_of(count: int, source: str = "x") -> Data:
    images = np.broadcast_to(np.zeros((1, 1, 1, 3), np.uint8), (count, 16, 16, 3))
    split = ArraySplit(images, np.arange(count) % 2, "train")
    return Data(source, "made by the tests", ("cat", "dog"), {"train": split})


def test_the_default_recipe_changes_right_after_ten_thousand_pictures() -> None:
    assert default_recipe(data_of(FEW_PICTURES)) == "small"
    assert default_recipe(data_of(FEW_PICTURES + 1)) == "fast"
    assert default_recipe(data_of(10, "digits")) == "digits"


def test_without_a_recipe_the_default_one_takes_the_overrides() -> None:
    recipe, data = choose_recipe(data_of(100), None, ["training.epochs=7"], None, QUIET)
    assert (recipe.name, recipe.training.epochs) == ("small", 7)
    assert data.class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "finetune"),
        (["model.pretrained=true"], "finetune"),
        (["model.pretrained = false"], "resnet18"),
    ],
)
def test_a_network_of_timm_is_fine_tuned_by_default_unless_its_weights_are_random(
    overrides: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(choose, "find_builder", asked.append)
    monkeypatch.setattr(choose, "with_pretrained_settings", lambda recipe: (recipe, ["from afar"]))
    recipe, data = choose_recipe(data_of(100), None, ["model.name=timm:resnet18", *overrides], None, QUIET)
    assert (recipe.name, asked) == (name, ["timm:resnet18"])
    assert "from afar" in data.notes


def test_a_small_data_set_gets_small_batches_unless_the_user_names_a_size() -> None:
    asked = load_recipe("fast")
    recipe, _ = choose_recipe(data_of(100), "fast", [], None, QUIET)
    assert recipe == asked.fitted(100)
    assert recipe.training.batch_size < asked.training.batch_size
    named, _ = choose_recipe(data_of(100), "fast", [" training.batch_size = 64"], None, QUIET)
    assert named.training.batch_size == 64


def test_class_names_that_forbid_mirroring_turn_it_off_and_leave_a_note() -> None:
    data = replace(data_of(100), class_names=("turn left", "turn right"))
    recipe, noted = choose_recipe(data, "fast", [], None, QUIET)
    assert recipe.augment.flip == "none"
    assert any("augment.flip = none" in note for note in noted.notes)
    kept, unnoted = choose_recipe(data, "fast", ["augment.flip=random"], None, QUIET)
    assert kept.augment.flip == "random"
    assert unnoted.notes == data.notes


def test_a_recipe_object_takes_overrides_and_does_not_change() -> None:
    given = load_recipe("tutorial")
    chosen, _ = choose_recipe(coloured_data(), given, ["training.epochs=2"], None, QUIET)
    assert chosen.training.epochs == 2
    assert given == load_recipe("tutorial")


def test_what_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError):
        choose_recipe(data_of(10), "fastest", [], None, QUIET)
    with pytest.raises(DataError):
        choose_recipe(tmp_path / "nothing", "fast", [], None, QUIET)


def test_data_are_loaded_with_the_recipes_settings() -> None:
    recipe = load_recipe("tutorial")
    assert load_for("digits", recipe, None, QUIET).source == "digits"
