"""Finish a training: calibrate the network, measure it as it will classify, and summarise the run."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from thumbnet.batches.engines import Engine, evenly_spaced
from thumbnet.batches.leaks import NOT_COMPARED, RepeatSearch
from thumbnet.batches.prepare import Prepared
from thumbnet.classifiers.logits import collect_views
from thumbnet.classifiers.temperature import calibrated, fit_sigmoid_temperature, fit_temperature
from thumbnet.classifiers.thresholds import choose_thresholds
from thumbnet.classifiers.unlike import MOST, fit_unlikeness, looks
from thumbnet.data.calibration import FEWEST
from thumbnet.evaluation import Evaluation, evaluate_logits
from thumbnet.multilabel import LabelEvaluation, choose_label_thresholds, evaluate_labels, sigmoid
from thumbnet.runs.certainty import Thresholds, Unlikeness
from thumbnet.runs.folder import Run
from thumbnet.runs.summaries import BEST_ON_VAL, L2_BY_VAL, chosen_on
from thumbnet.training.epochs import ON_REQUEST, Score
from thumbnet.training.judges import Judges, find_judges
from thumbnet.training.listener import Listener
from thumbnet.training.state import TrainingState


@dataclass(frozen=True)
class Measured:
    """The final measurement of a training.

    Attributes:
        split: the measured split, ``test`` or ``val``; None if the data have neither.
        headline: result with the recipe's test-time augmentation, calibrated; None without ``split``.
        plain: calibrated result without test-time augmentation; None without ``split``.
        val, val_plain: the same two on ``val``, if the data also have a ``test`` split; else None.
        uncalibrated_error: calibration error of the headline before calibration; None without ``split``.
        temperature: see :func:`thumbnet.classifiers.temperature.fit_temperature`; 1 if it was not fitted.
        calibrated_on: the split on which the temperature was fitted, or None.
        calibration_pictures: number of pictures available for calibration.
        calibration_known: number of pictures that were left out of it, because the initial weights know them.
        calibration_copied: number of others that were left out, because they belong to training pictures.
        calibration_unsure: whether there is none because the initial weights may know its pictures.
        calibration_not_finite: number of pictures for it with a logit that is not finite. If there are any,
            nothing is calibrated.
        thresholds: see :func:`thumbnet.classifiers.thresholds.choose_thresholds`; None without calibration.
        unlike: see :func:`thumbnet.classifiers.unlike.fit_unlikeness`; None without calibration.
        label_thresholds: the probability from which on the network gives each label, chosen on the same
            pictures as the temperature; empty for one class per picture, and for 0.5.
    """

    split: str | None = None
    headline: Evaluation | LabelEvaluation | None = None
    plain: Evaluation | LabelEvaluation | None = None
    val: Evaluation | LabelEvaluation | None = None
    val_plain: Evaluation | LabelEvaluation | None = None
    uncalibrated_error: float | None = None
    temperature: float = 1.0
    calibrated_on: str | None = None
    calibration_pictures: int = 0
    calibration_known: int = 0
    calibration_copied: int = 0
    calibration_unsure: bool = False
    calibration_not_finite: int = 0
    thresholds: Thresholds | None = None
    unlike: Unlikeness | None = None
    label_thresholds: tuple[float, ...] = ()


def score_of(split: str, logits: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> Score:
    """The score of an evaluation during the training.

    Args:
        split: the name of the split.
        logits: float [N, classes].
        labels: int64 [N], or 0 and 1, [N, classes], for several labels per picture.
        class_names: class names by label.
    """
    if labels.ndim == 2:
        several = evaluate_labels(logits, labels, class_names, quick=True)
        value = 0.0 if math.isnan(several.map) else several.map
        return Score(split, several.accuracy, several.loss, several.pictures, value)
    found = evaluate_logits(logits, labels, class_names)
    return Score(split, found.accuracy, found.loss, found.pictures, balanced_accuracy=found.balanced_accuracy)


def measure(
    model: nn.Module,
    state: TrainingState,
    prepared: Prepared,
    class_names: Sequence[str],
    ready: tuple[str, torch.Tensor] | None,
) -> Measured:
    """Calibrate the network and measure it as it will classify. Every process of the training calls this.

    Each split passes the network once, even if it serves for both.

    Args:
        model: the network with its final weights.
        state: the state of the training.
        prepared: the data of the training.
        class_names: class names by label.
        ready: a split's name and this process's logits of it without test-time augmentation, if the last
            evaluation used exactly these weights.
    """
    tta, names = state.recipe.evaluation.tta, tuple(class_names)
    found: dict[str, tuple[np.ndarray, ...]] = {}

    def classified(split: str) -> tuple[np.ndarray, ...]:
        """The logits with and without test-time augmentation, and the labels; each split passes once."""
        if split not in found:
            plain = ready[1] if ready is not None and ready[0] == split else None
            own = collect_views(model, prepared.evaluation[split], dtype=state.dtype, tta=tta, plain=plain)
            found[split] = tuple(state.world.gather(tensor).numpy() for tensor in own)
        return found[split]

    calibration = Measured()
    fitted_on, split = prepared.calibrates_on, prepared.measured
    if fitted_on is not None and state.recipe.data.calibration_pictures:
        # Only one process compares: on another machine, the pictures may not fit into memory.
        judges = state.world.from_first(find_judges(prepared, fitted_on) if state.world.is_first else None)
        assert judges is not None
        calibration = Measured(
            calibration_pictures=len(judges.pictures),
            calibration_known=judges.known,
            calibration_copied=judges.belonging,
            calibration_unsure=judges.unsure,
        )
        if len(judges.pictures) >= FEWEST and not judges.unsure:
            logits, _, labels = classified(fitted_on)
            calibration = _calibrate(calibration, logits[judges.fair], labels[judges.fair], prepared, judges)
    if split is None:
        return calibration

    def evaluated(name: str, logits: np.ndarray) -> Evaluation | LabelEvaluation:
        (_, _, labels), groups = classified(name), prepared.groups.get(name)
        if labels.ndim == 2:
            return evaluate_labels(logits, labels, names, calibration.label_thresholds, groups)
        return evaluate_logits(logits, labels, names, groups)

    def results(name: str) -> tuple[Evaluation | LabelEvaluation, Evaluation | LabelEvaluation]:
        logits, plain, _ = classified(name)
        temperature = calibration.temperature
        augmented = evaluated(name, calibrated(logits, temperature))
        return augmented, evaluated(name, calibrated(plain, temperature))

    headline, plain = results(split)
    measured = replace(
        calibration,
        split=split,
        headline=headline,
        plain=plain,
        uncalibrated_error=evaluated(split, classified(split)[0]).calibration_error,
    )
    if split == "val" or "val" not in prepared.evaluation:
        return measured
    val, val_plain = results("val")
    return replace(measured, val=val, val_plain=val_plain)


def _calibrate(
    found: Measured, logits: np.ndarray, labels: np.ndarray, prepared: Prepared, judges: Judges
) -> Measured:
    """Add the temperature and all thresholds.

    They are fitted on the uncalibrated logits and the labels of the pictures that judge.
    """
    wrong = int((~np.isfinite(logits)).any(axis=1).sum())
    if wrong:
        return replace(found, calibration_not_finite=wrong)
    if labels.ndim == 2:  # one temperature, and a threshold per label
        temperature = fit_sigmoid_temperature(logits, labels)
        probabilities = sigmoid(calibrated(logits, temperature))
        return replace(
            found,
            temperature=temperature,
            calibrated_on=judges.split,
            label_thresholds=choose_label_thresholds(probabilities, labels),
        )
    temperature, groups = fit_temperature(logits, labels), prepared.groups.get(judges.split)
    groups = None if groups is None else groups[judges.fair]
    return replace(
        found,
        temperature=temperature,
        calibrated_on=judges.split,
        thresholds=choose_thresholds(calibrated(logits, temperature), labels, judges.split, groups),
        unlike=_unlikeness(logits, prepared, judges),
    )


def _unlikeness(logits: np.ndarray, prepared: Prepared, judges: Judges) -> Unlikeness | None:
    """Learn from the training pictures and the held-out ones to tell pictures that are unlike them."""
    held_out, train = prepared.evaluation[judges.split].engine, prepared.train.engine
    places, used = evenly_spaced(len(logits), MOST), torch.from_numpy(judges.pictures)
    held_out_looks = _looks(held_out, used[places])
    train_looks = _looks(train, evenly_spaced(len(train.labels), MOST))
    return fit_unlikeness(logits[places.numpy()], held_out_looks, train_looks)


def _looks(engine: Engine, places: torch.Tensor) -> np.ndarray:
    """The looks of the pictures at ``places``, float64 [N, LOOKS]."""
    parts = engine.fetch(list(places.split(500)))
    return np.concatenate([looks(part.permute(0, 2, 3, 1).cpu().numpy()) for part in parts])


def with_choices(measured: Measured, state: TrainingState, judged_on: str | None) -> Measured:
    """The same measurement, whose thresholds say what else their pictures chose.

    Args:
        measured: the measurement.
        state: the state of the training.
        judged_on: the split by which a search chose the settings; None without a search.
    """
    found = measured.thresholds
    if found is None:
        return measured
    chosen = chosen_on(found.split, _kept_by(state), _stopped_early(state), judged_on)
    return replace(measured, thresholds=replace(found, also_chose=chosen or None))


@dataclass
class Findings:
    """What a training found out about its data, for the summary.

    Attributes:
        repeats: counts of repeated pictures, see :func:`thumbnet.batches.leaks.describe`; None if pictures
            were not compared.
        warnings: sentences for the user.
    """

    repeats: dict[str, Any] | None = None
    warnings: list[str] = field(default_factory=list)


def summary_of(
    state: TrainingState, measured: Measured, findings: Findings, started: float, skipped_pictures: int
) -> dict[str, Any]:
    """The contents of ``summary.json``. ``started`` is a reading of ``time.perf_counter``, in seconds."""
    seconds = sum(result.seconds for result in state.history)
    # The speed is infinite in an epoch in which the clock stood still.
    timed = [result for result in state.history if result.seconds]
    pictures = sum(result.pictures_per_second * result.seconds for result in timed)
    return {
        "split": measured.split,
        **_measures(measured.headline, measured.plain),
        "val": None if measured.val is None else _measures(measured.val, measured.val_plain),
        "tta": state.recipe.evaluation.tta,
        "temperature": measured.temperature,
        "calibrated_on": measured.calibrated_on,
        "calibration_pictures": measured.calibration_pictures,
        "calibration_known": measured.calibration_known,
        "calibration_copied": measured.calibration_copied,
        "calibration_unsure": measured.calibration_unsure,
        "calibration_not_finite": measured.calibration_not_finite,
        "thresholds": None if measured.thresholds is None else measured.thresholds.to_dict(),
        "unlike": None if measured.unlike is None else asdict(measured.unlike),
        "calibration_error_before": measured.uncalibrated_error,
        "parameters": sum(parameter.numel() for parameter in state.model.parameters()),
        "epochs": state.epoch,
        "kept_epoch": state.kept_epoch,
        "kept_by": _kept_by(state),
        "stopped_early": _stopped_early(state),
        "seconds_training": round(seconds, 3),
        "seconds_total": round(time.perf_counter() - started, 3),
        "processes": state.world.size,
        "skipped_steps": state.skipped,
        "skipped_pictures": skipped_pictures,
        "pictures_per_second": round(pictures / seconds, 1) if seconds else None,
        "repeats": findings.repeats,
        "warnings": findings.warnings,
    }


def _kept_by(state: TrainingState) -> str:
    """How the weights that were kept were chosen."""
    if state.l2_chosen_on == "val":
        return L2_BY_VAL
    scored = sum(result.score is not None and result.score.split == "val" for result in state.history)
    return BEST_ON_VAL if state.best_weights is not None and scored > 1 else "last"


def _measures(
    final: Evaluation | LabelEvaluation | None, plain: Evaluation | LabelEvaluation | None
) -> dict[str, Any]:
    """What the summary says about a split, with and without test-time augmentation."""
    several: dict[str, Any] = {}
    if isinstance(final, LabelEvaluation) and isinstance(plain, LabelEvaluation):
        several = _several_labels(final, plain)
    grouped: dict[str, Any] = {}
    if final is not None and final.groups is not None:
        grouped = {"measured_pictures": final.pictures, "measured_groups": final.groups}
    return {
        "accuracy": None if final is None else final.accuracy,
        "accuracy_interval": None if final is None else list(final.interval),
        "accuracy_plain": None if plain is None else plain.accuracy,
        "balanced_accuracy": final.balanced_accuracy if isinstance(final, Evaluation) else None,
        "loss": None if final is None else final.loss,
        "calibration_error": None if final is None else final.calibration_error,
        **grouped,
        **several,
    }


def _stopped_early(state: TrainingState) -> dict[str, Any] | None:
    """When and why the training ended before its last planned epoch; None if it did not."""
    why = state.history[-1].stopped if state.history else ""
    if not why:
        return None
    return {
        "epoch": state.epoch,
        "planned_epochs": state.recipe.training.epochs,
        "step": state.step,
        "planned_steps": state.total_steps,
        "watched": None if why == ON_REQUEST else "val",
        "patience": state.recipe.training.patience,
        "why": why,
    }


def _several_labels(final: LabelEvaluation, plain: LabelEvaluation) -> dict[str, Any]:
    """What the summary says about a network that gives several labels, in addition to the rest.

    ``accuracy`` is then the share of pictures whose labels are all right.
    """
    decisions = final.at_thresholds
    return {
        "multilabel": True,
        "map": None if math.isnan(final.map) else final.map,
        "map_interval": None if final.map_interval is None else list(final.map_interval),
        "map_plain": None if math.isnan(plain.map) else plain.map,
        "micro_f1": decisions.micro_f1,
        "macro_f1": decisions.macro_f1,
        "micro_f1_at_half": final.at_half.micro_f1,
        "macro_f1_at_half": final.at_half.macro_f1,
        "hamming_loss": decisions.hamming_loss,
    }


class RepeatTeller:
    """Searches for repeated pictures while a training runs, and reports the result to a listener once."""

    def __init__(
        self, run: Run, prepared: Prepared, class_names: tuple[str, ...], listener: Listener
    ) -> None:
        engines = {"train": prepared.train.engine}
        engines |= {name: batches.engine for name, batches in prepared.evaluation.items()}
        self._search = RepeatSearch(engines, prepared.splits, class_names)
        self._folder, self._listener = run.path, listener
        self._told: dict[str, Any] | None = None

    def tell_if_known(self) -> None:
        """Report the result if the search is done."""
        if self._search.is_done:
            self.tell()

    def tell(self) -> dict[str, Any]:
        """Wait for the search to end, and report its result."""
        if self._told is None:
            found = self._search.finish(self._folder)
            self._told = {"lines": [NOT_COMPARED]} if found is None else found
            for line in self._told["lines"]:
                self._listener.on_note(line)
        return self._told
