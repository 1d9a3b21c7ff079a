"""Measure accuracy, confusion and calibration from logits.

```python
evaluation = evaluate_logits(logits, labels, class_names)
```

This module imports no torch, so that exported models can be measured without it.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from thumbnet.errors import SeveralLabelsError

CALIBRATION_BINS = 15
Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


@dataclass(frozen=True)
class ClassScore:
    """The number of pictures of a class, and its precision, recall and F1, 0 to 1; 0 if undefined."""

    name: str
    pictures: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Evaluation:
    """Measures of a network's quality on a split.

    Attributes:
        pictures: the number of pictures.
        accuracy: top-1 accuracy, 0 to 1.
        balanced_accuracy: mean recall over the classes that have pictures, so all classes weigh the same.
        interval: the 95 % confidence interval of the accuracy (Wilson 1927).
        top5: share of pictures whose class is among the five most probable; None with five classes or fewer.
        loss: mean cross-entropy, in nats.
        calibration_error: expected calibration error over 15 equal bins of confidence (Guo et al. 2017).
        confusion: counts, one row per true class and one column per predicted class.
        classes: the scores of each class.
    """

    pictures: int
    accuracy: float
    balanced_accuracy: float
    interval: tuple[float, float]
    top5: float | None
    loss: float
    calibration_error: float
    confusion: list[list[int]]
    classes: list[ClassScore]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)


def evaluate_logits(logits: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> Evaluation:
    """Measure ``logits`` (float [N, classes]) against ``labels`` (int64 [N]); N is at least 1.

    Raises:
        SeveralLabelsError: the labels are a matrix, see :mod:`thumbnet.multilabel`.
    """
    if labels.ndim == 2:
        raise SeveralLabelsError
    count, classes = logits.shape
    log_probabilities = log_softmax(logits)
    predicted = logits.argmax(axis=1)
    right = predicted == labels
    pairs = labels * classes + predicted
    confusion = np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)
    top5 = None
    if classes > 5:
        top5 = float(
            (np.argsort(-logits, axis=1, kind="stable")[:, :5] == labels[:, None]).any(axis=1).mean()
        )
    correct = int(right.sum())
    scores = [_class_score(name, confusion, label) for label, name in enumerate(class_names)]
    return Evaluation(
        pictures=count,
        accuracy=correct / count,
        balanced_accuracy=float(np.mean([score.recall for score in scores if score.pictures])),
        interval=wilson_interval(correct, count),
        top5=top5,
        loss=float(-log_probabilities[np.arange(count), labels].mean()),
        calibration_error=calibration_error(np.exp(log_probabilities.max(axis=1)), right),
        confusion=confusion.tolist(),
        classes=scores,
    )


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Compute log-probabilities, float64 [N, classes]."""
    values = logits.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    return values - np.log(np.exp(values).sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class ReliabilityBin:
    """The predictions in one bin of confidence: their number, mean confidence and accuracy."""

    pictures: int
    confidence: float
    accuracy: float


def reliability_bins(confidence: np.ndarray, right: np.ndarray) -> list[ReliabilityBin]:
    """Group predictions by confidence into ``CALIBRATION_BINS`` equal bins (Guo et al. 2017).

    Args:
        confidence: probability of the predicted class, float [N], 0 to 1.
        right: whether the prediction is correct, bool [N].
    """
    numbers = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64), 1, CALIBRATION_BINS) - 1
    pictures, sums, hits = (
        np.bincount(numbers, weights, minlength=CALIBRATION_BINS) for weights in (None, confidence, right)
    )
    return [
        ReliabilityBin(int(n), float(s / max(n, 1)), float(h / max(n, 1)))
        for n, s, h in zip(pictures, sums, hits, strict=True)
    ]


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Compute the expected calibration error (Guo et al. 2017); arguments as for :func:`reliability_bins`."""
    bins = reliability_bins(confidence, right)
    return sum(b.pictures * abs(b.confidence - b.accuracy) for b in bins) / len(confidence)


def wilson_interval(correct: int, count: int) -> tuple[float, float]:
    """Compute the 95 % interval of a proportion (Wilson 1927). It always stays between 0 and 1."""
    low, high = wilson_bounds(np.array(correct), np.array(count), Z95)
    return float(low), float(high)


def wilson_bounds(correct: np.ndarray, count: np.ndarray, z: float) -> tuple[np.ndarray, np.ndarray]:
    """Compute the bounds of the proportions ``correct / count`` (Wilson 1927), 0 to 1.

    Args:
        correct, count: int, of equal shapes.
        z: a quantile of the normal distribution; ``Z95`` for an interval of 95 %.
    """
    share = correct / count
    spread = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    middle = share + z**2 / (2 * count)
    scale = 1 + z**2 / count
    return np.maximum(0.0, (middle - spread) / scale), np.minimum(1.0, (middle + spread) / scale)


def _class_score(name: str, confusion: np.ndarray, label: int) -> ClassScore:
    hits = int(confusion[label, label])
    pictures, predicted = int(confusion[label].sum()), int(confusion[:, label].sum())
    precision = hits / predicted if predicted else 0.0
    recall = hits / pictures if pictures else 0.0
    f1 = 2 * hits / (pictures + predicted) if pictures + predicted else 0.0
    return ClassScore(name, pictures, precision, recall, f1)


@dataclass(frozen=True, eq=False)
class Curve:
    """What a score finds of one class, at every threshold. A picture is found if its score reaches it.

    Attributes:
        positives, negatives: the number of pictures of the class, and of all other pictures.
        thresholds: the distinct scores, highest first: float64 [T].
        hits, false_alarms: the pictures found at each threshold, of the class and others: int64 [T].
    """

    positives: int
    negatives: int
    thresholds: np.ndarray
    hits: np.ndarray
    false_alarms: np.ndarray

    @property
    def recall(self) -> np.ndarray:
        """The share of the class's pictures that are found (true positive rate), [T]; 0 without any."""
        return self.hits / max(self.positives, 1)

    @property
    def false_positive_rate(self) -> np.ndarray:
        """The share of all other pictures that are found, [T]; 0 without any."""
        return self.false_alarms / max(self.negatives, 1)

    @property
    def precision(self) -> np.ndarray:
        """The share of found pictures that belong to the class, [T]."""
        return self.hits / (self.hits + self.false_alarms)

    @property
    def f1(self) -> np.ndarray:
        """The harmonic mean of precision and recall, [T]."""
        return 2 * self.hits / (self.positives + self.hits + self.false_alarms)

    @property
    def auroc(self) -> float:
        """The area under the ROC curve; nan unless there are pictures both of the class and of others."""
        if not self.positives or not self.negatives:
            return math.nan
        x, y = (np.concatenate([[0.0], one]) for one in (self.false_positive_rate, self.recall))
        return float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum())

    @property
    def average_precision(self) -> float:
        """The mean precision over recall, without interpolation; nan if the class has no pictures."""
        if not self.positives:
            return math.nan
        return float((np.diff(self.recall, prepend=0.0) * self.precision).sum())


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold for one class, and the precision, recall and F1 at it, 0 to 1."""

    threshold: float
    precision: float
    recall: float
    f1: float


def curve_of(scores: np.ndarray, truth: np.ndarray) -> Curve:
    """Compute a class's curve from its scores (float [N]) and whether pictures belong to it (bool [N])."""
    order = np.argsort(-scores, kind="stable")
    scores = scores[order].astype(np.float64)
    hits = np.cumsum(truth[order], dtype=np.int64)
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # pictures of one score go together
    positives = int(hits[-1])
    hits = hits[last]
    return Curve(positives, len(scores) - positives, scores[last], hits, last + 1 - hits)


