"""Measure a network that gives each picture several labels: average precision, F1, and more.

```python
evaluation = evaluate_labels(logits, targets, class_names, thresholds)
```

A label's probability is the sigmoid of its logit. This module imports no torch, so that exported models can
be measured without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from thumbnet.evaluation import (
    Z95,
    calibration_error,
    curve_of,
    grouped_interval,
    student_degrees,
    student_quantiles,
    wilson_bounds,
    wilson_interval,
)

HALF = 0.5  # the threshold of a label for which no other was chosen
FEWEST_POSITIVES = 5  # pictures with a label; with fewer, its threshold would be a guess
RESAMPLES = 200  # of the bootstrap


@dataclass(frozen=True)
class LabelScore:
    """The measures of one label.

    Attributes:
        name: the label.
        pictures: how many pictures have it.
        average_precision: 0 to 1; None if no picture has the label.
        threshold: the probability from which on the network gives the label.
        precision, recall, f1: at this threshold, 0 to 1; 0 if undefined.
        f1_at_half: F1 at a threshold of 0.5.
        predicted: to how many pictures the network gives the label at its threshold.
    """

    name: str
    pictures: int
    average_precision: float | None
    threshold: float
    precision: float
    recall: float
    f1: float
    f1_at_half: float
    predicted: int

    @property
    def defined(self) -> tuple[float | None, float | None, float | None, float | None]:
        """Precision, recall, F1, and F1 at 0.5.

        Precision is None if the label is never given, the others if no picture has it.
        """
        return (
            self.precision if self.predicted else None,
            self.recall if self.pictures else None,
            self.f1 if self.pictures else None,
            self.f1_at_half if self.pictures else None,
        )


@dataclass(frozen=True)
class Decisions:
    """How good the decisions at certain thresholds are, 0 to 1.

    Attributes:
        precision, recall, micro_f1: over all decisions together, so frequent labels weigh more.
        macro_f1: mean F1 of the labels that some picture has.
        exact_match: share of pictures whose labels are all right, present and absent ones.
        hamming_loss: share of wrong decisions among all pictures and labels.
    """

    precision: float
    recall: float
    micro_f1: float
    macro_f1: float
    exact_match: float
    hamming_loss: float


@dataclass(frozen=True)
class LabelEvaluation:
    """Measures of a network's quality on pictures with several labels.

    Attributes:
        pictures: the number of pictures.
        map: mean average precision (mAP) over the labels that some picture has; nan if there is none.
        map_interval: its 95 % confidence interval, see :func:`bootstrap_interval`; None if it was not
            computed or no picture has a label.
        loss: binary cross-entropy, summed over the labels and averaged over the pictures, in nats.
        calibration_error: mean difference between probability and frequency, over 15 equal bins of
            probability; every label of every picture counts.
        at_half: the decisions at a threshold of 0.5.
        at_thresholds: the decisions at the network's own thresholds; they equal ``at_half`` if it has none.
        labels: the measures of each label.
        together: counts of pictures by pairs of labels that they have, one row and one column per label. The
            diagonal has the counts of single labels. Empty if it was not computed.
        interval: the 95 % confidence interval of :attr:`accuracy`, by
            :func:`thumbnet.evaluation.wilson_interval`, or by :func:`thumbnet.evaluation.grouped_interval` if
            the pictures have groups.
        groups: the number of groups; None if the pictures have none.
    """

    pictures: int
    map: float
    map_interval: tuple[float, float] | None
    loss: float
    calibration_error: float
    at_half: Decisions
    at_thresholds: Decisions
    labels: list[LabelScore]
    together: list[list[int]]
    interval: tuple[float, float]
    groups: int | None = None

    @property
    def accuracy(self) -> float:
        """The share of pictures whose labels are all right at the network's thresholds."""
        return self.at_thresholds.exact_match

    def pairs(self) -> list[tuple[int, str, str]]:
        """The pairs of labels that pictures have together, most frequent first: how many, and two names."""
        found = [
            (count, self.labels[first].name, self.labels[second].name)
            for first, row in enumerate(self.together)
            for second, count in enumerate(row)
            if first < second and count
        ]
        return sorted(found, reverse=True)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {**asdict(self), "map": None if math.isnan(self.map) else self.map}


