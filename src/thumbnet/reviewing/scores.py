"""Probabilities of all pictures of a run's data, each from a network that was not trained on that picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from thumbnet.data.splits import Data
from thumbnet.runs.folder import Run


@dataclass(frozen=True)
class Scores:
    """What networks say about the pictures of a data set.

    Attributes:
        probabilities: by split, float32 [N, classes], columns in the order of the data's class names. A row
            of NaN belongs to a picture that cannot be read.
        digests: by split, uint64 [N, 2], from :func:`thumbnet.data.repeats.picture_digests`; empty if the
            pictures were not compared.
        held_out: by split, bool [N]: whether the network had not seen the picture in its training.
    """

    probabilities: dict[str, np.ndarray]
    digests: Mapping[str, np.ndarray] = field(default_factory=dict)
    held_out: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Scoring:
    """How far :func:`score_pictures` is.

    Attributes:
        network: the network that is being trained, counted from 1; 0 while the run's own network classifies.
        networks: the number of networks that are trained, including those of an earlier, interrupted call.
        done: the share of all work that is done, 0 to 1.
        pictures_per_second: the speed of the training; None before the first step.
        seconds_left: an estimate; None before the first step.
    """

    network: int
    networks: int
    done: float
    pictures_per_second: float | None
    seconds_left: float | None


def score_pictures(
    run: Run,
    data: Data,
    *,
    folds: int = 3,
    device: str = "auto",
    progress: Callable[[Scoring], None] | None = None,
) -> Scores:
    """Compute the probabilities of all pictures; see :class:`Scores`."""
    raise NotImplementedError
