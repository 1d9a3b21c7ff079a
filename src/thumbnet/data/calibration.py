"""Set training pictures aside to calibrate the network's probabilities."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from thumbnet.data.splits import Data
from thumbnet.recipes.settings import DataSettings

SPLIT = "calibration"
FEWEST = 20  # pictures; fewer would make the temperature a guess
LARGEST_PART = 20  # at most one training picture in this many is set aside


def with_calibration_split(data: Data, settings: DataSettings) -> Data:
    """``data`` with a split ``calibration`` taken from ``train``.

    Data with a ``val`` split stay as they are, because ``val`` then serves for calibration, and so do data
    with so few training pictures that a twentieth is less than ``FEWEST``. Every class gives the same share;
    pictures with several labels are chosen without regard to them. As for the other splits, a hash of the
    names decides, and the pictures of a group stay together.
    """
    train = data.splits["train"]
    count = min(settings.calibration_pictures, len(train) // LARGEST_PART)
    if {"val", SPLIT} & data.splits.keys() or count < FEWEST:
        return data
    seed = settings.split_seed + 2
    groups = data.groups.get("train")
    if groups is None:
        classes = np.zeros(len(train), dtype=np.int64) if train.multilabel else train.labels
        chosen = _stratified((train.key(i) for i in range(len(train))), classes, count, seed)
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
    """Choose ``count`` pictures by a hash of their names, the same share of each class: bool [N]."""
    digests = b"".join([_digest(name, seed) for name in names])
    hashes = np.frombuffer(digests, ">u8").astype(np.uint64)
    order = np.lexsort((hashes, labels))  # by class, and within a class by hash
    ordered = labels[order]
    sizes = np.bincount(labels)
    starts = np.cumsum(sizes) - sizes
    depth = (np.arange(len(order)) - starts[ordered] + 0.5) / sizes[ordered]  # 0 to 1 within each class
    chosen = np.zeros(len(order), dtype=bool)
    chosen[order[np.lexsort((hashes[order], depth))[:count]]] = True
    return chosen


def _whole_groups(groups: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Choose whole groups by a hash of their names, up to ``count`` pictures: bool [N]."""
    names, numbers, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    chosen, left = np.zeros(len(names), dtype=bool), count
    for place in sorted(range(len(names)), key=lambda one: _digest(str(names[one]), seed)):
        if sizes[place] <= left:
            chosen[place] = True
            left -= int(sizes[place])
    return chosen[numbers]


def _digest(name: str, seed: int) -> bytes:
    text = f"{seed}\0{name}".encode(errors="surrogateescape")
    return hashlib.blake2b(text, digest_size=8).digest()
