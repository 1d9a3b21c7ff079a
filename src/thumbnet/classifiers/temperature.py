"""Calibrate probabilities by dividing a network's logits by one temperature (Guo et al. 2017).

A network trained with label smoothing says "46 %" where it is nearly always right; one trained for a long
time says "99.9 %" too often. One temperature, chosen on pictures that were not used for training, corrects
most of that and changes no predicted class. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from thumbnet.data.calibration import FEWEST
from thumbnet.errors import SeveralLabelsError
from thumbnet.evaluation import log_softmax
from thumbnet.multilabel import binary_cross_entropy

PRIOR_DEVIATION = 0.5  # standard deviation of the prior on the temperature's logarithm; its mean is 0
_LOWEST, _HIGHEST, _GRID = -3.0, 3.0, 121  # bounds of that logarithm, and points of the first search


def fit_temperature(logits: np.ndarray, labels: np.ndarray, fewest: int = FEWEST) -> float:
    """Find the temperature with which ``softmax(logits / temperature)`` fits the labels best.

    It minimises the summed cross-entropy plus a Gaussian prior on the logarithm of the temperature. The prior
    weighs as much as a few pictures: without it, a handful of correct predictions would drive the temperature
    to 0.

    Args:
        logits: float [N, classes].
        labels: int [N].
        fewest: pictures from which on a temperature is fitted.

    Returns:
        The temperature, between ``exp(-3)`` and ``exp(3)``, rounded to six digits; 1.0 for fewer than
        ``fewest`` pictures, or if a logit is not finite.

    Raises:
        SeveralLabelsError: the labels are a matrix, for :func:`fit_sigmoid_temperature`.
    """
    if labels.ndim == 2:
        raise SeveralLabelsError
    if len(labels) < fewest or not np.isfinite(logits).all():
        return 1.0
    values, places = logits.astype(np.float64), np.arange(len(labels))
    return _least_surprise(lambda temperature: -log_softmax(values / temperature)[places, labels].sum())


def fit_sigmoid_temperature(logits: np.ndarray, targets: np.ndarray, fewest: int = FEWEST) -> float:
    """Find the temperature with which ``sigmoid(logits / temperature)`` fits several labels best.

    As :func:`fit_temperature`, with the binary cross-entropy of all labels.

    Args:
        logits: float [N, labels].
        targets: bool, or 0 and 1, [N, labels].
        fewest: as there.
    """
    if len(targets) < fewest or not np.isfinite(logits).all():
        return 1.0
    values, truth = logits.astype(np.float64), targets.astype(bool)
    return _least_surprise(lambda temperature: binary_cross_entropy(values / temperature, truth).sum())


def _least_surprise(surprise: Callable[[float], float]) -> float:
    """Find the temperature at which ``surprise``, in nats, and the prior on the temperature are lowest."""

    def cost(log_temperature: float) -> float:
        return float(surprise(np.exp(log_temperature)) + 0.5 * (log_temperature / PRIOR_DEVIATION) ** 2)

    grid = np.linspace(_LOWEST, _HIGHEST, _GRID)
    best = int(np.argmin([cost(one) for one in grid]))
    low, high = grid[max(0, best - 1)], grid[min(_GRID - 1, best + 1)]
    return float(f"{np.exp(_golden_section(cost, low, high)):.6g}")


def _golden_section(cost: Callable[[float], float], low: float, high: float) -> float:
    """Find the minimum of a function of one number between two bounds, to 1e-7."""
    ratio = (np.sqrt(5) - 1) / 2
    inner = [high - ratio * (high - low), low + ratio * (high - low)]
    costs = [cost(one) for one in inner]
    while high - low > 1e-7:
        if costs[0] < costs[1]:
            high, inner[1], costs[1] = inner[1], inner[0], costs[0]
            inner[0] = high - ratio * (high - low)
            costs[0] = cost(inner[0])
        else:
            low, inner[0], costs[0] = inner[0], inner[1], costs[1]
            inner[1] = low + ratio * (high - low)
            costs[1] = cost(inner[1])
    return float((low + high) / 2)


def calibrated(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Divide ``logits`` by the temperature, float32: their softmax gives the calibrated probabilities."""
    return logits if temperature == 1.0 else (logits / np.float32(temperature)).astype(np.float32)
