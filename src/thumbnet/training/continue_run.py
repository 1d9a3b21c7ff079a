"""Train a finished run for longer: a new run that starts where the finished one ended.

The finished run has reached the end of its schedule, where the learning rate is lowest. The new run repeats
the last part of the schedule. To add N epochs to E, its rate starts where a training of E + N epochs would be
after E of them, and falls to the end again. All layers learn from the first step on: with
``schedule.head_first``, the schedule is that of the part after the head. The new run starts from the weights
that the finished run kept. The optimizer is new, because momentum gathered at a rate near zero says little.
The random numbers are new as well, because otherwise the same batches would come again. Only a random subset
of the pictures (``data.subset_size``) stays the same. The finished run does not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from thumbnet.data.corrections import Correction
from thumbnet.errors import RecipeError, RunError
from thumbnet.invocation import command
from thumbnet.recipes.recipe import Recipe
from thumbnet.runs.fields import flag, number, table, text, wrong
from thumbnet.runs.finding import is_run, ways_on
from thumbnet.runs.folder import Run
from thumbnet.training.choose import notes_on_settings
from thumbnet.training.mirror_names import named_keys
from thumbnet.training.schedules import after_head


@dataclass(frozen=True)
class Continuation:
    """What to train to continue a finished run.

    Attributes:
        data, data_dir: those of the finished run; ``data`` is None if they were in memory.
        recipe: that of the finished run, with new epochs, seed, initial weights and ``schedule.begin_at``.
        fingerprint: that of the finished run's data.
        record: goes into the new run's ``run.json``: the finished run, all epochs trained up to its end, and
            the :class:`Beginning` if it is known.
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

    def check_same_data(self, fingerprint: str, source: str) -> None:
        """Check that ``source`` holds the data that the finished run was trained on.

        Raises:
            RunError: they have changed.
        """
        if fingerprint != self.fingerprint:
            init = self.record["run"]
            raise RunError(
                f"the data in {source} have changed since the run {init} was trained. To train on them as "
                f"they are now, from its weights: {command('train', source, '--init', init)}"
            )


@dataclass(frozen=True)
class Beginning:
    """What the first of several runs began with, if each run continues the one before.

    Attributes:
        pretrained: ``model.pretrained``, resolved.
        init: ``training.init``.
        head_first: ``schedule.head_first``.
    """

    pretrained: bool = False
    init: str = ""
    head_first: float = 0.0


def beginning(run: Run) -> Beginning | None:
    """What the training of ``run`` began with, whichever runs it continues.

    Runs of earlier versions do not record it, so the runs that they continue are looked up; None if one of
    these is gone.

    Raises:
        RunError: a file of a run is damaged.
    """
    met: set[Path] = set()
    while isinstance(continued := run.settings.get("continues"), dict):
        if "began" in continued:
            return _beginning_from(continued["began"], run)
        met.add(run.path.resolve())
        earlier = Path(str(continued["run"]))
        if not is_run(earlier) or earlier.resolve() in met:
            return None
        run = Run(earlier)
    recipe = run.recipe
    return Beginning(recipe.model.pretrained is True, recipe.training.init, recipe.schedule.head_first)


def _beginning_from(began: Any, run: Run) -> Beginning:
    """A recorded :class:`Beginning`."""
    try:
        values = table(began, "continues.began", ("pretrained", "init", "head_first"))
        pretrained = flag(values["pretrained"], "continues.began.pretrained")
        init = text(values["init"], "continues.began.init")
        share = number(values["head_first"], "continues.began.head_first", 0, 1)
        if share == 1:
            raise wrong(share, "continues.began.head_first", "a fraction in [0, 1)")
    except ValueError as error:
        raise RunError(f"cannot read {run.path / 'run.json'}: {error}") from None
    return Beginning(pretrained, init, share)


def _check_overrides(before: Recipe, after: Recipe, run: Path) -> None:
    """Check that settings for more epochs leave alone what makes them a continuation of ``run``.

    Args:
        before, after: the planned recipe without these settings, and with them.
        run: the finished run.

    Raises:
        RecipeError: they change the length or the initial weights.
    """
    length, start = "--more-epochs says how long to train", f"the new run starts from the weights of {run}"
    fixed = {
        "training.epochs": length,
        "training.steps": length,
        "training.init": start,
        "model.pretrained": start,
    }
    for key, why in fixed.items():
        value = attrgetter(key)(after)
        if value != attrgetter(key)(before):
            raise RecipeError(f"{key} = {value!r} does not go with --more-epochs: {why}. Leave it out")


def continuation(path: str | Path, epochs: int, overrides: Sequence[str] = ()) -> Continuation:
    """Plan how to train the finished run in ``path`` for more ``epochs``.

    Args:
        path: the run's folder.
        epochs: 1 or more.
        overrides: settings that differ from the run's recipe.

    Raises:
        RunError: there is no run, it is not finished, or its files, or those of a run that it continues, are
            damaged.
        RecipeError: ``epochs`` or ``overrides`` are invalid, or ``overrides`` change the length or the
            initial weights.
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
    place, began = str(run.path.resolve()), beginning(run)
    head_first = recipe.schedule.head_first if began is None else began.head_first
    whole = replace(recipe.schedule, head_first=head_first)
    begin_at = after_head(whole, before / (before + epochs))
    planned = replace(
        recipe,
        seed=(recipe.seed + before) % 2**63,
        schedule=replace(recipe.schedule, begin_at=begin_at, head_first=0.0),
        model=replace(recipe.model, pretrained=False),
        training=replace(recipe.training, epochs=epochs, init=place),
    )
    longer = planned.override(overrides)
    _check_overrides(planned, longer, run.path)
    must_choose_now = longer.training.must_choose and not recipe.training.must_choose
    if must_choose_now and "evaluation.every" not in named_keys(None, overrides):
        longer = longer.override(["evaluation.every=1"])  # as in a new training
    return Continuation(
        data=settings.get("data"),
        data_dir=settings.get("data_dir"),
        recipe=longer,
        fingerprint=str(settings.get("fingerprint")),
        record={"run": place, "epochs": before} | ({} if began is None else {"began": asdict(began)}),
        corrections=run.corrections,
        notes=tuple(notes_on_settings(recipe, longer, overrides)),
    )
