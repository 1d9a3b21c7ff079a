"""Find the settings that suit a data set, within a given time, and train a network with them.

```text
tune.json       the data, the time, the recipe where the search started, and what it varies
journal.jsonl   every trial, by Optuna: see thumbnet.tuning.study
corrections.csv the corrections of labels, if there were any
recipe.toml     the best settings so far, for `thumbnet train DATA --recipe`; at the end with the epochs and
                the width of the final training
trials.csv      the finished trials
tune.html       what mattered
run/            the final training
summary.json    the outcome; exists only when everything is done
.lock           locked by the process that searches here
```

Nothing here prints. A :class:`~thumbnet.tuning.listener.TuneListener` receives the progress.
"""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from thumbnet.batches.cores import within_quota
from thumbnet.data.calibration import FEWEST
from thumbnet.data.corrections import Correction, Labels, corrections_of, read_corrections
from thumbnet.data.splits import Data
from thumbnet.errors import RecipeError, RunError, ThumbnetError
from thumbnet.files import (
    check_links,
    locked,
    read_json,
    remove_partial,
    user_path,
    write_file,
    write_json,
)
from thumbnet.hardware import choose_device, deterministic
from thumbnet.invocation import command, processes
from thumbnet.kernels.library import load_kernels
from thumbnet.models.registry import find_builder, provide
from thumbnet.recipes.recipe import Recipe, recipe_from_toml
from thumbnet.recipes.settings import TrainingSettings
from thumbnet.runs.fields import flag, items, optional_text, text
from thumbnet.runs.finding import SEARCH, is_search
from thumbnet.runs.folder import CORRECTIONS_NAME, LOCK_NAME, Run
from thumbnet.sources.load import data_dir_again, where_again
from thumbnet.training.call import ENDING, memory_of
from thumbnet.training.choose import asked_recipe, choose_recipe, load_for
from thumbnet.training.mirror_names import named_keys
from thumbnet.training.own_loss import changed_code, code_digests, find_code
from thumbnet.training.pretrained import fetch
from thumbnet.training.time_budget import check_minutes, may_choose_width
from thumbnet.training.transfer import find_initial, with_absolute_init
from thumbnet.tuning.listener import TuneListener
from thumbnet.tuning.page import check_page, train_again
from thumbnet.tuning.parts import Parts, divide, held_out_of
from thumbnet.tuning.plan import Cost, plan
from thumbnet.tuning.search import Search, Tuned, Tuner
from thumbnet.tuning.space import Knob, knobs
from thumbnet.tuning.study import load_optuna

SETS = "independent_sets"  # in tune.json: whether copies and groups count as one in the error of a gain


def tune(
    data: Any,
    recipe: str | Path | Recipe | None = None,
    *,
    minutes: float | None = None,
    trials: int | None = None,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    device: str | torch.device = "auto",
    data_dir: str | Path | None = None,
    listener: TuneListener | None = None,
    labels: Labels | None = None,
    started: float | None = None,
) -> Tuned:
    """Find the settings that suit ``data``, and train a network with them.

    The test split chooses nothing. The first trial is the recipe as it is, so the result is never worse than
    it by the search's own measure. The same seed and number of ``trials`` give the same result.

    Args:
        data: anything that :func:`thumbnet.load_data` accepts or returned.
        recipe: where the search starts; by default the recipe that ``train`` would choose.
        minutes: wall time for everything, the final training included.
        trials: end the search after this many trials. Without ``minutes``, exactly this many.
        overrides: ``"section.key=value"`` settings, which the search does not change.
        out: the folder; by default a new one in ``runs/``.
        device, data_dir, labels: see :func:`thumbnet.train`.
        listener: receives the events.
        started: when the clock started, in seconds of ``time.perf_counter``; by default now.

    Raises:
        ThumbnetError: something that the user can fix: data, recipe, folder, too little time, memory.
        InterruptedTuneError: the listener asked to stop. :func:`resume_tuning` goes on.
    """
    started = time.perf_counter() if started is None else started
    _check_asked(minutes, trials, _as_named(data))
    asked = asked_recipe(recipe, overrides)
    _check_searchable(asked, recipe, overrides, _as_named(data))
    load_optuna()
    check_page()
    with deterministic(), within_quota(), memory_of("search"):
        Run.check_free(out)
        find_initial(asked)
        chosen = choose_device(device)
        if chosen.type == "cpu":
            threading.Thread(target=load_kernels).start()  # compiles them, if needed, while the data load
        listener = listener or TuneListener()
        corrections = corrections_of(labels) if labels is not None else None
        base, loaded = choose_recipe(data, recipe, overrides, data_dir, listener, corrections)
        loaded.check_trainable()
        named = named_keys(None, overrides)  # those of a recipe file are where the search starts
        steps = base.training.steps
        listener.on_data(loaded)
        if steps:
            listener.on_note(f"training.steps = {steps} of the recipe is left out: trials have whole epochs")
        if base.training.must_choose:
            listener.on_note(_for_the_end(base.training))
        base = with_absolute_init(base).without_plan()
        base.to_toml()  # a recipe that cannot be written is refused before the search
        called = _Call(data, corrections, chosen, listener, started)
        parts = divide(loaded, base, chosen, listener.on_decode)
        weights = _weights_digest(base, parts)
        start = _planned(base, parts, len(loaded.class_names), called, minutes, trials, named)
        run = Run.create(out, loaded.source, "tune")
        settings = {
            "data": where_again(loaded.source),
            "data_dir": data_dir_again(data_dir),
            "fingerprint": loaded.fingerprint(),
            "corrected": loaded.corrected is not None,
            "minutes": minutes,
            "trials": trials,
            "same_time": start.same_time,
            "may_widen": start.same_time and may_choose_width(recipe, named, base),
            "held_out": parts.held_out,
            "weights_sha256": weights,
            SETS: True,
            "named": sorted(named_keys(recipe, overrides)),
            "recipe": start.recipe.to_toml(),
            "knobs": [knob.to_dict() for knob in start.varied],
            "code": code_digests(base),
        }
        with run.locked():  # from here on, the folder is known as one that thumbnet began
            if loaded.corrected is not None:
                write_file(run.path / CORRECTIONS_NAME, loaded.corrected.content)
            write_json(run.path / SEARCH, settings)
        return _search(run.path, settings, loaded, parts, start, called)


