"""Whether two runs are repetitions of one recipe, and in which settings they differ if not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from thumbnet.errors import RecipeError, RunError
from thumbnet.recipes.recipe import Recipe, has_effect
from thumbnet.recipes.settings import SMALLEST_BATCH
from thumbnet.recipes.tables import flattened
from thumbnet.reports.summary import ended_early
from thumbnet.runs.finding import is_finished
from thumbnet.runs.folder import Run, without_length

# What differs between the folds of one recipe: values of these, but not whether they have a value.
_OF_A_FOLD = ("data.fold", "fingerprint", "training.init")


def _asked(recipe: Recipe) -> dict[str, Any]:
    """The settings of a training for a given time, without what the clock decided.

    It decided the number of steps, the size of the batches, with which all rates change, and how often the
    network was evaluated. The width counts: networks of different widths are not repetitions.
    """
    described = without_length(recipe).with_batch_size(SMALLEST_BATCH).to_dict()
    for rates in (described["optimizer"], *described["optimizer"]["groups"]):
        if rates.get("lr") is not None:
            rates["lr"] = float(f"{rates['lr']:.5g}")
    for key in ("every", "sample"):
        described["evaluation"].pop(key, None)
    return described


def description(run: Run, followed: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The settings, data, time and early end of a run: runs that agree in all of these are repetitions.

    Settings that change no result are left out. A run that continues another one has the description of that
    run in place of its path, so those that continue repetitions are repetitions as well.

    Args:
        run: a complete run.
        followed: the runs that continue it: folders that were replaced may name each other in a circle.
    """
    settings = run.settings
    minutes = settings.get("minutes")
    described = _with_effect(run.recipe.to_dict() if minutes is None else _asked(run.recipe))
    continued = _continued(settings)
    if continued is not None and continued.path.resolve() not in followed:
        with suppress(RunError, RecipeError):  # a damaged one is compared by its path
            before = description(continued, (*followed, run.path.resolve()))
            earlier = continued.recipe
            described["training"]["init"] = json.dumps(before, sort_keys=True)
            subset_seed = earlier.seed if earlier.data.subset_seed is None else earlier.data.subset_seed
            if described["data"].get("subset_seed") == subset_seed:
                del described["data"]["subset_seed"]  # --more-epochs has set it
    described.pop("seed", None)
    described["training"].pop("min_steps", None)  # the size of the batches says what came of it
    described["data"].pop("images", None)  # where the pictures lie; the fingerprint says which they are
    stop = ended_early(run.summary)
    ended = None if stop is None else [stop["step"], stop["planned_steps"]]
    return described | {"minutes": minutes, "fingerprint": settings.get("fingerprint"), "ended": ended}


def _with_effect(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's settings without those that change no result."""
    return {
        section: {key: one for key, one in values.items() if has_effect(f"{section}.{key}")}
        if isinstance(values, dict)
        else values
        for section, values in settings.items()
        if has_effect(section)
    }


def _continued(settings: Mapping[str, Any]) -> Run | None:
    """The run that one with these ``settings`` continues; None if it continues no other, or that is gone."""
    continued = settings.get("continues")
    if continued is None:
        return None
    try:
        found = Path(continued["run"])
        return Run(found) if is_finished(found) else None
    except OSError:  # no permission to look there, or a name that is too long
        return None


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's settings with dotted keys; those of a group of parameters have its pattern in the key."""
    optimizer = dict(settings["optimizer"])
    for group in optimizer.pop("groups"):
        optimizer |= {f"groups {group['match']} {key}": one for key, one in group.items() if key != "match"}
    return flattened({**settings, "optimizer": optimizer})


def code_of(run: Run) -> str | None:
    """A digest of the user's own code that a run was trained with; None if there is none, or it is unknown.

    A run whose code changed before it was resumed has one of its own.
    """
    recorded = [run.settings.get(key) for key in ("code", "code_before")]
    if not recorded[0]:
        return None
    return hashlib.sha256(json.dumps(recorded, sort_keys=True).encode()).hexdigest()[:8]


def differing(runs: Sequence[Run], codes: Sequence[str | None]) -> list[dict[str, Any]]:
    """The settings in which the runs differ, with the values of their recipes.

    Those in which runs of one recipe's name differ come first: between recipes, the names tell most. What the
    clock of a training for a given time decided is left out.

    Args:
        runs: one of each group.
        codes: the code of each, see :func:`code_of`; None where other settings tell the groups apart.

    Returns:
        one dictionary per run; all have the same keys.
    """
    described = [description(run) for run in runs]
    asked = [_flat(one) | {"code": code} for one, code in zip(described, codes, strict=True)]
    used = [
        _flat(run.recipe.to_dict() | {key: one[key] for key in ("minutes", "fingerprint", "ended")})
        | {"code": code}
        for run, one, code in zip(runs, described, codes, strict=True)
    ]
    named: dict[str, list[int]] = {}
    for position, run in enumerate(runs):
        named.setdefault(run.recipe.name, []).append(position)

    def differs(key: str, positions: Sequence[int]) -> bool:
        first = positions[0]
        return any(
            asked[first].get(key) != asked[other].get(key) and used[first].get(key) != used[other].get(key)
            for other in positions[1:]
        )

    known = dict.fromkeys(key for one in used for key in one)
    keys = [key for key in known if differs(key, range(len(runs)))]
    keys.sort(key=lambda key: not any(differs(key, same) for same in named.values()))
    return [{key: one.get(key) for key in keys} for one in used]


def recipe_difference(first: Run, second: Run) -> str | None:
    """The first setting in which the recipes of two folds differ; None if they were trained by one recipe.

    Their seeds may differ, and so may the weights that they began with and the step at which the user ended
    them. If the user asked for the same, nothing else counts: what thumbnet then fits to the number of
    pictures or to the given time may differ between folds.

    Args:
        first, second: complete runs of different folds (``data.fold``).
    """
    asked = _asked_of_a_fold(first)
    if asked is not None and asked == _asked_of_a_fold(second):
        return None
    one, other = (_fold_free(_flat(description(run))) for run in (first, second))
    keys = dict.fromkeys((*one, *other))
    return next((key for key in keys if key != "ended" and one.get(key) != other.get(key)), None)


def _asked_of_a_fold(run: Run) -> tuple[Any, ...] | None:
    """What the user asked for in the training of a fold, without the fold; None if the run has no record."""
    asked = run.settings.get("asked")
    if asked is None:
        return None
    settings = _fold_free({key: one for key, one in asked["settings"].items() if key != "seed"})
    return asked["recipe"], settings, run.settings.get("minutes")


def _fold_free(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with dotted keys, of which those of a single fold say only whether they have a value."""
    return {key: bool(one) if key in _OF_A_FOLD else one for key, one in settings.items()}
