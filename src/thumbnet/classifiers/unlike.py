"""Tell pictures that are unlike the training pictures, from logits alone. Imports no torch.

A classifier gives every picture one of its classes, even a page of text or a blank frame. A score of the
logits tells many of these apart. It works for exported models too, which return nothing but logits.
``benchmarks/unlike.py`` compares the scores; ``docs/notebook/unlike.md`` has the numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from thumbnet.data.calibration import FEWEST
from thumbnet.evaluation import log_softmax
from thumbnet.runs.certainty import Unlikeness

PASSED = 0.99  # the share of held-out pictures that are not called unlike
SCORE = "energy"


def energy(logits: np.ndarray) -> np.ndarray:
    """The free energy of a picture, ``-log(sum(exp(logits)))`` (Liu et al. 2020): float64 [N]."""
    values = logits.astype(np.float64)
    largest = values.max(axis=1)
    found: np.ndarray = -largest - np.log(np.exp(values - largest[:, None]).sum(axis=1))
    return found


def improbability(logits: np.ndarray) -> np.ndarray:
    """1 minus the probability of the predicted class (Hendrycks and Gimpel 2017): float64 [N]."""
    found: np.ndarray = 1 - np.exp(log_softmax(logits).max(axis=1))
    return found


def lowest_peak(logits: np.ndarray) -> np.ndarray:
    """The largest logit, negated (Hendrycks et al. 2022): float64 [N]."""
    found: np.ndarray = -logits.max(axis=1).astype(np.float64)
    return found


# Scores of uncalibrated logits, float [N, classes]. A higher score means less like the training pictures.
SCORES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "energy": energy,
    "probability": improbability,
    "logit": lowest_peak,
}


def unlikeness(logits: np.ndarray, temperature: float, score: str) -> np.ndarray:
    """Compute the score called ``score`` of logits that were divided by ``temperature``: float64 [N]."""
    return SCORES[score](logits.astype(np.float64) * temperature)


def fit_unlikeness(logits: np.ndarray, score: str = SCORE, passed: float = PASSED) -> Unlikeness | None:
    """Choose the score's threshold so that the share ``passed`` of held-out pictures is not above it.

    Args:
        logits: uncalibrated logits of held-out pictures, float [N, classes].
        score: a key of ``SCORES``.
        passed: the least share of the pictures that pass.

    Returns:
        The threshold; None for fewer than ``FEWEST`` pictures, or if a logit is not finite.
    """
    if len(logits) < FEWEST or not np.isfinite(logits).all():
        return None
    scores = np.sort(SCORES[score](logits))
    above = int((1 - passed) * len(scores) + 1e-9)  # held-out pictures that may be called unlike
    threshold = float(np.ceil(scores[len(scores) - 1 - above] * 1e4) / 1e4)
    return Unlikeness(score, threshold, float(np.mean(scores <= threshold)), len(scores))
