"""What is in a data set: for ``thumbnet data``."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np

from thumbnet.data.batches import channel_statistics
from thumbnet.data.decoding import Count, decode_split, size_or_default
from thumbnet.data.images import Fit, fit_image
from thumbnet.data.splits import Data
from thumbnet.errors import UnreadableImageError


@dataclass(frozen=True)
class Inspection:
    """What was found by reading every picture.

    Attributes:
        counts: of each split, the pictures of each class.
        sizes: (height, width) and how many pictures have it, the most frequent first.
        modes: Pillow's modes, such as RGB and L, likewise.
        unreadable: name and reason of each picture that cannot be decoded.
        duplicates: names of pictures with identical content in two splits, as (split, name) pairs.
        repeated: pictures that repeat another of their own split.
        image_size: height, width at which mean and std were measured.
        mean, std: of the readable training pictures, per channel, in [0, 1].
    """

    counts: dict[str, dict[str, int]]
    sizes: list[tuple[tuple[int, int], int]]
    modes: list[tuple[str, int]]
    unreadable: list[tuple[str, str]]
    duplicates: list[tuple[tuple[str, str], tuple[str, str]]]
    repeated: int
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def inspect_data(
    data: Data, image_size: tuple[int, int] | None = None, fit: Fit = "pad", progress: Count | None = None
) -> Inspection:
    """Read every picture of ``data`` once; unreadable ones are listed, not raised."""
    sizes: Counter[tuple[int, int]] = Counter()
    train_sizes: set[tuple[int, int]] = set()
    modes: Counter[str] = Counter()
    unreadable: list[tuple[str, str]] = []
    seen: dict[bytes, tuple[str, str]] = {}
    duplicates: list[tuple[tuple[str, str], tuple[str, str]]] = []
    repeated = 0
    total, done = sum(len(split) for split in data.splits.values()), 0
    readable: list[int] = []
    for name, split in data.splits.items():
        for index in range(len(split)):
            done += 1
            if progress and done % 200 == 0:
                progress(done, total)
            try:
                digest = hashlib.blake2b(split.content(index), digest_size=16).digest()
                size, mode = split.peek(index)
                split.read(index)
            except UnreadableImageError as error:
                unreadable.append((error.name, error.reason))
                continue
            sizes[size] += 1
            modes[mode] += 1
            if name == "train":
                train_sizes.add(size)
                readable.append(index)
            first = seen.setdefault(digest, (name, split.name(index)))
            if first[0] != name:
                duplicates.append((first, (name, split.name(index))))
            elif first[1] != split.name(index):
                repeated += 1
    if progress:
        progress(total, total)
    if image_size is None:
        image_size = size_or_default(next(iter(train_sizes)) if len(train_sizes) == 1 else None)
    mean, std = _statistics(data, readable, image_size, fit)
    counts = {
        name: dict(
            zip(
                data.class_names, np.bincount(s.labels, minlength=len(data.class_names)).tolist(), strict=True
            )
        )
        for name, s in data.splits.items()
    }
    return Inspection(
        counts,
        sizes.most_common(),
        modes.most_common(),
        unreadable,
        duplicates,
        repeated,
        image_size,
        mean,
        std,
    )


def _statistics(
    data: Data, indices: list[int], size: tuple[int, int], fit: Fit
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if not indices:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    split = data.splits["train"].subset(np.array(indices))
    return channel_statistics(decode_split(split, size, fit).counts)


def sample_grid(
    data: Data, split: str, per_class: int, size: tuple[int, int], fit: Fit
) -> dict[str, list[np.ndarray]]:
    """The first readable pictures of each class, uint8 [height, width, 3], as the network sees them."""
    chosen = data.splits[split]
    grid: dict[str, list[np.ndarray]] = {}
    for label, name in enumerate(data.class_names):
        cells: list[np.ndarray] = []
        for index in np.flatnonzero(chosen.labels == label):
            if len(cells) == per_class:
                break
            try:
                cells.append(np.asarray(fit_image(chosen.read(int(index)), size, fit)))
            except UnreadableImageError:
                continue
        grid[name] = cells
    return grid
