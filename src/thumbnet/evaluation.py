"""Measure accuracy, confusion and calibration from logits.

```python
evaluation = evaluate_logits(logits, labels, class_names)
```

This module imports no torch, so that exported models can be measured without it.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np

from thumbnet.errors import SeveralLabelsError

CALIBRATION_BINS = 15
Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
_SERIES = 100  # degrees of freedom from which on a series gives Student's quantiles to seven digits


@dataclass(frozen=True)
class ClassScore:
    """How well a class is recognised.

    Attributes:
        name: the class.
        pictures: how many pictures belong to it.
        precision, recall, f1: 0 to 1; 0 if undefined.
        predicted: how many pictures the network puts into it.
    """

    name: str
    pictures: int
    precision: float
    recall: float
    f1: float
    predicted: int

    @property
    def defined(self) -> tuple[float | None, float | None, float | None]:
        """Precision, recall and F1.

        Precision is None if the class is never predicted, the others if it has no pictures.
        """
        return (
            self.precision if self.predicted else None,
            self.recall if self.pictures else None,
            self.f1 if self.pictures else None,
        )


@dataclass(frozen=True)
class Evaluation:
    """Measures of a network's quality on a split.

    Attributes:
        pictures: the number of pictures.
        accuracy: top-1 accuracy, 0 to 1.
        balanced_accuracy: mean recall over the classes that have pictures, so all classes weigh the same.
        interval: the 95 % confidence interval of the accuracy, by :func:`wilson_interval`, or by
            :func:`grouped_interval` if the pictures have groups.
        top5: share of pictures whose class is among the five most probable; None with five classes or fewer.
        loss: mean cross-entropy, in nats.
        calibration_error: expected calibration error over 15 equal bins of confidence (Guo et al. 2017).
        confusion: counts, one row per true class and one column per predicted class.
        classes: the scores of each class.
        groups: the number of groups; None if the pictures have none.

    If the probabilities of a picture are NaN, it has no predicted class: it is wrong, and in no column of
    ``confusion``. ``loss`` and ``calibration_error`` are then nan.
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
    groups: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)


