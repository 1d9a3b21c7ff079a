"""Divide pictures into folds, so that each picture can be judged by a network that was trained without it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from thumbnet.data.splits import Data, Split
from thumbnet.errors import DataError, some_of
from thumbnet.seeds import derive_seed


def with_test_fold(data: Data, folds: int, fold: int, seed: int) -> Data:
    """``data`` with one of ``folds`` parts of ``train`` as ``test``.

    Over all folds, each picture of ``train`` is in ``test`` once. The only exceptions are pictures without
    which a class could not be learned, such as its only picture or group: they are in ``train`` in every
    fold. All classes get the same share of each fold. The pictures of one group (``data.groups``) are in one
    fold, and so are the rows of a table that name one file. The division depends on the pictures and
    ``seed``, not on ``fold``.

    A ``test`` split that the data have becomes :attr:`Data.unused_test`, and a ``val`` split stays as it is.

    Args:
        data: a data set with a ``train`` split.
        folds: the number of parts, 2 or more.
        fold: which of them is ``test``, from 1.
        seed: selects the pictures of each fold.

    Raises:
        DataError: there are fewer pictures or groups than folds.
    """
    train, groups = data.splits["train"], data.groups.get("train")
    numbers = _divided(train, _together(train, groups), folds, derive_seed(seed, "test folds"))
    unit = "picture" if groups is None else "group"
    filled = len(set(numbers.tolist()) - {0})
    if filled < folds:
        advice = f"Use at most {filled} folds" if filled > 1 else "Train without folds"
        raise DataError(
            f"{data.source}: there are too few {unit}s for {folds} folds: only {filled} would have test "
            f"pictures (a class with a single {unit} is always trained on). {advice}"
        )
    parts = {"train": np.flatnonzero(numbers != fold), "test": np.flatnonzero(numbers == fold)}
    kept = {name: values for name, values in data.groups.items() if name != "test"}
    if groups is not None:
        kept |= {name: groups[where] for name, where in parts.items()}
    return replace(
        data,
        splits={**data.splits, **{name: train.subset(where) for name, where in parts.items()}},
        groups=kept,
        set_aside=(*data.set_aside, "test"),
        notes=(*data.notes, *_notes(data, numbers, folds, fold, unit)),
        unused_test=data.splits.get("test"),
    )


def _together(train: Split, groups: np.ndarray | None) -> np.ndarray:
    """Numbers that are equal for pictures that share a fold: int64 [N].

    These are the pictures of one group, and those of one key, such as rows of a table that name one file.
    """
    first: dict[str, int] = {}
    keys = np.array([first.setdefault(train.key(index), index) for index in range(len(train))], np.int64)
    if groups is None:
        return keys
    names, of_group = np.unique(groups, return_inverse=True)
    both = joined(of_group, keys)
    # The order of the numbers decides the folds: a run that is trained on a fold has to find it again.
    return of_group if len(np.unique(both)) == len(names) else both


def _divided(train: Split, together: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold of each picture of ``train``, as :func:`fold_numbers` assigns it: int64 [N].

    With several labels per picture, the folds are balanced by the rarest of them. A label whose pictures all
    fall into one fold could not be learned without it: these pictures get the number 0, too.
    """
    if not train.multilabel:
        return fold_numbers(train.labels, together, folds, seed)
    targets = train.targets
    numbers = fold_numbers(rarest_labels(targets), together, folds, seed)
    for label in range(targets.shape[1]):
        members = train.members(label)
        if len(set(numbers[members].tolist())) == 1:
            numbers[np.isin(together, together[members])] = 0
    return numbers


def _notes(data: Data, numbers: np.ndarray, folds: int, fold: int, unit: str) -> list[str]:
    """What the user should know about the folds ``numbers`` (int64 [N]) of pictures or groups (``unit``)."""
    train, tested = data.splits["train"], int((numbers == fold).sum())
    undivided = "" if unit == "picture" else ", in whole groups"
    notes = [
        f"fold {fold} of {folds}: {tested:,} of the {len(train):,} training pictures are test{undivided}"
    ]
    if "test" in data.splits:
        notes.append(
            f"the test split of the data ({len(data.splits['test']):,} pictures) is not used: the folds are "
            "made of the training pictures"
        )
    if "val" in data.splits:
        notes.append("the val split of the data stays val: its pictures are in no fold")
    present: dict[str, set[int]] = {name: set() for name in data.class_names}
    for number in range(folds + 1):
        there = train.targets[numbers == number]
        labels = np.flatnonzero(there.any(axis=0)) if train.multilabel else np.unique(there)
        for label in labels.tolist():
            present[data.class_names[label]].add(number)
    never = [name for name, there in present.items() if there == {0}]
    untested = int((numbers == 0).sum())
    if untested:
        each = "label" if train.multilabel else "class"
        notes.append(
            f"{untested:,} picture(s) are in every training and never in test, because a training without "
            f"them would lack a {each}{': ' if never else ''}{some_of(never)}"
        )
    rare = [name for name, there in present.items() if there - {0} and len(there - {0}) < folds]
    if rare:
        notes.append(
            f"the test pictures of some folds lack {len(rare)} class(es), which have too few {unit}s for "
            f"{folds} folds: {some_of(rare)}"
        )
    return notes


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


def rarest_labels(targets: np.ndarray) -> np.ndarray:
    """The rarest of each picture's labels, by which folds are balanced: int64 [N].

    >>> rarest_labels(np.array([[1, 1], [1, 0], [0, 0]])).tolist()
    [0, 1, 2]

    Args:
        targets: whether each picture has each label: bool, or 0 and 1, [N, labels].

    Returns:
        The ranks of the labels, the rarest first; the number of labels for a picture without any.
    """
    order = np.argsort(targets.sum(axis=0), kind="stable")
    ranked = targets[:, order] > 0
    return np.where(ranked.any(axis=1), ranked.argmax(axis=1), len(order))
