"""What was measured about a network's certainty on held-out pictures; stored with its weights.

Imports no torch. :mod:`thumbnet.classifiers.thresholds` and :mod:`thumbnet.classifiers.unlike` measure it.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from thumbnet.runs.fields import items, number, numbers, optional_text, table, text, whole

SCORE_NAMES = ("energy", "probability", "logit")  # the keys of thumbnet.classifiers.unlike.SCORES
_MOST_PICTURES = 2**53
LOOKS = 9  # numbers that describe how a picture looks, see thumbnet.classifiers.unlike.looks


@dataclass(frozen=True)
class Threshold:
    """The probability from which a prediction can be accepted for one precision.

    Attributes:
        precision: the share of accepted predictions that are right, 0 to 1, at the least.
        probability: accept a prediction with this probability or more, 0 to 1.
        accepted: how many held-out pictures this accepts.
        right: how many of these the network classifies correctly.
    """

    precision: float
    probability: float
    accepted: int
    right: int

    def __post_init__(self) -> None:
        for name in ("precision", "probability"):
            _check_share(name, getattr(self, name))
        if not 0 <= self.right <= self.accepted:
            raise ValueError(f"a threshold accepts {self.accepted} pictures, {self.right} of them right")


@dataclass(frozen=True)
class Thresholds:
    """Thresholds for several precisions, chosen on held-out pictures.

    Attributes:
        split: the split with the held-out pictures, ``calibration`` or ``val``.
        pictures: the number of these pictures.
        highest: the highest precision that they support at any threshold, 0 to 1.
        table: one threshold per precision, lowest first, without the precisions that are not supported.
        groups: the number of groups that the pictures are in, such as patients; None if they have none.
        confidence: the probability with which each threshold keeps its precision, 0 to 1; None in files of
            earlier versions, which chose the lowest of many thresholds that pass a test of one.
        also_chose: what the same pictures chose before, such as ``the epoch``, so that the thresholds are
            optimistic; None if they chose nothing else.
    """

    split: str
    pictures: int
    highest: float
    table: tuple[Threshold, ...] = ()
    groups: int | None = None
    confidence: float | None = None
    also_chose: str | None = None

    def __post_init__(self) -> None:
        _check_share("highest precision", self.highest)
        if self.confidence is not None:
            _check_share("confidence", self.confidence)
        if self.pictures < 1 or any(row.accepted > self.pictures for row in self.table):
            raise ValueError(f"the thresholds rest on {self.pictures} pictures")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON, without what is None.

        So old thresholds stay as they are in files of older versions.
        """
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Unlikeness:
    """How to tell pictures that are unlike the training pictures, by two scores.

    A picture is unlike them if one of the scores is above its threshold.

    Attributes:
        score: the score of the logits, one of ``SCORE_NAMES``.
        median, threshold: its median on held-out pictures, and its threshold.
        mean: the mean looks of training pictures, ``LOOKS`` numbers.
        inverse: the inverse of their covariance, ``LOOKS`` rows of ``LOOKS`` numbers.
        distance_median, distance_threshold: the median distance from that mean on held-out pictures, and the
            threshold of the distance.
        passed: the share of held-out pictures above neither threshold, 0 to 1.
        pictures: the number of held-out pictures.
    """

    score: str
    median: float
    threshold: float
    mean: tuple[float, ...]
    inverse: tuple[tuple[float, ...], ...]
    distance_median: float
    distance_threshold: float
    passed: float
    pictures: int

    def __post_init__(self) -> None:
        if self.score not in SCORE_NAMES:
            raise ValueError(f"unknown score for unlike pictures {self.score!r}")
        _check_share("share of pictures that pass", self.passed)
        limits = (self.median, self.threshold, self.distance_median, self.distance_threshold)
        if not all(math.isfinite(value) for value in (*limits, *self.mean, *chain(*self.inverse))):
            raise ValueError("a number for unlike pictures is not finite")
        if len(self.mean) != LOOKS or [len(row) for row in self.inverse] != [LOOKS] * LOOKS:
            raise ValueError(f"expected {LOOKS} numbers for how pictures look")


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"the {name} is {value!r}: expected a number from 0 to 1")


def thresholds_from(values: object) -> Thresholds | None:
    """Parse thresholds from JSON; None if there are none, as in files of older versions.

    Raises:
        ValueError: ``values`` is something else.
    """
    if values is None:
        return None
    required = ("split", "pictures", "highest", "table")
    newer = ("groups", "confidence", "also_chose")
    given = table(values, "thresholds", required, newer)
    rows = tuple(map(_threshold, items(given["table"], "thresholds.table")))
    pictures = whole(given["pictures"], "thresholds.pictures", 1, _MOST_PICTURES)
    highest = number(given["highest"], "thresholds.highest", 0, 1)
    groups = given.get("groups")
    if groups is not None:
        groups = whole(groups, "thresholds.groups", 1, pictures)
    confidence = given.get("confidence")
    if confidence is not None:
        confidence = number(confidence, "thresholds.confidence", 0, 1)
    split = text(given["split"], "thresholds.split")
    also_chose = optional_text(given.get("also_chose"), "thresholds.also_chose")
    return Thresholds(split, pictures, highest, rows, groups, confidence, also_chose)


def _threshold(values: object) -> Threshold:
    where = "thresholds.table"
    row = table(values, where, ("precision", "probability", "accepted", "right"))
    precision, probability = (number(row[key], where, 0, 1) for key in ("precision", "probability"))
    accepted, right = (whole(row[key], where, 0, _MOST_PICTURES) for key in ("accepted", "right"))
    return Threshold(precision, probability, accepted, right)


def unlikeness_from(values: object) -> Unlikeness | None:
    """Parse an :class:`Unlikeness` from JSON; None if there is none, as in files of older versions.

    Raises:
        ValueError: ``values`` is something else.
    """
    if values is None:
        return None
    limits = ("median", "threshold", "distance_median", "distance_threshold", "passed")
    given = table(values, "unlike", ("score", "mean", "inverse", "pictures", *limits))
    rows = items(given["inverse"], "unlike.inverse", LOOKS)
    return Unlikeness(
        score=text(given["score"], "unlike.score"),
        mean=numbers(given["mean"], "unlike.mean", LOOKS),
        inverse=tuple(numbers(row, "unlike.inverse", LOOKS) for row in rows),
        pictures=whole(given["pictures"], "unlike.pictures", 0, _MOST_PICTURES),
        **{name: number(given[name], f"unlike.{name}") for name in limits},
    )