def evaluate_labels(
    logits: np.ndarray,
    targets: np.ndarray,
    class_names: Sequence[str],
    thresholds: Sequence[float] = (),
    groups: np.ndarray | None = None,
    *,
    quick: bool = False,
) -> LabelEvaluation:
    """Measure logits against labels.

    A logit of NaN gives no label and is a wrong decision, whether the picture has the label or not. In the
    ranking of mAP, it comes last.

    Args:
        logits: float [N, labels]; N is at least 1.
        targets: whether each picture has each label: bool, or 0 and 1, [N, labels].
        class_names: the names of the labels.
        thresholds: one per label; empty for 0.5.
        groups: each picture's group, str [N], if pictures come in groups, such as those of one patient. Only
            the intervals depend on it.
        quick: leave out the interval of mAP and the pairs of labels.
    """
    truth = targets.astype(bool)
    probabilities, unknown = sigmoid(logits), np.isnan(logits)
    ranking = np.where(unknown, -1.0, probabilities)
    cuts = as_thresholds(thresholds, len(class_names))
    precisions = average_precisions(ranking, truth)
    counts, half = truth.sum(axis=0), ranking >= HALF
    given = ranking >= cuts
    scores = [
        LabelScore(
            name,
            int(counts[i]),
            None if math.isnan(precisions[i]) else float(precisions[i]),
            float(cuts[i]),
            *_rates(given[:, i], truth[:, i]),
            _rates(half[:, i], truth[:, i])[2],
            int(given[:, i].sum()),
        )
        for i, name in enumerate(class_names)
    ]
    wrong = (given != truth) | unknown
    exact = ~wrong.any(axis=1)
    ones = np.zeros((0, 0)) if quick else truth.astype(np.float64)
    return LabelEvaluation(
        pictures=len(truth),
        map=_mean(precisions),
        map_interval=None if quick else bootstrap_interval(ranking, truth, groups),
        loss=float(binary_cross_entropy(logits, truth).sum(axis=1).mean()),
        calibration_error=calibration_error(probabilities.ravel(), truth.ravel()),
        at_half=_decisions(half, truth, (half != truth) | unknown),
        at_thresholds=_decisions(given, truth, wrong),
        labels=scores,
        together=(ones.T @ ones).astype(np.int64).tolist(),
        interval=(
            wilson_interval(int(exact.sum()), len(exact))
            if groups is None
            else grouped_interval(exact, groups)
        ),
        groups=None if groups is None else len(np.unique(groups)),
    )


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Compute probabilities, float64, of any shape."""
    return np.exp(log_sigmoid(logits))


def log_sigmoid(logits: np.ndarray) -> np.ndarray:
    """Compute log-probabilities, float64, of any shape."""
    return -np.logaddexp(0.0, -logits.astype(np.float64))


def binary_cross_entropy(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The surprise of each label of each picture, in nats: float64 [N, labels]."""
    signs = np.where(targets, -1.0, 1.0)
    return np.logaddexp(0.0, signs * logits.astype(np.float64))


def as_thresholds(thresholds: Sequence[float], labels: int) -> np.ndarray:
    """Thresholds as an array, float64 [labels]; ``HALF`` for all labels if there are none."""
    return np.array(thresholds, dtype=np.float64) if len(thresholds) else np.full(labels, HALF)


def average_precisions(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The average precision of each label: float64 [labels], nan for a label that no picture has.

    The average precision is the sum over all distinct scores, from the highest down, of the precision at that
    score times the gain in recall, as scikit-learn's ``average_precision_score`` defines it. (For a label
    that no picture has, scikit-learn returns 0, which would make a mean depend on the choice of the split.)

    Args:
        scores: float [N, labels].
        truth: bool [N, labels].
    """
    return np.array([_Ranked(scores[:, i], truth[:, i]).precision() for i in range(truth.shape[1])])


class _Ranked:
    """One label's pictures from the highest score to the lowest."""

    def __init__(self, scores: np.ndarray, truth: np.ndarray) -> None:
        self._order = np.argsort(-scores, kind="stable")
        ordered = scores[self._order]
        self._truth = truth[self._order]
        # Pictures with the same score are taken together: only the last of them ends a step.
        self._ends = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)

    def precision(self, weights: np.ndarray | None = None) -> float:
        """The average precision, with a weight for each picture (float or int [N]); nan without positives."""
        ordered = np.ones(len(self._order)) if weights is None else weights[self._order]
        hits = np.cumsum(ordered * self._truth)[self._ends]
        if not hits[-1]:
            return math.nan
        taken = np.cumsum(ordered)[self._ends]
        gains = np.diff(hits, prepend=0.0) / hits[-1]
        return min(1.0, float((gains * hits / np.maximum(taken, 1e-12)).sum()))


