"""Probabilities that can be believed: one temperature for a network's logits (Guo et al. 2017).

A network that was trained with label smoothing says "46 %" where it is nearly always right; one trained for
long says "99.9 %" too often. Dividing all logits by one temperature, chosen on pictures that were not trained
on, corrects most of that and changes no predicted class. This module imports no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from thumbnet.data.splits import Data
from thumbnet.evaluation import log_softmax
from thumbnet.recipe import DataSettings

SPLIT = "calibration"
FEWEST = 20  # pictures: from fewer the temperature would be guesswork
LARGEST_PART = 20  # at most one training picture in so many is set aside
PRIOR_DEVIATION = 0.5  # of the temperature's logarithm around 0
_LOWEST, _HIGHEST, _GRID = -3.0, 3.0, 121  # of that logarithm


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that makes ``softmax(logits / temperature)`` fit the labels best.

    It minimises the summed cross-entropy plus a Gaussian prior on the logarithm of the temperature. The prior
    is worth a few pictures: without it a handful of right answers would drive the temperature to 0.

    Args:
        logits: float [N, classes].
        labels: int [N].

    Returns:
        A number between ``exp(-3)`` and ``exp(3)``, rounded to six digits; 1.0 for fewer than ``FEWEST``
        pictures.
    """
    if len(labels) < FEWEST:
        return 1.0
    values, places = logits.astype(np.float64), np.arange(len(labels))

    def cost(log_temperature: float) -> float:
        surprise = -log_softmax(values / np.exp(log_temperature))[places, labels].sum()
        return float(surprise + 0.5 * (log_temperature / PRIOR_DEVIATION) ** 2)

    grid = np.linspace(_LOWEST, _HIGHEST, _GRID)
    best = int(np.argmin([cost(one) for one in grid]))
    low, high = grid[max(0, best - 1)], grid[min(_GRID - 1, best + 1)]
    return float(f"{np.exp(_golden_section(cost, low, high)):.6g}")


def _golden_section(cost: Callable[[float], float], low: float, high: float) -> float:
    """The minimum of a function of one number between two bounds, to 1e-7."""
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
    """``logits`` divided by the temperature, float32: their softmax gives the calibrated probabilities."""
    return logits if temperature == 1.0 else (logits / np.float32(temperature)).astype(np.float32)


def with_calibration_split(data: Data, settings: DataSettings) -> Data:
    """``data`` with a split ``calibration`` set aside from ``train``, as a training with ``settings`` has it.

    Nothing is set aside where the data have a ``val`` split, which then serves, or where a twentieth of the
    training pictures would be fewer than ``FEWEST``. Every class is represented by its share. Pictures are
    chosen by a hash of their names, and pictures of a group stay together, as in the other splits.
    """
    train = data.splits["train"]
    count = min(settings.calibration_pictures, len(train) // LARGEST_PART)
    if {"val", SPLIT} & data.splits.keys() or count < FEWEST:
        return data
    seed = settings.split_seed + 2
    groups = data.groups.get("train")
    if groups is None:
        chosen = _stratified((train.name(i) for i in range(len(train))), train.labels, count, seed)
    else:
        chosen = _whole_groups(groups, count, seed)
    if chosen.sum() < FEWEST:
        return data
    kept, taken = np.flatnonzero(~chosen), np.flatnonzero(chosen)
    parts = dict(data.groups)
    if groups is not None:
        parts |= {"train": groups[kept], SPLIT: groups[taken]}
    splits = {**data.splits, "train": train.subset(kept), SPLIT: train.subset(taken)}
    return replace(data, splits=splits, groups=parts)


def _stratified(names: Iterable[str], labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """``count`` pictures, of each class its share, by a hash of their names: bool [N]."""
    hashes = np.array([_hash(name, seed) for name in names], dtype=np.uint64)
    order = np.lexsort((hashes, labels))  # by class, and within a class by hash
    ordered = labels[order]
    sizes = np.bincount(labels)
    starts = np.cumsum(sizes) - sizes
    depth = (np.arange(len(order)) - starts[ordered] + 0.5) / sizes[ordered]  # 0 to 1 within each class
    chosen = np.zeros(len(order), dtype=bool)
    chosen[order[np.lexsort((hashes[order], depth))[:count]]] = True
    return chosen


def _whole_groups(groups: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Groups by a hash of their names, as many as fit into ``count`` pictures: bool [N]."""
    names, numbers, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    chosen, left = np.zeros(len(names), dtype=bool), count
    for place in sorted(range(len(names)), key=lambda one: _hash(str(names[one]), seed)):
        if sizes[place] <= left:
            chosen[place] = True
            left -= int(sizes[place])
    taken: np.ndarray = chosen[numbers]
    return taken


def _hash(name: str, seed: int) -> int:
    text = f"{seed}\0{name}".encode(errors="surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
