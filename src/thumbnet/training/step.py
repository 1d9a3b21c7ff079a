"""One training step: the loss of a batch, its gradient, and the optimizer's update.

With default settings, in 32 bits, :func:`train_step` does what the guide's loop does
(docs/guide/4-loop.md):

```python
optimizer.zero_grad()
loss = F.cross_entropy(model(images), labels)
loss.backward()
optimizer.step()
```

Everything else here serves a setting: micro-batches, several processes, 16 bits, class weights, several
labels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from thumbnet.batches.batches import Batch
from thumbnet.batches.mixing import Mixed
from thumbnet.errors import memory_guard
from thumbnet.hardware import autocast, seeded
from thumbnet.recipes.settings import TrainingSettings
from thumbnet.seeds import derive_seed
from thumbnet.training.head_first import set_phase
from thumbnet.training.multilabel import exact_hits, label_losses
from thumbnet.training.optimizers import set_learning_rate
from thumbnet.training.own_loss import OwnLoss
from thumbnet.training.scaling import scaled_step
from thumbnet.training.schedules import resize_at
from thumbnet.training.state import TrainingState


def train_step(state: TrainingState, batch: Batch, factor: float) -> Tensor:
    """Train on ``batch`` at ``factor`` times every full learning rate.

    ``fit`` and the learning-rate range test share this function, so both see the same loss, with class
    weights, micro-batches, the picture size and the layers that learn at ``state.step``. The caller counts
    the step.

    Returns:
        The batch's mean loss, float32 []; with several processes, this process's share of it. If the step
        was skipped because the loss or a gradient was not finite, its number is in ``state.skipped``.

    Raises:
        DivergedError: more than ``training.max_skips`` steps were skipped.
        OutOfMemoryError: the step does not fit into the device's memory.
    """
    recipe = state.recipe
    pictures = min(recipe.training.micro_batch or len(batch.images), len(batch.images))
    with memory_guard(
        str(state.device), f"with {pictures} pictures in a forward pass", smaller_batch(state, pictures)
    ):
        set_learning_rate(state.optimizer, factor)
        set_phase(state)
        images = resize_at(recipe.schedule, batch.images, state.step, state.total_steps)
        images = images.contiguous(memory_format=state.layout)
        state.optimizer.zero_grad()
        is_usable = finite_check(state)
        # Each step has its own seed, so a resumed training draws the same numbers, for example in dropout.
        # Each process has its own too, because it has other pictures.
        with seeded(derive_seed(recipe.seed, "step", state.step, state.world.rank), state.device):
            loss = accumulate_gradients(state, replace(batch, images=images))
            if is_usable(loss):
                update_weights(state)
                state.update_average()
    return loss


def update_weights(state: TrainingState) -> None:
    """Update the weights with the gradients of :func:`accumulate_gradients`.

    In float16 a step whose gradients overflow changes nothing but the scale, see
    :mod:`thumbnet.training.scaling`.
    """
    if state.scaler.is_enabled():
        scaled_step(state.optimizer, state.scaler)
    else:
        state.optimizer.step()


def smaller_batch(state: TrainingState, pictures: int) -> str:
    """What to do if a forward pass with ``pictures`` pictures does not fit into memory."""
    half = max(2, pictures // 2)
    return (
        f"Go through a batch of {state.recipe.training.batch_size} in parts, to the same gradient: "
        f"--micro-batch {half} (a run that was begun: start it again with it). Or use another batch size: "
        f"--batch-size {half}"
    )


def accumulate_gradients(state: TrainingState, batch: Batch) -> Tensor:
    """Compute the gradient of a batch's mean loss in one or several passes; return the loss, float32 [].

    With several processes, each one has a share of the batch. It returns its share of the loss, but its
    gradient is that of the whole batch. In float16 the gradient is multiplied by the scale of
    ``state.scaler``.
    """
    settings, world = state.recipe.training, state.world
    sizes = pass_sizes(len(batch.images), batch.total, settings.micro_batch, world.size)
    mixtures = [None] * len(sizes) if batch.mixed is None else batch.mixed.split(sizes)
    parts = list(zip(batch.images.split(sizes), batch.labels.split(sizes), mixtures, strict=True))
    unsmoothed = []  # loss of each picture, by which the selection chooses the next epoch's
    loss = torch.zeros((), device=state.device)
    for number, (images, labels, mixed) in enumerate(parts, start=1):
        # The last pass averages the gradients over the processes, so each loss is multiplied by their number.
        with contextlib.nullcontext() if number == len(parts) else state.hold_gradients():
            with autocast(state.dtype, state.device):
                logits = state.forward(images)
            summed = summed_loss(logits.float(), labels, settings, state.class_weights, mixed, state.own_loss)
            part = summed / batch.total
            state.scaler.scale(part * world.size).backward()
        loss += part.detach()
        leading = labels if mixed is None else mixed.leading(labels)
        state.hits += count_hits(logits.detach(), leading)
        if state.selection is not None:
            unsmoothed.append(picture_losses(logits.detach().float(), labels))
    if state.selection is not None and batch.positions is not None:
        state.selection.note(batch.positions, torch.cat(unsmoothed))
    return loss


def pass_sizes(own: int, total: int, micro_batch: int, processes: int) -> list[int]:
    """How many pictures each forward pass of a step has in this process.

    All processes make the same number of passes, because they exchange BatchNorm's statistics in each pass
    and gradients in the last one. Their shares of a batch differ by at most one picture. If that picture
    needs a pass of its own, the processes without it spread their pictures evenly over as many passes.

    Args:
        own: pictures of the batch that this process has.
        total: pictures of the batch over all processes.
        micro_batch: the most pictures that a pass may have; 0 for one pass.
        processes: number of processes.
    """
    if not micro_batch:
        return [own]
    whole, rest = divmod(own, micro_batch)
    sizes = [micro_batch] * whole + ([rest] if rest else [])
    passes = -(-total // (processes * micro_batch))  # of the largest share
    if len(sizes) >= passes:
        return sizes
    each, more = divmod(own, passes)
    return [each + (number < more) for number in range(passes)]


def summed_loss(
    logits: Tensor,
    labels: Tensor,
    settings: TrainingSettings,
    class_weights: Tensor | None,
    mixed: Mixed | None = None,
    own_loss: OwnLoss | None = None,
) -> Tensor:
    """The sum of the losses of all pictures, float32 [].

    The default loss is the cross-entropy, or the binary cross-entropy for several labels.

    Args:
        logits: float32 [B, classes].
        labels: int64 [B], or int8 [B, classes] for several labels; ``NO_LABEL`` for a picture that does not
            count.
        settings: for the label smoothing.
        class_weights: weight of a picture by its class, float32 [classes]; None means 1 for all, and is the
            only choice for several labels.
        mixed: the labels that pictures are mixed with; the loss is mixed in the same way.
        own_loss: the user's own loss, in place of the cross-entropy and its label smoothing.

    Raises:
        OwnCodeError: see :class:`~thumbnet.training.own_loss.OwnLoss`.
    """
    if mixed is not None:
        first = _weighted_losses(logits, labels, settings, class_weights, own_loss)
        second = _weighted_losses(logits, mixed.labels, settings, class_weights, own_loss)
        return (mixed.share * first + (1 - mixed.share) * second).sum()
    if class_weights is None and labels.ndim == 1 and own_loss is None:
        return F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing, reduction="sum")
    return _weighted_losses(logits, labels, settings, class_weights, own_loss).sum()


def _weighted_losses(
    logits: Tensor,
    labels: Tensor,
    settings: TrainingSettings,
    class_weights: Tensor | None,
    own_loss: OwnLoss | None,
) -> Tensor:
    """The loss of each picture with label smoothing and class weights: float32 [B]."""
    smoothing = settings.label_smoothing
    if own_loss is not None:
        losses = own_loss(logits, labels)
    elif labels.ndim == 2:
        losses = label_losses(logits, labels, smoothing)
    else:
        losses = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
    # cross_entropy's own weights would weight each class's smoothed term by that class, not by the label's.
    return losses if class_weights is None else losses * class_weights[labels.clamp(min=0)]


def picture_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of each picture without label smoothing and weights, float32 [B].

    ``data.skip_easy`` chooses pictures by it, whatever ``training.loss`` is.
    """
    if labels.ndim == 2:
        return label_losses(logits, labels)
    return F.cross_entropy(logits, labels, reduction="none")