def resume_tuning(
    path: str | Path,
    *,
    device: str | torch.device = "auto",
    listener: TuneListener | None = None,
    data: Any = None,
    data_dir: str | Path | None = None,
    started: float | None = None,
    model: Callable[..., nn.Module] | None = None,
) -> Tuned:
    """Go on with a search that was stopped or killed. Finished trials are kept.

    The time of the search is counted without the interruption.

    Args:
        path: the folder of the search.
        device, listener, started: see :func:`tune`.
        data: the data of the search, if they were in memory.
        data_dir: folder for downloads and unpacked archives, if it is no longer the one that the search
            records, which then records this one.
        model: the class or function that builds the search's network, if it is one of your own.

    Raises:
        RunError: there is no search in ``path``, it is finished, its files are damaged, its data, its
            initial weights or the user's own code have changed, another process searches there, or it needs a
            network of the user's own.
        DataError: its data cannot be loaded any more.
    """
    started = time.perf_counter() if started is None else started
    folder = user_path(path)
    settings = before = _settings_of(folder)
    check_links(folder)
    load_optuna()
    check_page()
    with deterministic(), within_quota(), memory_of("search"):
        listener = listener or TuneListener()
        chosen = choose_device(device)
        try:
            base = recipe_from_toml(settings["recipe"])
            varied = tuple(Knob.from_dict(one) for one in settings["knobs"])
            source, recorded = (optional_text(settings[key], key) for key in ("data", "data_dir"))
            corrected, fingerprint = settings["corrected"], settings["fingerprint"]
            flag(settings["same_time"], "same_time")
            # Earlier versions did not record these.
            flag(settings.get(SETS, False), SETS)
            flag(settings.get("may_widen", False), "may_widen")
            items(settings.get("named", []), "named")
            optional_text(settings.get("weights_sha256"), "weights_sha256")
            for one in dict(settings.get("code", {})).values():
                text(one, "code")
            _check_asked(settings["minutes"], settings["trials"])
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RecipeError) as error:
            raise RunError(f"{folder / SEARCH} is damaged ({error}). Start a new search") from None
        settings = {**settings, "data_dir": data_dir_again(data_dir) or recorded}
        if model is not None:
            provide(base.model.name, model)
        find_code(base)  # if its code is not allowed, say so before the data are read
        given = source if data is None else data
        if given is None:
            raise RunError(
                f"the data of {folder} were in memory, so only Python can go on with it: "
                "thumbnet.resume_tuning(FOLDER, data=(images, labels))"
            )
        corrections = read_corrections(folder / CORRECTIONS_NAME) if corrected else None
        loaded = load_for(given, base, settings["data_dir"], listener, corrections)
        if loaded.fingerprint() != fingerprint:
            raise RunError(
                f"the data in {loaded.source} have changed since the search {folder} began: its trials could "
                "not be compared. Put them back, or start a new search"
            )
        listener.on_data(loaded)
        parts = divide(loaded, base, chosen, listener.on_decode)
        _check_comparable(folder, settings, base, parts)
        cost = None
        if settings["minutes"] is not None:
            cost = Cost.measure(base, parts, len(loaded.class_names), chosen)
        called = _Call(given, corrections, chosen, listener, started)
        return _search(folder, settings, loaded, parts, _Start(base, varied, cost=cost), called, before)


