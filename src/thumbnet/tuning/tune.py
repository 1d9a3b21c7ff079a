"""Find the settings that suit a data set, within a given time, and train a network with them.

```text
tune.json       the data, the time, the recipe where the search started, and what it varies
journal.jsonl   every trial, by Optuna: see thumbnet.tuning.study
corrections.csv the corrections of labels, if there were any
recipe.toml     the best settings so far, for `thumbnet train DATA --recipe`
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
import json
import math
import os
import threading
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from thumbnet.data.corrections import Correction, corrections_of, read_corrections
from thumbnet.data.splits import Data
from thumbnet.errors import (
    DivergedError,
    InterruptedRunError,
    InterruptedTuneError,
    OutOfMemoryError,
    RunError,
    ThumbnetError,
    memory_guard,
)
from thumbnet.evaluation import wilson_interval
from thumbnet.files import locked, write_file
from thumbnet.hardware import choose_device, deterministic
from thumbnet.invocation import command
from thumbnet.kernels.library import load_kernels
from thumbnet.models.registry import find_builder
from thumbnet.recipes.recipe import Recipe, recipe_from_dict
from thumbnet.runs.folder import CORRECTIONS_NAME, LOCK_NAME, Run
from thumbnet.training.choose import choose_recipe, load_for
from thumbnet.training.fit import StepResult
from thumbnet.training.time_budget import check_minutes, may_narrow
from thumbnet.training.train import train, where_again, with_absolute_init
from thumbnet.tuning.listener import Progress, TuneListener
from thumbnet.tuning.page import check_page, trials_csv, write_page
from thumbnet.tuning.parts import Parts, divide
from thumbnet.tuning.plan import FINAL_SHARE, SPARE, WRITING, Cost, plan
from thumbnet.tuning.space import EPOCHS, Knob, knobs, recipe_at
from thumbnet.tuning.study import Record, Study, Suggestion, best_of, load_optuna
from thumbnet.tuning.trial import HopelessTrialError, run_trial

SETTINGS = "tune.json"
RUN = "run"
LATE = 1.1  # a trial is given up if it would end later than its share of the time by this factor


@dataclass(frozen=True)
class Tuned:
    """A finished search.

    Attributes:
        path: its folder.
        recipe: the best settings.
        run: the network that was trained with them.
    """

    path: Path
    recipe: Recipe
    run: Run

    @property
    def start(self) -> Recipe:
        """The recipe where the search started."""
        return recipe_from_dict(tomllib.loads(_read(self.path / SETTINGS)["recipe"]))

    @property
    def summary(self) -> dict[str, Any]:
        """The contents of ``summary.json``."""
        return _read(self.path / "summary.json")


@dataclass(frozen=True)
class _Search:
    """Everything that a search needs, from its arguments or from its folder.

    Attributes:
        path: the folder.
        settings: the contents of ``tune.json``.
        data: the loaded data, with corrections.
        given: the data as the user gave them, for the final training.
        corrections: corrections of labels, if any.
        parts: what trials train on.
        recipe: where the search starts.
        varied: what it varies.
        cost: how long trainings take; None for a search without a time.
        device, listener: as in the call.
        started: when the search began, in seconds of ``time.perf_counter``, without interruptions.
    """

    path: Path
    settings: dict[str, Any]
    data: Data
    given: Any
    corrections: Sequence[Correction] | None
    parts: Parts
    recipe: Recipe
    varied: tuple[Knob, ...]
    cost: Cost | None
    device: torch.device
    listener: TuneListener
    started: float


def tune(
    data: Any,
    recipe: str | Path | Recipe | None = None,
    *,
    minutes: float | None = None,
    trials: int | None = None,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    device: str = "auto",
    data_dir: str | Path | None = None,
    listener: TuneListener | None = None,
    labels: str | Path | Sequence[Correction] | None = None,
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
    _check_asked(minutes, trials)
    load_optuna()
    check_page()
    with deterministic(), _memory():
        if out is not None:
            Run.check_free(out)
        chosen = choose_device(device)
        if chosen.type == "cpu":
            threading.Thread(target=load_kernels).start()  # compiles them, if needed, while the data load
        listener = listener or TuneListener()
        corrections = corrections_of(labels) if labels is not None else None
        base, loaded = choose_recipe(data, recipe, overrides, data_dir, listener, corrections)
        loaded.check_trainable()
        listener.on_data(loaded)
        base = _without_length_in_steps(with_absolute_init(base))
        parts = divide(loaded, base, chosen, listener.on_decode)
        named = frozenset(assignment.partition("=")[0].strip() for assignment in overrides)
        notes, shortened, most, cost = [], False, int(EPOCHS[1] * base.training.epochs), None
        if minutes is not None:
            cost = Cost.measure(base, parts, len(loaded.class_names), chosen)
            left = started + 60 * minutes - time.perf_counter()
            fixed = "training.epochs" in named
            narrow = may_narrow(recipe, overrides, base)
            planned = plan(base, parts, cost, minutes, left, fixed=fixed, may_narrow=narrow)
            base, shortened, most = planned.recipe, planned.shortened, planned.most_epochs
            notes.append(planned.note)
        varied = knobs(
            base,
            named,
            parts.pictures,
            parts.size,
            takes_width="width" in inspect.signature(find_builder(base.model.name)).parameters,
            most_epochs=most,
            shortened=shortened,
        )
        run = Run.create(out, loaded.source, "tune")
        settings = {
            "data": where_again(loaded.source),
            "data_dir": None if data_dir is None else str(Path(data_dir).resolve()),
            "fingerprint": loaded.fingerprint(),
            "corrected": corrections is not None,
            "minutes": minutes,
            "trials": trials,
            "shortened": shortened,
            "recipe": base.to_toml(),
            "knobs": [knob.to_dict() for knob in varied],
        }
        if loaded.corrected is not None:
            write_file(run.path / CORRECTIONS_NAME, loaded.corrected.content)
        write_file(run.path / SETTINGS, _pretty(settings))
        search = _Search(
            run.path,
            settings,
            loaded,
            data,
            corrections,
            parts,
            base,
            varied,
            cost,
            chosen,
            listener,
            started,
        )
        return _locked(search, notes)


def resume_tuning(
    path: str | Path,
    *,
    device: str = "auto",
    listener: TuneListener | None = None,
    data: Any = None,
    started: float | None = None,
) -> Tuned:
    """Go on with a search that was stopped or killed. Finished trials are kept.

    The time of the search is counted without the interruption.

    Args:
        path: the folder of the search.
        device, listener, started: see :func:`tune`.
        data: the data of the search, if they were in memory.

    Raises:
        RunError: there is no search in ``path``, it is finished, its files are damaged, its data have
            changed, or another process searches there.
        DataError: its data cannot be loaded any more.
    """
    started = time.perf_counter() if started is None else started
    folder = Path(path).expanduser()
    settings = _settings_of(folder)
    load_optuna()
    check_page()
    with deterministic(), _memory():
        listener = listener or TuneListener()
        chosen = choose_device(device)
        try:
            base = recipe_from_dict(tomllib.loads(settings["recipe"]))
            varied = tuple(Knob.from_dict(one) for one in settings["knobs"])
            source, data_dir = settings["data"], settings["data_dir"]
            corrected, fingerprint = settings["corrected"], settings["fingerprint"]
            _check_asked(settings["minutes"], settings["trials"])
        except (KeyError, TypeError, AttributeError, tomllib.TOMLDecodeError) as error:
            raise RunError(f"{folder / SETTINGS} is damaged ({error}). Start a new search") from None
        find_builder(base.model.name)  # if its code is not allowed, say so before the data are read
        given = source if data is None else data
        if given is None:
            raise RunError(
                f"the data of {folder} were in memory, so only Python can go on with it: "
                "thumbnet.tuning.tune.resume_tuning(FOLDER, data=(images, labels))"
            )
        corrections = read_corrections(folder / CORRECTIONS_NAME) if corrected else None
        loaded = load_for(given, base, data_dir, listener, corrections)
        if loaded.fingerprint() != fingerprint:
            raise RunError(
                f"the data in {loaded.source} have changed since the search {folder} began: its trials could "
                "not be compared. Put them back, or start a new search"
            )
        listener.on_data(loaded)
        parts = divide(loaded, base, chosen, listener.on_decode)
        cost = None
        if settings["minutes"] is not None:
            cost = Cost.measure(base, parts, len(loaded.class_names), chosen)
        search = _Search(
            folder, settings, loaded, given, corrections, parts, base, varied, cost, chosen, listener, started
        )
        return _locked(search, [])


def _check_asked(minutes: float | None, trials: int | None) -> None:
    """Check the length of a search.

    Raises:
        ThumbnetError: neither is given, or one is out of range, or several processes were started.
    """
    if minutes is None and trials is None:
        raise ThumbnetError(
            f"say how long to search: {command('tune', 'DATA', '--minutes', '20')}, or --trials 30"
        )
    if minutes is not None:
        check_minutes(minutes)
    if trials is not None and trials < 1:
        raise ThumbnetError(f"--trials {trials}: expected 1 or more")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ThumbnetError("tune runs in one process: start it without torchrun")


def _locked(search: _Search, notes: Sequence[str]) -> Tuned:
    """Run a search that no other process runs."""
    busy = f"another process searches in {search.path}: wait for it, or stop it first"
    with locked(search.path / LOCK_NAME, busy):
        return _Tuner(search).run(notes)


class _Tuner:
    """Runs the trials of one search, and then the final training."""

    def __init__(self, search: _Search) -> None:
        self.search = search
        self.listener = search.listener
        self.study = Study(search.path, search.varied, search.recipe.seed)
        self.records = self.study.records()
        earlier = max((one.elapsed for one in self.records), default=0.0)
        self.started = search.started - earlier
        self._trial_started = 0.0

    @property
    def deadline(self) -> float | None:
        """When everything has to end, in seconds of ``time.perf_counter``; None without a time."""
        minutes = self.search.settings["minutes"]
        return None if minutes is None else self.started + 60 * float(minutes)

    def run(self, notes: Sequence[str]) -> Tuned:
        """Search, write what was found, and train the final network."""
        search = self.search
        judged = f"a trial is judged by {search.parts.how}; the test split chooses nothing"
        resumed = [f"{len(self.records)} trials are known already"] if self.records else []
        self.listener.on_search(search.path, [*search.parts.notes, judged, *notes, *resumed])
        if not (search.path / RUN).exists():
            self._try_settings()
            self._write_page(None)
        best = best_of(self.records)
        run = self._train(best)
        write_file(search.path / "summary.json", _pretty(self._summary(best, run)))
        self._write_page(run)
        return Tuned(search.path, self._recipe_of(best), run)

    def _try_settings(self) -> None:
        while not self._has_enough():
            suggestion = self.study.ask()
            recipe = recipe_at(self.search.recipe, suggestion.point)
            left = self._search_left()
            if left is not None and self.records:
                cost = self._cost()
                if cost is not None and cost.trial(recipe, self.search.parts.parts) > left:
                    suggestion.drop()
                    return
            try:
                finished = self._try(suggestion, recipe, left)
            except BaseException:
                suggestion.drop()
                raise
            if not finished:
                return
            self.records = self.study.records()
            self._write_found()
            self.listener.on_trial(self.records[-1], self._best())

    def _has_enough(self) -> bool:
        trials = self.search.settings["trials"]
        return bool(self.records) and trials is not None and len(self.records) >= int(trials)

    def _try(self, suggestion: Suggestion, recipe: Recipe, left: float | None) -> bool:
        """Run a trial, and tell the study how it ended; returns False if the time was over."""
        search, first = self.search, not self.records
        started = self._trial_started = time.perf_counter()
        unpaced = 0.0 if search.cost is None else search.cost.unpaced(recipe, search.parts.parts)
        parts = len(search.parts.parts)

        def times() -> dict[str, float]:
            now = time.perf_counter()
            return {"seconds": now - started, "elapsed": now - self.started, "predicted": unpaced}

        def on_step(step: StepResult, part: int) -> None:
            if self.listener.should_stop():
                raise InterruptedTuneError(search.path, len(self.records))
            if left is not None and not first and time.perf_counter() - started > LATE * left:
                raise _OutOfTimeError
            self._tell_progress(suggestion.number, step, part, parts)

        try:
            found = run_trial(
                recipe, search.parts.parts, search.data.class_names, search.device, suggestion.report, on_step
            )
            suggestion.complete(found.value, found.loss, **times())
        except HopelessTrialError:
            suggestion.stop(**times())
        except _OutOfTimeError:
            suggestion.drop()
            return False
        except (DivergedError, OutOfMemoryError) as error:
            if first:
                raise  # the recipe itself does not work here
            suggestion.fail(str(error).split("\n")[0], **times())
        return True

    def _tell_progress(self, trial: int, step: StepResult, part: int, parts: int) -> None:
        done = (part + step.step / step.total_steps) / parts
        taken = time.perf_counter() - self._trial_started
        rate = step.pictures / step.step_in_epoch * (part * step.total_steps + step.step) / taken
        left, trials = self._search_left(), self.search.settings["trials"]
        if left is not None:
            elapsed = time.perf_counter() - self.started
            share = elapsed / (elapsed + left) if left > 0 else 1.0
        else:
            whole = trial - 1 + done
            share = min(1.0, whole / int(trials))
            left = (sum(one.seconds for one in self.records) + taken) * (int(trials) / whole - 1)
        self.listener.on_progress(Progress(trial, done, share, self._best(), rate, left))

    def _search_left(self) -> float | None:
        """Seconds that are left for trials; None without a time."""
        deadline = self.deadline
        if deadline is None:
            return None
        kept = 60 * float(self.search.settings["minutes"]) * FINAL_SHARE
        if not self.search.settings["shortened"] and self._best() is not None:
            kept = min(kept, SPARE * self._final_seconds(best_of(self.records)))
        return deadline - kept - WRITING - time.perf_counter()

    def _cost(self) -> Cost | None:
        return None if self.search.cost is None else self.search.cost.learn(self.records)

    def _best(self) -> Record | None:
        return best_of(self.records) if any(one.state == "complete" for one in self.records) else None

    def _final_seconds(self, best: Record) -> float:
        """How long the final training takes with the number of epochs that was found."""
        splits = self.search.data.splits
        measured = next((len(splits[name]) for name in ("test", "val") if name in splits), 0)
        recipe, parts, cost = recipe_at(self.search.recipe, best.point), self.search.parts, self._cost()
        assert cost is not None  # there is a time
        return cost.final(recipe, parts.parts, parts.pictures, measured)

    def _recipe_of(self, best: Record) -> Recipe:
        """The recipe to keep: everything is decided, so nothing in it depends on the data any more."""
        found = recipe_at(self.search.recipe, best.point)
        source = Path(self.search.data.source).name or self.search.data.source
        return replace(
            found,
            name="tuned",
            description=f"found for {source} by thumbnet tune, starting from {self.search.recipe.name}",
            training=replace(found.training, min_steps=0),
        )

    def _write_found(self) -> None:
        """Write what is known, so that a kill loses nothing."""
        best = self._best()
        if best is not None:
            write_file(self.search.path / "recipe.toml", self._recipe_of(best).to_toml())
        write_file(self.search.path / "trials.csv", trials_csv(self.search.recipe, self.records))

    def _write_page(self, run: Run | None) -> None:
        self._write_found()
        search = self.search
        write_page(
            search.path / "tune.html",
            name=search.path.resolve().name,
            source=search.data.source,
            recipe=search.recipe,
            varied=search.varied,
            records=self.records,
            best=best_of(self.records),
            importances=self.study.importances(),
            held_out=search.parts.held_out,
            how=search.parts.how,
            measure="mAP" if search.data.multilabel else "accuracy",
            found=self._recipe_of(best_of(self.records)),
            run=run,
        )

    def _train(self, best: Record) -> Run:
        """Train the final network on all training pictures, or go on with it."""
        search, recipe, deadline = self.search, self._recipe_of(best), self.deadline
        minutes = None
        if deadline is not None:
            left = deadline - WRITING / 2 - time.perf_counter()
            if search.settings["shortened"] or self._final_seconds(best) * SPARE > left:
                minutes = round(max(left, 1.0) / 60, 3)
        self.listener.on_final(best, minutes)
        try:
            return train(
                search.given,
                recipe,
                out=search.path / RUN,
                device=str(search.device),
                data_dir=search.settings["data_dir"],
                listener=self.listener,
                auto_resume=True,
                minutes=minutes,
                labels=search.corrections,
            )
        except InterruptedRunError:
            raise InterruptedTuneError(search.path, len(self.records)) from None

    def _summary(self, best: Record, run: Run) -> dict[str, Any]:
        search, first = self.search, self.records[0]
        states = [one.state for one in self.records]
        right = round(best.value * search.parts.held_out)
        several = search.data.multilabel
        final = run.summary
        return {
            "measure": "map" if several else "accuracy",
            "judged_by": search.parts.how,
            "held_out_pictures": search.parts.held_out,
            "best": best.value,
            "best_interval": None if several else list(wilson_interval(right, search.parts.held_out)),
            "start": first.value,
            "best_trial": best.number,
            "trials": len(states),
            "complete": states.count("complete"),
            "stopped": states.count("stopped"),
            "failed": states.count("failed"),
            "start_recipe": search.recipe.name,
            "shortened": search.settings["shortened"],
            "changed": best.point,
            "importances": self.study.importances(),
            "run": RUN,
            "split": final["split"],
            "accuracy": final["accuracy"],
            "map": final.get("map"),
            "minutes": search.settings["minutes"],
            "seconds_search": round(self.records[-1].elapsed, 3),
            "seconds_total": round(time.perf_counter() - self.started, 3),
        }


class _OutOfTimeError(Exception):
    """The time for trials is over."""


def _memory() -> Any:
    advice = "Use smaller batches (--batch-size) or a narrower network (--set model.width=0.5)"
    return memory_guard("this computer", "during the search", advice)


def _without_length_in_steps(recipe: Recipe) -> Recipe:
    """The recipe with its length in epochs only. A recipe that --minutes planned also has steps."""
    return replace(
        recipe,
        training=replace(recipe.training, steps=0),
        schedule=replace(recipe.schedule, planned_at=(), planned_steps=()),
    )


def _settings_of(folder: Path) -> dict[str, Any]:
    """The contents of ``tune.json`` of an unfinished search.

    Raises:
        RunError: there is no such search, or it is finished.
    """
    if not (folder / SETTINGS).is_file():
        what = "there is no folder" if not folder.exists() else "there is no search in"
        start = command("tune", "DATA", "--minutes", "20")
        raise RunError(f"{what} {folder}: {SETTINGS} is missing. Start a search: {start}")
    if (folder / "summary.json").is_file():
        again = command("train", "DATA", "--recipe", folder / "recipe.toml")
        raise RunError(f"the search in {folder} is finished. To train with its result again: {again}")
    return _read(folder / SETTINGS)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"cannot read {path}: {error}") from None
    if not isinstance(values, dict):
        raise RunError(f"{path} does not hold a JSON object")
    return values


def _pretty(values: dict[str, Any]) -> str:
    plain = {key: None if isinstance(one, float) and math.isnan(one) else one for key, one in values.items()}
    return json.dumps(plain, indent=2, ensure_ascii=False) + "\n"
