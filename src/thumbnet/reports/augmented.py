"""A preview of a recipe's augmentation: a few training pictures as the network would see them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from thumbnet.batches.batches import TrainBatches
from thumbnet.batches.decoding import surveyed
from thumbnet.batches.engines import CPU, MemoryEngine, as_labels
from thumbnet.batches.statistics import Normalise
from thumbnet.data.rendering import Preprocessing, fit_pixels
from thumbnet.data.splits import Data
from thumbnet.data.survey import choose_rendering
from thumbnet.errors import DataError, UnreadableImageError
from thumbnet.recipes.recipe import Recipe

PICTURES, VIEWS = 10, 8


@dataclass(frozen=True)
class AugmentedRow:
    """One training picture and what augmentation makes of it.

    Attributes:
        label: the picture's class; all of its labels if it has several.
        pixels: the picture at the network's size, uint8 [height, width, 3].
        views: the picture in the first epochs of a training, each like ``pixels``.
        mixtures: for each view, the label of the picture it was mixed with and its own share in [0, 1]; None
            if it was mixed with nothing.
    """

    label: str
    pixels: np.ndarray
    views: list[np.ndarray]
    mixtures: list[tuple[str, float] | None]


def preview_augmentation(
    data: Data,
    recipe: Recipe,
    size: tuple[int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> list[AugmentedRow]:
    """Augment the first readable training picture of up to ``PICTURES`` classes, ``VIEWS`` times each.

    The code is that of the training, with these pictures as the whole split: each view is another epoch.

    Args:
        data: the data set.
        recipe: gives augmentation, fit and seed.
        size: height, width in pixels of the network's input.
        mean, std: of the training split, for a recipe that measures them.

    Raises:
        DataError: no training picture can be read.
    """
    positions, pixels = _one_per_class(data, recipe, size)
    split = data.splits["train"].subset(np.array(positions))
    labels = [split.label_text(index, data.class_names) for index in range(len(split))]
    settings = recipe.data
    mean = mean if isinstance(settings.mean, str) else settings.mean
    std = std if isinstance(settings.std, str) else settings.std
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    batches = TrainBatches(
        MemoryEngine(images, as_labels(split.targets)),
        Normalise(Preprocessing(size, settings.fit, mean, std), CPU),
        replace(
            recipe,
            data=replace(settings, skip_easy=0.0, sampling="uniform"),
            training=replace(recipe.training, batch_size=max(2, len(pixels)), drop_last=False),
        ),
        size,
    )
    rows = [AugmentedRow(label, own, [], []) for label, own in zip(labels, pixels, strict=True)]
    for epoch in range(VIEWS):
        _add_views(rows, batches, epoch, mean, std)
    return rows


def _one_per_class(data: Data, recipe: Recipe, size: tuple[int, int]) -> tuple[list[int], list[np.ndarray]]:
    """Positions of different pictures, one for each of the first classes, and their pixels."""
    split, positions, pixels = data.splits["train"], list[int](), list[np.ndarray]()
    rendering = choose_rendering(surveyed(split), recipe.data)
    for label in range(len(data.class_names)):
        for index in map(int, split.members(label)):
            if index in positions:  # a picture with several labels
                continue
            try:
                pixels.append(fit_pixels(split.load(index), size, recipe.data.fit, rendering))
            except UnreadableImageError:
                continue
            positions.append(index)
            break
        if len(positions) == PICTURES:
            break
    if not positions:
        raise DataError(f"{data.source}: no training picture can be read, so there is nothing to augment")
    return positions, pixels


def _add_views(
    rows: list[AugmentedRow],
    batches: TrainBatches,
    epoch: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> None:
    """Add one view to each row: the pictures of an epoch, which is a single batch."""
    (batch,) = batches.epoch(epoch)
    assert batch.positions is not None
    offset, factor = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
    restored = ((batch.images * factor + offset) * 255).round().clamp(0, 255).to(torch.uint8)
    order = batch.positions.tolist()
    partner = batches.draw(batch.positions, epoch, epoch, 0).partner.tolist()
    for place, position in enumerate(order):
        rows[position].views.append(restored[place].permute(1, 2, 0).numpy())
        mixture = None
        if batch.mixed is not None:
            mixture = rows[order[partner[place]]].label, float(batch.mixed.share[place])
        rows[position].mixtures.append(mixture)
