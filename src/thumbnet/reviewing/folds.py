"""Divide pictures into folds, so that each picture can be judged by a network that was trained without it."""

from __future__ import annotations

import numpy as np


def fold_numbers(labels: np.ndarray, together: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Assign each picture to a fold, so that every fold gets the same share of each class.

    If the pictures of a class all have to stay together, a network that is trained without them cannot know
    the class and would doubt all their labels. They get the number 0: every network is trained on them.

    Args:
        labels: int [N].
        together: int [N]; pictures with equal numbers, such as copies of one picture, share a fold.
        folds: 2 or more.
        seed: decides which fold a picture gets.

    Returns:
        Fold numbers from 1 to ``folds``, or 0: int64 [N].
    """
    _, sizes = np.unique(together, return_counts=True)
    order = np.argsort(together, kind="stable")
    starts = np.cumsum(sizes) - sizes
    chance = np.random.default_rng(seed).permutation(len(sizes))
    held: dict[int, list[int]] = {label: [0] * folds for label in np.unique(labels).tolist()}
    total = [0] * folds
    numbers = np.zeros(len(labels), dtype=np.int64)
    for cluster in np.lexsort((chance, -sizes)).tolist():  # the largest first, while there is room everywhere
        members = order[starts[cluster] : starts[cluster] + sizes[cluster]]
        classes = labels[members].tolist()
        loads = [(sum(held[label][fold] for label in classes), total[fold], fold) for fold in range(folds)]
        fold = min(loads)[2]
        for label in classes:
            held[label][fold] += 1
        total[fold] += len(members)
        numbers[members] = fold + 1
    alone = [label for label, counts in held.items() if sum(count > 0 for count in counts) < 2]
    numbers[np.isin(together, together[np.isin(labels, alone)])] = 0
    return numbers


def joined(*numberings: np.ndarray) -> np.ndarray:
    """Combine numberings: pictures that share a number in any of them share one in the result.

    >>> joined(np.array([0, 0, 1, 2]), np.array([5, 6, 6, 7])).tolist()
    [0, 0, 0, 3]

    Args:
        numberings: int [N] each.

    Returns:
        int64 [N]: the first position of each set of pictures that belong together.
    """
    inverses = [np.unique(one, return_inverse=True)[1] for one in numberings]
    found = np.arange(len(numberings[0]))
    while True:
        before = found.copy()
        for inverse in inverses:
            least = np.full(inverse.max(initial=0) + 1, len(found))
            np.minimum.at(least, inverse, found)
            found = least[inverse]
        if np.array_equal(found, before):
            return found
