"""Plan a study: the same training with several seeds or folds, for each combination of varied settings.

Each training has a folder of its own, whose name says its settings, its seed and its fold. So the same plan
finds the trainings that have begun, and a plan with further values or seeds keeps those that are complete.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thumbnet.data.corrections import Correction, Labels, corrections_of
from thumbnet.data.splits import Data
from thumbnet.errors import DataError, RecipeError, RunError
from thumbnet.files import user_path
from thumbnet.recipes.recipe import Recipe
from thumbnet.runs.finding import is_finished, is_run
from thumbnet.runs.folder import Run
from thumbnet.sources.load import load_data
from thumbnet.training.asked import check_same_asked, check_same_corrections, what_was_asked
from thumbnet.training.choose import asked_recipe, check_balanced_once
from thumbnet.training.listener import Listener
from thumbnet.training.own_loss import find_code
from thumbnet.training.time_budget import check_free_of_length, check_minutes
from thumbnet.training.transfer import find_initial

_LONGEST = 40  # characters of a value in a folder's name
_TEST_PICTURES = ("data.folds", "data.fold", "data.test_fraction")  # settings that choose them
_FOLD = ("data.folds", "data.fold")  # of these, the settings that always change them
_SET_ASIDE_BY = ("data.split_seed", "data.group_by")  # settings that choose pictures to set aside
_FOLDS_INSTEAD = "To measure on all pictures: --folds 5"


@dataclass(frozen=True)
class Planned:
    """One training of a study.

    Attributes:
        path: its folder.
        overrides: all settings on top of the recipe, with the seed and the fold.
        settings: those of them that vary, and the seed. Trainings that differ only in the fold share them.
    """

    path: Path
    overrides: tuple[str, ...]
    settings: tuple[str, ...]


class ComparedSplit(Listener):
    """Refuses data whose trainings cannot be compared, before the first step.

    Attributes:
        split: the name of the split that a study is compared by; None for the one that each run reports.
        varied: the settings that vary, such as ``data.split_seed``.
    """

    def __init__(self, split: str | None, varied: Mapping[str, Sequence[str]] | None = None) -> None:
        self.split = split
        self.varied = frozenset(key for key, values in (varied or {}).items() if len(values) > 1)

    def on_data(self, data: Data) -> None:
        """Check the data.

        Raises:
            DataError: they lack the split.
            RecipeError: a setting that varies chooses the pictures of the split.
        """
        if self.split is not None and self.split not in data.splits:
            own = "Set a part of train aside: --val-fraction 0.1"
            advice = own if self.split == "val" else "Leave out --split test"
            raise DataError(f"{data.source} has no {self.split} split to compare by. {advice}")
        measured = self.split or data.measured_split()
        chosen = sorted(self.varied.intersection(_chosen_by(data, measured)))
        if chosen:
            raise RecipeError(
                f"{chosen[0]} varies, and it changes the pictures of {data.source} that are measured, so the "
                f"trainings could not be compared: give it one value. {_FOLDS_INSTEAD}"
            )


def _chosen_by(data: Data, measured: str) -> list[str]:
    """The settings that choose the pictures of the split ``measured`` of these data."""
    own = {"test", "val"} & data.splits.keys() - set(data.set_aside)
    keys = [] if own else ["data.test_fraction"]  # a test split is only set aside if the source has neither
    if measured not in own:
        keys += _SET_ASIDE_BY
        if measured != "test":
            keys.append("data.val_fraction")
    return keys


def plan(
    out: str | Path,
    recipe: str | Path | Recipe | None,
    overrides: Sequence[str],
    vary: Sequence[str],
    seeds: Sequence[int],
    minutes: float | None = None,
    folds: int = 0,
    labels: Labels | None = None,
) -> list[Planned]:
    """The trainings of a study, all checked: first all combinations with the first seed, then the next seed.

    So a study that is stopped has as many runs of each combination as possible. With folds, all combinations
    are trained with the first fold, then the next fold, before the next seed.

    Args:
        out: the study's folder.
        recipe, overrides, minutes: as for :func:`~thumbnet.training.train.train`, for all trainings.
        vary: what varies; see :func:`varied_settings`.
        seeds: the seeds of each combination.
        folds: train with each of this many folds of the data as test pictures; see
            :func:`~thumbnet.data.folds.with_test_fold`. 0 for no folds.
        labels: corrections of the data's labels, for all trainings, as for
            :func:`~thumbnet.training.train.train`.

    Raises:
        RecipeError: a setting is invalid, is both varied and in ``overrides``, is the seed, varies the
            fold, or chooses the test pictures although there are ``folds``; two combinations are the same;
            or a new one balances the classes twice.
        DataError: the corrections cannot be read.
        RunError: ``out`` is a file or a run; the folder of a training holds something else, or a run that was
            begun with other settings or corrections; or there are no weights in ``training.init``.
        ModelCodeError, OwnCodeError: the user's code that a combination names is not allowed, or is faulty.
    """
    folder = user_path(out)
    _check_study(folder)
    varied = varied_settings(vary)
    named = {assignment.partition("=")[0].strip() for assignment in overrides}
    if "seed" in named or "seed" in varied:
        raise RecipeError("a study sets the seed itself: leave out seed=..., and list the seeds with --seeds")
    chosen = [key for key in _TEST_PICTURES if key in named or key in varied]
    if folds and chosen:
        raise RecipeError(f"the folds decide which pictures are test: leave out {chosen[0]}")
    by_fold = [key for key in _FOLD if len(varied.get(key, ())) > 1]
    if by_fold:
        raise RecipeError(
            f"with different values of {by_fold[0]}, trainings have different test pictures, so they cannot "
            f"be compared: give it one value. {_FOLDS_INSTEAD}"
        )
    for key in varied.keys() & named:
        raise RecipeError(f"{key} is varied and also set to one value: leave out one of them")
    if minutes is not None:
        check_minutes(minutes)
        check_free_of_length([*overrides, *(f"{key}=" for key in varied)])
    corrections = [] if labels is None else corrections_of(labels)
    found: dict[str, Recipe] = {}
    planned = []
    divisions: list[tuple[int, int] | None] = [(number, folds) for number in range(1, folds + 1)]
    divisions = divisions or [None]
    for seed, fold, values in itertools.product(seeds, divisions, itertools.product(*varied.values())):
        assigned = [f"{key}={value}" for key, value in zip(varied, values, strict=True)]
        settings = (*assigned, f"seed={seed}")
        divided = () if fold is None else (f"data.folds={folds}", f"data.fold={fold[0]}")
        path = folder / folder_name(list(varied), values, seed, fold)
        one = Planned(path, (*overrides, *settings, *divided), settings)
        whole = asked_recipe(recipe, one.overrides)
        find_code(whole)
        name = one.path.name.casefold()  # some file systems do not distinguish case
        if name in found or whole in found.values():
            told = ", ".join(settings)
            raise RecipeError(f"two trainings are the same, or would have the same folder: {told}")
        found[name] = whole
        planned.append(one)
    for one in planned:
        _check_folder(one, recipe, minutes, corrections)
    whole_recipes = zip(planned, found.values(), strict=True)
    new = [whole for one, whole in whole_recipes if not is_run(one.path)]
    for whole in new:
        check_balanced_once(whole)
    for whole in {whole.training.init: whole for whole in new}.values():
        find_initial(whole)
    return planned


def _check_folder(
    planned: Planned,
    recipe: str | Path | Recipe | None,
    minutes: float | None,
    corrections: Sequence[Correction],
) -> None:
    """Check that a training may begin in its folder, or go on there.

    Raises:
        RunError: the folder holds something else, or a run that was begun with other settings or corrections.
    """
    if not is_run(planned.path):
        Run.check_free(planned.path)
        return
    run = Run.open(planned.path)
    check_same_asked(run, what_was_asked(recipe, planned.overrides), minutes)
    check_same_corrections(run, corrections)


def check_unchanged(planned: Sequence[Planned], data: Any, data_dir: str | Path | None = None) -> None:
    """Check that the data are those of the complete runs of a cross-validation, if there are trainings left.

    Otherwise only the measurement of all folds, after these trainings, would notice. Other folds than the
    first complete one are not checked, because all of them have the same pictures.

    Args:
        planned: the trainings of the study.
        data: their data, in any form that :func:`thumbnet.load_data` accepts.
        data_dir: the folder for downloads; the user's cache folder by default.

    Raises:
        RunError: the data have changed.
        DataError: the data cannot be loaded.
    """
    complete = [one.path for one in planned if is_finished(one.path)]
    if complete and len(complete) < len(planned):
        data_of_run(Run.open(complete[0]), data, data_dir)


def data_of_run(run: Run, data: Any, data_dir: str | Path | None = None) -> Data:
    """Load the data as in the training of a run of a cross-validation.

    Args:
        run: the run.
        data, data_dir: see :func:`check_unchanged`.

    Raises:
        RunError: they have changed.
        DataError: they cannot be loaded.
    """
    loaded = load_data(data, data_dir=data_dir, settings=run.recipe.data, labels=run.corrections)
    if loaded.fingerprint() != run.settings.get("fingerprint"):
        raise RunError(
            f"the data in {loaded.source} have changed since {run.path} was trained on them, so the folds "
            "are no longer parts of the same pictures. Put the data back, or train all folds again in "
            "another folder with --out"
        )
    return loaded


def _check_study(path: Path) -> None:
    """Check that the study's folder is not itself a run or a file.

    Raises:
        RunError: it is.
    """
    if is_run(path) or (path.exists() and not path.is_dir()):
        what = "a run" if path.is_dir() else "a file"
        raise RunError(f"{path} is {what}: --out must name a folder for all runs of the study")


def varied_settings(texts: Iterable[str]) -> dict[str, list[str]]:
    """Settings that vary, and their values, in the order given.

    >>> varied_settings(["augment.cutout=0,8", "augment.erase_area=[0.1, 0.2]", "augment.cutout=4"])
    {'augment.cutout': ['0', '8', '4'], 'augment.erase_area': ['[0.1, 0.2]']}

    Args:
        texts: ``KEY=VALUE,VALUE``; a key that comes again gets further values.

    Raises:
        RecipeError: there is no key, or an empty value.
    """
    varied: dict[str, list[str]] = {}
    for text in texts:
        key, equals, rest = text.partition("=")
        values = split_values(rest)
        if not equals or not key.strip() or "" in values:
            raise RecipeError(f"--vary {text}: expected KEY=VALUE,VALUE, such as augment.cutout=0,8")
        varied.setdefault(key.strip(), []).extend(values)
    return varied


def split_values(text: str) -> list[str]:
    """Split ``text`` at its commas, except those in brackets and in quoted strings, which belong to a value.

    >>> split_values("[0.02, 0.4], [0.1, 0.2], 'a,b', c")
    ['[0.02, 0.4]', '[0.1, 0.2]', "'a,b'", 'c']
    """
    values, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'" and (depth or not values[-1].strip()):
            quote = character
        elif character in "[{(":
            depth += 1
        elif character in "]})":
            depth = max(depth - 1, 0)
        elif character == "," and not depth:
            values.append("")
            continue
        values[-1] += character
    return [value.strip() for value in values]


def folder_name(
    keys: Sequence[str], values: Sequence[str], seed: int, fold: tuple[int, int] | None = None
) -> str:
    """The name of a training's folder: what varies, the seed, and the fold and the number of folds, if any.

    >>> folder_name(["augment.cutout", "model.name"], ["8", "resnet20"], 3)
    'cutout-8_model-resnet20_seed-3'
    >>> folder_name([], [], 3, (2, 5))
    'seed-3_fold-2-of-5'

    Only letters, digits and ``.,+-_`` occur in it. A value with other characters, or a long one, is shortened
    and gets a digest, so that different values have different names.
    """
    short = [key.removesuffix(".name").rpartition(".")[2] for key in keys]
    often = Counter(short)
    parts = [
        f"{name if often[name] == 1 else key}-{_as_name(value)}"
        for key, name, value in zip(keys, short, values, strict=True)
    ]
    last = [] if fold is None else [f"fold-{fold[0]}-of-{fold[1]}"]
    return "_".join([*parts, f"seed-{seed}", *last])


def _as_name(value: str) -> str:
    """A value as part of a folder's name, without outer quotes or brackets, spaces and colons."""
    inner = value[1:-1] if value[:1] + value[-1:] in ('""', "''", "[]") else value
    plain = inner.replace(" ", "").replace(":", "-")
    safe = re.sub(r"[^A-Za-z0-9.,+_-]+", "-", plain)
    if plain == safe and len(safe) <= _LONGEST:
        return safe
    return f"{safe[:_LONGEST].strip('-')}-{hashlib.sha256(value.encode(errors='replace')).hexdigest()[:6]}"