@dataclass(frozen=True)
class _Call:
    """What a search has from its caller; see :class:`Search`."""

    given: Any
    corrections: Sequence[Correction] | None
    device: torch.device
    listener: TuneListener
    started: float


@dataclass(frozen=True)
class _Start:
    """Where a search starts.

    Attributes:
        recipe: the recipe, with as many epochs as its trial has.
        varied: what the search varies.
        same_time: whether all trials take the same time, see :func:`~thumbnet.tuning.space.recipe_at`.
        cost: how long trainings take; None without a time.
        notes: what the user should know about the plan.
    """

    recipe: Recipe
    varied: tuple[Knob, ...]
    same_time: bool = False
    cost: Cost | None = None
    notes: tuple[str, ...] = ()


def _planned(
    base: Recipe,
    parts: Parts,
    classes: int,
    call: _Call,
    minutes: float | None,
    trials: int | None,
    named: frozenset[str],
) -> _Start:
    """Decide how the time is used, and what is varied.

    Args:
        base: the recipe for the data.
        parts: what trials train on.
        classes: the number of classes.
        call: the device, and when the clock started.
        minutes: the whole time, if there is one.
        trials: the number of trials, if there is one.
        named: the keys that the user set, which stay as they are.

    Raises:
        ThumbnetError: the time is too short.
    """
    cost: Cost | None = None
    notes: tuple[str, ...] = ()
    fixed = "training.epochs" in named
    if minutes is not None:
        cost = Cost.measure(base, parts, classes, call.device)
        left = call.started + 60 * minutes - time.perf_counter()
        data = _as_named(call.given)
        base, note = plan(base, parts, cost, minutes, left, trials, data=data, fixed=fixed)
        notes = (note,)
    # Weights to start from fit only the width that they were trained with.
    builder = find_builder(base.model.name)
    takes_width = not base.training.init and "width" in inspect.signature(builder).parameters
    varied = knobs(
        base,
        named,
        parts.pictures,
        parts.size,
        own=parts.own,
        takes_width=takes_width,
        epochs=minutes is None,
    )
    return _Start(base, varied, minutes is not None and not fixed, cost, notes)


def _check_asked(minutes: float | None, trials: int | None, data: str = "DATA") -> None:
    """Check the length of a search; advice names ``data``.

    Raises:
        ThumbnetError: neither is given, or one is out of range, or several processes were started.
    """
    if minutes is None and trials is None:
        raise ThumbnetError(
            f"say how long to search: {command('tune', data, '--minutes', '20')}, or --trials 30"
        )
    if minutes is not None:
        check_minutes(minutes)
    if trials is not None and trials < 1:
        raise ThumbnetError(f"--trials {trials}: expected 1 or more")
    if processes() > 1:
        raise ThumbnetError("tune runs in one process: start it without torchrun")


def _check_searchable(
    asked: Recipe, recipe: str | Path | Recipe | None, overrides: Sequence[str], data: str
) -> None:
    """Check that a search can begin with a recipe, before the data are loaded.

    Args:
        asked: the recipe with the ``overrides``.
        recipe, overrides: as the caller gave them.
        data: the data as a command names them.

    Raises:
        ThumbnetError: its only layer is computed directly, or the user set a number of steps.
    """
    if asked.training.frozen:
        words: list[str | Path] = ["train", data]
        if recipe is not None:
            words += ["--recipe", asked.name if isinstance(recipe, Recipe) else recipe]
        for one in overrides:
            words += [] if _key(one) == "training.init" else ["--set", one]
        raise ThumbnetError(
            f"the recipe {asked.name} computes its only layer directly, so there is nothing to search: "
            f"{command(*words, '--init', asked.training.init or 'RUN')}"
        )
    steps = asked.training.steps
    if steps and "training.steps" in map(_key, overrides):
        raise ThumbnetError(
            f"training.steps is {steps}: a search counts in epochs. Leave it out; --epochs 20 sets the "
            "length of every trial and of the final training"
        )


def _for_the_end(training: TrainingSettings) -> str:
    """Say that what chooses an epoch chooses none in a trial. ``training`` asks for such a choice."""
    return (
        f"{', '.join(training.choices)}: for the final training only. Trials run to their last epoch and are "
        "compared by its loss"
    )


