"""The training loop. It yields one result an epoch; it prints nothing and writes nothing.

    state = TrainingState(model, recipe, steps_per_epoch=len(batches), device=device)
    for result in fit(state, batches, evaluate=evaluate):
        print(result.epoch, result.loss, result.accuracy)

Whoever consumes it decides what to show, log and save. What a resumed training needs goes in and
out by ``state.state_dict()`` and ``state.load_state_dict()``, after any step.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from thumbnet.batches.batches import Batch, Batches
from thumbnet.batches.selection import Selection
from thumbnet.distributed import ALONE, World, synchronise_norms
from thumbnet.errors import DivergedError, OutOfMemoryError
from thumbnet.hardware import autocast, can_compile, use_bf16
from thumbnet.kernels.build import library
from thumbnet.recipes.recipe import Recipe
from thumbnet.recipes.settings import TrainingSettings
from thumbnet.training.optimizers import build_optimizer, set_learning_rate
from thumbnet.training.randomness import seeded_step
from thumbnet.training.schedules import factor_at, resize_at

LOOK_EVERY = 20  # steps between looks at the loss: each look makes a GPU wait for the CPU


@dataclass(frozen=True)
class Score:
    """What evaluating after an epoch gave: loss and accuracy (0 to 1) on so many pictures of a split."""

    split: str
    accuracy: float
    loss: float
    pictures: int = 0


@dataclass(frozen=True)
class EpochResult:
    """One epoch.

    Attributes:
        epoch: from 1.
        step: optimisation steps so far.
        loss: mean training loss over the epoch's steps.
        lr: the recipe's learning rate at the epoch's last step.
        seconds: spent training in this epoch; evaluating is not in it.
        pictures_per_second: of training.
        score: None where this epoch was not evaluated on the whole split.
        train_accuracy: 0 to 1, of the training pictures as they were seen: augmented, and by the weights of
            their steps; nan where it is not known.
        sample: the score on a fixed sample of the split, where there is no ``score``.
    """

    epoch: int
    step: int
    loss: float
    lr: float
    seconds: float
    pictures_per_second: float
    score: Score | None
    train_accuracy: float = math.nan
    sample: Score | None = None

    def row(self) -> dict[str, Any]:
        """As a line of ``metrics.jsonl``: the score's values under its split's name, ``val_accuracy``."""
        values = asdict(self)
        score, sample = values.pop("score"), values.pop("sample")
        score = score or sample
        if score:
            split = score.pop("split")
            values |= {f"{split}_{key}": value for key, value in score.items()}
        return values


@dataclass(frozen=True)
class StepResult:
    """Where the training stands. ``loss`` is the last one looked at, None before the first look.

    ``skipped`` says that this step was: see ``training.on_nonfinite``.
    """

    epoch: int
    step_in_epoch: int
    steps_per_epoch: int
    step: int
    pictures: int
    loss: float | None
    skipped: bool = False


class TrainingState:
    """All that changes during a training: weights, their average, the optimizer, and how far it is.

    Attributes:
        model: the network that learns.
        step: optimisation steps done.
        history: the results so far.
        compiled: whether ``torch.compile`` is in use.
        selection: of the pictures that take part in an epoch, where the recipe lets some rest.
        skipped: the steps (from 1) that were skipped, see ``training.on_nonfinite``.
        best_epoch, best_weights: of the epoch with the best ``val`` score; None without ``val``.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        steps_per_epoch: int,
        device: torch.device,
        world: World = ALONE,
        class_weights: Tensor | None = None,
        selection: Selection | None = None,
    ) -> None:
        self.recipe = recipe
        self.selection = selection
        self.class_weights = None if class_weights is None else class_weights.to(device)
        self.world = world
        self.device = device
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = steps_per_epoch * recipe.training.epochs
        self.bf16 = use_bf16(recipe.training.precision, device)
        self.layout = torch.channels_last if recipe.training.channels_last else torch.contiguous_format
        self.model: nn.Module = model.to(device=device, memory_format=self.layout)  # type: ignore[call-overload]
        if world.size > 1 and recipe.training.sync_batchnorm:
            synchronise_norms(self.model)
        forward: nn.Module = self.model
        if world.size > 1:
            # Statistics are either equal in all processes or sent before an evaluation: never in a step.
            new = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters  # from 2.13
            buffers: dict[str, Any] = {"forward_sync_buffers" if new else "broadcast_buffers": False}
            forward = DistributedDataParallel(
                self.model,
                device_ids=[device] if device.type == "cuda" else None,
                **buffers,
            )
        self.hold_gradients = getattr(forward, "no_sync", contextlib.nullcontext)
        self.forward: Callable[[Tensor], Tensor] = forward
        self.compiled = recipe.training.compile and can_compile(device)
        if self.compiled:
            # Few sizes of pictures, and each compiled for itself: not one code for all.
            self.forward = torch.compile(forward, mode=recipe.training.compile_mode, dynamic=False)
        self.average = copy.deepcopy(self.model).eval() if recipe.training.ema_decay else None
        self.optimizer = build_optimizer(recipe.optimizer, self.model)
        self.step = 0
        # Of this epoch, kept on the device; of this process' pictures, each divided by all processes'.
        self.losses = torch.zeros(steps_per_epoch, device=device)
        self.hits = torch.zeros(
            (), dtype=torch.int64, device=device
        )  # right answers, of this process' pictures
        self.skipped: list[int] = []
        self.seconds_in_epoch = 0.0
        self.pictures_in_epoch = 0
        self.history: list[EpochResult] = []
        self.best_epoch: int | None = None
        self.best_weights: dict[str, Tensor] | None = None

    @property
    def uses_kernels(self) -> bool:
        """Whether the CPU kernels take part, see :mod:`thumbnet.kernels.ops`."""
        return self.device.type == "cpu" and self.bf16 and not self.compiled and library() is not None

    @property
    def epoch(self) -> int:
        """Epochs that are complete: the last one is, only when its result is in the history."""
        return len(self.history)

    @property
    def step_in_epoch(self) -> int:
        """Steps done of the epoch at hand."""
        return self.step - self.epoch * self.steps_per_epoch

    @property
    def lr(self) -> float:
        """The recipe's rate at the present step."""
        return self.recipe.optimizer.lr * factor_at(self.recipe.schedule, self.step, self.total_steps)

    @property
    def evaluated_model(self) -> nn.Module:
        """What is evaluated and kept: the average of the weights if the recipe has one."""
        return self.model if self.average is None else self.average

    def final_weights(self) -> dict[str, Tensor]:
        """What the training leaves: the best epoch's weights by ``val``, else the last ones."""
        if self.best_weights is not None:
            return self.best_weights
        return {name: tensor.detach().clone() for name, tensor in self.evaluated_model.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything as tensors and plain values, so that it loads with ``weights_only=True``."""
        return {
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "losses": self.all_losses(),
            "hits": self.all_hits(),
            "skipped": self.skipped,
            "seconds_in_epoch": self.seconds_in_epoch,
            "pictures_in_epoch": self.pictures_in_epoch,
            "history": [asdict(result) for result in self.history],
            "best_epoch": self.best_epoch,
            "best_weights": self.best_weights,
            "selection": None if self.selection is None else self.selection.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave.

        Raises:
            KeyError, RuntimeError, ValueError: it belongs to another training.
        """
        if len(state["losses"]) != self.steps_per_epoch:
            raise ValueError("the number of steps in an epoch has changed")
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.losses.copy_(state["losses"] if self.world.is_first else torch.zeros_like(state["losses"]))
        self.hits.fill_(state["hits"] if self.world.is_first else 0)
        self.skipped = list(state["skipped"])
        self.seconds_in_epoch = state["seconds_in_epoch"]
        self.pictures_in_epoch = state["pictures_in_epoch"]
        self.history = [epoch_result_from_dict(result) for result in state["history"]]
        self.best_epoch = state["best_epoch"]
        self.best_weights = state["best_weights"]
        if self.selection is not None:
            self.selection.load_state_dict(state["selection"])

    def all_losses(self) -> Tensor:
        """This epoch's losses over all processes' pictures: float32 [steps_per_epoch], on the CPU."""
        return self.world.sum(self.losses.cpu().clone())

    def all_hits(self) -> int:
        """Right answers in this epoch so far, of all processes' pictures."""
        return int(self.world.sum(self.hits.cpu().clone()))

    def mean_loss(self) -> float:
        """Of this epoch's steps, but for skipped ones."""
        done = torch.arange(self.epoch * self.steps_per_epoch + 1, self.step + 1)
        kept = ~torch.isin(done, torch.tensor(self.skipped, dtype=torch.int64))
        return float(self.all_losses()[kept].double().mean()) if bool(kept.any()) else math.nan

    def check_losses(self) -> float:
        """The newest loss, once it is sure that all of this epoch's are finite.

        Raises:
            DivergedError: names the first step whose loss was not.
        """
        losses = self.all_losses()[: self.step_in_epoch]
        bad = (~losses.isfinite()).nonzero()
        if len(bad) and self.recipe.training.on_nonfinite == "stop":
            self.raise_diverged(self.epoch * self.steps_per_epoch + int(bad[0]) + 1, float(losses[bad[0]]))
        return float(losses[-1])

    def raise_diverged(self, step: int, loss: float) -> None:
        """Raise a :class:`DivergedError` for ``step``, from 1."""
        lr = self.recipe.optimizer.lr * factor_at(self.recipe.schedule, step - 1, self.total_steps)
        raise DivergedError(step, loss, lr)

    def update_average(self) -> None:
        """Draw the average towards the newest weights, and the running statistics with them."""
        if self.average is None:
            return
        # Held down at first (1 - 9 / (10 + t)), or the average would keep the random beginning.
        decay = min(self.recipe.training.ema_decay, (1 + self.step) / (10 + self.step))
        averaged, newest = self.average.state_dict().values(), self.model.state_dict().values()
        pairs = list(zip(averaged, newest, strict=True))
        floats = [(a, b) for a, b in pairs if a.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in floats], [b for _, b in floats], 1 - decay)
        for a, b in pairs:
            if not a.is_floating_point():  # counters
                a.copy_(b)


