"""Which losses and augmentations a recipe may name, and which of them allow code to be imported."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

import thumbnet
from own_networks import OwnPackage
from thumbnet.errors import ModelCodeError, OwnCodeError, RecipeError
from thumbnet.recipes.functions import AUGMENTATIONS, LOSSES, Functions, register_augmentation, register_loss
from thumbnet.recipes.networks import is_allowed
from thumbnet.recipes.recipe import Recipe, load_recipe, read_recipe, training_code
from thumbnet.recipes.settings import AugmentSettings, ModelSettings, TrainingSettings

pytestmark = pytest.mark.usefixtures("own")  # restores what is registered
PATH = "mypackage.own:squared"
KINDS = pytest.mark.parametrize(
    ("functions", "key"), [(LOSSES, "training.loss"), (AUGMENTATIONS, "augment.custom")]
)


def squared(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.square().sum(dim=1)


def with_two(one: Tensor, other: Any, strength: float = 1.0) -> Tensor:
    return one


@KINDS
def test_a_registered_function_is_known_by_its_name_and_its_import_path(
    functions: Functions, key: str
) -> None:
    with pytest.raises(RecipeError, match=rf"'{key}' is 'mine'.*register_{functions.kind}.*MODULE:NAME"):
        load_recipe("one-cycle", [f"{key}=mine"])
    assert functions.register("mine")(with_two) is with_two
    load_recipe("one-cycle", [f"{key}=mine"])
    assert functions.find("mine") is with_two
    assert functions.find(f"{__name__}:with_two") is with_two
    with pytest.raises(RecipeError, match="Did you mean 'mine'"):
        load_recipe("one-cycle", [f"{key}=mime"])


def test_without_a_name_thumbnet_does_what_it_always_did() -> None:
    recipe = load_recipe("fast")
    assert LOSSES.find(recipe.training.loss) is None
    assert AUGMENTATIONS.find(recipe.augment.custom) is None
    assert training_code(recipe) == ()


def test_a_recipe_of_an_earlier_version_has_neither() -> None:
    settings = load_recipe("small").to_dict()
    del settings["training"]["loss"], settings["augment"]["custom"]
    from thumbnet.recipes.recipe import recipe_from_dict

    assert recipe_from_dict(settings) == load_recipe("small")


def test_the_two_kinds_do_not_share_names() -> None:
    register_loss("mine")(squared)
    register_augmentation("mine")(with_two)
    assert (LOSSES.find("mine"), AUGMENTATIONS.find("mine")) == (squared, with_two)


def test_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(OwnCodeError, match="'cross-entropy' cannot be that of your own loss"):
        register_loss("cross-entropy")(squared)
    with pytest.raises(OwnCodeError, match="cannot be that of your own augmentation"):
        register_augmentation("")(with_two)
    register_loss("mine")(squared)
    with pytest.raises(OwnCodeError, match="'mine' already belongs to the loss .*:squared: choose another"):
        register_loss("mine")(with_two)
    again = partial(squared)
    again.__module__, again.__qualname__ = squared.__module__, "squared"  # type: ignore[attr-defined]
    register_loss("mine")(again)  # the same cell of a notebook, run again
    assert LOSSES.find("mine") is again


@pytest.mark.parametrize("name", ["a b", "a:b:c", "a:", "../own:loss", "x\x1b", "a" * 201, 3])
def test_a_name_of_another_form_is_refused(name: Any) -> None:
    with pytest.raises(RecipeError, match=r"training\.loss.*Known: cross-entropy|training\.loss"):
        TrainingSettings(loss=name)
    with pytest.raises(RecipeError, match=r"augment\.custom"):
        AugmentSettings(custom=name)
    with pytest.raises(RecipeError):
        register_loss(name)


def one(logits: Tensor) -> Tensor:
    return logits


def three(a: Any, b: Any, c: Any) -> Any:
    return a


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (one, r"cannot call the loss mine\(logits.*too many positional.*\(logits, targets\)"),
        (three, "missing a required argument: 'c'.*every other argument needs a default"),
        (nn.CrossEntropyLoss, "is a class: expected a function of"),
        (3, "is a int: expected a function of"),
    ],
)
def test_what_cannot_be_called_is_refused(function: Callable[..., Any], says: str) -> None:
    with pytest.raises(OwnCodeError, match=says):
        register_loss("mine")(function)


def test_a_module_that_returns_losses_may_be_registered() -> None:
    loss = nn.CrossEntropyLoss(reduction="none")
    assert register_loss("mine")(loss) is loss


# --- whose code is imported ------------------------------------------------------------------------------


def write(own: OwnPackage) -> None:
    text = f"from pathlib import Path\nPath({str(own.trace)!r}).touch()\ndef squared(logits, targets): ...\n"
    own.write("mypackage/own.py", text)


@KINDS
def test_the_user_allows_an_import_path_by_naming_it(functions: Functions, key: str, own: OwnPackage) -> None:
    write(own)
    recipe = load_recipe("one-cycle", [f"{key}={PATH}"])
    assert is_allowed(PATH)
    assert not own.was_imported()
    found = functions.find(PATH)
    assert found is not None
    assert found.__name__ == "squared"
    assert training_code(recipe) == ("--model-code", PATH)


@KINDS
def test_a_recipe_that_is_only_read_allows_nothing(
    functions: Functions, key: str, own: OwnPackage, tmp_path: Path
) -> None:
    write(own)
    section, name = key.split(".")
    (tmp_path / "recipe.toml").write_text(f'[{section}]\n{name} = "{PATH}"\n')
    read_recipe(tmp_path / "recipe.toml").override(["training.epochs=3"])
    says = rf"the {functions.kind} {PATH} is not part.*--model-code {PATH} .*register_{functions.kind}\)"
    with pytest.raises(ModelCodeError, match=says):
        functions.find(PATH)
    with pytest.raises(ModelCodeError, match=f"the {functions.kind} mine is not part.*--model-code MODULE"):
        functions.find("mine")
    assert not own.was_imported()
    load_recipe(tmp_path / "recipe.toml")  # a file that the user passes
    assert is_allowed(PATH)


def test_the_code_of_a_training_is_named_once() -> None:
    recipe = Recipe(
        model=ModelSettings("mypackage.nets:TinyNet"),
        training=TrainingSettings(loss="focal"),
        augment=AugmentSettings(custom="grey"),
    )
    options = ("--model-code", "mypackage.nets:TinyNet", "--model-code", "MODULE")
    assert training_code(recipe) == options


def test_both_decorators_are_public() -> None:
    assert thumbnet.register_loss is register_loss
    assert thumbnet.register_augmentation is register_augmentation
