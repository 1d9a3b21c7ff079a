"""Batches for training and for evaluation, from any engine.

:class:`TrainBatches` shuffles, augments and normalises. :class:`EvalBatches` only normalises, and nothing in
it is random. Both use the same code for all engines, so all engines give the same batches to the bit.

Every random choice depends on (seed, epoch, step) alone, so a training can resume at any step without a
generator's saved state.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from thumbnet.batches.augment import Augmentation, Draw
from thumbnet.batches.engines import Engine, evenly_spaced
from thumbnet.batches.mixing import Mixed
from thumbnet.batches.own_augmentation import own_augmentation
from thumbnet.batches.selection import Selection
from thumbnet.batches.statistics import Normalise
from thumbnet.batches.upload import send_together
from thumbnet.distributed import ALONE, World
from thumbnet.errors import DataError, SeveralLabelsError
from thumbnet.hardware import one_thread, send
from thumbnet.recipes.recipe import Recipe
from thumbnet.recipes.settings import kept_per_epoch
from thumbnet.seeds import derive_seed

NO_LABEL = -100  # the loss ignores pictures with this label, or with this value for each of several labels


@dataclass(frozen=True)
class Batch:
    """The input of one step.

    Attributes:
        images: float32 [B, C, H, W], normalised.
        labels: int64 [B]; ``NO_LABEL`` for a picture that does not count. For several labels per picture,
            int8 [B, classes] of 0 and 1, or ``NO_LABEL`` throughout.
        total: number of pictures in this batch over all processes; by default the length of ``labels``.
        positions: positions in the training split, int64 [B]; None if nothing uses them.
        mixed: what the pictures were mixed with, by mixup or CutMix; None for nothing.

    All tensors are on one device.
    """

    images: Tensor
    labels: Tensor
    total: int = 0
    positions: Tensor | None = None
    mixed: Mixed | None = None

    def __post_init__(self) -> None:
        if not self.total:
            object.__setattr__(self, "total", len(self.labels))


class Batches(Protocol):
    """The batches of each epoch. This is all that ``fit`` and ``evaluate`` need."""

    def __len__(self) -> int:
        """Number of batches per epoch."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of ``epoch`` (from 0), from batch ``start`` on."""


