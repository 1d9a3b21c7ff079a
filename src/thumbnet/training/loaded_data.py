"""Let a recipe record how data were read and split that :func:`thumbnet.load_data` has loaded already.

A run loads its data again by its recipe's settings: to resume, evaluate, report, export and serve. Settings
that differ from those at the first loading would split the data in another way, and training pictures would
be measured as test pictures.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace
from typing import Any

from thumbnet.data.splits import Data
from thumbnet.errors import RecipeError
from thumbnet.files import user_path
from thumbnet.recipes.recipe import Recipe
from thumbnet.recipes.settings import READ_BY, DataSettings


def with_loaded_settings(recipe: Recipe, data: Any, named: Set[str]) -> Recipe:
    """The recipe with the settings by which ``data`` were loaded.

    Only data that :func:`thumbnet.load_data` has returned say these; with any others, the recipe stays as it
    is.

    Args:
        recipe: the requested recipe.
        data: what to train on, in any form that :func:`thumbnet.train` takes.
        named: the keys that the user set, such as ``data.split_seed``.

    Raises:
        RecipeError: the recipe asks for another setting, which has no effect on data that are loaded already;
            or for folds of a :class:`Data` that :func:`thumbnet.load_data` has not returned.
    """
    if not isinstance(data, Data):
        return recipe
    loaded = data.settings
    if loaded is None:
        if recipe.data.folds:
            raise RecipeError(
                "data.folds has no effect on a Data object of your own, because it has its splits already. "
                "Divide it with thumbnet.data.folds.with_test_fold, or give thumbnet the pictures and labels"
            )
        return recipe
    usual = DataSettings()
    changes: dict[str, Any] = {}
    for key in READ_BY:
        asked, own = getattr(recipe.data, key), getattr(loaded, key)
        if asked == own or _holds(key, asked, own, data):
            continue
        if f"data.{key}" in named or asked != getattr(usual, key):
            raise RecipeError(
                f"data.{key} = {asked!r} has no effect: the data were loaded already, with {own!r}. Give it "
                f"to load_data instead: thumbnet.load_data(..., {key}={asked!r})"
            )
        changes[key] = own
    return replace(recipe, data=replace(recipe.data, **changes))


def _holds(key: str, asked: Any, own: Any, data: Data) -> bool:
    """Whether a setting fits the loaded data, although it is not the one by which they were loaded."""
    if key == "images":  # load_data made it absolute
        return str(user_path(asked).resolve()) == own
    if key == "val_fraction":
        return asked > 0 and "val" not in data.splits  # val is set aside before the training
    if key == "split_seed":
        return not data.set_aside
    if key == "test_fraction":  # it does not change splits that the data come with
        return not data.set_aside and bool({"test", "val"} & data.splits.keys())
    if key == "multilabel":
        return asked is data.multilabel
    return key == "on_bad_image" and asked == "skip"  # nothing was skipped, so nothing is missing