def fit(
    state: TrainingState,
    batches: Batches,
    *,
    evaluate: Callable[[nn.Module], Score] | None = None,
    evaluate_sample: Callable[[nn.Module], Score] | None = None,
    on_step: Callable[[StepResult], None] | None = None,
) -> Iterator[EpochResult]:
    """Train to the end of the recipe, from wherever ``state`` stands; one result an epoch.

    Args:
        state: is changed in place, and is whole after every step.
        batches: the training split.
        evaluate: called with the network in eval mode after the epochs that the recipe says.
        evaluate_sample: called so after the other epochs.
        on_step: called after every step. What it raises ends the training with ``state`` whole.

    Raises:
        DivergedError: a loss is not finite.
        OutOfMemoryError: a step does not fit the device's memory.
    """
    recipe = state.recipe
    loss_so_far: float | None = None
    for epoch in range(state.epoch, recipe.training.epochs):
        state.model.train()
        resumed_at = state.seconds_in_epoch
        started = time.perf_counter()
        for batch in batches.epoch(epoch, start=state.step_in_epoch):
            set_learning_rate(state.optimizer, factor_at(recipe.schedule, state.step, state.total_steps))
            images = resize_at(recipe.schedule, batch.images, state.step, state.total_steps)
            images = images.contiguous(memory_format=state.layout)
            state.optimizer.zero_grad()
            random = seeded_step(recipe.seed, state.step, state.world.rank, state.device)
            with random, skip_if_nonfinite(state) as update:
                loss = accumulate_gradients(state, replace(batch, images=images))
                if update(loss):
                    state.optimizer.step()
                    state.update_average()

            state.losses[state.step_in_epoch] = loss
            state.step += 1
            state.pictures_in_epoch += batch.total
            state.seconds_in_epoch = resumed_at + time.perf_counter() - started
            if state.step_in_epoch % LOOK_EVERY == 0 or state.step_in_epoch == state.steps_per_epoch:
                loss_so_far = state.check_losses()
            if on_step is not None:
                on_step(_step_result(state, loss_so_far))
        yield _finish_epoch(state, evaluate, evaluate_sample)


