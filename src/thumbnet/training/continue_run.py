"""Train a finished run for longer: a new run that starts where the finished one ended.

The finished run has reached the end of its schedule, where the learning rate is lowest. The new run repeats
the last part of the schedule. To add N epochs to E, its rate starts where a training of E + N epochs would be
after E of them, and falls to the end again. It starts from the weights that the finished run kept. The
optimizer is new, because momentum gathered at a rate near zero says little. All layers learn from the first
step on. The random numbers are new as well, because otherwise the same batches would come again. Only a
random subset of the pictures (``data.subset_size``) stays the same. The finished run does not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from thumbnet.data.corrections import Correction
from thumbnet.errors import RecipeError, RunError
from thumbnet.invocation import command
from thumbnet.recipes.recipe import Recipe
from thumbnet.runs.finding import ways_on
from thumbnet.runs.folder import Run
from thumbnet.training.choose import notes_on_settings
from thumbnet.training.mirror_names import named_keys


@dataclass(frozen=True)
class Continuation:
    """What to train to continue a finished run.

    Attributes:
        data, data_dir: those of the finished run; ``data`` is None if they were in memory.
        recipe: that of the finished run, with new epochs, seed, initial weights and ``schedule.begin_at``.
        fingerprint: that of the finished run's data.
        record: goes into the new run's ``run.json``: the finished run, and all epochs trained up to its end.
        corrections: those of the finished run, if any.
        notes: what the user should know about the new settings.
    """

    data: str | None
    data_dir: str | None
    recipe: Recipe
    fingerprint: str
    record: dict[str, Any]
    corrections: list[Correction] | None = None
    notes: tuple[str, ...] = ()


def continuation(path: str | Path, epochs: int, overrides: Sequence[str] = ()) -> Continuation:
    """Plan how to train the finished run in ``path`` for more ``epochs``.

    Args:
        path: the run's folder.
        epochs: 1 or more.
        overrides: settings that differ from the run's recipe.

    Raises:
        RunError: there is no run, or it is not finished.
        RecipeError: ``epochs`` or ``overrides`` are invalid.
    """
    run = Run.open(path)
    if epochs < 1:
        raise RecipeError(f"--more-epochs {epochs}: expected 1 or more")
    if not run.is_complete:
        raise RunError(
            f"{run.path} is not finished, so there is nothing to add to yet. "
            f"{ways_on(run.path, 'First finish')}"
        )
    recipe, settings = run.recipe.without_plan(), run.settings
    if recipe.training.frozen:
        raise RunError(
            f"{run.path} trained only its last layer, to the end: more epochs change nothing. To train all "
            f"layers from its weights: {command('train', 'DATA', '--init', run.path)}"
        )
    earlier = settings.get("continues")
    before = run.summary["epochs"] + (earlier["epochs"] if isinstance(earlier, dict) else 0)
    if recipe.data.subset_size and recipe.data.subset_seed is None:
        same_pictures = replace(recipe.data, subset_seed=recipe.seed)
        recipe = replace(recipe, data=same_pictures)
    place = str(run.path.resolve())
    longer = replace(
        recipe,
        seed=(recipe.seed + before) % 2**63,
        schedule=replace(recipe.schedule, begin_at=before / (before + epochs), head_first=0.0),
        model=replace(recipe.model, pretrained=False),
        training=replace(recipe.training, epochs=epochs, init=place),
    )
    longer = longer.override(overrides)
    must_choose_now = longer.training.must_choose and not recipe.training.must_choose
    if must_choose_now and "evaluation.every" not in named_keys(None, overrides):
        longer = longer.override(["evaluation.every=1"])  # as in a new training
    return Continuation(
        data=settings.get("data"),
        data_dir=settings.get("data_dir"),
        recipe=longer,
        fingerprint=str(settings.get("fingerprint")),
        record={"run": place, "epochs": before},
        corrections=run.corrections,
        notes=tuple(notes_on_settings(recipe, longer, overrides)),
    )
