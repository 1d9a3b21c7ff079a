"""An epoch's batches on the device: all random choices are sent at once, and each step selects its rows.

The steps read everything from buffers at fixed places, so a CUDA graph can repeat them. The pictures, the
order and the augmentation are the same as those of :class:`~thumbnet.batches.batches.TrainBatches`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from thumbnet.batches.augment import Draw
from thumbnet.batches.batches import Batch, TrainBatches
from thumbnet.batches.engines import MemoryEngine
from thumbnet.batches.upload import pack, unpack
from thumbnet.hardware import send
from thumbnet.recipes.recipe import Recipe
from thumbnet.training.schedules import factor_at
from thumbnet.training.state import TrainingState


@dataclass(frozen=True)
class Drawn:
    """An epoch's random choices and rates, packed on the host: uint8 [bytes]; and where they come from."""

    epoch: int
    recipe: Recipe
    packed: Tensor


class DeviceEpoch:
    """The batches of one epoch at a time, on the device of the pictures.

    Args:
        state: gives the schedule and the optimizer's groups.
        batches: batches of a single process whose pictures are in the device's memory.

    Attributes:
        step: the number of the next step within the epoch, on the device: int64 [1].
    """

    def __init__(self, state: TrainingState, batches: TrainBatches) -> None:
        engine = batches.engine
        assert isinstance(engine, MemoryEngine)
        self._state, self._batches = state, batches
        self._selection, self._augmentation = batches.selection, batches.augmentation
        self._steps, self._size = len(batches), batches.batch_size
        self._pictures = engine.images.permute(0, 2, 3, 1).flatten(1)  # each row holds a picture's bytes
        _, channels, height, width = engine.images.shape
        self._shape = height, width, channels
        device = engine.images.device
        self._labels = send(engine.labels, device)
        self._first_flip = send(batches.augmentation.first_flip, device)
        parts = self._choices(state.epoch)
        self._drawn = Drawn(state.epoch, state.recipe, _pinned(pack(parts), device))  # the newest one
        self._packed = torch.zeros(len(pack(parts)), dtype=torch.uint8, device=device)
        views = unpack(self._packed, parts)
        self._order, self._ties, *choices, self._rates = views
        self._draw = Draw(*choices)
        self.step = torch.zeros(1, dtype=torch.int64, device=device)
        self._planned = state.recipe  # the recipe of the rates on the device

    def count(self, step: int) -> int:
        """The number of pictures in a step of an epoch."""
        return min(self._size, self._batches.taken - step * self._size)

    def draw_early(self, epoch: int) -> None:
        """Draw an epoch's choices before it begins, while the device is still busy with the one before."""
        if self._drawn.epoch != epoch:
            packed = _pinned(pack(self._choices(epoch)), self._packed.device)
            self._drawn = Drawn(epoch, self._state.recipe, packed)

    def begin(self, epoch: int, step: int) -> None:
        """Send the choices of ``epoch`` in one copy, and continue at ``step``; both count from 0."""
        self.draw_early(epoch)
        self._packed.copy_(self._drawn.packed, non_blocking=True)
        self._planned = self._drawn.recipe
        seen: Tensor | None = None
        if self._selection is not None:
            chosen = self._selection.begin(epoch, self._ties)
            self._order.copy_(chosen[self._order])
            seen = self._selection.visits[self._order]
        if self._augmentation.settings.flip == "alternating":
            odd = seen % 2 == 1 if seen is not None else epoch % 2 == 1
            self._draw.flip.copy_(self._first_flip[self._order] ^ odd)
        self.step.fill_(step)

    def follow_plan(self) -> None:
        """Send new rates if the training's length has changed."""
        if self._state.recipe is not self._planned:
            self._planned = self._state.recipe
            rates = self._scheduled(self._state.epoch)
            self._rates.copy_(_pinned(rates, self._rates.device), non_blocking=True)

    def batch(self, count: int) -> tuple[Batch, Tensor]:
        """The next step's batch of ``count`` pictures, and its rates: float32 [groups + 1].

        The last rate is the weight of the newest network in the average. Everything is computed on the
        device, from :attr:`step`.
        """
        positions = self._row(self._order)[:count]
        images = self._pictures.index_select(0, positions).view(count, *self._shape).permute(0, 3, 1, 2)
        rows = zip(self._draw, self._augmentation.used, strict=True)
        draw = Draw(*(self._row(values, used)[:count] for values, used in rows))
        moved = self._augmentation.apply(images, draw, self._batches.normalise.mean_pixel)
        lit = self._augmentation.relight(self._batches.normalise(moved), draw)
        labels = self._labels.index_select(0, positions)
        images, mixed = self._augmentation.mix(lit, labels, draw)
        return Batch(images, labels, count, positions, mixed), self._row(self._rates)

    def _row(self, rows: Tensor, used: bool = True) -> Tensor:
        """The next step's row of a buffer; any row if it is not ``used``, which costs nothing."""
        return rows.index_select(0, self.step)[0] if used else rows[0]

    def _choices(self, epoch: int) -> list[Tensor]:
        """Order, ties, the tensors of the draws, and rates of an epoch: a row per step, on the CPU."""
        ties = torch.empty(0, dtype=torch.int64)
        if self._selection is not None:
            ties = self._selection.tie_order(epoch)
        draws = []
        for step in range(self._steps):
            indices = torch.zeros(self.count(step), dtype=torch.int64)  # alternating flips are added later
            draws.append(self._batches.draw(indices, epoch, epoch, step))
        each = [self._batches.shuffle(epoch), *map(torch.cat, zip(*draws, strict=True))]
        order, *rows = [_in_rows(values, self._steps, self._size) for values in each]
        return [order, ties, *rows, self._scheduled(epoch)]

    def _scheduled(self, epoch: int) -> Tensor:
        """Rates of each group and the newest network's weight in the average: float32 [steps, groups + 1]."""
        state, first = self._state, epoch * self._steps
        full = [group["base_lr"] for group in state.optimizer.param_groups]
        rows = []
        for step in range(first, first + self._steps):
            factor = factor_at(state.recipe.schedule, step, state.total_steps)
            rows.append([*(lr * factor for lr in full), state.newest_weight(step)])
        return torch.tensor(rows)


def _in_rows(values: Tensor, rows: int, length: int) -> Tensor:
    """The first ``rows * length`` of ``values`` [N, ...], filled up with zeros: [rows, length, ...]."""
    filled = values.new_zeros(rows * length, *values.shape[1:])
    some = values[: rows * length]
    filled[: len(some)] = some
    return filled.view(rows, length, *values.shape[1:])


def _pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor in memory from which a copy to a GPU does not make the host wait."""
    return tensor.pin_memory() if device.type == "cuda" else tensor
