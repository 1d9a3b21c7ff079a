"""Set training pictures aside to calibrate the network's probabilities."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from thumbnet.data.held_out import counts_by_group, hash_of, loses_a_class
from thumbnet.data.splits import Data
from thumbnet.recipes.settings import DataSettings

CALIBRATION = "calibration"
FEWEST = 20  # pictures; fewer would make the temperature a guess
ONE_IN = 20  # at most one training picture in 20 is set aside
KEEPS_CLASSES = "calibration_keeps_classes"  # in run.json: see with_calibration_split


def with_calibration_split(data: Data, settings: DataSettings, keep_classes: bool = True) -> Data:
    """``data`` with a split ``calibration`` taken from ``train``.

    Data with a ``val`` split stay as they are, because ``val`` then serves for calibration, and so do data
    with so few training pictures that a twentieth is less than ``FEWEST``. Every class gives the same share;
    with groups or several labels per picture, pictures are chosen without regard to their classes, except
    that ``train`` keeps pictures of each class and label. As for the other splits, a hash of the names
    decides, and the pictures of a group stay together. If this leaves fewer than ``FEWEST`` pictures, none is
    set aside.

    Args:
        data: a data set with a ``train`` split.
        settings: give the number of pictures and the seed.
        keep_classes: False for a run of an earlier version, in which ``train`` could lose a class: the same
            pictures are then set aside as when the run began.
    """
    train = data.splits["train"]
    count = min(settings.calibration_pictures, len(train) // ONE_IN)
    if {"val", CALIBRATION} & data.splits.keys() or count < FEWEST:
        return data
    seed = settings.split_seed + 2
    groups = data.groups.get("train")
    spared = len(data.class_names) if keep_classes else 0  # classes that `train` has to keep
    if groups is not None:
        names, position = np.unique(groups, return_inverse=True)
        counts = counts_by_group(train, position, len(data.class_names))[:, :spared]
        chosen = _in_turn(_hashes(map(str, names), seed), counts, np.bincount(position), count)[position]
    else:
        hashes = _hashes((train.key(i) for i in range(len(train))), seed)
        if train.multilabel:
            chosen = _in_turn(hashes, train.targets[:, :spared], np.ones(len(train), dtype=np.int64), count)
        else:
            chosen = _stratified(hashes, train.labels, count, keep_classes)
    if chosen.sum() < FEWEST:
        return data
    kept, taken = np.flatnonzero(~chosen), np.flatnonzero(chosen)
    groups_by_split = dict(data.groups)
    if groups is not None:
        groups_by_split |= {"train": groups[kept], CALIBRATION: groups[taken]}
    splits = {**data.splits, "train": train.subset(kept), CALIBRATION: train.subset(taken)}
    return replace(data, splits=splits, groups=groups_by_split)


def _hashes(names: Iterable[str], seed: int) -> np.ndarray:
    """A hash of each name: uint64 [N]."""
    digests = b"".join([hash_of(name, seed) for name in names])
    return np.frombuffer(digests, ">u8").astype(np.uint64)


def _stratified(hashes: np.ndarray, labels: np.ndarray, count: int, keep_classes: bool) -> np.ndarray:
    """Choose ``count`` pictures by their hashes, the same share of each class: bool [N].

    To ``keep_classes`` in ``train``, at most half of each class is chosen. Only where nearly all classes have
    a single picture are there then fewer than ``count``.
    """
    order = np.lexsort((hashes, labels))  # by class, and within a class by hash
    ordered = labels[order]
    sizes = np.bincount(labels)
    starts = np.cumsum(sizes) - sizes
    depth = (np.arange(len(order)) - starts[ordered] + 0.5) / sizes[ordered]  # 0 to 1 within each class
    chosen = np.zeros(len(order), dtype=bool)
    chosen[order[np.lexsort((hashes[order], depth))[:count]]] = True
    if keep_classes:
        chosen[order[depth >= 0.5]] = False
    return chosen


def _in_turn(hashes: np.ndarray, counts: np.ndarray, sizes: np.ndarray, count: int) -> np.ndarray:
    """Choose groups, or single pictures, in the order of their hashes.

    A group is passed over if it has more pictures than are still wanted, or if a class would have no picture
    left without it.

    Args:
        hashes: of the groups' names, uint64 [groups].
        counts: how many pictures of each class or label a group has, [groups, classes], for those that must
            not be lost.
        sizes: how many pictures a group has, int64 [groups].
        count: choose at most this many pictures.

    Returns:
        Which groups are chosen: bool [groups].
    """
    total = counts.sum(axis=0, dtype=np.int64)
    held, left = np.zeros_like(total), count
    chosen = np.zeros(len(hashes), dtype=bool)
    for place in np.argsort(hashes, kind="stable").tolist():
        if sizes[place] <= left and not loses_a_class(counts[place], held, total):
            chosen[place] = True
            held += counts[place]
            left -= int(sizes[place])
            if not left:
                break
    return chosen
