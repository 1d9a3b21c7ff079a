"""One search in its folder: its trials, what it writes, and the final training."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch

from thumbnet.data.corrections import Correction
from thumbnet.data.splits import Data
from thumbnet.errors import (
    DivergedError,
    InterruptedRunError,
    InterruptedTuneError,
    OutOfMemoryError,
    OwnCodeError,
    RecipeError,
    printable,
)
from thumbnet.evaluation import wilson_interval
from thumbnet.files import read_json, write_file, write_json
from thumbnet.recipes.recipe import Recipe, recipe_from_toml, training_code
from thumbnet.recipes.settings import AUTO
from thumbnet.runs.finding import FINAL_RUN, SEARCH, is_run
from thumbnet.runs.folder import Run
from thumbnet.training.fit import StepResult
from thumbnet.training.train import resume, train
from thumbnet.training.transfer import PIXELS
from thumbnet.tuning.listener import Progress, TuneListener
from thumbnet.tuning.page import train_again, trials_csv, write_page
from thumbnet.tuning.parts import Parts
from thumbnet.tuning.plan import FINAL_SHARE, WRITING, Cost
from thumbnet.tuning.space import Knob, recipe_at
from thumbnet.tuning.study import Record, Study, Suggestion, best_of
from thumbnet.tuning.trial import HopelessTrialError, run_trial

LATE = 1.1  # a trial is given up once it has taken this many times the time that was left for it
# Trials in a row that find nothing better, after which the final training has the rest of the time. As many
# as there are guesses after the first trial.
PATIENCE = 7
# How often to evaluate. A training with a given time changes it unless the user has set it.
EVALUATIONS = ("evaluation.every", "evaluation.sample")


@dataclass(frozen=True)
class Tuned:
    """A finished search.

    Attributes:
        path: its folder.
        recipe: the best settings, as in ``recipe.toml``: with the number of epochs, the width and the
            evaluations of the final training.
        run: the network that was trained with them.
        trial: the best settings as they were tried, with as many epochs as that trial had.
    """

    path: Path
    recipe: Recipe
    run: Run
    trial: Recipe

    @property
    def start(self) -> Recipe:
        """The recipe where the search started."""
        return recipe_from_toml(read_json(self.path / SEARCH).get("recipe"))

    @property
    def summary(self) -> dict[str, Any]:
        """The contents of ``summary.json``."""
        return read_json(self.path / "summary.json")


@dataclass(frozen=True)
class Search:
    """Everything that a search needs, from its arguments or from its folder.

    Attributes:
        path: the folder.
        settings: the contents of ``tune.json``.
        data: the loaded data, with corrections.
        given: the data as the user gave them, for the final training.
        corrections: corrections of labels, if any.
        parts: what trials train on.
        recipe: where the search starts, with as many epochs as its trial has.
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


