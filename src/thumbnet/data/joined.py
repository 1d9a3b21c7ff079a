"""Several splits as one, such as the pictures of an archive followed by pictures in files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from thumbnet.data.images import Picture
from thumbnet.data.splits import FileSplit, Split


def with_files(split: Split, paths: Sequence[str], labels: np.ndarray) -> Split:
    """``split`` followed by the pictures in files.

    Args:
        split: any split.
        paths: absolute paths, which are the new pictures' names.
        labels: the new pictures' labels, int [len(paths)].
    """
    if isinstance(split, FileSplit):
        return FileSplit(split.root, [*split.paths, *paths], np.concatenate([split.labels, labels]))
    return JoinedSplit([split, FileSplit(Path(os.sep), paths, labels)])


class JoinedSplit(Split):
    """The pictures of several splits.

    Args:
        parts: the splits.
        order: for each picture, its position in ``parts`` one after the other, int [N]. It contains each
            position once. By default, the parts keep their order.
    """

    def __init__(self, parts: Sequence[Split], order: np.ndarray | None = None) -> None:
        self._parts = tuple(parts)
        self.forkable = all(part.forkable for part in parts)
        self.threadable = all(part.threadable for part in parts)
        self._starts = np.cumsum([0, *(len(part) for part in parts)])  # the last one is the total
        self._order = np.arange(self._starts[-1]) if order is None else order
        self.labels = np.concatenate([part.labels for part in parts])[self._order]

    def _at(self, index: int) -> tuple[Split, int]:
        """The part that has a picture, and its position there."""
        place = int(self._order[index])
        number = int(np.searchsorted(self._starts, place, side="right")) - 1
        return self._parts[number], place - int(self._starts[number])

    def name(self, index: int) -> str:
        part, at = self._at(index)
        return part.name(at)

    def file(self, index: int) -> Path | None:
        part, at = self._at(index)
        return part.file(at)

    def key(self, index: int) -> str:
        part, at = self._at(index)
        return part.key(at)

    def load(self, index: int) -> Picture:
        part, at = self._at(index)
        return part.load(at)

    def head(self, index: int) -> bytes:
        part, at = self._at(index)
        return part.head(at)

    def content(self, index: int) -> bytes:
        part, at = self._at(index)
        return part.content(at)

    def peek(self, index: int) -> tuple[tuple[int, int], str]:
        part, at = self._at(index)
        return part.peek(at)

    def subset(self, indices: np.ndarray) -> JoinedSplit:
        places = self._order[indices]
        owners = np.searchsorted(self._starts, places, side="right") - 1
        parts = [
            part.subset(places[owners == number] - self._starts[number])
            for number, part in enumerate(self._parts)
        ]
        order = np.empty(len(places), dtype=np.int64)
        order[np.argsort(owners, kind="stable")] = np.arange(len(places))
        return JoinedSplit(parts, order)

    def with_labels(self, labels: np.ndarray) -> Self:
        flat = np.empty(len(self), dtype=np.int64)
        flat[self._order] = labels
        parts = [
            part.with_labels(flat[start : start + len(part)])
            for part, start in zip(self._parts, self._starts, strict=False)
        ]
        return type(self)(parts, self._order)

    def stamp(self) -> Iterable[bytes]:
        """The stamps of the parts, and the order."""
        for part in self._parts:
            yield from part.stamp()
        yield self._order.tobytes()

    def content_stamp(self) -> Iterable[bytes]:
        """Those of the parts, and the order."""
        for part in self._parts:
            yield from part.content_stamp()
        yield self._order.tobytes()
