"""Choose the probability from which a prediction is accepted, so that a wanted share of them is right.

A lower threshold accepts more pictures and more mistakes. For a wanted precision, the threshold is the lowest
one for which the held-out pictures support that precision. If the lowest of many thresholds that pass a test
were taken, a lucky one would often be among them. So few thresholds are tested, in an order fixed beforehand:
those that accept 5 %, 10 %, ... of the held-out pictures, from a high probability to a low one, until the
first test fails (fixed-sequence testing). A threshold with a lower precision than wanted is then chosen in at
most 5 % of the cases, because the first such threshold has to pass its test. The test is the exact binomial
one. Few pictures support little: 299 accepted pictures without a mistake support 99 %.

If pictures come in groups, such as those of one patient, they are not independent, so the binomial test does
not hold. The test is then whether the lower bound that allows for groups reaches the precision, at the same
thresholds in the same order. It holds approximately, and few groups support little.

Each precision has its own sequence of tests, and so its own 5 %. The sequences begin at different thresholds,
so a higher precision may get a lower threshold. That threshold then serves the lower precision as well, and
is described by the precision that it was tested for. Imports no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from thumbnet.data.calibration import FEWEST
from thumbnet.errors import RunError
from thumbnet.evaluation import grouped_bounds, log_softmax
from thumbnet.runs.certainty import Threshold, Thresholds

PRECISIONS = (0.9, 0.95, 0.98, 0.99, 0.995)
DEFAULT_PRECISION = 0.95
CONFIDENCE = 0.95
ONE_SIDED_95 = 1.6448536269514722  # quantile of the normal distribution
LEVELS = 20  # thresholds that are tested; each accepts as many pictures more as the one before
_DIGITS = 1e6  # probabilities are rounded down to six digits, so that files, output and computers agree
_STEPS = 10_000  # the highest supported precision is rounded down to a multiple of 1 / _STEPS


def choose_thresholds(
    logits: np.ndarray, labels: np.ndarray, split: str, groups: np.ndarray | None = None
) -> Thresholds | None:
    """Choose a threshold for each of ``PRECISIONS`` that the held-out pictures support.

    Args:
        logits: calibrated logits of held-out pictures, float [N, classes].
        labels: int [N].
        split: the name of the split that the pictures are from.
        groups: each picture's group, str [N], if pictures come in groups.

    Returns:
        The thresholds; None for fewer than ``FEWEST`` pictures, or if a logit is not finite.
    """
    if len(labels) < FEWEST or not np.isfinite(logits).all():
        return None
    confidence = np.exp(log_softmax(logits).max(axis=1))
    levels = np.floor(confidence * _DIGITS) / _DIGITS
    order = np.argsort(-levels, kind="stable")
    levels, hits = levels[order], logits.argmax(axis=1)[order] == labels[order]
    right = np.cumsum(hits)
    last = np.flatnonzero(np.append(levels[:-1] > levels[1:], True))  # equal levels are accepted together
    wanted = -(-len(labels) * np.arange(1, LEVELS + 1) // LEVELS)  # rounded up
    places = np.unique(last[np.searchsorted(last, wanted - 1)])
    tests = _tests(hits, places, None if groups is None else groups[order])
    table = []
    for precision in PRECISIONS:
        found = _lowest_supported(tests, precision)
        if found is not None:
            place = int(places[found])
            table.append(Threshold(precision, float(levels[place]), place + 1, int(right[place])))
    highest = _highest_supported(tests, table[-1].precision if table else 0.0)
    number = None if groups is None else len(np.unique(groups))
    return Thresholds(split, len(labels), highest, tuple(table), number, CONFIDENCE)


@dataclass(frozen=True)
class _Tests:
    """The tests of the thresholds, from a high probability to a low one.

    A threshold passes for a precision that its lower bound reaches. The bounds are lower ends of one-sided
    intervals with ``CONFIDENCE``.

    Attributes:
        accepted: how many pictures each threshold accepts, int [T]; all of them at the last one.
        bounds: the lower bounds of the precisions, float [T].
        all_right: what ``bounds`` would be if all answers were right.
        one_wrong: what they would be if only that of the surest picture were wrong, and with groups those of
            its whole group.
    """

    accepted: np.ndarray
    bounds: np.ndarray
    all_right: np.ndarray
    one_wrong: np.ndarray


def _tests(hits: np.ndarray, places: np.ndarray, groups: np.ndarray | None) -> _Tests:
    """Compute the lower bounds of the precisions at the thresholds.

    Args:
        hits: whether each answer is right, the surest picture first: bool [N].
        places: the position of the last picture that each threshold accepts, int [T].
        groups: each picture's group, str [N]; None if the pictures are independent.
    """

    def bounds(hits: np.ndarray) -> np.ndarray:
        if groups is None:
            counts = zip(np.cumsum(hits)[places].tolist(), (places + 1).tolist(), strict=True)
            return np.array([exact_bound(*one) for one in counts])
        return grouped_bounds(hits, groups, ONE_SIDED_95)[0][places]

    units = np.arange(len(hits)) if groups is None else groups
    return _Tests(places + 1, bounds(hits), bounds(np.ones_like(hits)), bounds(units != units[0]))


def _lowest_supported(tests: _Tests, precision: float) -> int | None:
    """The position of the last threshold that is supported before one is not; None if the first one is not.

    The tests begin at the first threshold that passes even with one mistake, if it accepts at most half of
    the pictures. Otherwise they begin at the first one that passes without a mistake. Where they begin does
    not depend on which answers are right.
    """
    start = _first(tests.one_wrong >= precision)
    if start is None or tests.accepted[start] > tests.accepted[-1] / 2:
        start = _first(tests.all_right >= precision)
    if start is None:
        return None
    failed = _first(tests.bounds[start:] < precision)
    end = len(tests.bounds) if failed is None else start + failed
    return end - 1 if end > start else None


def _first(which: np.ndarray) -> int | None:
    """The position of the first true value; None if there is none."""
    return int(which.argmax()) if which.any() else None


def _highest_supported(tests: _Tests, low: float) -> float:
    """The highest supported precision from ``low``, the highest of the table, to the next one after it."""
    below = round(low * _STEPS)
    above = round(next((precision for precision in PRECISIONS if precision > low), 1.0) * _STEPS)
    while above - below > 1:
        middle = (below + above) // 2
        if _lowest_supported(tests, middle / _STEPS) is None:
            above = middle
        else:
            below = middle
    return below / _STEPS


@cache
def exact_bound(right: int, count: int) -> float:
    """The highest precision that ``right`` of ``count`` right answers support, by the exact binomial test.

    This is the lower end of the one-sided interval of Clopper and Pearson (1934) with ``CONFIDENCE``, rounded
    down by less than 1e-9.

    >>> round(exact_bound(59, 59), 4), round(exact_bound(58, 58), 4), exact_bound(0, 10)
    (0.9505, 0.9497, 0.0)
    """
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if binomial_tail(right, count, middle) <= 1 - CONFIDENCE else (low, middle)
    return low


def binomial_tail(right: int, count: int, precision: float) -> float:
    """The probability of ``right`` or more right answers among ``count``, each right with ``precision``.

    >>> round(binomial_tail(59, 59, 0.95), 4), round(binomial_tail(58, 58, 0.95), 4)
    (0.0485, 0.051)

    Args:
        right, count: counts, 0 <= right <= count.
        precision: above 0 and below 1.
    """
    wrong = np.arange(1, count - right + 1)
    odds = math.log1p(-precision) - math.log(precision)
    ratios = np.log((count - wrong + 1) / wrong) + odds  # of each term of the sum to the one before it
    logs = count * math.log(precision) + np.concatenate([[0.0], np.cumsum(ratios)])
    return min(1.0, float(np.exp(logs).sum()))


def fewest_for(precision: float) -> int:
    """The fewest accepted pictures that support ``precision``, if the network is right on all of them."""
    return math.ceil(math.log(1 - CONFIDENCE) / math.log(precision))


def threshold_for(thresholds: Thresholds | None, precision: float | None = None) -> Threshold:
    """Look up the threshold for a precision.

    Args:
        thresholds: the network's thresholds.
        precision: the wanted precision, above 0 and below 1. The lowest threshold for this precision or a
            higher one is returned, which accepts the most pictures. None means ``DEFAULT_PRECISION``, or the
            highest precision below it that is supported.

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
        raise RunError(_not_supported(thresholds, PRECISIONS[0] if precision is None else precision))
    return min(found, key=lambda row: row.probability)  # the first one among equals