class Tuner:
    """Runs the trials of one search, and then the final training."""

    def __init__(self, search: Search) -> None:
        self.search = search
        self.listener = search.listener
        self._options = training_code(search.recipe)  # of the command that goes on
        together = search.parts.together
        self.study = Study(search.path, search.varied, search.recipe.seed, self._options, together)
        self.records = self.study.records()
        earlier = max((one.elapsed for one in self.records), default=0.0)
        self.started = search.started - earlier
        self._trial_started = 0.0
        self._kept = 0.0  # seconds for the final training

    @property
    def deadline(self) -> float | None:
        """When everything has to end, in seconds of ``time.perf_counter``; None without a time."""
        minutes = self.search.settings["minutes"]
        return None if minutes is None else self.started + 60 * float(minutes)

    @property
    def tries(self) -> bool:
        """Whether there may be new trials: the final training has not begun."""
        return self._best() is None or not (self.search.path / FINAL_RUN).exists()

    def run(self, notes: Sequence[str]) -> Tuned:
        """Search, write what was found, and train the final network."""
        search = self.search
        judged = f"a trial is judged by {search.parts.how}; the test split chooses nothing"
        resumed = [f"{len(self.records)} trial(s) are finished already"] if self.records else []
        if search.parts.skipped:
            resumed.append(f"{search.parts.skipped} picture(s) cannot be read and are left out")
        self.listener.on_search(search.path, [*search.parts.notes, judged, *notes, *resumed])
        if self.tries:
            self._try_settings()
            self._write_found()
            self._write_page(None)
        best = best_of(self.records)
        began = time.perf_counter()
        run = self._train(best)
        # The final training counts its own time, including what it took before it was interrupted.
        self.started -= max(0.0, run.summary["seconds_total"] - (time.perf_counter() - began))
        self._write_found(run)
        self._write_page(run)
        # The last file: a search that was killed before it is not finished, and goes on.
        write_json(search.path / "summary.json", self._summary(best, run))
        return Tuned(search.path, self._recipe_to_keep(best, run), run, self._recipe_to_keep(best))

    def _try_settings(self) -> None:
        while not self._has_enough():
            if self._finds_nothing():
                self.listener.on_note(
                    f"the last {PATIENCE} trials found nothing better: the rest of the time is for the final "
                    "training"
                )
                return
            suggestion = self.study.ask()
            recipe = self._recipe_of(suggestion)
            self._kept = self._final_seconds(recipe)
            left = self._search_left()
            if not self._fits(recipe, left):
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

    def _fits(self, recipe: Recipe, left: float | None) -> bool:
        """Whether ``left`` seconds suffice for another trial; there is always time for the first one."""
        cost = self._cost()
        if not self.records or left is None or cost is None:
            return True
        return cost.trial(recipe, self.search.parts.parts) <= left

    def _has_enough(self) -> bool:
        trials = self.search.settings["trials"]
        return bool(self.records) and trials is not None and len(self.records) >= int(trials)

    def _finds_nothing(self) -> bool:
        """Whether the time is better spent on the final training, if that can use it."""
        settings, best = self.search.settings, self._best()
        if best is None or settings["trials"] is not None:
            return False
        if all(one.state == "failed" for one in self.records[-PATIENCE:]):  # these may take no time
            return True
        if not settings["same_time"]:
            return False
        return len(self.records) - best.number >= PATIENCE

    def _try(self, suggestion: Suggestion, recipe: Recipe, left: float | None) -> bool:
        """Run a trial, and tell the study how it ended; returns False if the time was over."""
        search, first = self.search, not self.records
        self._trial_started = time.perf_counter()
        unpaced = 0.0 if search.cost is None else search.cost.unpaced(recipe, search.parts.parts)
        parts = len(search.parts.parts)

        def times() -> dict[str, float]:
            now = time.perf_counter()
            seconds = now - self._trial_started
            return {"seconds": seconds, "elapsed": now - self.started, "predicted": unpaced}

        def on_step(step: StepResult, part: int) -> None:
            if self.listener.should_stop():
                raise self._interrupted()
            if left is not None and not first and time.perf_counter() - self._trial_started > LATE * left:
                raise _OutOfTimeError
            self._tell_progress(suggestion.number, step, part, parts)

        try:
            divided = search.parts.for_recipe(recipe)  # decodes, if this size has not been decoded
            self._trial_started = time.perf_counter()
            found = run_trial(
                recipe,
                divided,
                search.data.class_names,
                search.device,
                suggestion.report,
                on_step,
                search.parts.initial,
            )
            suggestion.complete(found.value, found.losses, **times())
        except HopelessTrialError:
            suggestion.stop(**times())
        except _OutOfTimeError:
            suggestion.drop()
            return False
        except (DivergedError, OutOfMemoryError, OwnCodeError, RecipeError) as error:
            if first:
                raise  # the recipe itself does not work here
            suggestion.fail(str(error).split("\n")[0], **times())
        return True

    def _interrupted(self) -> InterruptedTuneError:
        return InterruptedTuneError(self.search.path, len(self.records), self._options)

    def _tell_progress(self, trial: int, step: StepResult, part: int, parts: int) -> None:
        done = (part + step.step / step.total_steps) / parts
        taken = time.perf_counter() - self._trial_started
        pictures = step.pictures / step.step_in_epoch * (part * step.total_steps + step.step)
        rate = pictures / taken if taken else 0.0  # the clock may stand still
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
        return deadline - self._kept - WRITING - time.perf_counter()

    def _final_seconds(self, recipe: Recipe) -> float:
        """Seconds to keep for the final training if a trial of ``recipe`` comes next; 0 without a time.

        This is a third of the time. If the user set the number of epochs, and they take longer than that with
        ``recipe`` or with the best recipe so far, it is what they take.
        """
        search, cost, best = self.search, self._cost(), self._best()
        if cost is None:
            return 0.0
        share = 60 * float(search.settings["minutes"]) * FINAL_SHARE
        if search.settings["same_time"]:
            return share
        recipes = [recipe] if best is None else [recipe, self._recipe_of(best)]
        return max(share, *(cost.final(one, search.parts) for one in recipes))

    def _cost(self) -> Cost | None:
        return None if self.search.cost is None else self.search.cost.learn(self.records)

    def _best(self) -> Record | None:
        return best_of(self.records) if any(one.state == "complete" for one in self.records) else None

    def _recipe_of(self, trial: Record | Suggestion) -> Recipe:
        search = self.search
        same_time = bool(search.settings["same_time"])
        return recipe_at(search.recipe, trial.point, size=search.parts.size, same_time=same_time)

    def _recipe_to_keep(self, best: Record, run: Run | None = None) -> Recipe:
        """The best recipe: everything is decided, so nothing in it depends on the data any more.

        A trial is much shorter than a final training that has the rest of the time. Once that is done
        (``run``), the recipe has its number of epochs, its width and how often it was evaluated, so a
        training with the recipe is one like it.
        """
        found = self._recipe_of(best)
        if run is not None and self.search.settings["same_time"]:
            final = run.recipe
            found = replace(
                found,
                model=replace(found.model, width=final.model.width),
                training=replace(found.training, epochs=final.training.epochs),
                evaluation=final.evaluation,
            )
        source = printable(Path(self.search.data.source).name or self.search.data.source)
        return replace(
            found,
            name="tuned",
            description=f"found for {source} by thumbnet tune, starting from {self.search.recipe.name}",
            training=replace(found.training, min_steps=0),
        )

    def _write_found(self, run: Run | None = None) -> None:
        """Write what is known, so that a kill loses nothing; ``run`` is the final training, if it is done."""
        best = self._best()
        if best is not None:
            write_file(self.search.path / "recipe.toml", self._recipe_to_keep(best, run).to_toml())
        used = [self._recipe_of(one) for one in self.records]
        write_file(self.search.path / "trials.csv", trials_csv(self.records, used))

    def _write_page(self, run: Run | None) -> None:
        search, best = self.search, best_of(self.records)
        write_page(
            search.path / "tune.html",
            name=search.path.resolve().name,
            source=search.data.source,
            recipe=search.recipe,
            varied=search.varied,
            records=self.records,
            best=best,
            importances=self.study.importances(),
            held_out=search.parts.held_out,
            how=search.parts.how,
            measure="mAP" if search.data.multilabel else "accuracy",
            found=self._recipe_to_keep(best),
            kept=self._recipe_to_keep(best, run),
            run=run,
            again=train_again(search.path, search.settings),
        )

    def _train(self, best: Record) -> Run:
        """Train the final network on all training pictures, or go on with it."""
        search, recipe, deadline = self.search, self._recipe_to_keep(best), self.deadline
        minutes = None
        if deadline is not None and search.settings["same_time"]:
            minutes = round(max(deadline - WRITING / 2 - time.perf_counter(), 1.0) / 60, 3)
        self.listener.on_final(best, minutes)
        out = search.path / FINAL_RUN
        try:
            if is_run(out):  # begun for the time that was left then, which its recipe records
                return resume(
                    out,
                    device=str(search.device),
                    listener=self.listener,
                    data=search.given,
                    data_dir=search.settings["data_dir"],
                    complete_is_fine=True,
                )
            return train(
                search.given,
                recipe,
                overrides=self._decided(recipe),
                out=out,
                device=str(search.device),
                data_dir=search.settings["data_dir"],
                listener=self.listener,
                minutes=minutes,
                may_widen=minutes is not None and bool(search.settings.get("may_widen")),
                judged_on="val" if "val" in search.data.splits else "train",
                labels=search.corrections,
            )
        except InterruptedRunError:
            raise self._interrupted() from None

    def _decided(self, recipe: Recipe) -> list[str]:
        """The settings that the final training must not choose anew: it keeps those that are named.

        These are whether to mirror, which the search has decided; how often to evaluate, if the user has set
        that; and the pixels that trials measured by themselves: in searches of earlier versions, also trials
        with ``schedule.head_first``.
        """
        named = self.search.settings.get("named", ())
        keys = ["augment.flip", "evaluation.tta", *(key for key in EVALUATIONS if key in named)]
        keys += [f"data.{key}" for key in PIXELS if getattr(recipe.data, key) == AUTO]
        return [f"{key}={attrgetter(key)(recipe)}" for key in keys]

    def _summary(self, best: Record, run: Run) -> dict[str, Any]:
        search, first = self.search, self.records[0]
        states = [one.state for one in self.records]
        right = round(best.value * search.parts.held_out)
        # It is known only how many pictures were right. If some belong together, an interval needs more than
        # that.
        unknown = search.data.multilabel or bool(search.parts.together)
        final = run.summary
        return {
            "measure": "map" if search.data.multilabel else "accuracy",
            "judged_by": search.parts.how,
            "held_out_pictures": search.parts.held_out,
            "best": best.value,
            "best_interval": None if unknown else list(wilson_interval(right, search.parts.held_out)),
            "start": first.value,
            "best_loss": best.loss,
            "start_loss": first.loss,
            "gain": best.gain,
            "gain_error": best.error,
            "best_trial": best.number,
            "trials": len(states),
            "complete": states.count("complete"),
            "stopped": states.count("stopped"),
            "failed": states.count("failed"),
            "start_recipe": search.recipe.name,
            "changed": best.point,
            "importances": self.study.importances(),
            "run": FINAL_RUN,
            "split": final["split"],
            "accuracy": final["accuracy"],
            "map": final.get("map"),
            "minutes": search.settings["minutes"],
            "seconds_search": round(self.records[-1].elapsed, 3),
            "seconds_total": round(time.perf_counter() - self.started, 3),
        }


class _OutOfTimeError(Exception):
    """The time for trials is over."""
