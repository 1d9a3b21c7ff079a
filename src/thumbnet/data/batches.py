"""Batches: one protocol, two engines.

An *engine* delivers the pictures at given positions as uint8: :class:`MemoryEngine` from the split
held decoded, :class:`WorkerEngine` from other processes that decode as it goes. What happens next,
:class:`TrainBatches` (shuffle, augment, normalise) or :class:`EvalBatches` (normalise), is the same
for both, so both give the same batches to the bit. Nothing random is in :class:`EvalBatches`.

Every random choice is a function of (seed, epoch, step) alone: a training can go on at any step
without remembering the state of a generator.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from thumbnet.data.augment import Augmentation
from thumbnet.data.images import BY_TYPE, Fit, Preprocessing, Rendering, fit_pixels
from thumbnet.data.selection import Selection
from thumbnet.data.splits import Split
from thumbnet.distributed import ALONE, World
from thumbnet.errors import UnreadableImageError
from thumbnet.hardware import one_thread, send
from thumbnet.recipe import AugmentSettings, not_resting
from thumbnet.seeds import derive_seed

CHANNELS = 3
NO_LABEL = -100  # cross-entropy passes it over
# To decode more than so many before the first step would take minutes: they are decoded as it goes, and what
# is to be known of all of them beforehand is known from a sample.
MANY = 500_000
SAMPLE = 50_000


@dataclass(frozen=True)
class Batch:
    """What the network is given.

    Attributes:
        images: float32 [B, C, H, W], normalised.
        labels: int64 [B]; ``NO_LABEL`` where a picture does not count.
        total: pictures in this batch in all processes of a training together; by default those here.
        positions: int64 [B], where in the training split they are; None where nobody asks.
    """

    images: Tensor
    labels: Tensor
    total: int = 0
    positions: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.total:
            object.__setattr__(self, "total", len(self.labels))


class Batches(Protocol):
    """An epoch after another of batches. ``fit`` and ``evaluate`` ask for no more than this."""

    def __len__(self) -> int:
        """Batches in an epoch."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of ``epoch`` (from 0), beginning with batch ``start``."""