def _not_supported(thresholds: Thresholds, wanted: float) -> str:
    most = thresholds.table[-1].precision if thresholds.table else None
    lower = f"ask for less (--precision {most:g}), " if most is not None else ""
    sure = "" if thresholds.confidence is None else f", with {100 * thresholds.confidence:g} % confidence"
    row = next((one for one in PRECISIONS if one >= wanted), None)
    grouped = thresholds.groups is not None
    units = "groups" if grouped else "pictures"
    needed = "" if grouped or row is None else f", and it takes at least {fewest_for(row)} without a mistake"
    return (
        f"a precision of {100 * wanted:g} % is not supported: the {thresholds.pictures:,} held-out pictures "
        f"({_origin(thresholds)}) show at most {100 * thresholds.highest:.1f} %{sure}"
        f"{needed}. Instead, {lower}choose a probability yourself (--threshold 0.9), or train with more "
        f"held-out {units} (--val-fraction 0.2)"
    )


def describe_threshold(found: Threshold, thresholds: Thresholds) -> str:
    """Say in one sentence what a threshold promises and how many pictures it rests on."""
    share = found.right / found.accepted
    promise = (
        "chosen by an earlier version of thumbnet, whose thresholds kept their precision in about nine of "
        "ten cases"
        if thresholds.confidence is None
        else f"so {100 * found.precision:g} % or more of such pictures are right, with "
        f"{100 * thresholds.confidence:g} % confidence"
    )
    if thresholds.also_chose is not None:
        promise += f"; these pictures also chose {thresholds.also_chose}, so this is optimistic"
    return (
        f"for a precision of {100 * found.precision:g} %, a class is accepted from a probability of "
        f"{found.probability:.3f}: of the {thresholds.pictures:,} held-out pictures ({_origin(thresholds)}), "
        f"{found.accepted:,} reach it, and {found.right:,} of these are right, {100 * share:.1f} % "
        f"({promise})"
    )


def _origin(thresholds: Thresholds) -> str:
    """The split of the held-out pictures, and in how many groups they are if they have groups."""
    if thresholds.groups is None:
        return thresholds.split
    return f"{thresholds.split}, in {thresholds.groups:,} groups"
