"""One training step: the loss of a batch, its gradient, and what the optimizer makes of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from thumbnet.batches.batches import Batch
from thumbnet.errors import memory_guard
from thumbnet.hardware import autocast
from thumbnet.recipes.settings import TrainingSettings
from thumbnet.training.optimizers import set_learning_rate
from thumbnet.training.randomness import seeded_step
from thumbnet.training.schedules import resize_at
from thumbnet.training.state import TrainingState


def train_step(state: TrainingState, batch: Batch, factor: float) -> Tensor:
    """Take one step with ``batch``, at ``factor`` times every full learning rate.

    ``fit`` and the learning-rate range test share it, so both see the same loss: with class weights, in
    micro-batches, on small pictures where the schedule has them at ``state.step``. The caller counts the
    step.

    Returns:
        The batch's mean loss, float32 []. Where several processes train, this process' share of it. The step
        is in ``state.skipped`` if it was skipped because loss or gradient was not finite.

    Raises:
        DivergedError: one step too many was skipped.
        OutOfMemoryError: the step does not fit the device's memory.
    """
    recipe = state.recipe
    pictures = min(recipe.training.micro_batch or len(batch.images), len(batch.images))
    with memory_guard(
        str(state.device), f"with {pictures} pictures in a forward pass", _smaller(state, pictures)
    ):
        set_learning_rate(state.optimizer, factor)
        images = resize_at(recipe.schedule, batch.images, state.step, state.total_steps)
        images = images.contiguous(memory_format=state.layout)
        state.optimizer.zero_grad()
        random = seeded_step(recipe.seed, state.step, state.world.rank, state.device)
        with random, skip_if_nonfinite(state) as update:
            loss = accumulate_gradients(state, replace(batch, images=images))
            if update(loss):
                state.optimizer.step()
                state.update_average()
    return loss


def _smaller(state: TrainingState, pictures: int) -> str:
    half = max(2, pictures // 2)
    return (
        f"Go through a batch of {state.recipe.training.batch_size} in parts, to the same gradient: "
        f"--micro-batch {half} (a run that was begun: start it again with it). Or use another batch size: "
        f"--batch-size {half}"
    )


def accumulate_gradients(state: TrainingState, batch: Batch) -> Tensor:
    """The gradient of a batch's mean loss, in one pass or in several; returns that loss, float32 [].

    Where several processes train, each has its share of the batch: what is returned is its share of the
    loss, and the gradient is that of the whole.
    """
    settings, world = state.recipe.training, state.world
    size = settings.micro_batch or len(batch.images)
    parts = list(zip(batch.images.split(size), batch.labels.split(size), strict=True))
    each = []  # picture's loss, for whoever chooses the next epoch's by it
    whole = torch.zeros((), device=state.device)
    for number, (images, labels) in enumerate(parts, start=1):
        # The last pass averages the processes' gradients, so each is multiplied by their number.
        with contextlib.nullcontext() if number == len(parts) else state.hold_gradients():
            with autocast(state.bf16, state.device):
                logits = state.forward(images)
            part = summed_loss(logits.float(), labels, settings, state.class_weights) / batch.total
            (part * world.size).backward()
        whole += part.detach()
        state.hits += (logits.detach().argmax(dim=1) == labels).sum()
        if state.selection is not None:
            each.append(F.cross_entropy(logits.detach().float(), labels, reduction="none"))
    if state.selection is not None and batch.positions is not None:
        state.selection.note(batch.positions, torch.cat(each))
    return whole


def summed_loss(
    logits: Tensor, labels: Tensor, settings: TrainingSettings, class_weights: Tensor | None
) -> Tensor:
    """The cross-entropy of a batch's pictures, added up: float32 [].

    Args:
        logits: float32 [B, classes].
        labels: int64 [B]; ``NO_LABEL`` where a picture does not count.
        settings: for the label smoothing.
        class_weights: float32 [classes], by which a picture of each class counts; None for 1.
    """
    smoothing = settings.label_smoothing
    if class_weights is None:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum")
    # Not by cross_entropy's own weights: they would weight what smoothing adds by the other classes'.
    losses = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
    return (losses * class_weights[labels.clamp(min=0)]).sum()


@contextlib.contextmanager
def skip_if_nonfinite(state: TrainingState) -> Iterator[Callable[[Tensor], bool]]:
    """Gives a function that says whether to take the step whose loss it is told.

    With ``training.on_nonfinite = "stop"`` it says yes without looking: the losses are looked at every
    ``LOOK_EVERY`` steps. With ``"skip"`` it looks at loss and gradients at once; if they are not finite, the
    network's running statistics are put back to what they were before, too.

    Raises:
        DivergedError: that was one skip too many.
    """
    if state.recipe.training.on_nonfinite == "stop":
        yield lambda loss: True
        return
    before = [buffer.clone() for buffer in state.model.buffers()]

    def update(loss: Tensor) -> bool:
        gradients = [p.grad for p in state.model.parameters() if p.grad is not None]
        finite = torch.stack([loss.isfinite(), *(g.isfinite().all() for g in gradients)]).all()
        if not state.world.any(not bool(finite)):
            return True
        for buffer, value in zip(state.model.buffers(), before, strict=True):
            buffer.copy_(value)
        state.skipped.append(state.step + 1)
        if len(state.skipped) > state.recipe.training.max_skips:
            state.raise_diverged(state.step + 1, float(loss))
        return False

    yield update