def bootstrap_interval(
    scores: np.ndarray, truth: np.ndarray, groups: np.ndarray | None = None
) -> tuple[float, float] | None:
    """The 95 % interval of mAP, from its variance over ``RESAMPLES`` resamples of the pictures.

    The variance is that of the bootstrap (Efron 1979). Its percentiles would lie too high, because a picture
    that is drawn several times helps its own precision. The resamples are always the same.

    A perfect ranking is perfect in every resample, however few pictures there are. So the bounds are Wilson's
    for mAP, taken as the share of right pictures, with the number of pictures that would give the bootstrap's
    variance. This is a heuristic. As in :func:`thumbnet.evaluation.grouped_bounds`, the design effect is
    averaged: the weight of the bootstrap's is ``n * map * (1 - map)``, and that of independent pictures is 1.
    n is the effective number of pictures with a label (Kish 1965). A picture weighs as much as it counts in
    mAP: more if few pictures have its label.

    If the pictures have groups, whole groups are drawn and counted, and the quantile is that of Student's t
    distribution, see :func:`thumbnet.evaluation.student_degrees`. The interval is 0 to 1 for a single group.

    Returns:
        None if no picture has any label.

    Args:
        scores: float [N, labels].
        truth: bool [N, labels].
        groups: each picture's group, str [N]; None if each picture stands for itself.
    """
    labels = np.flatnonzero(truth.any(axis=0))
    if not len(labels):
        return None
    ranked = [_Ranked(scores[:, i], truth[:, i]) for i in labels]
    unit: np.ndarray = np.arange(len(truth))  # the number of what each picture is drawn with: its own
    count, quantile = len(truth), Z95
    if groups is not None:
        _, unit, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        count = len(sizes)
        if count < 2:
            return 0.0, 1.0
        degrees = student_degrees(sizes.sum(keepdims=True), (sizes**2).sum(keepdims=True))
        quantile = float(student_quantiles(Z95, degrees)[0])
    generator = np.random.default_rng(0)
    found = []
    for _ in range(RESAMPLES):
        weights = np.bincount(generator.integers(count, size=count), minlength=count)[unit]
        found.append(_mean(np.array([one.precision(weights) for one in ranked])))
    value = _mean(np.array([one.precision() for one in ranked]))
    # The resamples vary less than new pictures would, by the factor (count - 1) / count in the variance.
    variance = float(np.nanvar(found, ddof=1)) * count / max(count - 1, 1)
    shares = (truth[:, labels] / truth[:, labels].sum(axis=0)).mean(axis=1)  # of mAP; their sum is 1
    number = 1 / float((np.bincount(unit, shares) ** 2).sum())
    effect = (number**2 * variance + 1) / (number * value * (1 - value) + 1)
    effective = np.array(number / effect)
    low, high = wilson_bounds(value * effective, effective, quantile)
    return min(float(low), value), max(float(high), value)  # rounding must not leave the value outside


def choose_label_thresholds(probabilities: np.ndarray, targets: np.ndarray) -> tuple[float, ...]:
    """The threshold of each label with the highest F1.

    A label that fewer than ``FEWEST_POSITIVES`` pictures have takes the threshold that is best for the
    decisions about all labels together. Choose on held-out pictures, and measure on others. A threshold lies
    halfway between two neighbouring probabilities; of several equally good ones, the nearest to 0.5 is
    chosen. All are ``HALF`` if a probability is not finite.

    Args:
        probabilities: float [N, labels].
        targets: bool, or 0 and 1, [N, labels].
    """
    truth = targets.astype(bool)
    if not np.isfinite(probabilities).all():
        return (HALF,) * truth.shape[1]
    together = _best_threshold(probabilities.ravel(), truth.ravel())
    return tuple(
        _best_threshold(probabilities[:, i], truth[:, i]) if count >= FEWEST_POSITIVES else together
        for i, count in enumerate(truth.sum(axis=0).tolist())
    )


def _best_threshold(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """The threshold with the highest F1 for decisions with these probabilities, [N]; else ``HALF``."""
    if int(truth.sum()) < FEWEST_POSITIVES:
        return HALF
    curve = curve_of(probabilities, truth)
    below = np.append(curve.thresholds[1:], -1.0)  # the next lower probability; none for the lowest
    cuts = (curve.thresholds + np.maximum(below, 0.0)) / 2
    best = np.flatnonzero(curve.f1 >= curve.f1.max() - 1e-12)
    place = best[np.abs(cuts[best] - HALF).argmin()]
    cut, reached, missed = (float(values[place]) for values in (cuts, curve.thresholds, below))
    # Six digits are enough, unless they move the threshold past a neighbour: a label that needs a probability
    # of 1 is never given. Halfway between two numbers that follow each other is one of them.
    return next(one for one in (float(f"{cut:.6g}"), cut, reached) if missed < one <= reached)


def _mean(precisions: np.ndarray) -> float:
    known = precisions[~np.isnan(precisions)]
    return float(known.mean()) if len(known) else math.nan


def _rates(given: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """Precision, recall and F1; 0 where undefined."""
    hits, called, real = int((given & truth).sum()), int(given.sum()), int(truth.sum())
    return (
        hits / called if called else 0.0,
        hits / real if real else 0.0,
        2 * hits / (called + real) if called + real else 0.0,
    )


def _decisions(given: np.ndarray, truth: np.ndarray, wrong: np.ndarray) -> Decisions:
    precision, recall, micro = _rates(given, truth)
    known = np.flatnonzero(truth.any(axis=0))
    each = [_rates(given[:, i], truth[:, i])[2] for i in known]
    return Decisions(
        precision=precision,
        recall=recall,
        micro_f1=micro,
        macro_f1=float(np.mean(each)) if each else 0.0,
        exact_match=float((~wrong.any(axis=1)).mean()),
        hamming_loss=float(wrong.mean()),
    )
