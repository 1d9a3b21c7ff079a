"""Inspect a data set, for ``thumbnet data``."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np

from thumbnet.batches.decoding import auto_size, decode_split, some_sizes, surveyed
from thumbnet.batches.notes import copied_notes, flat_note, is_flat, scaling_notes
from thumbnet.batches.statistics import channel_statistics
from thumbnet.data.rendering import Fit, Rendering, fit_pixels
from thumbnet.data.repeats import Place, find_repeats
from thumbnet.data.splits import Data, Progress
from thumbnet.data.survey import choose_rendering, rendering_notes
from thumbnet.errors import UnreadableImageError
from thumbnet.recipes.settings import DataSettings


@dataclass(frozen=True)
class Inspection:
    """What was found by reading every picture of a data set.

    Attributes:
        counts: for each split, the number of pictures of each class.
        sizes: each (height, width) with its number of pictures, most frequent first.
        modes: each Pillow mode, such as RGB or L, with its number of pictures, most frequent first.
        unreadable: the name of each picture that cannot be decoded, and the reason.
        duplicates: pairs of pictures with identical pixels in two splits; each picture is (split, name).
        repeated: the number of pictures that repeat another picture of the same split.
        repeats: pairs of such pictures, first the one that is repeated; each picture is (split, name).
        image_size: (height, width) at which mean and std were measured.
        mean, std: the mean and standard deviation of each channel over the readable training pictures, with
            values scaled to [0, 1].
        conflicts: groups of pictures with identical pixels and different labels; each picture is (split,
            name, class).
        notes: other facts about the pixels that the user should know; see ``notes`` of :class:`Data`.
    """

    counts: dict[str, dict[str, int]]
    sizes: list[tuple[tuple[int, int], int]]
    modes: list[tuple[str, int]]
    unreadable: list[tuple[str, str]]
    duplicates: list[tuple[tuple[str, str], tuple[str, str]]]
    repeated: int
    repeats: list[tuple[tuple[str, str], tuple[str, str]]]
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    conflicts: list[list[tuple[str, str, str]]]
    notes: tuple[str, ...]


class _Seen:
    """Collects facts about pictures as they are read."""

    def __init__(self, data: Data, rendering: Rendering) -> None:
        self.data = data
        self.rendering = rendering
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.train_sizes: set[tuple[int, int]] = set()
        self.modes: Counter[str] = Counter()
        self.unreadable: list[tuple[str, str]] = []
        self.readable: dict[str, list[int]] = {name: [] for name in data.splits}
        self.digests: dict[str, list[bytes]] = {name: [] for name in data.splits}
        self.flat: list[bool] = []

    def look(self, name: str, index: int) -> None:
        """Read one picture of the split ``name``, and record its facts."""
        split = self.data.splits[name]
        try:
            size, mode = split.peek(index)
            pixels = np.asarray(self.rendering.rgb(split.load(index)))
        except UnreadableImageError as error:
            self.unreadable.append((error.name, error.reason))
            return
        self.sizes[size] += 1
        self.modes[mode] += 1
        self.readable[name].append(index)
        digest = hashlib.blake2b(str(pixels.shape).encode(), digest_size=16)
        digest.update(pixels.tobytes())
        self.digests[name].append(digest.digest())
        if name == "train":
            self.train_sizes.add(size)
            self.flat.append(bool(is_flat(pixels[None])[0]))


def inspect_data(
    data: Data,
    image_size: tuple[int, int] | None = None,
    fit: Fit = "crop",
    progress: Progress | None = None,
    settings: DataSettings | None = None,
) -> Inspection:
    """Read every picture of ``data`` once; damaged pictures are listed, not raised.

    Args:
        data: the data set.
        image_size: (height, width) for mean and std; None for the size that training would use.
        fit: see :func:`thumbnet.data.rendering.fit_image`.
        progress: called with the number of pictures done and their total.
        settings: the recipe's data settings: range, background and largest automatic size apply.

    Raises:
        FailedReadError: the system failed to read a picture.
    """
    settings = settings or DataSettings()
    found = surveyed(data.splits["train"])
    rendering = choose_rendering(found, settings)
    notes = rendering_notes(found, rendering, settings)
    seen = _Seen(data, rendering)
    total, done = sum(len(split) for split in data.splits.values()), 0
    for name, split in data.splits.items():
        for index in range(len(split)):
            done += 1
            if progress and done % 200 == 0:
                progress(done, total)
            seen.look(name, index)
    if progress:
        progress(total, total)
    if image_size is None:
        shared = next(iter(seen.train_sizes)) if len(seen.train_sizes) == 1 else None
        sizes = [] if shared else some_sizes(data.splits["train"])  # those by which the training decides
        image_size = auto_size(shared, sizes, settings)
        notes += scaling_notes(shared, sizes, image_size, fit, settings.largest_auto_size)
    names = {name: [split.name(i) for i in seen.readable[name]] for name, split in data.splits.items()}
    labels = {name: split.single_classes()[seen.readable[name]] for name, split in data.splits.items()}
    repeats = find_repeats(
        {
            name: np.frombuffer(b"".join(some), dtype=np.uint64).reshape(-1, 2)
            for name, some in seen.digests.items()
        },
        labels,
    )

    def described(place: Place) -> tuple[str, str]:
        return place.split, names[place.split][place.index]

    def with_class(place: Place) -> tuple[str, str, str]:
        return *described(place), data.class_names[labels[place.split][place.index]]

    where = np.flatnonzero(np.array(seen.flat, dtype=bool))
    notes += flat_note(np.array(seen.flat, dtype=bool), [names["train"][i] for i in where[:1]])
    notes += copied_notes(repeats, data.class_names)
    mean, std = _statistics(data, seen.readable["train"], image_size, fit, rendering)
    return Inspection(
        _counts(data),
        seen.sizes.most_common(),
        seen.modes.most_common(),
        seen.unreadable,
        [(described(first), described(second)) for first, second in repeats.leaks],
        len(repeats.copies),
        [(described(first), described(second)) for first, second in repeats.copies],
        image_size,
        mean,
        std,
        [[with_class(place) for place in group] for group in repeats.conflicts],
        tuple(notes),
    )


def _counts(data: Data) -> dict[str, dict[str, int]]:
    counts = {}
    for name, split in data.splits.items():
        per_class = split.class_counts(len(data.class_names)).tolist()
        counts[name] = dict(zip(data.class_names, per_class, strict=True))
    return counts


def _statistics(
    data: Data, indices: list[int], size: tuple[int, int], fit: Fit, rendering: Rendering
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if not indices:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    split = data.splits["train"].subset(np.array(indices))
    return channel_statistics(decode_split(split, size, fit, rendering=rendering).counts)


def sample_grid(
    data: Data,
    split: str,
    per_class: int,
    size: tuple[int, int],
    fit: Fit,
    settings: DataSettings | None = None,
    *,
    classes: int | None = None,
) -> dict[str, list[np.ndarray]]:
    """Return each class's first readable pictures, uint8 [height, width, 3], as the network sees them.

    Args:
        data: the data set.
        split: the name of the split to show.
        per_class: the most pictures per class.
        size: (height, width) of the network's input.
        fit: see :func:`thumbnet.data.rendering.fit_image`.
        settings: the recipe's data settings: range and background apply.
        classes: show only so many classes, the first ones; None for all.

    Raises:
        FailedReadError: the system failed to read a picture.
    """
    chosen = data.splits[split]
    rendering = choose_rendering(surveyed(data.splits["train"]), settings or DataSettings())
    grid: dict[str, list[np.ndarray]] = {}
    for label, name in enumerate(data.class_names[:classes]):
        cells: list[np.ndarray] = []
        for index in chosen.members(label):
            if len(cells) == per_class:
                break
            try:
                cells.append(fit_pixels(chosen.load(int(index)), size, fit, rendering))
            except UnreadableImageError:
                continue
        grid[name] = cells
    return grid
