"""Choose the recipe of a training and fit it to the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from thumbnet.data.correct import apply_corrections
from thumbnet.data.corrections import Correction
from thumbnet.data.held_out import VAL_FRACTION, with_held_out
from thumbnet.data.splits import Data
from thumbnet.errors import RecipeError, RunError
from thumbnet.invocation import command
from thumbnet.models.registry import find_builder, is_built_in
from thumbnet.recipes.networks import is_timm
from thumbnet.recipes.recipe import Recipe, load_recipe
from thumbnet.sources.load import load_data
from thumbnet.training.listener import Listener
from thumbnet.training.mirror_names import named_keys, show_digits, without_mirroring
from thumbnet.training.multilabel import for_several_labels
from thumbnet.training.pretrained import with_pretrained_settings

FEW_PICTURES = 10_000  # with this many or fewer, the few epochs of `fast` have too few steps
FOR_OTHER_NETWORKS = "one-cycle"  # the rates of `fast` and `small` suit FastNet
FOR_PRETRAINED = "finetune"


def choose_recipe(
    data: Any,
    recipe: str | Path | Recipe | None,
    overrides: Sequence[str],
    data_dir: str | Path | None,
    listener: Listener,
    labels: Sequence[Correction] | None = None,
    continues: bool = False,
) -> tuple[Recipe, Data]:
    """Return the requested recipe, or the default one for the data, and the data that it loads.

    ``labels`` are corrections of the data's labels. ``continues`` says whether the training continues a
    finished run.

    The recipe is fitted to the data in four ways: :func:`watching` (if the recipe needs a ``val`` split),
    :meth:`thumbnet.Recipe.fitted` (unless ``overrides`` name a batch size),
    :func:`~thumbnet.training.mirror_names.without_mirroring`, and
    :func:`~thumbnet.training.multilabel.for_several_labels`. It is fitted to pretrained weights by
    :func:`~thumbnet.training.pretrained.with_pretrained_settings`.

    Raises:
        RecipeError: there is no such recipe, or a setting is invalid.
        RunError: the recipe needs a ``val`` split, and the finished run has trained on all pictures.
        DataError: the data cannot be loaded.
        ModelCodeError, NetworkError: the recipe's network is not registered, and cannot be imported.
    """
    chosen = asked_recipe(recipe, overrides)
    find_builder(chosen.model.name)
    loaded = load_for(data, chosen, data_dir, listener, labels)
    named = named_keys(recipe, overrides)
    needed, watched = watching(chosen, loaded, named, isinstance(recipe, Recipe), continues)
    if needed:
        overrides = [*overrides, *needed]
        chosen = chosen.override(needed)
        if "val" not in loaded.splits:
            loaded = load_for(data, chosen, data_dir, listener, labels)
    if recipe is None:
        chosen = load_recipe(_default_for(chosen.model.name, overrides, loaded), overrides)
        # It may evaluate less often than `small`, which the data were loaded for.
        needed, _ = watching(chosen, loaded, named, False, continues)
        chosen = chosen.override(needed)
    chosen, begins = with_pretrained_settings(chosen)
    if "training.batch_size" not in named_keys(None, overrides):
        chosen = chosen.fitted(len(loaded.splits["train"]))
    # The recipe of a finished run has been through this. It mirrors only if its user wants that.
    kept = named.union(("augment.flip", "evaluation.tta") if continues else ())
    chosen, notes = without_mirroring(
        chosen, loaded.class_names, loaded.source, kept, lambda: show_digits(loaded)
    )
    chosen, more = for_several_labels(chosen, loaded)
    told = (*watched, *begins, *note_on_patience(chosen), *notes, *more)
    return chosen, replace(loaded, notes=(*loaded.notes, *told))


def watching(
    recipe: Recipe, loaded: Data, named: frozenset[str], is_whole: bool, continues: bool
) -> tuple[list[str], list[str]]:
    """What a recipe that chooses an epoch by ``val`` needs to do so honestly.

    Without a ``val`` split, a part of ``train`` is set aside as one, because a score on ``test`` that has
    chosen the epoch would be too high. With ``training.patience``, each epoch is evaluated, unless the user
    names ``evaluation.every``.

    Args:
        recipe: the requested recipe.
        loaded: the data as that recipe loads them.
        named: the keys that the user set.
        is_whole: whether the user gave a whole recipe object, so that all keys count as named.
        continues: whether the training continues a finished run.

    Returns:
        Overrides for the recipe, and sentences for the user.

    Raises:
        RecipeError: the user asked for no ``val`` split.
        RunError: the finished run has trained on all pictures that could be set aside.
    """
    patience = recipe.training.patience
    if not patience and recipe.training.keep != "best":
        return [], []
    needed, notes = [], []
    if "val" not in loaded.splits:
        what = f"training.patience = {patience}" if patience else "training.keep = 'best'"
        if continues:
            anew = command("train", loaded.source, "--patience", "5")
            raise RunError(
                f"{what} needs a val split, and the finished run has none: it has already trained on the "
                f"pictures that could be set aside now. Train anew: {anew}"
            )
        if "data.val_fraction" in named:
            raise RecipeError(
                f"{what} needs a val split to watch, and data.val_fraction is 0: leave that out (a tenth of "
                "train is then set aside), or give another fraction"
            )
        needed.append(f"data.val_fraction={VAL_FRACTION}")
        untouched = "; test chooses nothing" if "test" in loaded.splits else ""
        notes.append(f"{VAL_FRACTION:.0%} of train was set aside as val, to choose the epoch by{untouched}")
    if patience and recipe.evaluation.every > 1 and "evaluation.every" not in named and not is_whole:
        needed.append("evaluation.every=1")
    return needed, notes


def note_on_patience(recipe: Recipe) -> list[str]:
    """A sentence for the user if the recipe's schedule makes early stopping rarely useful."""
    schedule = recipe.schedule
    falls = schedule.name in ("cosine", "linear", "one-cycle") and schedule.end < 1
    if not recipe.training.patience or not falls:
        return []
    return [
        f"the learning rate falls until the last planned epoch (schedule.name = '{schedule.name}'), and "
        "accuracy rises most near that end, so early stopping rarely helps here; it suits 'constant' and "
        "'multistep'"
    ]


def asked_recipe(recipe: str | Path | Recipe | None, overrides: Sequence[str]) -> Recipe:
    """The requested recipe with ``overrides``; ``small`` if ``recipe`` is None.

    All default recipes load data alike. ``small`` also allows ``overrides`` that ``fast`` refuses, such as
    ``augment.mixup``, which does not go with ``data.skip_easy``.
    """
    asked = "small" if recipe is None else recipe
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

    Data that are loaded already keep their splits; only a ``val`` split that they lack is set aside if the
    recipe has ``data.val_fraction``.

    ``listener`` hears about downloads.
    """
    if isinstance(source, Data):
        settings = recipe.data
        if settings.val_fraction and "val" not in source.splits:
            source = with_held_out(source, 0, settings.val_fraction, settings.split_seed, settings.group_by)
        return source if labels is None else apply_corrections(source, labels, Path())
    return load_data(
        source, data_dir=data_dir, settings=recipe.data, progress=listener.on_download, labels=labels
    )
