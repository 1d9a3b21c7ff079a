"""Choose the recipe of a training and fit it to the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from thumbnet.data.corrections import Correction, apply_corrections
from thumbnet.data.splits import Data
from thumbnet.models.registry import find_builder, is_built_in
from thumbnet.recipes.networks import is_timm
from thumbnet.recipes.recipe import Recipe, load_recipe
from thumbnet.sources.load import load_data
from thumbnet.training.listener import Listener
from thumbnet.training.mirror_names import named_keys, show_digits, without_mirroring
from thumbnet.training.multilabel import for_several_labels
from thumbnet.training.pretrained import with_pretrained_settings

FEW_PICTURES = 10_000  # with this many or fewer, the few epochs of `fast` have too few steps
FOR_OTHER_NETWORKS = "resnet18"  # `fast` and `small` name FastNet's layers, and their rates suit it
FOR_PRETRAINED = "finetune"


def choose_recipe(
    data: Any,
    recipe: str | Path | Recipe | None,
    overrides: Sequence[str],
    data_dir: str | Path | None,
    listener: Listener,
    labels: Sequence[Correction] | None = None,
) -> tuple[Recipe, Data]:
    """Return the requested recipe, or the default one for the data, and the data that it loads.

    ``labels`` are corrections of the data's labels.

    The recipe is fitted to the data in three ways: :meth:`thumbnet.Recipe.fitted` (unless ``overrides`` name
    a batch size), :func:`~thumbnet.training.mirror_names.without_mirroring`, and
    :func:`~thumbnet.training.multilabel.for_several_labels`. It is fitted to pretrained weights by
    :func:`~thumbnet.training.pretrained.with_pretrained_settings`.

    Raises:
        RecipeError: there is no such recipe, or a setting is invalid.
        DataError: the data cannot be loaded.
        ModelCodeError, NetworkError: the recipe's network is not registered, and cannot be imported.
    """
    chosen = asked_recipe(recipe, overrides)
    find_builder(chosen.model.name)
    loaded = load_for(data, chosen, data_dir, listener, labels)
    if recipe is None:
        chosen = load_recipe(_default_for(chosen.model.name, overrides, loaded), overrides)
    chosen, begins = with_pretrained_settings(chosen)
    if not any(assignment.partition("=")[0].strip() == "training.batch_size" for assignment in overrides):
        chosen = chosen.fitted(len(loaded.splits["train"]))
    named = named_keys(recipe, overrides)
    chosen, notes = without_mirroring(
        chosen, loaded.class_names, loaded.source, named, lambda: show_digits(loaded)
    )
    chosen, more = for_several_labels(chosen, loaded)
    return chosen, replace(loaded, notes=(*loaded.notes, *begins, *notes, *more))


def asked_recipe(recipe: str | Path | Recipe | None, overrides: Sequence[str]) -> Recipe:
    """The requested recipe with ``overrides``; ``fast`` if ``recipe`` is None."""
    asked = "fast" if recipe is None else recipe
    return asked.override(overrides) if isinstance(asked, Recipe) else load_recipe(asked, overrides)


def _default_for(network: str, overrides: Sequence[str], data: Data) -> str:
    """The name of the recipe for ``network`` if the user names none."""
    if is_built_in(network):
        return default_recipe(data)
    random = any(one.replace(" ", "") == "model.pretrained=false" for one in overrides)
    return FOR_PRETRAINED if is_timm(network) and not random else FOR_OTHER_NETWORKS


def default_recipe(data: Data) -> str:
    """``digits`` for the digits, ``small`` for up to 10,000 training pictures, otherwise ``fast``."""
    if data.source == "digits":
        return "digits"
    return "small" if len(data.splits["train"]) <= FEW_PICTURES else "fast"


def load_for(
    source: Any,
    recipe: Recipe,
    data_dir: str | Path | None,
    listener: Listener,
    labels: Sequence[Correction] | None = None,
) -> Data:
    """Load ``source`` with the recipe's data settings, unless it is loaded already, and correct its labels.

    ``listener`` hears about downloads.
    """
    if isinstance(source, Data):
        return source if labels is None else apply_corrections(source, labels, Path())
    return load_data(
        source, data_dir=data_dir, settings=recipe.data, progress=listener.on_download, labels=labels
    )
