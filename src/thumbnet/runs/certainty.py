"""What was measured about a network's certainty on held-out pictures; stored with its weights.

Imports no torch. :mod:`thumbnet.classifiers.thresholds` and :mod:`thumbnet.classifiers.unlike` measure it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

SCORE_NAMES = ("energy", "probability", "logit")  # the keys of thumbnet.classifiers.unlike.SCORES


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
    """

    split: str
    pictures: int
    highest: float
    table: tuple[Threshold, ...] = ()

    def __post_init__(self) -> None:
        _check_share("highest precision", self.highest)
        if self.pictures < 1 or any(row.accepted > self.pictures for row in self.table):
            raise ValueError(f"the thresholds rest on {self.pictures} pictures")


@dataclass(frozen=True)
class Unlikeness:
    """How to tell pictures that are unlike the training pictures.

    Attributes:
        score: the name of the score, one of ``SCORE_NAMES``.
        threshold: a picture with a higher score is unlike the training pictures.
        passed: the share of held-out pictures that have no higher score, 0 to 1.
        pictures: the number of held-out pictures.
    """

    score: str
    threshold: float
    passed: float
    pictures: int

    def __post_init__(self) -> None:
        if self.score not in SCORE_NAMES:
            raise ValueError(f"unknown score for unlike pictures {self.score!r}")
        _check_share("share of pictures that pass", self.passed)
        if not math.isfinite(self.threshold):
            raise ValueError(f"the threshold for unlike pictures is {self.threshold}")


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"the {name} is {value!r}: expected a number from 0 to 1")


def thresholds_from(values: Any) -> Thresholds | None:
    """Parse thresholds from JSON; None if there are none, as in files of older versions.

    Raises:
        ValueError, KeyError, TypeError: ``values`` is something else.
    """
    if values is None:
        return None
    table = tuple(
        Threshold(float(row["precision"]), float(row["probability"]), int(row["accepted"]), int(row["right"]))
        for row in values["table"]
    )
    return Thresholds(str(values["split"]), int(values["pictures"]), float(values["highest"]), table)


def unlikeness_from(values: Any) -> Unlikeness | None:
    """Parse an :class:`Unlikeness` from JSON; None if there is none, as in files of older versions.

    Raises:
        ValueError, KeyError, TypeError: ``values`` is something else.
    """
    if values is None:
        return None
    return Unlikeness(
        str(values["score"]), float(values["threshold"]), float(values["passed"]), int(values["pictures"])
    )
