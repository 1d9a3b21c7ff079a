"""All that changes during a training, and how it begins."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from thumbnet.batches.prepare import Prepared
from thumbnet.batches.selection import Selection
from thumbnet.distributed import ALONE, World, synchronise_norms
from thumbnet.errors import DivergedError, memory_guard
from thumbnet.hardware import can_compile, keep_freed_memory, use_bf16
from thumbnet.kernels.library import load_kernels
from thumbnet.models import DataInitialised, build_model
from thumbnet.recipes.recipe import Recipe
from thumbnet.seeds import derive_seed
from thumbnet.training.optimizers import build_optimizer
from thumbnet.training.schedules import factor_at, smaller_sizes
from thumbnet.training.transfer import begin_from

INITIAL_PICTURES = 5000  # from which a network may take weights; more change nothing that matters


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
        """Whether the CPU kernels take part, see :mod:`thumbnet.kernels`."""
        return self.device.type == "cpu" and self.bf16 and not self.compiled and load_kernels() is not None

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

    def close_epoch(self, result: EpochResult) -> None:
        """Keep the weights if they are the best so far, remember the result, and begin the next epoch."""
        if result.score is not None and result.score.split == "val" and self._is_best(result.score):
            self.best_epoch = result.epoch
            weights = self.evaluated_model.state_dict()
            self.best_weights = {name: tensor.detach().clone() for name, tensor in weights.items()}
        self.history.append(result)
        self.seconds_in_epoch = 0.0
        self.pictures_in_epoch = 0
        self.losses.zero_()
        self.hits.zero_()

    def _is_best(self, score: Score) -> bool:
        """Whether ``val`` is more accurate than in every epoch before, or as accurate with less loss."""
        before = [r.score for r in self.history if r.score is not None and r.score.split == "val"]
        return all((score.accuracy, -score.loss) > (s.accuracy, -s.loss) for s in before)

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


def epoch_result_from_dict(values: dict[str, Any]) -> EpochResult:
    """Back from ``dataclasses.asdict``."""
    scores = {key: None if values[key] is None else Score(**values[key]) for key in ("score", "sample")}
    return EpochResult(**{**values, **scores})


def build_state(
    recipe: Recipe,
    prepared: Prepared,
    class_names: Sequence[str],
    device: torch.device,
    world: World = ALONE,
) -> TrainingState:
    """A new network and optimizer, seeded by the recipe.

    Raises:
        RunError: the recipe begins from a run that there is not, or that has another network.
        NetworkError: a network of the user's own fails on pictures of a size that the training uses.
    """
    keep_freed_memory()
    with memory_guard(str(device), "building the network", "Use a narrower one: --set model.width=0.5"):
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay the caller's
            torch.manual_seed(derive_seed(recipe.seed, "weights"))
            size = prepared.preprocessing.size
            sizes = [size, *smaller_sizes(recipe.schedule, size)]
            model = build_model(recipe.model, len(class_names), sizes=sizes)
        if isinstance(model, DataInitialised):
            model.initialise_from(first_pictures(prepared))
        if recipe.training.init:
            begin_from(model, recipe.model, recipe.training.init, class_names)
        weights = None
        if recipe.training.class_weights == "balanced":
            weights = balanced_weights(prepared.train.engine.labels, len(class_names))
        return TrainingState(
            model, recipe, len(prepared.train), device, world, weights, prepared.train.selection
        )


def balanced_weights(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """In inverse proportion to the number of a class' pictures, 1 on average over them: float32 [classes]."""
    counts = torch.bincount(labels.cpu(), minlength=num_classes)
    return len(labels) / (int((counts > 0).sum()) * counts.clamp(min=1)).float()


def first_pictures(prepared: Prepared) -> torch.Tensor:
    """Some training pictures, not augmented, normalised: float32 [N, 3, H, W]."""
    engine, normalise = prepared.train.engine, prepared.train.normalise
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(engine.labels), generator=generator)[:INITIAL_PICTURES]
    return torch.cat([normalise(images) for images in engine.fetch(chosen.split(1000))])