class Engine(Protocol):
    """Delivers pictures by their positions.

    Attributes:
        labels: int64 [N].
        workers: how many other processes it keeps busy.
    """

    labels: Tensor
    workers: int

    def fetch(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """For each of ``batches`` (int64 [B], positions) the pictures, uint8 [B, 3, H, W]."""

    def value_counts(self) -> Tensor:
        """How often each channel has each of the 256 values, over all pictures: int64 [3, 256]."""


class MemoryEngine:
    """The whole split decoded in memory: ``images`` uint8 [N, 3, H, W], stored as [N, H, W, 3]."""

    workers = 0

    def __init__(self, images: Tensor, labels: Tensor, counts: Tensor | None = None) -> None:
        self.images = images
        self.labels = labels
        self._counts = counts

    def fetch(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:  # noqa: D102
        for indices in batches:
            yield self.images[send(indices, self.images.device)]

    def value_counts(self) -> Tensor:  # noqa: D102
        return count_values(self.images) if self._counts is None else self._counts


class WorkerEngine:
    """A DataLoader whose worker processes decode and prefetch."""

    def __init__(
        self, split: Split, size: tuple[int, int], fit: Fit, workers: int, rendering: Rendering = BY_TYPE
    ) -> None:
        self.pictures = _Pictures(split, size, fit, rendering)
        self.labels = torch.from_numpy(np.array(split.labels))
        self.workers = workers

    def fetch(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:  # noqa: D102
        loader = DataLoader(
            self.pictures,
            batch_sampler=[indices.tolist() for indices in batches],
            num_workers=self.workers,
            prefetch_factor=4,
            collate_fn=_as_it_is,
            worker_init_fn=_leave_signals_to_the_parent,
            pin_memory=torch.cuda.is_available(),
        )
        for images in loader:
            if isinstance(images, UnreadableImageError):
                raise images
            yield images.permute(0, 3, 1, 2)

    def value_counts(self) -> Tensor:  # noqa: D102
        positions = torch.arange(len(self.labels)).split(1000)
        return torch.stack([count_values(images) for images in self.fetch(positions)]).sum(dim=0)


class _Pictures(Dataset[Tensor]):
    """Gives whole batches, uint8 [B, H, W, 3]: a worker hands over one array instead of many small ones.

    Or the error of a picture that cannot be read: raised in a worker it would arrive as text.
    """

    def __init__(self, split: Split, size: tuple[int, int], fit: Fit, rendering: Rendering) -> None:
        self.split, self.size, self.fit, self.rendering = split, size, fit, rendering

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, indices: list[int]) -> Tensor | UnreadableImageError:
        images = np.empty((len(indices), *self.size, CHANNELS), dtype=np.uint8)
        try:
            for to, index in zip(images, indices, strict=True):
                to[:] = fit_pixels(self.split.load(index), self.size, self.fit, self.rendering)
        except UnreadableImageError as error:
            return error
        return torch.from_numpy(images)


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; what is to be done then, the parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    show = sys.excepthook

    def show_unless_cut_off(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if not issubclass(kind, ConnectionError):  # the parent has stopped in the middle of an epoch
            show(kind, error, trace)

    sys.excepthook = show_unless_cut_off


def _as_it_is(batch: Any) -> Any:
    return batch


class Normalise:
    """uint8 [B, C, H, W] → float32: (pixel / 255 - mean) / std per channel, on ``device``."""

    def __init__(self, preprocessing: Preprocessing, device: torch.device) -> None:
        mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
        self.device = device
        self._offset = (mean * 255).view(-1, 1, 1).to(device)
        self._scale = (1 / (std * 255)).view(-1, 1, 1).to(device)
        self.mean_pixel = (mean * 255).round().to(torch.uint8)

    def __call__(self, images: Tensor) -> Tensor:
        """Uint8 → float32, [B, C, H, W] both."""
        return send(images, self.device).float().sub_(self._offset).mul_(self._scale)


class TrainBatches:
    """Shuffled, augmented, normalised batches; each picture once an epoch, or each class equally often, or
    those that are not learnt yet.

    Args:
        engine: where pictures come from.
        normalise: also says which device the batches are for.
        settings: the recipe's augmentation.
        size: height, width in pixels.
        batch_size: pictures in a batch; less where the split is smaller.
        drop_last: leave out the last batch of an epoch where it is not full.
        seed: decides order and augmentation.
        sampling: as in the recipe's ``data.sampling``.
        skip_easy: as in the recipe's ``data.skip_easy``; the losses must then be noted in ``selection``.
        world: of the batch that one process would have, this one's is given its share.
    """

    def __init__(
        self,
        engine: Engine,
        normalise: Normalise,
        settings: AugmentSettings,
        size: tuple[int, int],
        *,
        batch_size: int,
        drop_last: bool,
        seed: int,
        sampling: str = "uniform",
        skip_easy: float = 0.0,
        world: World = ALONE,
    ) -> None:
        self.engine = engine
        self.sampling = sampling
        self.world = world
        self.normalise = normalise
        self.seed = seed
        self.count = len(engine.labels)
        taken = not_resting(self.count, skip_easy)
        self.batch_size = min(batch_size, taken)
        self.steps = taken // self.batch_size if drop_last else -(-taken // self.batch_size)
        self.selection: Selection | None = None
        if skip_easy:
            taken = min(taken, self.steps * self.batch_size)
            self.selection = Selection(self.count, taken, seed, normalise.device, world)
        self.augmentation = Augmentation(settings, self.count, size, derive_seed(seed, "flip"))

    def __len__(self) -> int:
        return self.steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:  # noqa: D102
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
        device = self.normalise.device
        if self.selection is not None:
            chosen = self.selection.begin(epoch)
            order = chosen[torch.randperm(len(chosen), generator=generator)]
        elif self.sampling == "balanced":
            order = balanced_order(self.engine.labels, generator)
        else:
            order = torch.randperm(self.count, generator=generator)
        batches = list(order.split(self.batch_size))[start : len(self)]
        shares = [self._share(indices) for indices in batches]
        fetched = zip(batches, shares, self.engine.fetch(shares), strict=True)
        for step, (whole, indices, images) in enumerate(fetched, start=start):
            generator.manual_seed(derive_seed(self.seed, "augment", epoch, step))
            turns = epoch if self.selection is None else self.selection.visits[whole]
            draw = self.augmentation.draw(whole, turns, generator).map(self._share)
            own = len(whole) > self.world.rank
            with one_thread(self.engine.workers > 0):
                images = self.augmentation.apply(send(images, device), draw, self.normalise.mean_pixel)
                images = self.augmentation.relight(self.normalise(images), draw)
            labels = self.engine.labels[indices] if own else torch.full((len(indices),), NO_LABEL)
            yield Batch(images, send(labels, device), len(whole), indices)

    def _share(self, items: Tensor) -> Tensor:
        """This process' part; one picture that does not count, where a last batch has too few for all."""
        share = self.world.share(items)
        return share if len(share) else items[:1]


def balanced_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Positions of as many pictures as there are, of each class equally many (or one more): int64 [N].

    A picture of a frequent class may be left out; one of a rare class comes again only when all of its class
    have come.
    """
    classes = labels.unique()
    classes = classes[torch.randperm(len(classes), generator=generator)]  # who has one more is chance
    share, rest = divmod(len(labels), len(classes))
    chosen = []
    for number, label in enumerate(classes):
        places = (labels == label).nonzero().flatten()
        wanted = share + (number < rest)
        rounds = [torch.randperm(len(places), generator=generator) for _ in range(-(-wanted // len(places)))]
        chosen.append(places[torch.cat(rounds)[:wanted]])
    order = torch.cat(chosen)
    return order[torch.randperm(len(order), generator=generator)]


class EvalBatches:
    """All pictures in their order, normalised; nothing random. Of several processes each has its share."""

    def __init__(
        self, engine: Engine, normalise: Normalise, *, batch_size: int, world: World = ALONE
    ) -> None:
        self.engine = engine
        self.normalise = normalise
        self.batch_size = batch_size
        self.positions = world.share(torch.arange(len(engine.labels)))

    def __len__(self) -> int:
        return -(-len(self.positions) // self.batch_size)

    def sample(self, count: int, world: World = ALONE) -> EvalBatches:
        """Up to ``count`` of these pictures, evenly chosen: always the same ones."""
        chosen = EvalBatches(self.engine, self.normalise, batch_size=self.batch_size)
        total = len(self.engine.labels)
        if count < total:
            chosen.positions = torch.linspace(0, total - 1, count, dtype=torch.float64).round().long()
        chosen.positions = world.share(chosen.positions)
        return chosen

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:  # noqa: D102
        batches = list(self.positions.split(self.batch_size))[start:]
        for indices, images in zip(batches, self.engine.fetch(batches), strict=True):
            with one_thread(self.engine.workers > 0):
                images = self.normalise(images)
            labels = send(self.engine.labels[indices], self.normalise.device)
            yield Batch(images, labels)


class LoaderBatches:
    """Any DataLoader that gives (float images [B, C, H, W], labels [B]) as :class:`Batches`.

    For one's own ``ImageDataset(transform=...)``. The order is the loader's own, so a resumed
    training is not bit for bit the uninterrupted one.
    """

    def __init__(self, loader: DataLoader[Any], device: torch.device | str = "cpu") -> None:
        self.loader = loader
        self.device = torch.device(device)

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:  # noqa: D102
        for step, (images, labels) in enumerate(self.loader):
            if step >= start:
                yield Batch(send(images, self.device), send(labels, self.device))


def sample_positions(count: int) -> Tensor:
    """All positions of up to ``MANY`` pictures, else always the same random ``SAMPLE``: int64 [N], rising."""
    if count <= MANY:
        return torch.arange(count)
    generator = torch.Generator().manual_seed(0)
    positions: Tensor = torch.randint(count, (SAMPLE,), generator=generator).unique()
    return positions


def fits_in_memory(split: Split, size: tuple[int, int]) -> bool:
    """Whether a decoded split takes less than a quarter of this machine's memory."""
    return len(split) * size[0] * size[1] * 3 < int(psutil.virtual_memory().total) // 4


def count_values(images: Tensor) -> Tensor:
    """How often each channel of pictures (uint8 [N, 3, H, W]) has each of the 256 values: int64 [3, 256]."""
    counts = torch.zeros(CHANNELS, 256, dtype=torch.int64)
    for part in images.split(1000):
        for channel in range(CHANNELS):
            counts[channel] += torch.bincount(part[:, channel].reshape(-1).cpu(), minlength=256)
    return counts


def channel_statistics(counts: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels, in [0, 1].

    From exact counts of the 256 values, so they depend on no order of summation.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    weights = counts.double() / counts.sum(dim=1, keepdim=True)
    mean = weights @ values
    std = (weights @ values.square() - mean.square()).clamp(min=0).sqrt()
    # A constant channel would divide by zero; one grey level is the least step that there is.
    return tuple(round(m, 6) for m in mean.tolist()), tuple(round(max(s, 1 / 255), 6) for s in std.tolist())
