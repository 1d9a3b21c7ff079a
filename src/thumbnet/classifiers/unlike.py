"""Tell pictures that are unlike the training pictures, from their logits and their pixels. Imports no torch.

A classifier gives every picture one of its classes, even a page of text or a blank frame. Two scores tell
many of these apart: a score of the logits, which is high for a picture of no class, and the distance of the
picture's *looks*, a few statistics of its pixels, from those of the training pictures. Both work for
exported models too, which return nothing but logits. ``benchmarks/unlike.py`` compares scores;
``docs/notebook/unlike.md`` has the numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from thumbnet.data.calibration import FEWEST
from thumbnet.evaluation import log_softmax
from thumbnet.runs.certainty import LOOKS, Unlikeness

PASSED = 0.99  # the share of held-out pictures that are not called unlike
SCORE = "logit"
MOST = 2000  # pictures that are looked at, of the training pictures and of the held-out ones
RIDGE = (
    1e-3  # added to the variances: a property in which the training pictures agree may still vary a little
)
_FAINT = 4 / 255  # added before logarithms: differences of fewer grey levels are invisible
_LEAST_SCALE = 1e-6


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


def looks(pixels: np.ndarray) -> np.ndarray:
    """Describe how pictures look by ``LOOKS`` numbers, without regard to what is in them: float64 [N, LOOKS].

    These are the mean colour, and logarithms of contrast, edges, fine detail, saturation, variation of
    colour, and the ratio of vertical to horizontal edges.

    Args:
        pixels: uint8 [N, height, width, 3].
    """
    colours = pixels.astype(np.float32) / 255
    grey = colours.mean(axis=3)
    padded = np.pad(grey, ((0, 0), (1, 1), (1, 1)), mode="edge")
    inner, left, right = padded[:, 1:-1, 1:-1], padded[:, 1:-1, :-2], padded[:, 1:-1, 2:]
    above, below = padded[:, :-2, 1:-1], padded[:, 2:, 1:-1]
    across, down = _mean(np.abs(right - inner)), _mean(np.abs(below - inner))
    detail = _mean(np.abs(4 * inner - left - right - above - below))
    saturation = _mean(colours.max(axis=3) - colours.min(axis=3))
    variation = (colours - grey[..., None]).std(axis=(1, 2)).mean(axis=1)
    amounts = [grey.std(axis=(1, 2)), (across + down) / 2, detail, saturation, variation]
    logarithms = [np.log(amount + _FAINT) for amount in amounts]
    direction = np.log(across + _FAINT) - np.log(down + _FAINT)
    return np.stack([*colours.mean(axis=(1, 2)).T, *logarithms, direction], axis=1).astype(np.float64)


def _mean(values: np.ndarray) -> np.ndarray:
    found: np.ndarray = values.mean(axis=(1, 2))
    return found


def fit_unlikeness(
    logits: np.ndarray,
    seen: np.ndarray,
    known: np.ndarray,
    score: str = SCORE,
    passed: float = PASSED,
) -> Unlikeness | None:
    """Choose thresholds for both scores so that the share ``passed`` of held-out pictures is above neither.

    Both thresholds are the same quantile of their scores.

    Args:
        logits: uncalibrated logits of held-out pictures, float [N, classes].
        seen: the looks of the same pictures, float64 [N, LOOKS].
        known: the looks of training pictures, float64 [M, LOOKS].
        score: a key of ``SCORES``.
        passed: the least share of the held-out pictures that pass.

    Returns:
        The thresholds; None for fewer than ``FEWEST`` pictures, or if a logit is not finite.
    """
    if min(len(logits), len(known)) < FEWEST or not np.isfinite(logits).all():
        return None
    mean = known.mean(axis=0)
    inverse = np.linalg.inv(np.cov(known.T) + RIDGE * np.eye(LOOKS))
    both = [SCORES[score](logits), distances(seen, mean, inverse)]
    ordered = [np.sort(values) for values in both]
    ranks = np.max([np.searchsorted(o, v, "right") for o, v in zip(ordered, both, strict=True)], axis=0)
    above = int((1 - passed) * len(logits) + 1e-9)  # held-out pictures that may be called unlike
    limit = np.sort(ranks)[len(ranks) - 1 - above]
    thresholds = [_rounded_up(values[limit - 1]) for values in ordered]
    found = Unlikeness(
        score=score,
        median=float(np.median(both[0])),
        threshold=thresholds[0],
        mean=tuple(mean.tolist()),
        inverse=tuple(map(tuple, inverse.tolist())),
        distance_median=float(np.median(both[1])),
        distance_threshold=thresholds[1],
        passed=1.0,
        pictures=len(logits),
    )
    share = float(np.mean(unlikeness(logits, seen, 1.0, found) <= 1))
    return replace(found, passed=share)


def _rounded_up(value: float) -> float:
    """Round up to four decimals, so that no picture is above its own score because of rounding errors."""
    return float(np.ceil(value * 1e4 + 1e-3) / 1e4)


def distances(seen: np.ndarray, mean: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """The Mahalanobis distance of looks, float64 [N, LOOKS], from the mean looks: float64 [N]."""
    away = seen - mean
    found: np.ndarray = np.sqrt(np.maximum(0.0, np.einsum("nf,fg,ng->n", away, inverse, away)))
    return found


def unlikeness(logits: np.ndarray, seen: np.ndarray, temperature: float, how: Unlikeness) -> np.ndarray:
    """Compute how unlike the training pictures each picture is: float64 [N].

    0 is usual; above 1, at least one of the two scores is above its threshold.

    Args:
        logits: the pictures' logits, divided by ``temperature``, float [N, classes].
        seen: their looks, float64 [N, LOOKS].
        temperature: the network's temperature.
        how: the thresholds.
    """
    score = SCORES[how.score](logits.astype(np.float64) * temperature)
    distance = distances(seen, np.array(how.mean), np.array(how.inverse))
    return np.maximum(
        _relative(score, how.median, how.threshold),
        _relative(distance, how.distance_median, how.distance_threshold),
    )


def _relative(values: np.ndarray, median: float, threshold: float) -> np.ndarray:
    """Scale values so that the median is 0 and the threshold is 1."""
    found: np.ndarray = (values - median) / max(threshold - median, _LEAST_SCALE)
    return found