class TrainBatches:
    """Shuffled, augmented, normalised batches.

    An epoch has each picture once, each class equally often, or the pictures that are not learned yet,
    depending on the recipe.

    Args:
        engine: delivers the pictures.
        normalise: its device is the device of the batches.
        recipe: gives batch size, sampling, augmentation and seed. With ``data.skip_easy``, the caller must
            pass the losses to ``selection``.
        size: height, width in pixels.
        world: the processes; each one takes its share of every batch.

    Attributes:
        count: number of training pictures.
        taken: pictures that an epoch trains on, without those that ``data.skip_easy`` and
            ``training.drop_last`` leave out.

    Raises:
        ModelCodeError, OwnCodeError: the user's own augmentation cannot be found, see
            :func:`~thumbnet.batches.own_augmentation.own_augmentation`.
    """

    def __init__(
        self,
        engine: Engine,
        normalise: Normalise,
        recipe: Recipe,
        size: tuple[int, int],
        world: World = ALONE,
    ) -> None:
        self.engine = engine
        self.sampling = recipe.data.sampling
        self.world = world
        self.normalise = normalise
        self.seed = recipe.seed
        self.count = len(engine.labels)
        self._labels = send(engine.labels, engine.home)
        kept = kept_per_epoch(self.count, recipe.data.skip_easy)
        self.batch_size = min(recipe.training.batch_size, kept)
        full, rest = divmod(kept, self.batch_size)
        self.steps = full if recipe.training.drop_last or not rest else full + 1
        self.taken = min(kept, self.steps * self.batch_size)
        self.selection: Selection | None = None
        if recipe.data.skip_easy:
            self.selection = Selection(self.count, self.taken, self.seed, normalise.device, world)
        self.augmentation = Augmentation(recipe.augment, self.count, size, derive_seed(self.seed, "flip"))
        self.own_augmentation = own_augmentation(recipe.augment.custom)

    def __len__(self) -> int:
        return self.steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        device = self.normalise.device
        order, visits = self._order(epoch)
        batches = list(order.split(self.batch_size))[start : len(self)]
        needed = [self._needed(batch, epoch, step) for step, batch in enumerate(batches, start=start)]
        fetched = zip(batches, needed, self.engine.fetch(needed), strict=True)
        for step, (batch, positions, images) in enumerate(fetched, start=start):
            seen = epoch if visits is None else visits[batch]
            draw = self._draw_share(batch, seen, epoch, step)
            labels = self._labels[positions]
            if len(batch) <= self.world.rank:
                # This process has no picture of its own in this batch: the one that it got does not count.
                labels = torch.full_like(labels, NO_LABEL)
            positions, labels, *choices = send_together([positions, labels, *draw], device)
            draw = Draw(*choices)
            with one_thread(self.engine.workers > 0):
                images = self.augmentation.apply(send(images, device), draw, self.normalise.mean_pixel)
                images = self._augment_own(images, epoch, step)
                images = self.augmentation.relight(self.normalise(images), draw)
                images, mixed = self.augmentation.mix(images, labels, draw)
            count = len(images)  # without the partners from other processes
            yield Batch(images, labels[:count], len(batch), positions[:count], mixed)

    def _order(self, epoch: int) -> tuple[Tensor, Tensor | None]:
        """The positions of an epoch in random order, int64 [N], and how often every picture was seen before.

        Both are where the pictures are, so that a step need not copy them. The second, int64 [count], is None
        without a selection.
        """
        order, home = self.shuffle(epoch), self.engine.home
        if self.selection is None:
            return send(order, home), None
        chosen = self.selection.begin(epoch)
        return chosen[send(order, chosen.device)].to(home), self.selection.visits.to(home)

    def shuffle(self, epoch: int) -> Tensor:
        """The random order of an epoch: int64 [N], on the CPU.

        With a selection, it orders the chosen pictures; otherwise, it holds positions in the split.
        """
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
        if self.selection is not None:
            return torch.randperm(self.taken, generator=generator)
        if self.sampling == "balanced":
            return balanced_order(self.engine.labels, generator)
        return torch.randperm(self.count, generator=generator)

    def draw(self, indices: Tensor, seen: Tensor | int, epoch: int, step: int) -> Draw:
        """The augmentation of a step of an epoch, both from 0; see :meth:`Augmentation.draw`."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "augment", epoch, step))
        return self.augmentation.draw(indices, seen, generator)

    def _augment_own(self, images: Tensor, epoch: int, step: int) -> Tensor:
        """Apply the user's own augmentation, if the recipe names one, to uint8 pictures of a step.

        Each process draws random numbers of its own, because it has other pictures.
        """
        if self.own_augmentation is None:
            return images
        seed = derive_seed(self.seed, "own augmentation", epoch, step, self.world.rank)
        return self.own_augmentation(images, seed)

    def _needed(self, batch: Tensor, epoch: int, step: int) -> Tensor:
        """The pictures of a batch that this process needs: positions in the split, int64 [B].

        They are its share. If pictures are mixed with those of other processes, their partners follow, in the
        same order: a process computes these once more, so that the mixture does not depend on the number of
        processes.
        """
        if not self._mixes_across:
            return self._share(batch)
        partner = self.draw(batch, 0, epoch, step).partner
        return self._with_partners(batch, partner)

    @property
    def _mixes_across(self) -> bool:
        return self.augmentation.settings.mixes and self.world.size > 1

    def _draw_share(self, batch: Tensor, seen: Tensor | int, epoch: int, step: int) -> Draw:
        """The augmentation of the pictures that :meth:`_needed` names."""
        draw = self.draw(batch, seen, epoch, step)
        if not self._mixes_across:
            return draw.map(self._share)
        own = len(self._share(draw.partner))
        needed = draw.map(lambda values: self._with_partners(values, draw.partner))
        return needed._replace(
            partner=torch.arange(own, 2 * own), share=needed.share[:own], pasted=needed.pasted[:own]
        )

    def _with_partners(self, items: Tensor, partner: Tensor) -> Tensor:
        """This process's share of a batch's ``items`` [N, ...], then those of the partners (int64 [N])."""
        return torch.cat([self._share(items), items[send(self._share(partner), items.device)]])

    def _share(self, items: Tensor) -> Tensor:
        """This process's share of a batch; if it is empty, one picture, whose label will not count."""
        share = self.world.share(items)
        return share if len(share) else items[:1]


