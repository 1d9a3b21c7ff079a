"""The whole training step as a CUDA graph, one for each size of the pictures.

Without a graph, the host launches every operation of every step, which takes longer than the GPU needs to run
it. With a graph, the host makes one call per step. Nothing is sent to the device and nothing is read from it
within a step: the pictures, the epoch's order, the random choices and the learning rates are on the device
(:mod:`~thumbnet.training.device_epoch`), and a counter there says which step comes next.

The step itself is made of the same functions as :func:`~thumbnet.training.step.train_step`. Only the
optimizer's update rounds differently, in the last bit, because its rates are tensors
(:func:`~thumbnet.training.optimizers.device_rates`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from thumbnet.batches.batches import Batches, TrainBatches
from thumbnet.batches.engines import MemoryEngine
from thumbnet.errors import memory_guard
from thumbnet.models import FastNet, ResNet
from thumbnet.training.device_epoch import DeviceEpoch
from thumbnet.training.muon import Muon
from thumbnet.training.optimizers import device_rates, drop_device_state, make_device_state
from thumbnet.training.recording import LateReader, Recorder
from thumbnet.training.schedules import done_at, resize, size_at
from thumbnet.training.state import TrainingState
from thumbnet.training.step import accumulate_gradients, smaller_batch

DEVICES = ("cuda",)
FEWEST_STEPS = 50  # recording takes as long as some dozen steps; not measured on a GPU
OWN_LOSS = "the loss is your own, so it may do what a graph cannot repeat"
OWN_AUGMENTATION = "the augmentation is your own, so it may do what a graph cannot repeat"


def why_not_graphed(state: TrainingState, batches: Batches) -> str | None:
    """Why the training cannot run as CUDA graphs; None if it can.

    A training and its resume get the same answer, because graphs round differently. So its length as first
    planned counts, not the number of steps left.
    """
    reason = why_not_recorded(state, batches)
    if reason is not None:
        return reason
    if (state.recipe.schedule.planned_steps or (state.total_steps,))[0] < FEWEST_STEPS:
        return f"the training has fewer than {FEWEST_STEPS} steps"
    if state.is_over or state.step >= state.total_steps:
        return "no steps are left"
    return None


def why_not_recorded(state: TrainingState, batches: Batches) -> str | None:
    """Why a CUDA graph cannot do what a step of the training does; None if it can."""
    settings, size = state.recipe.training, state.recipe.training.batch_size
    if state.device.type not in DEVICES:
        return f"the device is {state.device}"
    if settings.graph == "off":
        return "the recipe says training.graph = off"
    if state.world.size > 1:
        return "several processes train"
    if settings.micro_batch and settings.micro_batch < size:
        return "the recipe sets training.micro_batch"
    if settings.on_nonfinite == "skip":
        return "training.on_nonfinite = skip looks at every loss"
    if state.scaler.is_enabled():
        return "float16 scales the loss by what the gradients were"
    if state.recipe.schedule.head_first:
        return "schedule.head_first freezes layers for a part of the training"
    if state.compiled:
        return "torch.compile is in use"
    if type(state.model) not in (FastNet, ResNet):
        return "the network is not one of thumbnet's, so it may do what a graph cannot repeat"
    if state.own_loss is not None:
        return OWN_LOSS
    if type(state.optimizer) not in (torch.optim.SGD, torch.optim.AdamW, Muon):
        return "the optimizer is not one of thumbnet's"
    if not isinstance(batches, TrainBatches):
        return "the batches are not thumbnet's own"
    if batches.own_augmentation is not None:
        return OWN_AUGMENTATION
    engine = batches.engine
    if not isinstance(engine, MemoryEngine) or engine.images.device != state.device:
        return "the pictures are not in the device's memory"
    return None


class GraphedSteps:
    """Takes the steps of a training by replaying graphs; see :class:`~thumbnet.training.steps.Steps`.

    Args:
        state, batches: of a training for which :func:`why_not_graphed` returns None. Recording leaves the
            state as it is.

    Raises:
        RuntimeError: CUDA refused to record the step, or it does not fit into the device's memory. The state
            is as before.
    """

    def __init__(self, state: TrainingState, batches: TrainBatches) -> None:
        self._state, self._batches = state, batches
        self._late = LateReader()
        self._graphs: dict[tuple[int, int], Callable[[], None]] = {}
        make_device_state(state.optimizer)
        try:
            self._epoch = DeviceEpoch(state, batches)
            self._record()
        except BaseException:
            drop_device_state(state.optimizer)
            raise

    @property
    def graphs(self) -> int:
        """The number of graphs that are recorded."""
        return len(self._graphs)

    def epoch(self) -> Iterator[int]:
        """Take the steps left in the state's epoch, one per iteration; yield the number of pictures."""
        state = self._state
        self._late.forget()
        with self._memory():
            self._epoch.begin(state.epoch, state.step_in_epoch)
        while not state.epoch_is_over:
            count, size = self._epoch.count(state.step_in_epoch), self._size_at(state.step)
            with self._memory():
                self._epoch.follow_plan()
                if count == self._batches.batch_size and size in self._graphs:
                    self._graphs[size]()
                else:  # the short batch at the end of an epoch
                    self._step(size, count)
                if state.step_in_epoch + 1 == state.steps_per_epoch and state.step + 1 < state.total_steps:
                    self._epoch.draw_early(state.epoch + 1)
            yield count

    def look(self) -> float | None:
        """The newest loss that is known without waiting for the newest steps, or None.

        Raises:
            DivergedError: a loss is not finite.
        """
        losses = self._late.read(self._state.losses[: self._state.step_in_epoch])
        return None if losses is None else self._state.check_losses(losses)

    def _step(self, size: tuple[int, int], count: int) -> None:
        """One step on the next ``count`` pictures, scaled to ``size``, without a word from the host."""
        state = self._state
        batch, rates = self._epoch.batch(count)
        images = resize(batch.images, size).contiguous(memory_format=state.layout)
        loss = accumulate_gradients(state, replace(batch, images=images))
        with device_rates(state.optimizer, rates[:-1]):
            state.optimizer.step()
        state.optimizer.zero_grad()  # the gradients' memory belongs to the graphs, which share it
        state.update_average(rates[-1])
        state.losses.index_copy_(0, self._epoch.step, loss[None])
        self._epoch.step.add_(1)

    def _record(self) -> None:
        """Record the step for each size that pictures have from now on."""
        state = self._state
        state.model.train()
        state.optimizer.zero_grad()
        self._epoch.begin(state.epoch, 0)
        recorder = Recorder(state.device, self._changed())
        for size in dict.fromkeys(map(self._size_at, range(state.step, state.total_steps))):
            self._graphs[size] = recorder.record(partial(self._step, size, self._batches.batch_size))

    def _changed(self) -> list[Tensor]:
        """Every tensor that a step changes and that the next steps or the caller read."""
        state = self._state
        found = [
            *state.model.parameters(),
            *state.model.buffers(),
            state.losses,
            state.hits,
            self._epoch.step,
        ]
        if state.average is not None:
            found += state.average.state_dict().values()
        for kept in state.optimizer.state.values():
            found += [value for value in kept.values() if isinstance(value, Tensor)]
        if state.selection is not None:
            found.append(state.selection.noted)
        return found

    def _size_at(self, step: int) -> tuple[int, int]:
        schedule = self._state.recipe.schedule
        done = done_at(schedule, step, self._state.total_steps)
        return size_at(schedule, done, self._batches.augmentation.size)

    def _memory(self) -> AbstractContextManager[None]:
        count = self._batches.batch_size
        what = f"with {count} pictures in a forward pass"
        return memory_guard(str(self._state.device), what, smaller_batch(self._state, count))
