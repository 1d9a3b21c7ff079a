"""Turn a data set and a recipe into the batches of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from thumbnet.batches.batches import EvalBatches, TrainBatches
from thumbnet.batches.dataset import lost_classes, random_subset
from thumbnet.batches.decoding import (
    auto_size,
    decode_split,
    find_unreadable,
    readable,
    shared_size,
    some_sizes,
    surveyed,
)
from thumbnet.batches.engines import (
    CPU,
    MANY,
    Engine,
    MemoryEngine,
    WorkerEngine,
    as_labels,
    fits_in_memory,
    sample_positions,
)
from thumbnet.batches.notes import picture_notes, scale_notes, scaling_notes
from thumbnet.batches.statistics import Normalise, channel_statistics, count_values
from thumbnet.data.rendering import BY_TYPE, Preprocessing, Rendering
from thumbnet.data.splits import Data, Progress, Split
from thumbnet.data.survey import choose_rendering, rendering_notes
from thumbnet.distributed import ALONE, World
from thumbnet.errors import DataError, UnreadableImageError, UnreadableImagesError, memory_guard
from thumbnet.hardware import as_device
from thumbnet.recipes.recipe import Recipe
from thumbnet.recipes.settings import AUTO, DataSettings, parse_image_size

WORKERS = "--set data.engine=workers"
HELD_OUT = ("val", "test", "calibration")  # the splits that are not trained on


@dataclass(frozen=True)
class Prepared:
    """What a training needs from its data.

    Attributes:
        preprocessing: size, fit, mean and std, with every ``auto`` resolved.
        train: shuffled, augmented batches.
        evaluation: batches of ``val``, ``test`` and ``calibration``, if the data have these splits.
        engine: the chosen engine, ``memory`` or ``workers``.
        splits: the pictures in use, by split, in the same order as in the engines.
        groups: each picture's group, str [N], by split, for those that have groups.
        skipped: split, name and reason for each picture that was left out because it is damaged.
        notes: what the user should know about the pixels. A note that begins with ``warning: `` means that
            the result may be wrong.
        known: by split, which pictures the weights in ``training.init`` were trained on: bool [N]. Only
            splits with such pictures are here; see :mod:`thumbnet.training.known`.
        perhaps_known: the splits with pictures that these weights may have been trained on; which ones, is
            not known.
        choose_nothing: by split, which pictures choose nothing: bool [N]. A split is here if that was decided
            when the run began; see :mod:`thumbnet.training.judges`.
    """

    preprocessing: Preprocessing
    train: TrainBatches
    evaluation: dict[str, EvalBatches]
    engine: str
    splits: dict[str, Split]
    groups: dict[str, np.ndarray] = field(default_factory=dict)
    skipped: tuple[tuple[str, str, str], ...] = ()
    notes: tuple[str, ...] = ()
    known: Mapping[str, np.ndarray] = field(default_factory=dict)
    perhaps_known: tuple[str, ...] = ()
    choose_nothing: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def watched(self) -> str | None:
        """The split that is evaluated during the training: ``val``, else ``test``, else None."""
        return self._first("val", "test")

    @property
    def measured(self) -> str | None:
        """The split that the result is measured on: ``test``, else ``val``, else None."""
        return self._first("test", "val")

    @property
    def calibrates_on(self) -> str | None:
        """The split that the probabilities are calibrated on: ``val``, else ``calibration``, else None."""
        return self._first("val", "calibration")

    def _first(self, *names: str) -> str | None:
        return next((name for name in names if name in self.evaluation), None)

    def with_recipe(self, recipe: Recipe) -> Prepared:
        """The same pictures in the batches of ``recipe``, which must have the same ``data`` settings."""
        old = self.train
        train = TrainBatches(old.engine, old.normalise, recipe, self.preprocessing.size, old.world)
        return replace(self, train=train)


def prepare(
    data: Data,
    recipe: Recipe,
    device: torch.device | str,
    progress: Progress | None = None,
    world: World = ALONE,
    skipped: Sequence[tuple[str, str, str]] | None = None,
) -> Prepared:
    """Decode ``data`` and make its batches as ``recipe`` says.

    A resumed run leaves out the pictures that it left out when it began (``skipped``, see
    :class:`Prepared`), and needs all others.

    Raises:
        UnreadableImagesError: lists all damaged pictures.
        FailedReadError, UnreadableFilesError: the system failed to read a picture, or several, which
            ``data.on_bad_image`` does not skip.
        DataError: the subset is larger than the split, there are fewer pictures than processes, or a class
            has no readable training picture.
        OutOfMemoryError: the decoded pictures do not fit into memory.
    """
    device = as_device(device)
    advice = f"Decode them during the training instead: {WORKERS}"
    try:
        with memory_guard(str(device), "preparing the pictures", advice):
            if recipe.data.on_bad_image == "stop":
                return _prepare(data, recipe, device, progress, world)
            if skipped is None:
                data, skipped = without_unreadable(data, progress)
            else:
                data = without_skipped(data, skipped)
            return replace(_prepare(data, recipe, device, progress, world), skipped=tuple(skipped))
    except (UnreadableImageError, UnreadableImagesError) as error:
        raise all_unreadable(data, progress, error) from None


def without_skipped(data: Data, skipped: Sequence[tuple[str, str, str]]) -> Data:
    """``data`` without the pictures in ``skipped``: split, name and reason of each."""
    if not skipped:
        return data
    left_out = {(split, name) for split, name, _ in skipped}
    splits = {}
    for name, split in data.splits.items():
        kept = [at for at in range(len(split)) if (name, split.name(at)) not in left_out]
        splits[name] = split.subset(np.array(kept, dtype=np.int64))
    return data.with_parts(splits)


def without_unreadable(
    data: Data, progress: Progress | None = None
) -> tuple[Data, tuple[tuple[str, str, str], ...]]:
    """``data`` without its unreadable pictures, and the split, name and reason of each of them.

    Raises:
        DataError: a class has no readable training picture.
        FailedReadError, UnreadableFilesError: the system failed to read a picture, or several.
    """
    skipped: list[tuple[str, str, str]] = []
    splits = {}
    for name, split in data.splits.items():
        splits[name], bad = readable(split, progress)
        skipped += [(name, error.name, error.reason) for error in bad]
    before, after = (one["train"].class_counts(len(data.class_names)) for one in (data.splits, splits))
    lost = np.flatnonzero((before > 0) & (after == 0))
    if len(lost):
        names = ", ".join(data.class_names[label] for label in lost)
        raise DataError(f"{data.source}: no training picture of the class(es) {names} can be read")
    return data.with_parts(splits), tuple(skipped)


def all_unreadable(
    data: Data, progress: Progress | None, met: UnreadableImageError | UnreadableImagesError
) -> UnreadableImageError | UnreadableImagesError:
    """An error that lists the unreadable pictures of all splits; ``met`` if now all can be read."""
    found = [find_unreadable(split, progress) for split in data.splits.values()]
    errors = [error for each in found for error in each.values()]
    return UnreadableImagesError(errors) if errors else met


def _prepare(
    data: Data, recipe: Recipe, device: torch.device, progress: Progress | None, world: World
) -> Prepared:
    settings = recipe.data
    for name, split in data.splits.items():
        if 0 < len(split) < world.size:
            raise DataError(
                f"{data.source}: {name} has {len(split)} pictures for {world.size} processes: "
                "use fewer processes"
            )
    seed = recipe.seed if settings.subset_seed is None else settings.subset_seed
    train_split = random_subset(data.splits["train"], settings.subset_size, seed)
    survey = surveyed(train_split)
    rendering = choose_rendering(survey, settings)
    notes = lost_classes(data.splits["train"], train_split, data.class_names)
    notes += rendering_notes(survey, rendering, settings)
    if settings.image_size == AUTO:
        largest = settings.largest_auto_size
        shared = shared_size(train_split, settings.fit, progress, largest=largest, rendering=rendering)
        sizes = [] if shared else some_sizes(train_split)
        size = auto_size(shared, sizes, settings)
        notes += scaling_notes(shared, sizes, size, settings.fit, largest)
    else:
        size = parse_image_size(settings.image_size)
    used = {"train": train_split}
    used |= {name: data.splits[name] for name in HELD_OUT if name in data.splits and len(data.splits[name])}
    fits = len(train_split) <= MANY and fits_in_memory(used.values(), size)
    in_memory = settings.engine == "memory" or (settings.engine == AUTO and fits)
    store = device if fits_in_memory(used.values(), size, device) else CPU
    engines = {
        name: build_engine(split, settings, size, in_memory, device, progress, rendering, store)
        for name, split in used.items()
    }
    if in_memory and store != device:
        notes.append(f"{device} has too little free memory for the pictures: they stay in the computer's")
    train_engine = engines.pop("train")
    preprocessing = resolve_preprocessing(settings, size, train_engine, rendering)
    normalise = Normalise(preprocessing, device)
    train = TrainBatches(train_engine, normalise, recipe, size, world)
    evaluation = {
        name: EvalBatches(engine, normalise, batch_size=recipe.evaluation.batch_size, world=world)
        for name, engine in engines.items()
    }
    notes += picture_notes(train_engine, train_split)
    notes += scale_notes(used, rendering)
    engine_name = "memory" if in_memory else "workers"
    found_groups = {name: data.groups_of(name, split) for name, split in used.items()}
    groups = {name: found for name, found in found_groups.items() if found is not None}
    return Prepared(preprocessing, train, evaluation, engine_name, used, groups, notes=tuple(notes))


def build_engine(
    split: Split,
    settings: DataSettings,
    size: tuple[int, int],
    in_memory: bool,
    device: torch.device,
    progress: Progress | None = None,
    rendering: Rendering = BY_TYPE,
    store: torch.device | None = None,
) -> Engine:
    """An engine for a split.

    Args:
        split: its pictures.
        settings: how to fit them, and the number of workers.
        size: height, width in pixels.
        in_memory: keep the decoded pictures in memory; else workers decode them during the training.
        device: where the batches are needed.
        progress: called with the number of decoded pictures and their total.
        rendering: how a decoded picture becomes 8-bit RGB.
        store: in whose memory to keep them. By default ``device``, because a GPU may have to wait for
            batches that come from the computer's memory.
    """
    if in_memory:
        decoded = decode_split(split, size, settings.fit, progress, rendering)
        images = decoded.images.to(device if store is None else store)
        return MemoryEngine(images, as_labels(split.targets), decoded.counts)
    return WorkerEngine(split, size, settings.fit, settings.workers, rendering, device)


def resolve_preprocessing(
    settings: DataSettings, size: tuple[int, int], engine: Engine, rendering: Rendering = BY_TYPE
) -> Preprocessing:
    """The preprocessing, with the recipe's mean and std; those that are ``auto`` are measured."""
    if isinstance(settings.mean, str) or isinstance(settings.std, str):
        measured_mean, measured_std = channel_statistics(_value_counts(engine))
    mean = measured_mean if isinstance(settings.mean, str) else settings.mean
    std = measured_std if isinstance(settings.std, str) else settings.std
    return Preprocessing(size, settings.fit, mean, std, rendering.range, rendering.background)


def _value_counts(engine: Engine) -> torch.Tensor:
    """Counts of the 256 values, int64 [3, 256], over all pictures or, if there are very many, a sample."""
    if len(engine.labels) <= MANY:
        return engine.value_counts()
    batches = sample_positions(len(engine.labels)).split(1000)
    return torch.stack([count_values(images) for images in engine.fetch(batches)]).sum(dim=0)