def evaluate_logits(
    logits: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...], groups: np.ndarray | None = None
) -> Evaluation:
    """Measure logits against labels.

    Args:
        logits: float [N, classes]; N is at least 1.
        labels: int64 [N].
        class_names: the names of the classes.
        groups: each picture's group, str [N], if pictures come in groups, such as those of one patient. Only
            the interval depends on it.

    Raises:
        SeveralLabelsError: the labels are a matrix, see :mod:`thumbnet.multilabel`.
    """
    if labels.ndim == 2:
        raise SeveralLabelsError
    count, classes = logits.shape
    log_probabilities = log_softmax(logits)
    predicted = logits.argmax(axis=1)
    answered = ~np.isnan(log_probabilities).any(axis=1)  # argmax takes a NaN for the largest logit
    right = (predicted == labels) & answered
    pairs = (labels * classes + predicted)[answered]
    confusion = np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)
    top5 = None
    if classes > 5:
        most_probable = np.argsort(-logits, axis=1, kind="stable")[:, :5]
        top5 = float(((most_probable == labels[:, None]).any(axis=1) & answered).mean())
    correct = int(right.sum())
    counts = np.bincount(labels, minlength=classes)
    scores = [
        _class_score(name, int(counts[label]), confusion, label) for label, name in enumerate(class_names)
    ]
    return Evaluation(
        pictures=count,
        accuracy=correct / count,
        balanced_accuracy=float(np.mean([score.recall for score in scores if score.pictures])),
        interval=wilson_interval(correct, count) if groups is None else grouped_interval(right, groups),
        top5=top5,
        loss=float(-log_probabilities[np.arange(count), labels].mean()),
        calibration_error=calibration_error(np.exp(log_probabilities.max(axis=1)), right),
        confusion=confusion.tolist(),
        classes=scores,
        groups=None if groups is None else len(np.unique(groups)),
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


def wilson_bounds(
    correct: np.ndarray, count: np.ndarray, z: float | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the bounds of the proportions ``correct / count`` (Wilson 1927), 0 to 1.

    Args:
        correct, count: int or float, of equal shapes.
        z: a quantile of the normal distribution; ``Z95`` for an interval of 95 %.
    """
    share = correct / count
    spread = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    middle = share + z**2 / (2 * count)
    scale = 1 + z**2 / count
    return np.maximum(0.0, (middle - spread) / scale), np.minimum(1.0, (middle + spread) / scale)


def grouped_interval(right: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """Compute the 95 % interval of the accuracy on pictures that come in groups; see :func:`grouped_bounds`.

    Args:
        right: whether each picture is classified correctly, bool [N]; N is at least 1.
        groups: each picture's group, str or int [N].
    """
    low, high = grouped_bounds(right, groups, Z95)
    return float(low[-1]), float(high[-1])


def grouped_bounds(right: np.ndarray, groups: np.ndarray, z: float) -> tuple[np.ndarray, np.ndarray]:
    """Compute the bounds of the share of right pictures among the first n, for n = 1 to N: float64 [N].

    These are Wilson's bounds for the effective number of pictures (Franco et al. 2019). This is the number of
    pictures divided by the design effect (Kish 1965): the variance of the share by its linearisation as a
    ratio of sums over groups, relative to the variance for independent pictures. The quantile is that of
    Student's t distribution, see :func:`student_degrees`. A bootstrap over groups would give an interval of
    no width if all pictures are right, and too narrow ones with few groups.

    With few mistakes, the estimated design effect is mostly chance: without any it is undefined, and a single
    mistake always gives about 1. So it is averaged with the worst case, in which the pictures of a group are
    all right or all wrong. The weight of the estimate is ``n * share * (1 - share)``, nearly the number of
    mistakes, and that of the worst case is 1. Without this average, the intervals of accurate networks are
    far too narrow.

    No bound is closer than it would be for independent pictures. A single group says nothing about others, so
    its bounds are 0 and 1.

    Args:
        right: whether each picture is classified correctly, bool [N].
        groups: each picture's group, str or int [N].
        z: a quantile of the normal distribution; ``Z95`` for an interval of 95 %.
    """
    ones = right.astype(np.int64)
    pictures_before, right_before = _before(ones, groups)
    count = np.arange(1, len(ones) + 1)
    share = np.cumsum(ones) / count
    # Sums over the groups of n², r² and r n, where n pictures of a group have come and r of these are right.
    squares = np.cumsum(2 * pictures_before + 1)
    right_squares = np.cumsum(ones * (2 * right_before + 1))
    products = np.cumsum(right_before + ones * (pictures_before + 1))
    number = np.cumsum(pictures_before == 0)  # of groups
    residuals = np.maximum(right_squares - 2 * share * products + share**2 * squares, 0.0)
    variance = residuals * number / np.maximum(number - 1, 1)  # of the number of right pictures
    effect = (variance + squares / count) / (count * share * (1 - share) + 1)
    effective = count / np.maximum(effect, 1.0)
    quantiles = student_quantiles(z, student_degrees(count, squares))
    low, high = wilson_bounds(share * effective, effective, quantiles)
    return np.where(number > 1, low, 0.0), np.where(number > 1, high, 1.0)


def _before(ones: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count the pictures of each picture's group that come before it, and the right ones of these: int64 [N].

    ``ones`` is 1 for a right picture and 0 for others.
    """
    _, numbers, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.argsort(numbers, kind="stable")
    first = np.repeat(np.cumsum(sizes) - sizes, sizes)  # where each picture's group begins in that order
    ordered = ones[order]
    total = np.cumsum(ordered) - ordered
    pictures_before, right_before = np.empty_like(ones), np.empty_like(ones)
    pictures_before[order] = np.arange(len(ones)) - first
    right_before[order] = total - total[first]
    return pictures_before, right_before


def student_degrees(pictures: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Return the degrees of freedom of a variance estimated from groups of pictures: int64, at least 1.

    They are one less than the effective number of groups (Carter, Schnepel and Steigerwald 2017), which is
    rounded down. This is the number of groups if all have the same size, and less if a few have most of the
    pictures.

    >>> student_degrees(np.array([40, 40]), np.array([4 * 10**2, 37**2 + 3 * 1**2])).tolist()
    [3, 1]

    Args:
        pictures: the number of pictures, int, which is the sum of the groups' sizes.
        squares: the sum of the squares of these sizes, int.
    """
    return np.maximum(np.floor(pictures**2 / squares).astype(np.int64) - 1, 1)


def student_quantiles(z: float, degrees: np.ndarray) -> np.ndarray:
    """Return the quantiles of Student's t distributions with the probability of a normal quantile, float64.

    >>> student_quantiles(Z95, np.array([1, 10, 1000])).round(3).tolist()
    [12.706, 2.228, 1.962]

    Args:
        z: a quantile of the normal distribution, above 0.
        degrees: the degrees of freedom, int, at least 1.
    """
    n = degrees.astype(np.float64)
    found = (  # the expansion of Cornish and Fisher; Abramowitz & Stegun 26.7.5
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )
    for few in np.unique(degrees[degrees < _SERIES]).tolist():
        found[degrees == few] = _student_quantile(z, few)
    return found


@cache
def _student_quantile(z: float, degrees: int) -> float:
    """Find one of these quantiles by bisection of the distribution (Abramowitz & Stegun 26.7.3, 26.7.4)."""
    wanted = math.erf(z / math.sqrt(2))

    def inside(angle: float) -> float:
        """The probability of values between -t and t, where t is sqrt(degrees) tan(angle)."""
        sine, cosine, odd = math.sin(angle), math.cos(angle), degrees % 2
        term, total = cosine if odd else 1.0, 0.0
        for k in range(2 + odd, degrees + 1, 2):
            total += term
            term *= cosine**2 * (k - 1) / k
        return (angle + sine * total) * 2 / math.pi if odd else sine * total

    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < wanted else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


@dataclass(frozen=True)
class GroupScore:
    """The number of pictures in a group, and how many of them are classified correctly."""

    name: str
    pictures: int
    right: int

    @property
    def accuracy(self) -> float:
        """The share of the group's pictures that are classified correctly, 0 to 1."""
        return self.right / self.pictures


def group_scores(right: np.ndarray, groups: np.ndarray) -> list[GroupScore]:
    """Score each group, the one that lowers the accuracy most first.

    The order is that of how many mistakes a group has above what its size and the accuracy on all pictures
    would give. By their own accuracy, the smallest groups would come first.

    Args:
        right: whether each picture is classified correctly, bool [N].
        groups: each picture's group, str [N].
    """
    names, numbers, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    hits = np.bincount(numbers, right, minlength=len(names))
    order = np.argsort(hits - sizes * right.mean(), kind="stable")
    return [GroupScore(str(names[at]), int(sizes[at]), int(hits[at])) for at in order.tolist()]


def _class_score(name: str, pictures: int, confusion: np.ndarray, label: int) -> ClassScore:
    hits, predicted = int(confusion[label, label]), int(confusion[:, label].sum())
    precision = hits / predicted if predicted else 0.0
    recall = hits / pictures if pictures else 0.0
    f1 = 2 * hits / (pictures + predicted) if pictures + predicted else 0.0
    return ClassScore(name, pictures, precision, recall, f1, predicted)


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
