"""Decode the training pictures, and divide them into pictures to train on and pictures to judge by.

A ``val`` split of the data is used as it is. Otherwise, a data set with fewer than ``SMALL`` training
pictures is cross-validated, and a larger one gives a fifth of its pictures, at most about ``MOST_HELD_OUT``.
Copies of a picture, and pictures of one group, stay together. The test pictures are neither decoded nor
looked at.

The division is the same for every input size and every way to fit pictures into it. Each of these is decoded
when a trial first asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import torch

from thumbnet.batches.batches import EvalBatches, TrainBatches
from thumbnet.batches.decoding import some_sizes
from thumbnet.batches.engines import Engine, MemoryEngine, WorkerEngine
from thumbnet.batches.prepare import Prepared, prepare
from thumbnet.data.repeats import number_pictures, picture_digests
from thumbnet.data.splits import Data, Progress
from thumbnet.errors import DataError
from thumbnet.recipes.recipe import Recipe
from thumbnet.reviewing.folds import fold_numbers, joined
from thumbnet.seeds import derive_seed

SMALL = 1000  # with fewer training pictures, every picture is held out once
FOLDS = 3
FEWEST = 20  # training pictures; fewer cannot judge anything
PARTS = 5  # of a larger data set, one part in this many is held out
MOST_HELD_OUT = 5000  # pictures; more would cost time and decide nothing


_Folds: TypeAlias = list[np.ndarray]
"""The held-out pictures of each network, bool [N]; empty if a ``val`` split judges."""


@dataclass(frozen=True)
class Parts:
    """What the trials of a search train on and are judged by.

    Attributes:
        parts: for each network of a trial, its batches; ``evaluation`` has only ``val``.
        pictures: training pictures of the data, those that are held out included.
        held_out: pictures that judge a trial, over all parts.
        watched: pictures of the split that the final training watches and measures.
        how: the division in words.
        size: height and width of the network's input.
        own: height and width of some pictures as they are stored.
        skipped: how many pictures cannot be read.
        notes: what the user should know about the pixels.
    """

    parts: tuple[Prepared, ...]
    pictures: int
    held_out: int
    watched: int
    how: str
    size: tuple[int, int]
    own: tuple[tuple[int, int], ...]
    skipped: int
    notes: tuple[str, ...]
    _again: Callable[[Recipe], tuple[Prepared, ...]] = field(repr=False, compare=False)

    def for_recipe(self, recipe: Recipe) -> tuple[Prepared, ...]:
        """The same division with the input size of ``recipe``, and its way to fit pictures into it.

        Raises:
            UnreadableImagesError, OutOfMemoryError: as for :func:`thumbnet.batches.prepare.prepare`.
        """
        return self._again(recipe)


def held_out_of(part: Prepared) -> int:
    """How many pictures judge one network of a trial."""
    return len(part.evaluation["val"].engine.labels)


def divide(data: Data, recipe: Recipe, device: torch.device, progress: Progress | None = None) -> Parts:
    """Decode ``data`` without its test split, and divide it.

    Raises:
        DataError: there are too few pictures to hold any out.
        UnreadableImagesError, OutOfMemoryError: as for :func:`thumbnet.batches.prepare.prepare`.
    """
    kept = {name: split for name, split in data.splits.items() if name in ("train", "val")}
    judged = replace(data, splits=kept)
    prepared = prepare(judged, recipe, device, progress)
    folds, how = _folds(data, prepared, recipe)
    parts = _parts(prepared, recipe, folds)
    start = (recipe.data.image_size, recipe.data.fit)
    latest: dict[tuple[str, str], tuple[Prepared, ...]] = {}  # only one, because each takes as much memory

    def again(other: Recipe) -> tuple[Prepared, ...]:
        wanted = (other.data.image_size, other.data.fit)
        if wanted == start:
            return parts
        if wanted not in latest:
            latest.clear()
            latest[wanted] = _parts(prepare(judged, other, device, progress), other, folds)
        return latest[wanted]

    return Parts(
        parts,
        prepared.train.count,
        sum(map(held_out_of, parts)),
        next((len(data.splits[name]) for name in ("val", "test") if name in data.splits), 0),
        how,
        prepared.preprocessing.size,
        tuple(some_sizes(prepared.splits["train"])),
        len(prepared.skipped),
        prepared.notes,
        again,
    )


def _folds(data: Data, prepared: Prepared, recipe: Recipe) -> tuple[_Folds, str]:
    """Which pictures are held out, each fold once or only the first one; and the same in words."""
    if "val" in prepared.evaluation:
        return [], f"the val split, {held_out_of(prepared):,} pictures"
    count = prepared.train.count
    if count < FEWEST:
        raise DataError(
            f"{data.source} has {count} training pictures: at least {FEWEST} are needed to compare settings"
        )
    small = count < SMALL
    folds = FOLDS if small else max(PARTS, -(-count // MOST_HELD_OUT))
    labels, together = _labels(prepared), _together(data, prepared)
    numbers = fold_numbers(labels, together, folds, derive_seed(recipe.data.split_seed, "tune"))
    there = [fold for fold in range(1, folds + 1) if (numbers == fold).any()]
    used = there if small else there[:1]
    if not used or (numbers != used[0]).sum() < 2:
        raise DataError(
            f"{data.source}: no training pictures can be held out to compare settings, because the pictures "
            "of each class are copies of each other or belong to one group"
        )
    held_out = int(np.isin(numbers, used).sum())
    how = (
        f"{len(used)} folds of the {count:,} training pictures"
        if small
        else f"{held_out:,} of the {count:,} training pictures"
    )
    return [numbers == fold for fold in used], how


def _parts(prepared: Prepared, recipe: Recipe, folds: _Folds) -> tuple[Prepared, ...]:
    """The batches of each network of a trial."""
    return tuple(_part(prepared, recipe, held) for held in folds) if folds else (prepared,)


def _part(prepared: Prepared, recipe: Recipe, held: np.ndarray) -> Prepared:
    """Batches of the training pictures, with those that ``held`` marks (bool [N]) as ``val``."""
    old = prepared.train
    train, val = (_engine_of(prepared, recipe, np.flatnonzero(chosen)) for chosen in (~held, held))
    size = prepared.preprocessing.size
    batches = TrainBatches(train, old.normalise, recipe, size)
    judged = EvalBatches(val, old.normalise, batch_size=recipe.evaluation.batch_size)
    return replace(prepared, train=batches, evaluation={"val": judged})


def _engine_of(prepared: Prepared, recipe: Recipe, positions: np.ndarray) -> Engine:
    """An engine for the training pictures at ``positions``, int [M]."""
    engine = prepared.train.engine
    if isinstance(engine, MemoryEngine):
        where = torch.from_numpy(positions)
        return MemoryEngine(engine.images[where.to(engine.images.device)], engine.labels[where])
    split, pre = prepared.splits["train"].subset(positions), prepared.preprocessing
    device = prepared.train.normalise.device
    return WorkerEngine(split, pre.size, pre.fit, recipe.data.workers, pre.rendering, device)


def _labels(prepared: Prepared) -> np.ndarray:
    """What the folds are balanced by, int64 [N]: the class, or the rarest of several labels, if any."""
    labels = prepared.train.engine.labels.numpy()
    if labels.ndim == 1:
        return labels
    order = np.argsort(labels.sum(axis=0), kind="stable")
    ranked = labels[:, order] > 0
    return np.where(ranked.any(axis=1), ranked.argmax(axis=1), len(order))


def _together(data: Data, prepared: Prepared) -> np.ndarray:
    """Numbers that are equal for pictures that must share a fold: int64 [N]."""
    engine, split = prepared.train.engine, prepared.splits["train"]
    found = [np.arange(len(engine.labels))]
    if isinstance(engine, MemoryEngine):
        found.append(number_pictures(picture_digests(engine.images.permute(0, 2, 3, 1).cpu().numpy())))
    if "train" in data.groups:
        whole = data.splits["train"]
        by_name = {whole.name(index): str(group) for index, group in enumerate(data.groups["train"])}
        names = [by_name[split.name(index)] for index in range(len(split))]
        found.append(np.unique(names, return_inverse=True)[1])
    return joined(*found)
