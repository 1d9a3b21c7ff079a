"""Choose the recipe of a training and fit it to the data."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from thumbnet.data.correct import apply_corrections
from thumbnet.data.corrections import Correction
from thumbnet.data.held_out import VAL_FRACTION, with_held_out
from thumbnet.data.splits import Data
from thumbnet.errors import DataError, RecipeError, RunError
from thumbnet.invocation import command
from thumbnet.recipes.networks import is_timm
from thumbnet.recipes.recipe import Recipe, load_recipe, read_recipe
from thumbnet.recipes.settings import DataSettings, GroupSettings, in_subset
from thumbnet.runs.any_weights import AnyWeights
from thumbnet.sources.load import load_data
from thumbnet.training.listener import Listener
from thumbnet.training.loaded_data import with_loaded_settings
from thumbnet.training.mirror_names import named_keys, show_digits, without_mirroring
from thumbnet.training.multilabel import for_several_labels
from thumbnet.training.own_loss import find_code, for_own_loss
from thumbnet.training.pretrained import with_pretrained_settings
from thumbnet.training.transfer import with_pixels_of_init

FEW_PICTURES = 10_000  # with this many or fewer, the few epochs of `fast` have too few steps
FASTNET = "fastnet"  # the network of `fast`, `small` and `digits`, whose rates suit no other
TYPICAL_RATES = {"sgd": 0.1, "adamw": 0.001, "muon": 0.1}


def choose_recipe(
    data: Any,
    recipe: str | Path | Recipe | None,
    overrides: Sequence[str],
    data_dir: str | Path | None,
    listener: Listener,
    labels: Sequence[Correction] | None = None,
    continues: bool = False,
    initial: AnyWeights | None = None,
) -> tuple[Recipe, Data]:
    """Return the requested recipe, or the default one for the data, and the data that it loads.

    ``labels`` are corrections of the data's labels. ``continues`` says whether the training continues a
    finished run. ``initial`` is what ``training.init`` names, if it has been read already.

    The recipe is fitted to the data in five ways:
    :func:`~thumbnet.training.loaded_data.with_loaded_settings` (if :func:`thumbnet.load_data` has returned
    them), :func:`watching` (if the recipe chooses an epoch), :meth:`thumbnet.Recipe.fitted` (if
    ``overrides`` name a batch size, ``training.min_steps`` becomes 0 instead, unless they name that, too),
    :func:`~thumbnet.training.mirror_names.without_mirroring`, and
    :func:`~thumbnet.training.multilabel.for_several_labels`. It is fitted to pretrained weights by
    :func:`~thumbnet.training.pretrained.with_pretrained_settings`, to the weights of ``training.init`` by
    :func:`~thumbnet.training.transfer.with_pixels_of_init`, and to a loss of the user's own by
    :func:`~thumbnet.training.own_loss.for_own_loss`.

    Raises:
        RecipeError: there is no such recipe, a setting is invalid, classes of unequal size are balanced
            twice, or the data are loaded already, by another setting.
        RunError: the recipe needs a ``val`` split, and the finished run has trained on all pictures; or the
            weights in ``training.init`` cannot be read.
        DataError: the data cannot be loaded.
        ModelCodeError, OwnCodeError: the recipe's network, loss or augmentation is not registered, and cannot
            be imported.
    """
    chosen = asked_recipe(recipe, overrides)
    if not continues:  # a run of an earlier version may have been trained like this
        check_balanced_once(chosen)
    find_code(chosen)
    named = named_keys(recipe, overrides)
    chosen = with_loaded_settings(chosen, data, named)
    loaded = load_for(data, chosen, data_dir, listener, labels)
    needed, watched = watching(chosen, loaded, named, isinstance(recipe, Recipe), continues)
    if needed:
        overrides = [*overrides, *needed]
        chosen = chosen.override(needed)
        if "val" not in loaded.splits:
            loaded = load_for(data, chosen, data_dir, listener, labels)
    start: str | Path | Recipe
    if recipe is None:
        start = default_recipe(loaded, chosen.model.name, overrides, chosen.data.subset_size)
        chosen = load_recipe(start, overrides)
        chosen = with_loaded_settings(chosen, data, named)
        # It may evaluate less often than `small`, which the data were loaded for.
        needed, _ = watching(chosen, loaded, named, False, continues)
        chosen = chosen.override(needed)
    else:
        start = recipe
    base = start if isinstance(start, Recipe) else read_recipe(start)
    changed = notes_on_settings(base, chosen, overrides)
    chosen, begins = with_pretrained_settings(chosen)
    chosen, pixels = with_pixels_of_init(chosen, named, initial)
    options, unfitted = named_keys(None, overrides), chosen
    if "training.batch_size" not in options:
        chosen = chosen.fitted(len(loaded.splits["train"]))
    elif "training.min_steps" not in options:  # so that `--minutes` keeps the named size, too
        chosen = replace(chosen, training=replace(chosen.training, min_steps=0))
    changed += notes_on_rates(unfitted, chosen, options)
    if loaded.settings is not None:  # where the pictures of a table are, from any working folder
        chosen = replace(chosen, data=replace(chosen.data, images=loaded.settings.images))
    # The recipe of a finished run has been through this. It mirrors only if its user wants that.
    kept = named.union(("augment.flip", "evaluation.tta") if continues else ())
    chosen, notes = without_mirroring(
        chosen, loaded.class_names, loaded.source, kept, lambda: show_digits(loaded)
    )
    chosen, smoothed = for_own_loss(chosen, named)
    chosen, more = for_several_labels(chosen, loaded)
    told = (*changed, *watched, *begins, *pixels, *note_on_patience(chosen), *notes, *more, *smoothed)
    return chosen, replace(loaded, notes=(*loaded.notes, *told))


def check_balanced_once(recipe: Recipe) -> None:
    """Check that only one setting makes up for classes of unequal size.

    Raises:
        RecipeError: two do, so rare classes would weigh more than frequent ones.
    """
    if recipe.data.sampling == "balanced" and recipe.training.class_weights == "balanced":
        raise RecipeError(
            "data.sampling = 'balanced' and training.class_weights = 'balanced' both make up for classes of "
            "unequal size, so rare classes would weigh more than frequent ones. Choose one: "
            "--set data.sampling=uniform or --set training.class_weights=none"
        )


def watching(
    recipe: Recipe, loaded: Data, named: frozenset[str], is_whole: bool, continues: bool
) -> tuple[list[str], list[str]]:
    """What a recipe that must choose an epoch by ``val`` needs to do so honestly.

    Without a ``val`` split, a part of ``train`` is set aside as one, because a score on ``test`` that has
    chosen the epoch would be too high. Each epoch is evaluated, unless the user names ``evaluation.every``.

    Args:
        recipe: the requested recipe.
        loaded: the data as that recipe loads them.
        named: the keys that the user set.
        is_whole: whether the user gave a whole recipe object, so that all keys count as named.
        continues: whether the training continues a finished run.

    Returns:
        Overrides for the recipe, and sentences for the user.

    Raises:
        RecipeError: the user asked for no ``val`` split, or for no evaluation before the end.
        RunError: the finished run has trained on all pictures that could be set aside.
    """
    if not recipe.training.must_choose:
        return [], []
    what, every = recipe.training.choices[0], recipe.evaluation.every
    needed, notes = [], []
    if "val" not in loaded.splits:
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
    if every != 1 and "evaluation.every" not in named and not is_whole:
        needed.append("evaluation.every=1")
    elif every == 0:
        raise RecipeError(
            f"{what} needs epochs to choose from, and evaluation.every is 0, which evaluates only the last "
            "one: --set evaluation.every=1"
        )
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

    All default recipes load data alike.
    """
    asked = "small" if recipe is None else recipe
    return asked.override(overrides) if isinstance(asked, Recipe) else load_recipe(asked, overrides)


