"""One training in progress: its steps, its checkpoints and the files that it writes at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NoReturn

import numpy as np
import torch
from torch import nn

from thumbnet.batches.batches import Batch, Batches, EvalBatches
from thumbnet.batches.prepare import Prepared, all_unreadable
from thumbnet.classifiers.logits import collect_logits
from thumbnet.data.splits import Data
from thumbnet.distributed import Meetings, World
from thumbnet.errors import (
    DivergedError,
    InterruptedRunError,
    OutOfMemoryError,
    ThumbnetError,
    UnreadableImageError,
    memory_guard,
)
from thumbnet.evaluation import Evaluation
from thumbnet.recipes.recipe import training_code
from thumbnet.runs.data import source_name
from thumbnet.runs.folder import Run
from thumbnet.runs.weights_info import WeightsInfo, public_name
from thumbnet.training.epochs import ON_REQUEST, Score
from thumbnet.training.fit import StepResult, end_early
from thumbnet.training.judges import find_judges
from thumbnet.training.known import warning_on, warnings_of_perhaps
from thumbnet.training.linear import train_epochs
from thumbnet.training.listener import Listener
from thumbnet.training.mirrored import find_mirrored
from thumbnet.training.results import (
    Findings,
    Measured,
    RepeatTeller,
    measure,
    score_of,
    summary_of,
    with_choices,
)
from thumbnet.training.state import TrainingState
from thumbnet.training.time_budget import TimeBudget


@dataclass(frozen=True)
class _Heard:
    """``batches`` that call ``ask`` before each one."""

    batches: Batches
    ask: Callable[[], None]

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for batch in self.batches.epoch(epoch, start):
            self.ask()
            yield batch


@dataclass
class Session:
    """A training with everything that it needs. :meth:`train` runs it to the end.

    Attributes:
        run: the run's folder; the first process has locked it.
        data: the splits, for names and messages.
        prepared: the batches of these splits.
        state: what the training changes: weights, optimizer, progress.
        listener: receives the events of the training.
        started: when the training began, in seconds of ``time.perf_counter``. For a resumed run, the time
            that it had taken before is subtracted.
        fingerprint: fingerprint of ``data`` before pictures were set aside for calibration.
        budget: changes the number of steps so that the training ends in time; None for no time.
        judged_on: the split by which a search chose the settings of this training; None without a search.
    """

    run: Run
    data: Data
    prepared: Prepared
    state: TrainingState
    listener: Listener
    started: float
    fingerprint: str
    budget: TimeBudget | None = None
    judged_on: str | None = None
    _last_saved: float = 0.0  # a reading of time.monotonic
    _meetings: Meetings | None = None
    _wants_to_stop: bool = False  # whether this process was asked to stop
    _newest_logits: torch.Tensor | None = None  # this process's share of the watched split

    @property
    def world(self) -> World:
        """The processes of the training."""
        return self.state.world

    def train(self, finish: bool = False) -> Run:
        """Train to the end, measure the network, and write the weights and the summary.

        Args:
            finish: end the training at the step that the state has reached, one or more.

        Raises:
            InterruptedRunError: the listener asked to stop. A checkpoint is saved.
            UnreadableImagesError: some pictures are damaged; the error lists all of them.
            FailedReadError, UnreadableFilesError: the system failed to read a picture, or several.
            DivergedError, OutOfMemoryError: see :func:`~thumbnet.training.fit.fit`.
        """
        self.listener.on_start(self.run, self.state, self.prepared)
        repeats = None
        if self.world.is_first:
            repeats = RepeatTeller(self.run, self.prepared, self.data.class_names, self.listener)
        try:
            if finish and self.state.step < self.state.total_steps and not self.state.is_over:
                self._end_early()
            else:
                self._fit(repeats)
        except UnreadableImageError as error:
            raise all_unreadable(self.data, self.listener.on_decode, error) from None
        except (DivergedError, OutOfMemoryError):
            self._write_metrics()  # a later checkpoint writes them anew
            raise
        self._finish(repeats)
        self.listener.on_finish(self.run)
        return self.run

    def _fit(self, repeats: RepeatTeller | None) -> None:
        sample = self._sample()
        self._meetings = Meetings(self.world, self.state.step)
        self._last_saved = time.monotonic()
        results = train_epochs(
            self.state,
            self.prepared,
            evaluate=None if self.prepared.watched is None else self._score,
            evaluate_sample=None if sample is None else lambda model: self._score_sample(model, sample),
            on_step=self._on_step,
            on_note=self.listener.on_note,
        )
        for result in results:
            waited = time.monotonic() - self._last_saved >= self.state.recipe.checkpoint.min_seconds
            if self.state.is_over or self.world.any(waited):
                self.save()
            self.listener.on_epoch(result)
            if repeats is not None:
                repeats.tell_if_known()

    def _end_early(self) -> None:
        """End the training where it is, with the evaluation that a last epoch has."""
        finished = self.state.epoch
        evaluate = None if self.prepared.watched is None else self._score
        result = end_early(self.state, ON_REQUEST, evaluate)
        self.save()  # so that the weights can be restored from the checkpoint
        if self.state.epoch > finished:
            self.listener.on_epoch(result)

    def _sample(self) -> EvalBatches | None:
        """A few pictures of the watched split, for the learning curve."""
        wanted, watched = self.state.recipe.evaluation.sample, self.prepared.watched
        if watched is None or not wanted:
            return None
        judging = torch.from_numpy(self._judging)
        return self.prepared.evaluation[watched].sample(max(wanted, self.world.size), judging)

    @cached_property
    def _judging(self) -> np.ndarray:
        """The pictures of the watched split that the epochs' scores are of: int64 [M].

        They are those that may choose an epoch, or all pictures if these are too few or nothing is chosen.
        """
        watched = str(self.prepared.watched)
        if watched in self.prepared.choose_nothing:
            judges = find_judges(self.prepared, watched)
            if judges.enough:
                return judges.pictures
        return np.arange(len(self.prepared.splits[watched]))

    def _score(self, model: nn.Module) -> Score:
        watched = self.prepared.watched
        assert watched is not None
        self._newest_logits, logits, labels = self._logits(model, self.prepared.evaluation[watched])
        return score_of(watched, logits[self._judging], labels[self._judging], self.data.class_names)

    def _score_sample(self, model: nn.Module, sample: EvalBatches) -> Score:
        _, logits, labels = self._logits(model, sample)
        return score_of(str(self.prepared.watched), logits, labels, self.data.class_names)

    def _logits(self, model: nn.Module, batches: EvalBatches) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
        """The logits of this process's pictures, and the logits and labels of those of all processes."""
        with self.evaluation_memory():
            logits, labels = collect_logits(
                model, _Heard(batches, self._stop_if_asked), dtype=self.state.dtype
            )
        return logits, self.world.gather(logits).numpy(), self.world.gather(labels).numpy()

    def evaluation_memory(self) -> AbstractContextManager[None]:
        """Within, turn refused memory into an error that names the setting for smaller batches."""
        size = self.state.recipe.evaluation.batch_size
        advice = f"Use smaller batches to evaluate: --set evaluation.batch_size={max(1, size // 2)}"
        return memory_guard(str(self.state.device), f"evaluating {size} pictures at a time", advice)

    def _on_step(self, step: StepResult) -> None:
        assert self._meetings is not None
        meeting = self._meetings.is_due(step.step, self.state.epoch_is_over)
        if self.budget is not None:
            self._keep_to(self.budget, meeting)
        self.listener.on_step(replace(step, total_steps=self.state.total_steps))
        self._wants_to_stop = self._wants_to_stop or self.listener.should_stop()
        settings = self.state.recipe.checkpoint
        stop = late = False
        if meeting:
            late = settings.minutes > 0 and time.monotonic() - self._last_saved > 60 * settings.minutes
            stop, late = self._meetings.hold(step.step, self._wants_to_stop, late)
        if stop:
            self._stop()
        if late or (settings.steps > 0 and step.step % settings.steps == 0):
            self.save()

    def _stop_if_asked(self) -> None:
        """End the training between two batches of an evaluation, as after the epoch's last step.

        Several processes would have to meet for it. A last layer is fitted at once, so there is no such step.
        """
        alone = self.world.size == 1 and not self.state.recipe.training.frozen
        if alone and self.listener.should_stop():
            self._stop()

    def _stop(self) -> NoReturn:
        self.save()
        self.world.any(False)  # no process ends before the checkpoint is written
        recipe = self.state.recipe
        options, whole = training_code(recipe), recipe.training.frozen
        raise InterruptedRunError(
            self.run.path, self.state.epoch + 1, self.state.step, options, has_end=not whole
        )

    def _keep_to(self, budget: TimeBudget, meeting: bool) -> None:
        """Change the number of steps if the training would not end in time, and write down the new plan."""
        before = self.state.recipe
        note = budget.after_step(self.state, self.world, meeting)
        if self.state.recipe is not before and self.world.is_first:
            # Before the next checkpoint: an earlier one goes on with the new plan just as well.
            self.run.write_recipe(self.state.recipe)
        if note:
            self.listener.on_note(note)

    def save(self) -> None:
        """Write a checkpoint and the metrics up to now."""
        saved = {
            "recipe": self.state.recipe.to_toml(),
            "state": self.state.state_dict(),
            "seconds_total": time.perf_counter() - self.started,
        }
        if self.world.is_first:
            self.run.save_checkpoint(saved)
        self._write_metrics()
        self._last_saved = time.monotonic()

    def _write_metrics(self) -> None:
        if self.world.is_first:
            self.run.write_metrics([result.row() for result in self.state.history])

    def _finish(self, repeats: RepeatTeller | None) -> None:
        state = self.state
        model = state.evaluated_model
        # Before the calibration, because the search computes the digests by which copies are left out of it.
        repeated = None if repeats is None else repeats.tell()
        with self.evaluation_memory():
            model.load_state_dict(state.final_weights())
            # An evaluation has sent these already, but there may be none if nothing is held out.
            self.world.send_buffers(model)
            measured = measure(model, state, self.prepared, self.data.class_names, self._ready_logits())
        measured = with_choices(measured, state, self.judged_on)
        if self.world.is_first:
            self.run.save_weights(model.state_dict(), self._weights_info(measured))
            self._write_metrics()
            findings = Findings(repeated, [*self._known(measured), *self._mirrored(measured)])
            skipped = len(self.prepared.skipped)
            summary = summary_of(state, measured, findings, self.started, skipped)
            if self.data.corrected is not None:
                summary["labels"] = self.data.corrected.record()
            self.run.save_summary(summary)
        self.world.any(False)  # no process ends before the summary is written

    def _ready_logits(self) -> tuple[str, torch.Tensor] | None:
        """The watched split and its logits, if the final weights are the ones that gave them."""
        unchanged = self.state.kept_epoch == self.state.epoch
        watched = self.prepared.watched
        if watched is None or self._newest_logits is None or not unchanged:
            return None
        return watched, self._newest_logits

    def _weights_info(self, measured: Measured) -> WeightsInfo:
        recipe = self.state.recipe
        return WeightsInfo(
            model=recipe.model,
            class_names=self.data.class_names,
            preprocessing=self.prepared.preprocessing,
            precision=recipe.training.precision,
            source=source_name(self.data.source),
            fingerprint=self.fingerprint,
            tta=recipe.evaluation.tta,
            temperature=measured.temperature,
            accuracy=None if measured.headline is None else measured.headline.accuracy,
            accuracy_split=measured.split or "",
            accuracy_pictures=None if measured.headline is None else measured.headline.pictures,
            thresholds=measured.thresholds,
            unlike=measured.unlike,
            multilabel=self.data.multilabel,
            label_thresholds=measured.label_thresholds,
        )

    def _known(self, measured: Measured) -> list[str]:
        """Warnings about measuring on pictures that the initial weights know, or may know."""
        splits, known = (measured.split, None if measured.val is None else "val"), self.prepared.known
        source = public_name(self.state.recipe.training.init)
        found = [
            warning_on(source, split, known[split])
            for split in splits
            if split is not None and split in known
        ]
        return [*found, *warnings_of_perhaps(source, self.prepared.perhaps_known)]

    def _mirrored(self, measured: Measured) -> list[str]:
        """Warnings about classes that mirroring makes indistinguishable."""
        if not isinstance(measured.plain, Evaluation) or measured.split is None:
            return []  # nothing was measured, or the pictures have several labels each
        try:
            with self.evaluation_memory():
                found = find_mirrored(
                    self.state.recipe, self.prepared, measured.split, measured.plain, self.state.device
                )
        except ThumbnetError:  # a probe that diverges or runs out of memory must not cost the run its summary
            return []
        return [pair.sentence(self.data.class_names) for pair in found]
