"""The result of an epoch: its loss, its speed and its score."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Self

ON_REQUEST = "ended on request"  # why a training ended early: --finish


@dataclass(frozen=True)
class Score:
    """The result of evaluating after an epoch: accuracy (0 to 1) and loss on ``pictures`` of a split.

    If the pictures have several labels each, ``accuracy`` is the share of those whose labels are all right,
    and ``map`` the mean average precision, 0 to 1. Otherwise ``balanced_accuracy`` is the mean recall of the
    classes, 0 to 1; None in the scores of earlier versions.
    """

    split: str
    accuracy: float
    loss: float
    pictures: int = 0
    map: float | None = None
    balanced_accuracy: float | None = None

    @property
    def headline(self) -> float:
        """The main measure: mAP if the pictures have several labels, else accuracy."""
        return self.accuracy if self.map is None else self.map

    def rank(self, choose_by: str) -> tuple[float, float]:
        """Two numbers that are larger for a better score, by ``training.choose_by``; the first counts more.

        A score whose loss is not a number is below all others, because the network answers with NaN.
        """
        if math.isnan(self.loss):
            return -math.inf, -math.inf
        likelihood = -self.loss
        if choose_by == "loss":
            return likelihood, self.headline
        if choose_by == "balanced-accuracy":
            assert self.balanced_accuracy is not None  # several labels are refused with it
            return self.balanced_accuracy, likelihood
        return self.headline, likelihood


@dataclass(frozen=True)
class EpochResult:
    """The result of one epoch.

    Attributes:
        epoch: counted from 1.
        step: optimisation steps since the training began.
        loss: mean training loss over the epoch's steps, without skipped ones.
        lr: the recipe's learning rate at the epoch's last step.
        seconds: time spent training in this epoch, without evaluation.
        pictures_per_second: training speed.
        score: score on the whole split; None if this epoch was not evaluated on it.
        train_accuracy: 0 to 1, measured on the augmented pictures as they passed through the network, each
            with the weights of its step; nan if unknown. Pictures that the epoch skipped
            (``data.skip_easy``) do not count, so it is usually lower than the accuracy on all of them. A
            mixed picture counts as right if the answer is the class with the larger share.
        sample: score on a fixed sample of the split, if there is no ``score``.
        stopped: why the training ends with this epoch, earlier than planned; empty if it does not.
    """

    epoch: int
    step: int
    loss: float
    lr: float
    seconds: float
    pictures_per_second: float
    score: Score | None
    train_accuracy: float = math.nan
    sample: Score | None = None
    stopped: str = ""

    def row(self) -> dict[str, Any]:
        """The values for a line of ``metrics.jsonl``. The split's name prefixes those of the score."""
        values = asdict(self)
        score, sample = values.pop("score"), values.pop("sample")
        if not self.stopped:
            del values["stopped"]
        score = score or sample
        if score:
            split = score.pop("split")
            values |= {f"{split}_{key}": value for key, value in score.items() if value is not None}
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Rebuild a result from the output of ``dataclasses.asdict``."""
        scores = {key: None if values[key] is None else Score(**values[key]) for key in ("score", "sample")}
        return cls(**{**values, **scores})