def default_recipe(
    data: Data, network: str = FASTNET, overrides: Sequence[str] = (), subset_size: int = 0
) -> str:
    """The name of the recipe for ``data`` and ``network`` if the user names none.

    FastNet gets ``digits`` for the digits, ``small`` for up to 10,000 training pictures, otherwise ``fast``.
    For other networks, see :func:`recipe_for`. ``subset_size`` is how many of the pictures it is trained on;
    0 means all.
    """
    if network != FASTNET:
        return recipe_for(network, overrides)
    if data.source == "digits":
        return "digits"
    return "small" if in_subset(len(data.splits["train"]), subset_size) <= FEW_PICTURES else "fast"


def recipe_for(network: str, overrides: Sequence[str] = ()) -> str:
    """The name of the recipe that suits a network other than FastNet.

    That is ``resnet18`` for the network of that name; ``finetune`` for one of timm, unless ``overrides`` say
    that its weights are random; and ``one-cycle`` for all others.
    """
    if network == "resnet18":
        return "resnet18"
    random = any(one.replace(" ", "") == "model.pretrained=false" for one in overrides)
    return "finetune" if is_timm(network) and not random else "one-cycle"


def notes_on_settings(base: Recipe, chosen: Recipe, overrides: Sequence[str]) -> list[str]:
    """What ``overrides`` change in a recipe, or leave as it is, without naming it.

    Args:
        base: the recipe without them.
        chosen: the recipe with them.
        overrides: ``"section.key=value"`` settings.

    Returns:
        Sentences for the user.
    """
    named, notes = named_keys(None, overrides), []
    before, after = base.optimizer, chosen.optimizer
    if chosen.training.frozen:
        return []  # it uses no optimizer, and refuses what does not go with it
    rated = [group for group in before.groups if group.lr is not None]
    keeps_groups = "optimizer.groups" not in named and before.name == after.name
    if before.name != after.name:
        lost = [group for group in before.groups if group not in after.groups]
        if "optimizer.groups" not in named and lost:
            notes.append(
                f"the settings of single groups of parameters ({_shown(lost)}) are left out, because they "
                f"were chosen for {before.name}: all parameters have optimizer.lr"
            )
        if "optimizer.lr" not in named:
            notes.append(
                f"warning: optimizer.lr = {after.lr:g} was chosen for {before.name}, and {after.name} needs "
                f"another one, such as --set optimizer.lr={TYPICAL_RATES[after.name]:g}. "
                f"{command('lr-find', 'DATA')} finds one"
            )
    elif keeps_groups and rated and "optimizer.lr" in named:
        notes.append(
            "optimizer.lr does not change the groups of parameters that have a rate of their own "
            f"({_shown(rated)}). {command('lr-find', 'DATA')} suggests settings that change all rates"
        )
    if keeps_groups and rated and base.model.name == FASTNET != chosen.model.name:
        notes.append(
            f"the recipe {base.name} has rates for FastNet's groups of parameters ({_shown(rated)}), "
            f"which do not suit {chosen.model.name}; better: "
            f"--recipe {recipe_for(chosen.model.name, overrides)}"
        )
    if base.data.skip_easy and not chosen.data.skip_easy and "data.skip_easy" not in named:
        balanced = chosen.data.sampling == "balanced"
        what = "data.sampling = 'balanced'" if balanced else "mixing pictures (augment.mixup, augment.cutmix)"
        notes.append(f"no epoch skips easy pictures (data.skip_easy = 0): {what} does not go with that")
    return notes


