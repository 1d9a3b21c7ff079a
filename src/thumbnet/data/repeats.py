"""Find pictures that occur more than once: within a split, in several splits, or in two classes.

Pictures are compared by a digest of their decoded pixels, so a picture saved in two lossless formats counts
as one. Two different pictures have the same digest with a probability of about 2**-66.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

COPIED = 0.9  # a class is a copy if at least this share of its pictures is also in another class
_PART_BYTES = 1 << 22  # bytes to read at a time: a memory-mapped split is never copied as a whole


class Place(NamedTuple):
    """Where a picture is."""

    split: str
    index: int  # type: ignore[assignment]  # hides the method tuple.index, which is not used


class CopiedClass(NamedTuple):
    """A class most of whose pictures are also in another class.

    Attributes:
        split: the split in which the class's pictures were counted.
        label, original: the class and the other class, as positions in the class names.
        shared, pictures: how many of the class's pictures are also in the other class (in any split), and how
            many it has.
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
        leaks: pairs (earlier, later) for each picture of a later split that is also in an earlier split.
        conflicts: groups of equal pictures with different labels.
        repeated: by split, how many pictures repeat an earlier picture of the same split.
        copied_classes: classes that are copies of another class.
        copies: pairs (first, later) for each picture that repeats another one of the same split.
    """

    leaks: tuple[tuple[Place, Place], ...]
    conflicts: tuple[tuple[Place, ...], ...]
    repeated: dict[str, int]
    copied_classes: tuple[CopiedClass, ...]
    copies: tuple[tuple[Place, Place], ...] = ()


def picture_digests(images: np.ndarray) -> np.ndarray:
    """Two 64-bit hashes of each picture's pixels.

    Each is the sum of the picture's 32-bit words, each times a random 64-bit number (multilinear hashing,
    Carter and Wegman 1979). The numbers depend only on the picture's shape, so digests can be stored and
    compared later.

    Args:
        images: uint8 [N, ...], of any shape; read in parts.

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
    """A number for the shape: without it, all-zero pictures of different sizes would share a digest."""
    value = 1
    for side in shape:
        value = (value * 1_000_003 + side) % (1 << 32)
    return value


def number_pictures(digests: np.ndarray) -> np.ndarray:
    """Number the pictures so that equal pictures have equal numbers: int64 [N] from 0, of uint64 [N, 2]."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    ordered = digests[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    numbers = np.empty(len(order), dtype=np.int64)
    numbers[order] = np.cumsum(new) - 1
    return numbers


def find_repeats(digests: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray]) -> Repeats:
    """Find repeats within and across splits.

    Args:
        digests: by split, uint64 [N, 2], from :func:`picture_digests`. Put ``train`` first: a picture of a
            later split leaks if an earlier split has it.
        labels: by split, int [N]. ``-1`` means unknown; such a picture is in no conflict.

    Returns:
        All repeats, in the order of the splits.
    """
    names = list(digests)
    lengths = [len(digests[name]) for name in names]
    if not sum(lengths):
        return Repeats((), (), dict.fromkeys(names, 0), ())
    every = np.concatenate([np.asarray(digests[name], dtype=np.uint64).reshape(-1, 2) for name in names])
    label = np.concatenate([np.asarray(labels[name], dtype=np.int64) for name in names])
    split = np.repeat(np.arange(len(names)), lengths)
    index = np.concatenate([np.arange(length) for length in lengths])
    group = number_pictures(every)
    order = np.argsort(group, kind="stable")

    def place(at: int) -> Place:
        return Place(names[split[at]], int(index[at]))

    def by_later(pair: tuple[Place, Place]) -> tuple[int, int]:
        return names.index(pair[1].split), pair[1].index

    leaks: list[tuple[Place, Place]] = []
    conflicts: list[tuple[Place, ...]] = []
    copies: list[tuple[Place, Place]] = []
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    ends = np.append(starts[1:], len(order))
    several = ends - starts > 1
    for start, end in zip(starts[several].tolist(), ends[several].tolist(), strict=True):
        members = order[start:end]
        leaks += [(place(members[0]), place(at)) for at in members[split[members] != split[members[0]]]]
        for one in np.unique(split[members]):
            same = members[split[members] == one]
            copies += [(place(same[0]), place(at)) for at in same[1:]]
        known = label[members][label[members] >= 0]
        if len(known) and (known != known[0]).any():
            conflicts.append(tuple(place(at) for at in members))
    again = np.flatnonzero(np.bincount(group)[group] > 1)  # pictures that occur more than once
    numbers, where, of = group[again], split[again], label[again]
    repeated = {name: sum(later.split == name for _, later in copies) for name in names}
    copied = [
        one
        for at, name in enumerate(names)
        for one in _copied_classes(
            name, where == at, numbers, of, np.bincount(label[(split == at) & (label >= 0)])
        )
    ]
    return Repeats(
        tuple(sorted(leaks, key=by_later)),
        tuple(sorted(conflicts, key=lambda places: (names.index(places[0].split), places[0].index))),
        repeated,
        tuple(copied),
        tuple(sorted(copies, key=by_later)),
    )


def _copied_classes(
    split: str, here: np.ndarray, group: np.ndarray, label: np.ndarray, sizes: np.ndarray
) -> list[CopiedClass]:
    """Find classes of one split, with at least two pictures, that are copies of another class.

    The other class may have the pictures in any split. If two classes have the same pictures, only one of
    them is reported.

    Args:
        split: the split's name.
        here: which of the repeated pictures are in this split, bool [M].
        group, label: group and label of every repeated picture, int64 [M].
        sizes: how many pictures each class has in this split, repeated or not.
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
