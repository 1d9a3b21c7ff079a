"""Pictures that occur more than once: within a split, across splits, or in two classes.

Pictures are compared by a digest of their decoded pixels, so that the same picture in two file formats counts
as the same. Two different pictures share a digest with a probability of about 2**-66.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

COPIED = 0.9  # a class is called a copy when at least this share of its pictures is also in another class
_PART_BYTES = 1 << 22  # read at a time, so that a split mapped into memory is never copied as a whole


class Place(NamedTuple):
    """Where a picture is."""

    split: str
    index: int  # type: ignore[assignment]  # a tuple has a method of that name, which nobody needs here


class CopiedClass(NamedTuple):
    """A class nearly all of whose pictures are in another class too.

    Attributes:
        split: whose pictures of the class were looked at.
        label, original: the class and the other one, positions in the class names.
        shared, pictures: how many of these pictures are in the other class, in any split, and how many there
            are.
    """

    split: str
    label: int
    original: int
    shared: int
    pictures: int


@dataclass(frozen=True)
class Repeats:
    """The result of :func:`find_repeats`.

    Attributes:
        leaks: each picture of a later split that is also in an earlier one: (earlier, later).
        conflicts: groups of equal pictures that do not all have the same label.
        repeated: of each split, how many pictures repeat an earlier one of the same split.
        copied_classes: classes that are copies of another class.
    """

    leaks: tuple[tuple[Place, Place], ...]
    conflicts: tuple[tuple[Place, ...], ...]
    repeated: dict[str, int]
    copied_classes: tuple[CopiedClass, ...]


def picture_digests(images: np.ndarray) -> np.ndarray:
    """Two 64-bit hashes of each picture's pixels.

    Each is a sum of 32-bit words times random 64-bit numbers (multilinear hashing, Carter and Wegman 1979).
    The numbers depend only on the shape of a picture, so digests can be stored and compared later.

    Args:
        images: uint8 [N, ...], any shape; it is read in parts.

    Returns:
        uint64 [N, 2].
    """
    if images.dtype != np.uint8:
        raise ValueError(f"expected uint8 pictures, got {images.dtype}")
    shape = images.shape[1:]
    size = math.prod(shape)
    words = -(-size // 4)
    factors = np.random.Philox(key=18, counter=[0, 0, 0, 0]).random_raw(2 * (words + 1)).reshape(2, words + 1)
    offsets = factors[:, :1] * np.uint64(_shape_number(shape))
    digests = np.empty((len(images), 2), dtype=np.uint64)
    step = max(1, _PART_BYTES // max(1, size))
    for start in range(0, len(images), step):
        part = images[start : start + step].reshape(-1, size)
        if size % 4:
            part = np.pad(part, ((0, 0), (0, 4 * words - size)))
        values = np.ascontiguousarray(part).view("<u4").astype(np.uint64)
        for column in range(2):
            sums = np.einsum("nw,w->n", values, factors[column, 1:])
            digests[start : start + step, column] = sums + offsets[column]
    return digests


def _shape_number(shape: tuple[int, ...]) -> int:
    """A number that depends on the shape, so pictures of zeros in different sizes have different digests."""
    value = 1
    for side in shape:
        value = (value * 1_000_003 + side) % (1 << 32)
    return value


def find_repeats(digests: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]) -> Repeats:
    """Repeats within and across splits, from what :func:`picture_digests` returned.

    Args:
        digests: of each split, uint64 [N, 2]. Earlier splits are the ones that later ones leak from: put
            ``train`` first.
        labels: of each split, int [N]. ``-1`` means unknown: such a picture is in no conflict.

    Returns:
        All of them, in the order of the splits.
    """
    names = list(digests)
    lengths = [len(digests[name]) for name in names]
    if not sum(lengths):
        return Repeats((), (), dict.fromkeys(names, 0), ())
    every = np.concatenate([np.asarray(digests[name], dtype=np.uint64).reshape(-1, 2) for name in names])
    label = np.concatenate([np.asarray(labels[name], dtype=np.int64) for name in names])
    split = np.repeat(np.arange(len(names)), lengths)
    index = np.concatenate([np.arange(length) for length in lengths])
    order = np.lexsort((np.arange(len(every)), every[:, 1], every[:, 0]))
    ordered = every[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    group = np.empty(len(order), dtype=np.int64)
    group[order] = np.cumsum(new) - 1  # by picture: equal pictures have equal numbers

    def place(at: int) -> Place:
        return Place(names[split[at]], int(index[at]))

    leaks: list[tuple[Place, Place]] = []
    conflicts: list[tuple[Place, ...]] = []
    starts = np.flatnonzero(new)
    ends = np.append(starts[1:], len(order))
    several = ends - starts > 1
    for start, end in zip(starts[several].tolist(), ends[several].tolist(), strict=True):
        members = order[start:end]
        leaks += [(place(members[0]), place(at)) for at in members[split[members] != split[members[0]]]]
        known = label[members][label[members] >= 0]
        if len(known) and (known != known[0]).any():
            conflicts.append(tuple(place(at) for at in members))
    again = np.flatnonzero(np.bincount(group)[group] > 1)  # all others are in no repeat
    numbers, where, of = group[again], split[again], label[again]
    repeated = {
        name: int((where == at).sum() - len(np.unique(numbers[where == at]))) for at, name in enumerate(names)
    }
    copied = [
        one
        for at, name in enumerate(names)
        for one in _copied_classes(
            name, where == at, numbers, of, np.bincount(label[(split == at) & (label >= 0)])
        )
    ]
    return Repeats(
        tuple(sorted(leaks, key=lambda pair: (names.index(pair[1].split), pair[1].index))),
        tuple(sorted(conflicts, key=lambda places: (names.index(places[0].split), places[0].index))),
        repeated,
        tuple(copied),
    )


def _copied_classes(
    split: str, here: np.ndarray, group: np.ndarray, label: np.ndarray, sizes: np.ndarray
) -> list[CopiedClass]:
    """Classes of one split, with two pictures or more, that are copies of another one.

    The other class may have the pictures in any split. Of two classes with the same pictures one is named.

    Args:
        split: the split's name.
        here: which of the repeated pictures are in it, bool [M].
        group, label: of all repeated pictures, int64 [M].
        sizes: how many pictures each class has in the split, repeated or not.
    """
    known = label >= 0
    if not (here & known).any():
        return []
    pairs = np.unique(np.stack([group[known], label[known]]), axis=1)
    starts = np.flatnonzero(np.diff(pairs[0], prepend=-1))
    classes = {
        int(pairs[0, start]): pairs[1, start:end].tolist()
        for start, end in zip(starts, [*starts[1:], pairs.shape[1]], strict=True)
        if end - start > 1
    }
    shared: dict[tuple[int, int], int] = {}
    some = here & known & np.isin(group, np.array(list(classes), dtype=np.int64))
    for number, one in zip(group[some].tolist(), label[some].tolist(), strict=True):
        for other in classes[number]:
            if other != one:
                shared[one, other] = shared.get((one, other), 0) + 1
    found: dict[int, CopiedClass] = {}
    for (one, other), count in sorted(shared.items(), key=lambda item: (-item[1], item[0])):
        twins = other in found and found[other].original == one
        if sizes[one] > 1 and count >= COPIED * sizes[one] and one not in found and not twins:
            found[one] = CopiedClass(split, one, other, count, int(sizes[one]))
    return [found[one] for one in sorted(found)]