def accumulate_gradients(state: TrainingState, batch: Batch) -> Tensor:
    """The gradient of a batch's mean loss, in one pass or in several; returns that loss, float32 [].

    Where several processes train, each has its share of the batch: what is returned is its share of the
    loss, and the gradient is that of the whole.

    Raises:
        OutOfMemoryError: a pass does not fit the device's memory.
    """
    settings, world = state.recipe.training, state.world
    size = settings.micro_batch or len(batch.images)
    parts = list(zip(batch.images.split(size), batch.labels.split(size), strict=True))
    each = []  # picture's loss, for whoever chooses the next epoch's by it
    whole = torch.zeros((), device=state.device)
    for number, (images, labels) in enumerate(parts, start=1):
        try:
            # In the last pass the processes' gradients are averaged: so each is multiplied by their number.
            with contextlib.nullcontext() if number == len(parts) else state.hold_gradients():
                with autocast(state.bf16, state.device):
                    logits = state.forward(images)
                part = summed_loss(logits.float(), labels, settings, state.class_weights) / batch.total
                (part * world.size).backward()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(str(state.device), len(images), settings.batch_size) from None
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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether that is what ``error`` reports: PyTorch has a type for it on GPUs only."""
    text = str(error)
    words = ("can't allocate memory", "out of memory", "bad_alloc", "not enough memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in text for word in words)


def _step_result(state: TrainingState, loss: float | None) -> StepResult:
    return StepResult(
        epoch=state.epoch + 1,
        step_in_epoch=state.step_in_epoch,
        steps_per_epoch=state.steps_per_epoch,
        step=state.step,
        pictures=state.pictures_in_epoch,
        loss=loss,
        skipped=state.skipped[-1:] == [state.step],
    )


def _finish_epoch(
    state: TrainingState,
    evaluate: Callable[[nn.Module], Score] | None,
    evaluate_sample: Callable[[nn.Module], Score] | None,
) -> EpochResult:
    """Evaluate where the recipe says, remember the best by ``val``, and close the epoch."""
    number = state.epoch + 1
    every, last = state.recipe.evaluation.every, number == state.recipe.training.epochs
    score = sample = None
    whole = last or (every and number % every == 0)
    chosen = evaluate if whole else evaluate_sample
    if chosen is not None:
        state.world.send_buffers(state.evaluated_model)  # each process has statistics of its own
        found = chosen(state.evaluated_model.eval())
        score, sample = (found, None) if whole else (None, found)
    last_factor = factor_at(state.recipe.schedule, state.step - 1, state.total_steps)
    seconds = state.seconds_in_epoch
    result = EpochResult(
        epoch=number,
        step=state.step,
        loss=state.mean_loss(),
        lr=state.recipe.optimizer.lr * last_factor,
        seconds=seconds,
        pictures_per_second=state.pictures_in_epoch / seconds if seconds else math.inf,
        score=score,
        train_accuracy=state.all_hits() / max(1, state.pictures_in_epoch),
        sample=sample,
    )
    if score is not None and score.split == "val" and _is_best(state, score):
        state.best_epoch = number
        weights = state.evaluated_model.state_dict()
        state.best_weights = {name: tensor.detach().clone() for name, tensor in weights.items()}
    state.history.append(result)
    state.seconds_in_epoch = 0.0
    state.pictures_in_epoch = 0
    state.losses.zero_()
    state.hits.zero_()
    return result


def _is_best(state: TrainingState, score: Score) -> bool:
    """More accurate on ``val`` than every epoch before, or as accurate with less loss."""
    before = [r.score for r in state.history if r.score is not None and r.score.split == "val"]
    return all((score.accuracy, -score.loss) > (s.accuracy, -s.loss) for s in before)


def epoch_result_from_dict(values: dict[str, Any]) -> EpochResult:
    """Back from ``dataclasses.asdict``."""
    scores = {key: None if values[key] is None else Score(**values[key]) for key in ("score", "sample")}
    return EpochResult(**{**values, **scores})