def notes_on_rates(before: Recipe, after: Recipe, named: Collection[str]) -> list[str]:
    """What smaller batches (``training.min_steps``) change in learning rates that the user has set.

    Args:
        before, after: the recipe before and after it was fitted to the data or to the time.
        named: the keys that the user set.

    Returns:
        Sentences for the user.
    """
    size, smaller = before.training.batch_size, after.training.batch_size
    rated = any(group.lr is not None for group in before.optimizer.groups)
    sets_rate = "optimizer.lr" in named or ("optimizer.groups" in named and rated)
    if smaller == size or not sets_rate:
        return []
    factor = after.optimizer.lr / before.optimizer.lr
    return [
        f"warning: batches have {smaller} pictures instead of {size} (training.min_steps), so all learning "
        f"rates are {factor:.2g} times as high: optimizer.lr is {after.optimizer.lr:.2g}, not "
        f"{before.optimizer.lr:.3g}. To keep the rates that you set: --set training.min_steps=0"
    ]


def _shown(groups: Sequence[GroupSettings]) -> str:
    """The groups' patterns, with their learning rates if they have some."""
    rates = ["" if group.lr is None else f": {group.lr:g}" for group in groups]
    return ", ".join(f"{group.match!r}{rate}" for group, rate in zip(groups, rates, strict=True))


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

    Raises:
        DataError: the data cannot be loaded, or a ``val`` split would have to be set aside after their labels
            were corrected.
    """
    if isinstance(source, Data):
        settings = recipe.data
        if settings.val_fraction and "val" not in source.splits:
            source = _with_val(source, settings)
        return source if labels is None else apply_corrections(source, labels, Path())
    return load_data(
        source, data_dir=data_dir, settings=recipe.data, progress=listener.on_download, labels=labels
    )


def _with_val(data: Data, settings: DataSettings) -> Data:
    """Set ``val`` aside from loaded data, as :func:`thumbnet.load_data` would have done by ``settings``.

    Raises:
        DataError: it would have set other pictures aside, because it does so before it corrects the labels.
    """
    fraction, seed, group_by = settings.val_fraction, settings.split_seed, settings.group_by
    if data.settings is None:
        return with_held_out(data, 0, fraction, seed, group_by)
    if data.corrected is not None:
        raise DataError(
            f"the labels of {data.source} are corrected already, and val has to be set aside before that: "
            f"thumbnet.load_data(..., labels=..., val_fraction={fraction})"
        )
    loaded_by = replace(data.settings, val_fraction=fraction, split_seed=seed)
    return replace(with_held_out(data, 0, fraction, seed, group_by), settings=loaded_by)
