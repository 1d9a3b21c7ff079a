"""Measure a cross-validation: every picture is classified by the network that was trained without its fold.

So a small data set is measured on all of its pictures, and not only on those of one test split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from thumbnet.batches.leaks import TOO_NARROW
from thumbnet.classifiers.base import SplitLogits
from thumbnet.classifiers.load import load_classifier
from thumbnet.data.corrections import corrections_csv
from thumbnet.data.splits import Progress, Split
from thumbnet.errors import RunError
from thumbnet.evaluation import Evaluation, evaluate_logits
from thumbnet.files import finite
from thumbnet.multilabel import LabelEvaluation, as_thresholds, evaluate_labels
from thumbnet.recipes.settings import READ_BY
from thumbnet.reports.repetitions import recipe_difference
from thumbnet.reports.summary import ended_early
from thumbnet.runs.folder import Run
from thumbnet.runs.provenance import batch_size_of
from thumbnet.runs.weights_info import WeightsInfo
from thumbnet.training.repeat import data_of_run

_LEAST = 1e-9  # a threshold is at least this far from 0 and 1, so that its logit is finite
_KNOWN = "warning: the network in "  # begins the warnings of :func:`thumbnet.training.known.warning_on`


@dataclass(frozen=True)
class Fold:
    """One fold of a cross-validation.

    Attributes:
        number: which fold it is, from 1.
        run: the run whose test pictures it is.
        pictures: how many pictures it has.
        value: the accuracy on them, 0 to 1; for several labels per picture mAP, which is nan if no
            picture has a label.
    """

    number: int
    run: Run
    pictures: int
    value: float


@dataclass(frozen=True)
class CrossValidation:
    """The result of a cross-validation.

    Attributes:
        source: the data.
        folds: the folds, from 1.
        result: the measures over the pictures of all folds; its interval allows for groups of pictures. For
            several labels per picture, the thresholds are those of each fold's network; the result shows
            their mean.
        tta: the test-time augmentation.
        notes: what the user should know, such as pictures that are in no fold.
    """

    source: str
    folds: tuple[Fold, ...]
    result: Evaluation | LabelEvaluation
    tta: str
    notes: tuple[str, ...]

    @property
    def value(self) -> float:
        """The accuracy over all pictures; for several labels per picture, mAP."""
        return self.result.map if isinstance(self.result, LabelEvaluation) else self.result.accuracy

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % confidence interval of :attr:`value`; None if no picture has a label."""
        found = self.result
        return found.map_interval if isinstance(found, LabelEvaluation) else found.interval

    @property
    def mean(self) -> float:
        """The mean of the folds' values."""
        return float(np.mean([fold.value for fold in self.folds]))

    @property
    def deviation(self) -> float:
        """The sample standard deviation (n - 1) of the folds' values.

        It is no error of the mean: any two networks share most of their training pictures.
        """
        return float(np.std([fold.value for fold in self.folds], ddof=1))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        several = isinstance(self.result, LabelEvaluation)
        measure = "map" if several else "accuracy"
        folds = [
            {"fold": one.number, "run": str(one.run.path), "pictures": one.pictures, measure: one.value}
            for one in self.folds
        ]
        described = {
            "data": self.source,
            "multilabel": several,
            "tta": self.tta,
            **self.result.to_dict(),
            "mean_of_folds": self.mean,
            "deviation_of_folds": self.deviation,
            "folds": folds,
            "notes": list(self.notes),
        }
        plain: dict[str, Any] = finite(described)
        return plain


