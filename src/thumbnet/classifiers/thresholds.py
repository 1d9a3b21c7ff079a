"""Choose the probability from which a prediction is accepted, so that a wanted share of them is right.

A lower threshold accepts more pictures and more mistakes. For a wanted precision, the threshold is the lowest
one for which the held-out pictures support that precision: the lower end of Wilson's one-sided 95 % interval
must reach it. Few pictures support little: 268 accepted pictures without a mistake support 99 %. Imports no
torch.
"""

from __future__ import annotations

import numpy as np

from thumbnet.data.calibration import FEWEST
from thumbnet.errors import RunError
from thumbnet.evaluation import log_softmax, wilson_bounds
from thumbnet.runs.certainty import Threshold, Thresholds

PRECISIONS = (0.9, 0.95, 0.98, 0.99, 0.995)
DEFAULT_PRECISION = 0.95
ONE_SIDED_95 = 1.6448536269514722  # quantile of the normal distribution
_DIGITS = 1e6  # probabilities are rounded down to six digits, so that files, output and computers agree


def choose_thresholds(logits: np.ndarray, labels: np.ndarray, split: str) -> Thresholds | None:
    """Choose a threshold for each of ``PRECISIONS`` that the held-out pictures support.

    Args:
        logits: calibrated logits of held-out pictures, float [N, classes].
        labels: int [N].
        split: the name of the split that the pictures are from.

    Returns:
        The thresholds; None for fewer than ``FEWEST`` pictures, or if a logit is not finite.
    """
    if len(labels) < FEWEST or not np.isfinite(logits).all():
        return None
    confidence = np.exp(log_softmax(logits).max(axis=1))
    levels = np.floor(confidence * _DIGITS) / _DIGITS
    order = np.argsort(-levels, kind="stable")
    levels, right = levels[order], np.cumsum(logits.argmax(axis=1)[order] == labels[order])
    last = np.flatnonzero(np.append(levels[:-1] > levels[1:], True))  # equal levels are accepted together
    bounds = wilson_bound(right[last], last + 1)
    table = []
    for precision in PRECISIONS:
        enough = last[bounds >= precision]
        if len(enough):
            place = int(enough[-1])
            table.append(Threshold(precision, float(levels[place]), place + 1, int(right[place])))
    highest = float(np.floor(bounds.max() * 1e4) / 1e4)
    return Thresholds(split, len(labels), highest, tuple(table))


def wilson_bound(right: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The lower end of the one-sided 95 % interval of the shares ``right / count`` (Wilson 1927)."""
    return wilson_bounds(right, count, ONE_SIDED_95)[0]


def threshold_for(thresholds: Thresholds | None, precision: float | None = None) -> Threshold:
    """Look up the threshold for a precision.

    Args:
        thresholds: the network's thresholds.
        precision: the wanted precision, above 0 and below 1. If it is between two precisions of the table,
            the threshold for the higher one is returned. None means ``DEFAULT_PRECISION``, or the highest
            precision below it that is supported.

    Raises:
        RunError: the network has no thresholds, or its held-out pictures do not support that precision.
    """
    if precision is not None and not 0 < precision < 1:
        raise RunError(f"the precision is {precision:g}: expected a number between 0 and 1, such as 0.99")
    if thresholds is None:
        raise RunError(
            "the network has no thresholds: an older version of thumbnet trained it, or it had fewer than "
            f"{FEWEST} held-out pictures. Choose a probability yourself: --threshold 0.9"
        )
    wanted = DEFAULT_PRECISION if precision is None else precision
    found = [row for row in thresholds.table if row.precision >= wanted]
    if not found and precision is None:
        found = list(thresholds.table[-1:])
    if not found:
        raise RunError(_not_supported(thresholds, wanted))
    return found[0]


def _not_supported(thresholds: Thresholds, wanted: float) -> str:
    most = thresholds.table[-1].precision if thresholds.table else None
    lower = f"ask for less (--precision {most:g}), " if most is not None else ""
    return (
        f"a precision of {100 * wanted:g} % is not supported: the {thresholds.pictures:,} held-out pictures "
        f"({thresholds.split}) show at most {100 * thresholds.highest:.1f} %, with 95 % confidence. Instead, "
        f"{lower}choose a probability yourself (--threshold 0.9), or train with more held-out pictures "
        "(--val-fraction 0.1)"
    )


def describe_threshold(found: Threshold, thresholds: Thresholds) -> str:
    """Say in one sentence what a threshold promises and how many pictures it rests on."""
    share = found.right / found.accepted
    bound = float(wilson_bound(np.array(found.right), np.array(found.accepted)))
    return (
        f"for a precision of {100 * found.precision:g} %, a class is accepted from a probability of "
        f"{found.probability:.3f}: of the {thresholds.pictures:,} held-out pictures ({thresholds.split}), "
        f"{found.accepted:,} reach it, and {found.right:,} of these are right, {100 * share:.1f} % (at least "
        f"{100 * bound:.1f} %, with 95 % confidence)"
    )
