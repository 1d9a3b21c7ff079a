"""What the user asked of a training: recorded in ``run.json``, and compared when the same call comes again.

A run's recipe does not say that, because it was fitted to the data. So the record has the recipe's name and
the settings that the user named. It holds no setting of a recipe that comes with thumbnet, so a newer version
with another default still knows the call. A recipe of the user's own is recorded by all settings that differ
from the defaults. Code of the user's own is compared by the digest of its file, which the run records, once
a part of the training is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from thumbnet.data.corrections import Correction, corrections_csv
from thumbnet.errors import RunError, printable
from thumbnet.files import finite
from thumbnet.invocation import command, quoted
from thumbnet.recipes.recipe import Recipe, has_effect, recipe_names
from thumbnet.recipes.tables import differences, flattened
from thumbnet.runs.finding import has_end
from thumbnet.runs.folder import CORRECTIONS_NAME, Run
from thumbnet.training.choose import asked_recipe
from thumbnet.training.mirror_names import named_keys
from thumbnet.training.own_loss import changed_code, code_digests
from thumbnet.training.transfer import with_absolute_init

DEFAULT, OWN = "default", "own"  # in place of the name of a recipe that comes with thumbnet
_SHOWN = {DEFAULT: "chosen by the data", OWN: "one of your own"}
_MISSING = object()


def what_was_asked(recipe: str | Path | Recipe | None, overrides: Sequence[str]) -> dict[str, Any]:
    """The record of a call to :func:`~thumbnet.training.train.train`, for ``run.json``.

    Settings that do not change the result are left out.

    >>> what_was_asked("fast", ["seed=1", "data.workers=4"])
    {'recipe': 'fast', 'settings': {'seed': 1}}

    Args:
        recipe, overrides: those of the call.

    Raises:
        RecipeError: there is no such recipe, or a setting is invalid.
    """
    whole = with_absolute_init(asked_recipe(recipe, overrides)).to_dict()
    if recipe is None or (not isinstance(recipe, Recipe) and str(recipe) in recipe_names()):
        name = DEFAULT if recipe is None else str(recipe)
        settings = {key: _at(whole, key) for key in named_keys(None, overrides)}
    else:
        name, settings = OWN, flattened(differences(whole, Recipe().to_dict()))
    kept = {key: settings[key] for key in sorted(settings) if has_effect(key)}
    return {"recipe": name, "settings": finite(kept)}  # as JSON keeps it


def check_same_asked(run: Run, asked: Mapping[str, Any], minutes: float | None) -> None:
    """Check that a run was begun by a call that asked the same.

    Args:
        run: a run that has begun. One of an earlier version has no record; only its time is compared.
        asked: what :func:`what_was_asked` returned for the new call.
        minutes: the time that the new call gives.

    Raises:
        RunError: it was begun with other settings, or has been trained with other code of the user's own; the
            message lists what differs.
    """
    settings = run.settings
    changed = [] if settings.get("asked") is None else _changes(settings["asked"], asked)
    if settings.get("minutes") != minutes:
        changed.insert(0, f"minutes: was {_show(settings.get('minutes'))}, now {_show(minutes)}")
    what, new, how = "other settings", "the new ones", "as it began"
    # The same call names the same code. A run that begins again uses nothing that earlier code has trained.
    if not changed and settings.get("code") and (run.is_complete or has_end(run.path)):
        recipe = run.recipe
        keys = changed_code(settings["code"], code_digests(recipe))
        changed = [f"{key}: the file with {attrgetter(key)(recipe)} has changed" for key in keys]
        what, new, how = "other code", "the new code", "with the code as it is now"
    if not changed:
        return
    lines = "".join(f"\n  {printable(line)}" for line in changed)
    advice = f"To train with {new}, name another folder with --out."
    if not run.is_complete:
        advice += f" To finish the run {how}: {command('train', '--resume', run.path)}"
    raise RunError(f"the run {run.path} was begun with {what}:{lines}\n{advice}")


def check_same_corrections(run: Run, corrections: Sequence[Correction]) -> None:
    """Check that a run that is to go on was begun with these corrections.

    Raises:
        RunError: it has other ones, or none.
    """
    before = run.corrections or []
    if corrections_csv(before) == corrections_csv(corrections):
        return
    if not before:
        what, advice = "without corrected labels", "leave out --labels"
    else:
        what = "with other corrections of labels" if corrections else "with corrected labels"
        advice = f"use --labels {quoted(str(run.path / CORRECTIONS_NAME))}"
    raise RunError(f"the run {run.path} was begun {what}: {advice}, or name another folder with --out")


def _changes(before: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """What differs between two records, one line each."""
    old, new = before["recipe"], asked["recipe"]
    lines = []
    if old != new:
        lines.append(f"recipe: was {_SHOWN.get(old, old)}, now {_SHOWN.get(new, new)}")
    if old != new and OWN in (old, new):
        return lines  # one record has the whole recipe, and the other only what was named
    defaults = Recipe().to_dict()

    def value(settings: Mapping[str, Any], key: str) -> Any:
        return settings.get(key, _at(defaults, key) if new == OWN else _MISSING)

    for key in sorted(before["settings"].keys() | asked["settings"].keys()):
        was, now = value(before["settings"], key), value(asked["settings"], key)
        if was != now and has_effect(key):
            lines.append(f"{key}: was {_show(was)}, now {_show(now)}")
    return lines


def _show(value: object) -> str:
    return "not set" if value is _MISSING or value is None else repr(value)


def _at(table: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key; None if there is none, as for a setting that is None."""
    found: Any = table
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found