def one_against_rest(probabilities: np.ndarray, labels: np.ndarray) -> list[Curve]:
    """Compute each class's curve from probabilities (float [N, classes]) and labels (int64 [N])."""
    return [curve_of(column, labels == label) for label, column in enumerate(probabilities.T)]


def micro_average(probabilities: np.ndarray, labels: np.ndarray) -> Curve:
    """Compute one curve for all classes together: every pair of a picture and a class counts alike."""
    truth = labels[:, None] == np.arange(probabilities.shape[1])
    return curve_of(probabilities.ravel(), truth.ravel())


def best_f1(curve: Curve) -> OperatingPoint | None:
    """Return the threshold with the best F1 (the highest of several); None if the class has no pictures."""
    if not curve.positives:
        return None
    return _point(curve, int(np.argmax(curve.f1)))


def at_precision(curve: Curve, wanted: float) -> OperatingPoint | None:
    """Return the threshold with the highest recall whose precision is at least ``wanted``.

    None if no threshold reaches it. Among equals, the highest threshold is chosen.
    """
    reached = np.flatnonzero((curve.precision >= wanted) & (curve.hits > 0))
    if not len(reached):
        return None
    return _point(curve, int(reached[np.argmax(curve.hits[reached])]))


def _point(curve: Curve, place: int) -> OperatingPoint:
    return OperatingPoint(
        float(curve.thresholds[place]),
        float(curve.precision[place]),
        float(curve.recall[place]),
        float(curve.f1[place]),
    )