def balanced_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Draw as many pictures as there are, equally many per class (or one more): positions, int64 [N].

    A frequent class leaves out some of its pictures. A rare class repeats pictures, but only after all of
    them have appeared.

    Raises:
        SeveralLabelsError: the pictures have several labels each.
    """
    if labels.ndim == 2:
        raise SeveralLabelsError
    classes = labels.unique()
    classes = classes[torch.randperm(len(classes), generator=generator)]  # random classes get one more
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
    """All pictures in order, normalised; nothing is random. Each process takes its share."""

    def __init__(
        self, engine: Engine, normalise: Normalise, *, batch_size: int, world: World = ALONE
    ) -> None:
        self.engine = engine
        self.normalise = normalise
        self.batch_size = batch_size
        self.world = world
        self.positions = world.share(torch.arange(len(engine.labels)))
        self._labels = send(engine.labels, engine.home)

    def __len__(self) -> int:
        return -(-len(self.positions) // self.batch_size)

    def sample(self, count: int, among: torch.Tensor | None = None) -> EvalBatches:
        """Batches of up to ``count`` evenly spaced pictures, always the same ones, over all processes.

        ``among`` are the positions to take them from, int64 [M]; None for all pictures.
        """
        places = torch.arange(len(self.engine.labels)) if among is None else among
        chosen = copy.copy(self)
        chosen.positions = self.world.share(places[evenly_spaced(len(places), count)])
        return chosen

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        positions = send(self.positions, self.engine.home)
        batches = list(positions.split(self.batch_size))[start:]
        for indices, images in zip(batches, self.engine.fetch(batches), strict=True):
            with one_thread(self.engine.workers > 0):
                images = self.normalise(images)
            yield Batch(images, send(self._labels[indices], self.normalise.device))


class LoaderBatches:
    """Wraps a DataLoader that gives (pictures, labels) as :class:`Batches`; ``fit`` wraps one by itself.

    Use it for an ``ImageDataset`` with your own transform. The loader decides the order, so a resumed
    training differs from an uninterrupted one. It trains in one process only.

    Args:
        loader: gives pictures, float [B, C, H, W], as the network is to see them, and labels, int64 [B]. For
            several labels per picture, they are 0 and 1, [B, classes].
        device: where the batches are needed.

    Raises:
        DataError: in :meth:`epoch`, if the pictures are not float; in ``len``, if the loader has no length.
    """

    def __init__(self, loader: DataLoader[Any], device: torch.device | str = "cpu") -> None:
        self.loader = loader
        self.device = torch.device(device)

    def __len__(self) -> int:
        try:
            return len(self.loader)
        except TypeError:
            raise DataError(
                "the loader has no length, so it does not say when an epoch ends. Give its data set a method "
                "__len__ that returns its number of pictures"
            ) from None

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for step, (images, labels) in enumerate(self.loader):
            if step < start:
                continue
            if not images.is_floating_point():
                raise DataError(
                    f"the loader gives pictures of type {images.dtype}, and a network needs floats. Give its "
                    "data set a transform such as lambda image: to_tensor(image) / 127.5 - 1, with to_tensor "
                    "of thumbnet.batches.dataset"
                )
            yield Batch(send(images.float(), self.device), send(labels, self.device))