def cross_validate(
    runs: Sequence[Run],
    data: Any,
    *,
    data_dir: str | Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> CrossValidation:
    """Measure the runs of all folds, each on its own test pictures, and put the answers together.

    Args:
        runs: complete runs with the settings ``data.fold`` from 1 to ``data.folds``, in any order.
        data: their data, in any form that :func:`thumbnet.load_data` accepts.
        data_dir: the folder for downloads; the user's cache folder by default.
        device: ``auto``, ``cpu``, ``cuda``, ...
        progress: called with the number of pictures of a fold that are done, and their total.

    Raises:
        RunError: the runs are not those of all folds of one division, they differ in their corrections of
            labels or in another setting than the seed, a run is incomplete or damaged, or the data have
            changed since one of them was trained.
        DataError: the data cannot be loaded.
        UnreadableImagesError: some pictures are damaged, and the recipe does not skip them.
    """
    ordered = _all_folds(runs)
    found: list[SplitLogits] = []
    infos: list[WeightsInfo] = []
    grouped: list[np.ndarray] = []  # the group of each picture, by fold; empty without groups
    known: set[str] = set()  # the names of all pictures that were divided
    tested: set[str] = set()  # and of those that a network has classified
    for run in ordered:
        loaded = data_of_run(run, data, data_dir)
        classifier = load_classifier(run.path, device)
        infos.append(classifier.info)
        found.append(
            classifier.classify_split(
                loaded.split("test"),
                loaded.class_names,
                batch_size=batch_size_of(run.recipe),
                on_bad_image=run.recipe.data.on_bad_image,
                progress=progress,
            )
        )
        for name in ("train", *loaded.set_aside):
            known |= _names(loaded.splits[name])
        tested |= _names(found[-1].split)
        groups = loaded.groups_of("test", found[-1].split)
        if groups is not None:
            grouped.append(groups)
    if len({info.class_names for info in infos}) > 1:
        raise RunError(f"{ordered[0].path} and the other folds have different classes")
    folds = [
        Fold(number, run, len(one.labels), _value(one, info))
        for number, (run, one, info) in enumerate(zip(ordered, found, infos, strict=True), start=1)
    ]
    result = _together(found, infos, np.concatenate(grouped) if grouped else None)
    notes = [*_notes(len(known - tested)), *_leaks(ordered), *_ended_early(ordered)]
    return CrossValidation(loaded.source, tuple(folds), result, found[0].tta, tuple(notes))


def _all_folds(runs: Sequence[Run]) -> list[Run]:
    """The runs in the order of their folds.

    Raises:
        RunError: they are not those of all folds, divide their data in different ways, or were trained with
            different settings or corrections of labels.
    """
    by_fold = {run.recipe.data.test_fold: run for run in runs}
    count = len(runs)
    wanted = [(number, count) for number in range(1, count + 1)]
    if count < 2 or set(by_fold) != set(wanted):
        raise RunError(
            "a cross-validation needs a run of each fold: data.folds has to be the number of runs, and "
            "data.fold 1, 2, 3, ..."
        )
    ordered = [by_fold[one] for one in wanted]
    settings = [run.recipe.data for run in ordered]
    different = [key for key in READ_BY if key != "fold" and len({getattr(one, key) for one in settings}) > 1]
    if different:
        raise RunError(
            f"the runs differ in data.{different[0]}, so their folds are not parts of one division: train "
            "all folds with the same settings"
        )
    first, *others = ordered
    for run in others:
        if corrections_csv(run.corrections or ()) != corrections_csv(first.corrections or ()):
            raise RunError(
                f"{first.path} and {run.path} were trained with different corrections of labels, or one of "
                "them without any: train all folds with the same --labels"
            )
        key = recipe_difference(first, run)
        if key is not None:
            raise RunError(
                f"{first.path} and {run.path} differ in {key}, so the folds do not measure one recipe: train "
                "all folds with the same settings"
            )
    return ordered


def _names(split: Split) -> set[str]:
    """The names of a split's pictures."""
    return {split.name(index) for index in range(len(split))}


def _value(found: SplitLogits, info: WeightsInfo) -> float:
    """The accuracy or mAP of one fold."""
    if not info.multilabel:
        return evaluate_logits(found.logits, found.labels, info.class_names).accuracy
    return evaluate_labels(found.logits, found.labels, info.class_names, quick=True).map


def _together(
    found: Sequence[SplitLogits], infos: Sequence[WeightsInfo], groups: np.ndarray | None
) -> Evaluation | LabelEvaluation:
    """The measures over the pictures of all folds.

    The networks' probabilities are taken to be on one scale. Where there are enough pictures, each network is
    calibrated.

    Args:
        found: the answers for the test pictures of each fold.
        infos: the description of each fold's network.
        groups: each picture's group, str [N], in the order of the folds; None without groups.
    """
    logits = np.concatenate([one.logits for one in found])
    labels = np.concatenate([one.labels for one in found])
    names = infos[0].class_names
    if not infos[0].multilabel:
        return evaluate_logits(logits, labels, names, groups)
    cuts = np.stack([as_thresholds(info.label_thresholds, len(names)) for info in infos])
    inside = np.clip(cuts, _LEAST, 1 - _LEAST)
    shifts = np.log(inside / (1 - inside))
    # A label is given where the logit reaches that of the network's threshold. Shifted by it, that is at 0.5.
    shifted = np.concatenate(
        [one.logits.astype(np.float64) - shift for one, shift in zip(found, shifts, strict=True)]
    )
    own = evaluate_labels(shifted, labels, names, groups=groups, quick=True)
    whole = evaluate_labels(logits, labels, names, groups=groups)
    scores = [
        replace(
            score,
            threshold=float(cut),
            precision=one.precision,
            recall=one.recall,
            f1=one.f1,
            predicted=one.predicted,
        )
        for score, one, cut in zip(whole.labels, own.labels, cuts.mean(axis=0), strict=True)
    ]
    return replace(whole, at_thresholds=own.at_half, labels=scores, interval=own.interval)


def _notes(untested: int) -> list[str]:
    """What the user should know about the pictures, of which ``untested`` were test pictures of no fold."""
    if not untested:
        return []
    return [
        f"{untested:,} picture(s) were never test pictures: they could not be divided or read, or were added "
        "by corrections"
    ]


def _leaks(runs: Sequence[Run]) -> list[str]:
    """What is said about test pictures that are in train, repeat, or are known to the initial weights."""
    found = []
    for number, run in enumerate(runs, start=1):
        lines = (run.summary.get("repeats") or {}).get("lines", ())
        told = [line for line in lines if line.startswith("warning: ") or TOO_NARROW in line]
        found += [f"fold {number}: {line}" for line in told]
        known = [line for line in run.summary.get("warnings") or () if line.startswith(_KNOWN)]
        found += [f"fold {number}: {line}" for line in known]
    return found


def _ended_early(runs: Sequence[Run]) -> list[str]:
    """Notes about folds whose training the user ended before its planned end."""
    stops = [(number, ended_early(run.summary)) for number, run in enumerate(runs, start=1)]
    return [
        f"fold {number}: the training was ended early, at step {stop['step']:,} of {stop['planned_steps']:,}"
        for number, stop in stops
        if stop is not None
    ]
