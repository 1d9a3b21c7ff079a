"""Train a finished run for longer: a new run that starts where the finished one ended.

The finished run has used up its schedule, and its learning rate is at its lowest. The new run repeats the
last part of the schedule: after E epochs, for N more, its rate starts where a training of E + N epochs would
be after E of them, and falls to the end again. It starts from the weights that the finished run kept. Its
optimizer is new: momentum that was gathered at a rate of nearly zero says little. Its random numbers are
new, too, or the same batches would come again. The finished run is not changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from thumbnet.errors import RecipeError, RunError
from thumbnet.invocation import command
from thumbnet.recipes.recipe import Recipe
from thumbnet.runs.folder import Run


@dataclass(frozen=True)
class Continuation:
    """What to train, so that it goes on from a finished run.

    Attributes:
        data, data_dir: the finished run's; no ``data`` where they were in memory.
        recipe: the finished run's, with other epochs, seed, initial weights and beginning of the schedule.
        fingerprint: of the finished run's data.
        record: for the new run's ``run.json``: the finished run, and how many epochs it took to come there.
    """

    data: str | None
    data_dir: str | None
    recipe: Recipe
    fingerprint: str
    record: dict[str, Any]


def continuation(path: str | Path, epochs: int, overrides: Sequence[str] = ()) -> Continuation:
    """How to train the finished run in ``path`` for ``epochs`` more.

    Args:
        path: its folder.
        epochs: 1 or more.
        overrides: settings that are to be other than in its recipe.

    Raises:
        RunError: there is no run, or it is not finished.
        RecipeError: ``epochs`` or ``overrides`` are refused.
    """
    run = Run.open(path)
    if epochs < 1:
        raise RecipeError(f"--more-epochs {epochs}: expected 1 or more")
    if not run.is_complete:
        raise RunError(
            f"{run.path} is not finished, so there is nothing to add to yet. Finish it first: "
            f"{command('train', '--resume', run.path)}"
        )
    recipe, settings = run.recipe, run.settings
    earlier = settings.get("continues")
    before = run.summary["epochs"] + (earlier["epochs"] if isinstance(earlier, dict) else 0)
    place = str(run.path.resolve())
    longer = replace(
        recipe,
        seed=(recipe.seed + before) % 2**63,
        schedule=replace(recipe.schedule, begin_at=before / (before + epochs)),
        training=replace(recipe.training, epochs=epochs, init=place),
    )
    return Continuation(
        data=settings.get("data"),
        data_dir=settings.get("data_dir"),
        recipe=longer.override(overrides),
        fingerprint=str(settings.get("fingerprint")),
        record={"run": place, "epochs": before},
    )