def count_hits(logits: Tensor, labels: Tensor) -> Tensor:
    """How many pictures are classified correctly, in all of their labels if they have several: int64 []."""
    if labels.ndim == 2:
        return exact_hits(logits, labels)
    return (logits.argmax(dim=1) == labels).sum()


def finite_check(state: TrainingState) -> Callable[[Tensor], bool]:
    """Prepare the check of a step. Call this before the forward pass, which changes the running statistics.

    Returns:
        A function that decides, given the step's loss, whether to update the weights. With
        ``training.on_nonfinite = "stop"`` it always says yes, because ``fit`` checks the losses every
        ``LOOK_EVERY`` steps. With ``"skip"`` it checks loss and gradients at once. If they are not finite, it
        restores the network's running statistics, records the skipped step and says no. In float16 it checks
        only the loss: gradients overflow now and then while the scale is being found, and
        :func:`update_weights` deals with that. It raises :class:`DivergedError` if more than
        ``training.max_skips`` steps were skipped.
    """
    if state.recipe.training.on_nonfinite == "stop":
        return lambda loss: True
    before = [buffer.clone() for buffer in state.model.buffers()]

    def is_usable(loss: Tensor) -> bool:
        learning = [] if state.scaler.is_enabled() else list(state.model.parameters())
        gradients = [p.grad for p in learning if p.grad is not None]
        finite = torch.stack([loss.isfinite(), *(g.isfinite().all() for g in gradients)]).all()
        if not state.world.any(not bool(finite)):
            return True
        for buffer, value in zip(state.model.buffers(), before, strict=True):
            buffer.copy_(value)
        state.skipped.append(state.step + 1)
        if len(state.skipped) > state.recipe.training.max_skips:
            state.raise_diverged(state.step + 1, float(loss))
        return False

    return is_usable
