"""Pictures with several labels each.

A split of such pictures wraps a split that reads the pictures, and adds a matrix with a column per label. All
kinds of splits can be wrapped, so their code knows nothing about several labels. ``labels``, one class per
picture, raises an error here. Code that has not been written for several labels therefore stops with a clear
message and computes nothing wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from thumbnet.data.images import Picture
from thumbnet.data.splits import Split
from thumbnet.errors import DataError, SeveralLabelsError


def as_matrix(rows: Sequence[Sequence[int]], classes: int) -> np.ndarray:
    """Lists of positions in the class names, one list per picture, as a matrix: bool [N, classes]."""
    matrix = np.zeros((len(rows), classes), dtype=bool)
    for into, row in zip(matrix, rows, strict=True):
        into[list(row)] = True
    return matrix


class MultiLabelSplit(Split):
    """Pictures with any number of labels each, also none.

    Args:
        pictures: reads the pictures; its own labels are ignored.
        targets: whether each picture has each label: booleans or 0 and 1, [N, classes].

    Raises:
        DataError: the shape or the values of ``targets`` are different.
    """

    multilabel = True

    def __init__(self, pictures: Split, targets: np.ndarray) -> None:
        values = np.asarray(targets)
        if values.ndim != 2 or len(values) != len(pictures):
            raise DataError(
                f"{len(pictures)} pictures have labels of shape {list(values.shape)}, expected "
                f"[{len(pictures)}, labels]"
            )
        if values.dtype != bool and not np.isin(values, (0, 1)).all():
            raise DataError("a matrix of labels must hold only 0 and 1")
        self.pictures = pictures
        self._targets = values.astype(bool)

    @property
    def labels(self) -> np.ndarray:  # type: ignore[override]  # one class per picture, which these do not have
        """Always raises an error, see the module."""
        raise SeveralLabelsError

    @property
    def targets(self) -> np.ndarray:
        """Whether each picture has each label: bool [N, classes]."""
        return self._targets

    def __len__(self) -> int:
        return len(self._targets)

    def class_counts(self, classes: int) -> np.ndarray:
        counts: np.ndarray = self._targets.sum(axis=0, dtype=np.int64)
        return counts

    def members(self, label: int) -> np.ndarray:
        return np.flatnonzero(self._targets[:, label])

    def single_classes(self) -> np.ndarray:
        return np.full(len(self), -1, dtype=np.int64)

    def label_text(self, index: int, class_names: Sequence[str]) -> str:
        return ", ".join(class_names[i] for i in np.flatnonzero(self._targets[index]).tolist()) or "no label"

    def reader(self) -> Split:
        return self.pictures

    def name(self, index: int) -> str:
        return self.pictures.name(index)

    def file(self, index: int) -> Path | None:
        return self.pictures.file(index)

    def load(self, index: int) -> Picture:
        return self.pictures.load(index)

    def head(self, index: int) -> bytes:
        return self.pictures.head(index)

    def content(self, index: int) -> bytes:
        return self.pictures.content(index)

    def peek(self, index: int) -> tuple[tuple[int, int], str]:
        return self.pictures.peek(index)

    def subset(self, indices: np.ndarray) -> MultiLabelSplit:
        return MultiLabelSplit(self.pictures.subset(indices), self._targets[indices])

    def content_key(self) -> str:
        return self.pictures.content_key()

    def content_stamp(self) -> Iterable[bytes]:
        return self.pictures.content_stamp()

    def stamp(self) -> Iterable[bytes]:
        yield from self.pictures.stamp()
        yield f"\nlabels {self._targets.shape[1]}\n".encode()
        yield np.packbits(self._targets, axis=1).tobytes()