def _check_comparable(folder: Path, settings: dict[str, Any], recipe: Recipe, parts: Parts) -> None:
    """Check that new trials start from the same weights as the finished ones, and are judged alike.

    Args:
        folder: the folder of the search.
        settings: its ``tune.json``.
        recipe: where the search started.
        parts: what new trials would train on.

    Raises:
        RunError: they are not.
    """
    weights = settings.get("weights_sha256")
    if weights is not None and weights != _weights_digest(recipe, parts):
        raise RunError(
            f"the weights of {recipe.training.init or recipe.model.name} have changed since the search "
            f"{folder} began with them: new trials could not be compared with the finished ones. Put them "
            "back, or start a new search"
        )
    if "named" not in settings and min(map(held_out_of, parts.parts)) < FEWEST:
        raise RunError(
            f"{folder} was begun by an earlier version, which judged trials by fewer than {FEWEST} "
            "pictures in another way: new trials could not be compared with them. Start a new search"
        )
    # Earlier versions let pictures judge that are left out now. The first ones did not record how many.
    before = settings.get("held_out", None if parts.left_out else parts.held_out)
    if before != parts.held_out:
        why = f", because {parts.left_out}" if parts.left_out else ""
        raise RunError(
            f"{folder} has judged its trials by other pictures than it would now{why}: new trials could "
            "not be compared with the finished ones. Start a new search"
        )


def _weights_digest(recipe: Recipe, parts: Parts) -> str | None:
    """SHA-256 of the file of weights from which all trials start; None if their weights are random.

    Raises:
        RunError: pretrained weights cannot be downloaded.
        MissingExtraError: timm or huggingface_hub is not installed.
    """
    if parts.initial is not None:
        return parts.initial.digest
    return fetch(recipe.model.name).record["sha256"] if recipe.model.pretrained is True else None


def _key(assignment: str) -> str:
    """The key of a ``"section.key=value"`` setting."""
    return assignment.partition("=")[0].strip()


def _search(
    folder: Path,
    settings: dict[str, Any],
    data: Data,
    parts: Parts,
    start: _Start,
    call: _Call,
    before: dict[str, Any] | None = None,
) -> Tuned:
    """Search in a folder in which no other process searches.

    A search that goes on had the settings ``before``.
    """
    search = Search(
        path=folder,
        settings=settings,
        data=data,
        given=call.given,
        corrections=call.corrections,
        parts=parts,
        recipe=start.recipe,
        varied=start.varied,
        cost=start.cost,
        device=call.device,
        listener=call.listener,
        started=call.started,
    )
    busy = f"another process searches in {folder}: wait for it, or stop it first"
    with locked(folder / LOCK_NAME, busy, wait=ENDING):
        remove_partial(folder)
        tuner = Tuner(search)
        if before is not None:
            settings.update(_of_its_trials(tuner))
            if settings != before:
                write_json(folder / SEARCH, settings)
        return tuner.run(start.notes)


def _of_its_trials(tuner: Tuner) -> dict[str, Any]:
    """What ``tune.json`` has to record anew for a search that goes on; nothing once a trial is finished.

    Raises:
        RunError: new trials could not be compared with the finished ones.
    """
    search, now = tuner.search, code_digests(tuner.search.recipe)
    if not tuner.records:
        return {"code": now, SETS: True}
    if not tuner.tries:
        return {}
    changed = changed_code(dict(search.settings.get("code", {})), now)
    if changed:
        files = " and ".join(f"the file with {attrgetter(key)(search.recipe)} ({key})" for key in changed)
        have = "have" if len(changed) > 1 else "has"
        raise RunError(
            f"{files} {have} changed since the search {search.path} began: new trials could not be compared "
            "with the finished ones. Undo the change, or start a new search"
        )
    if search.parts.together and not search.settings.get(SETS):
        raise RunError(
            f"{search.path} was begun by an earlier version, which took copies of a picture and pictures of "
            "one group for independent ones: new trials could not be compared with the finished ones. Start "
            "a new search"
        )
    return {}


def _as_named(data: Any) -> str:
    """The data as a command would name them."""
    return str(data) if isinstance(data, str | Path) else "DATA"


def _settings_of(folder: Path) -> dict[str, Any]:
    """The contents of ``tune.json`` of an unfinished search.

    Raises:
        RunError: there is no such search, or it is finished.
    """
    if not is_search(folder):
        what = "there is no folder" if not folder.exists() else "there is no search in"
        start = command("tune", "DATA", "--minutes", "20")
        raise RunError(f"{what} {folder}: {SEARCH} is missing. Start a search: {start}")
    settings = read_json(folder / SEARCH)
    if (folder / "summary.json").is_file():
        again = train_again(folder, settings)
        raise RunError(f"the search in {folder} is finished. To train with its result again: {again}")
    return settings
