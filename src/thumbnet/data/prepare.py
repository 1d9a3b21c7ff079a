"""From a data set and a recipe to the batches of a training."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from thumbnet.data.batches import (
    Engine,
    EvalBatches,
    MemoryEngine,
    Normalise,
    TrainBatches,
    WorkerEngine,
    channel_statistics,
    fits_in_memory,
)
from thumbnet.data.dataset import random_subset
from thumbnet.data.decoding import Count, automatic_size, decode_split
from thumbnet.data.images import Preprocessing
from thumbnet.data.splits import Data, Split
from thumbnet.recipe import AUTO, DataSettings, Recipe, parse_image_size


@dataclass(frozen=True)
class Prepared:
    """What a training needs of its data.

    Attributes:
        preprocessing: resolved: size, fit, mean and std.
        train: shuffled and augmented.
        evaluation: ``val`` and ``test``, whichever there are.
        engine: ``memory`` or ``workers``, as chosen.
    """

    preprocessing: Preprocessing
    train: TrainBatches
    evaluation: dict[str, EvalBatches]
    engine: str


def prepare(data: Data, recipe: Recipe, device: torch.device, on_decode: Count | None = None) -> Prepared:
    """Decode, measure and batch ``data`` as ``recipe`` says.

    Raises:
        DataError: pictures that cannot be read, or a subset larger than the split.
    """
    settings = recipe.data
    train_split = random_subset(data.splits["train"], settings.subset_size, recipe.seed)
    if settings.image_size == AUTO:
        size = automatic_size(train_split, settings.fit, on_decode)
    else:
        size = parse_image_size(settings.image_size)
    in_memory = settings.engine == "memory" or (settings.engine == AUTO and fits_in_memory(train_split, size))
    train_engine = build_engine(train_split, settings, size, in_memory, device, on_decode)
    preprocessing = resolve_preprocessing(settings, size, train_engine)
    normalise = Normalise(preprocessing, device)
    train = TrainBatches(
        train_engine,
        normalise,
        recipe.augment,
        size,
        batch_size=recipe.training.batch_size,
        drop_last=recipe.training.drop_last,
        seed=recipe.seed,
    )
    evaluation: dict[str, EvalBatches] = {}
    for name in ("val", "test"):
        if name in data.splits and len(data.splits[name]):
            engine = build_engine(data.splits[name], settings, size, in_memory, device, on_decode)
            evaluation[name] = EvalBatches(engine, normalise, batch_size=recipe.evaluation.batch_size)
    return Prepared(preprocessing, train, evaluation, "memory" if in_memory else "workers")


def build_engine(
    split: Split,
    settings: DataSettings,
    size: tuple[int, int],
    in_memory: bool,
    device: torch.device,
    on_decode: Count | None = None,
) -> Engine:
    """The engine that delivers the pictures of ``split``: from ``device``'s memory, or decoded as it goes."""
    if in_memory:
        decoded = decode_split(split, size, settings.fit, on_decode)
        # A GPU that kept asking this computer for pictures would wait for most of its time.
        return MemoryEngine(decoded.images.to(device), torch.from_numpy(split.labels.copy()), decoded.counts)
    return WorkerEngine(split, size, settings.fit, settings.workers)


def resolve_preprocessing(settings: DataSettings, size: tuple[int, int], engine: Engine) -> Preprocessing:
    """With the recipe's mean and std, or those of the training pictures."""
    if isinstance(settings.mean, str) or isinstance(settings.std, str):
        measured_mean, measured_std = channel_statistics(engine.value_counts())
    mean = measured_mean if isinstance(settings.mean, str) else settings.mean
    std = measured_std if isinstance(settings.std, str) else settings.std
    return Preprocessing(size, settings.fit, mean, std)
