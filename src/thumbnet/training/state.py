"""Everything that changes during a training."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from thumbnet.batches.selection import Selection
from thumbnet.distributed import ALONE, World, synchronise_norms
from thumbnet.errors import DivergedError, RecipeError
from thumbnet.hardware import DTYPES, as_device, can_compile, compiled, compute_dtype, memory_layout
from thumbnet.kernels.library import load_kernels
from thumbnet.recipes.recipe import Recipe
from thumbnet.training.epochs import EpochResult, Score
from thumbnet.training.optimizers import build_optimizer
from thumbnet.training.own_loss import own_loss
from thumbnet.training.scaling import LEAST_SCALE
from thumbnet.training.schedules import factor_at, replanned
from thumbnet.training.transfer import Start


class TrainingState:
    """Everything that changes during a training: weights, their average, optimizer and progress.

    Attributes:
        model: the network in training.
        forward: computes the logits of a batch with ``model``: compiled, if ``compiled`` is True, and with
            several processes in ``DistributedDataParallel``.
        hold_gradients: makes a context in which the processes do not exchange their gradients, for all passes
            of a step but the last.
        average: the average of the weights over the steps, in eval mode; None without ``training.ema_decay``.
        layout: the memory format of the network and its pictures.
        step: optimisation steps done.
        steps_per_epoch, total_steps: steps of a whole epoch, and of the whole training as planned now.
        losses: this epoch's losses, float32 [steps_per_epoch], on the device: this process's share of each
            step's mean over all processes.
        hits: correct answers in this epoch for this process's pictures, int64 [], on the device.
        seconds_in_epoch: seconds that this epoch's steps have taken.
        pictures_in_epoch: pictures seen in this epoch, over all processes.
        history: the results of all finished epochs.
        dtype: the type in which convolutions and matrix products are computed.
        scaler: scales the loss if that is float16; otherwise it is not enabled.
        compiled: whether ``torch.compile`` is in use.
        own_loss: the user's own loss; None for the cross-entropy.
        selection: chooses each epoch's pictures; None unless the recipe sets ``data.skip_easy``.
        skipped: steps (from 1) that were skipped, see ``training.on_nonfinite``.
        best_epoch, best_weights: the epoch that is best on ``val``, and its weights; None without ``val``.
            The weights are also None if the recipe keeps the last epoch.
        l2_chosen_on: the split that chose L2, see :mod:`thumbnet.training.linear`; empty if none did.
        start: what the training took from ``training.init``; None if that is empty.
        pretrained: where the pretrained weights of a network of timm come from, if it began with some.

    Raises:
        RecipeError: the recipe weights the classes, and there are no ``class_weights``. The state does not
            see the pictures that they follow from; :func:`~thumbnet.training.build.build_state` does.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        steps_per_epoch: int,
        device: torch.device | str,
        world: World = ALONE,
        class_weights: Tensor | None = None,
        selection: Selection | None = None,
    ) -> None:
        device = as_device(device)
        if recipe.training.class_weights != "none" and class_weights is None:
            raise RecipeError(
                f"training.class_weights = {recipe.training.class_weights!r} needs a weight for each class: "
                "pass class_weights=thumbnet.training.build.balanced_weights(labels, num_classes), or make "
                "the state with thumbnet.training.build.build_state"
            )
        self.recipe = recipe
        self.selection = selection
        self.class_weights = None if class_weights is None else class_weights.to(device)
        self.own_loss = own_loss(recipe)
        self.world = world
        self.device = device
        self.steps_per_epoch = steps_per_epoch
        whole = steps_per_epoch * recipe.training.epochs
        self.total_steps = min(recipe.training.steps or whole, whole)
        self.dtype = compute_dtype(recipe.training.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.layout = memory_layout(device, recipe.training.channels_last)
        self.model: nn.Module = model.to(device=device, memory_format=self.layout)  # type: ignore[call-overload]
        if world.size > 1 and recipe.training.sync_batchnorm:
            self.model = synchronise_norms(self.model, device)
        forward: nn.Module = self.model
        if world.size > 1:
            forward = _distributed(self.model, device, freezes=recipe.schedule.head_first > 0)
        self.hold_gradients = getattr(forward, "no_sync", contextlib.nullcontext)
        self.forward: Callable[[Tensor], Tensor] = forward
        self.compiled = recipe.training.compile and can_compile(device)
        if self.compiled:
            self.forward = compiled(forward, recipe.training.compile_mode)
        self.average = copy.deepcopy(self.model).eval() if recipe.training.ema_decay else None
        # In float16 the device decides whether a step counts, so AdamW's counter must be there too.
        self.optimizer = build_optimizer(recipe.optimizer, self.model, fused=self.scaler.is_enabled())
        self.step = 0
        self.losses = torch.zeros(steps_per_epoch, device=device)
        self.hits = torch.zeros((), dtype=torch.int64, device=device)
        self.skipped: list[int] = []
        self.seconds_in_epoch = 0.0
        self.pictures_in_epoch = 0
        self.history: list[EpochResult] = []
        self.best_epoch: int | None = None
        self.best_weights: dict[str, Tensor] | None = None
        self.l2_chosen_on = ""
        self.start: Start | None = None
        self.pretrained: dict[str, str] | None = None

    @property
    def precision(self) -> str:
        """The resolved ``training.precision``: ``fp32``, ``bf16`` or ``fp16``."""
        return next(name for name, dtype in DTYPES.items() if dtype == self.dtype)

    @property
    def uses_kernels(self) -> bool:
        """Whether the training uses the CPU kernels, see :mod:`thumbnet.kernels`."""
        possible = self.device.type == "cpu" and self.dtype == torch.bfloat16 and not self.compiled
        return possible and load_kernels() is not None

    @property
    def epoch(self) -> int:
        """Number of finished epochs. An epoch is finished when its result is in the history."""
        return len(self.history)

    @property
    def step_in_epoch(self) -> int:
        """Steps done in the current epoch."""
        return self.step - self.epoch * self.steps_per_epoch

    @property
    def epoch_is_over(self) -> bool:
        """Whether the current epoch has had all of its steps. The last epoch may end early."""
        return self.step_in_epoch >= self.steps_per_epoch or self.step >= self.total_steps

    @property
    def is_over(self) -> bool:
        """Whether the training has reached its last step or was stopped early, at the end of an epoch."""
        if not self.history:
            return False
        newest = self.history[-1]
        return newest.step >= self.total_steps or bool(newest.stopped)

    @property
    def kept_epoch(self) -> int:
        """The epoch whose weights are kept: the best one on ``val``, or the last one."""
        if self.best_epoch is None or self.recipe.training.keep == "last":
            return self.epoch
        return self.best_epoch

    def lr_at(self, step: int) -> float:
        """The recipe's learning rate at ``step``, counted from 0."""
        return self.recipe.optimizer.lr * factor_at(self.recipe.schedule, step, self.total_steps)

    @property
    def evaluated_model(self) -> nn.Module:
        """The network to evaluate and keep: the average of the weights if the recipe asks for one."""
        return self.model if self.average is None else self.average

    def replan(self, total_steps: int) -> None:
        """Change the length of the training to ``total_steps``, more than are done; see :func:`replanned`."""
        training = replace(
            self.recipe.training, steps=total_steps, epochs=-(-total_steps // self.steps_per_epoch)
        )
        schedule = replanned(self.recipe.schedule, self.step, self.total_steps, total_steps)
        self.recipe = replace(self.recipe, training=training, schedule=schedule)
        self.total_steps = total_steps

    def final_weights(self) -> dict[str, Tensor]:
        """The weights of :attr:`kept_epoch`."""
        if self.best_weights is not None:
            return self.best_weights
        return {name: tensor.detach().clone() for name, tensor in self.evaluated_model.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """The whole state as tensors and plain values, which load with ``weights_only=True``."""
        return {
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
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
        """Restore what :meth:`state_dict` returned.

        Raises:
            KeyError, RuntimeError, ValueError: it belongs to another training.
        """
        if len(state["losses"]) != self.steps_per_epoch:
            raise ValueError("the number of steps in an epoch has changed")
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler.is_enabled() and state.get("scaler"):  # none if it was not float16 until now
            self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.losses.copy_(state["losses"] if self.world.is_first else torch.zeros_like(state["losses"]))
        self.hits.fill_(state["hits"] if self.world.is_first else 0)
        self.skipped = list(state["skipped"])
        self.seconds_in_epoch = state["seconds_in_epoch"]
        self.pictures_in_epoch = state["pictures_in_epoch"]
        self.history = [EpochResult.from_dict(result) for result in state["history"]]
        self.best_epoch = state["best_epoch"]
        self.best_weights = state["best_weights"]
        if self.selection is not None:
            self.selection.load_state_dict(state["selection"])

    def all_losses(self) -> Tensor:
        """This epoch's losses, summed over all processes: float32 [steps_per_epoch], on the CPU."""
        return self.world.sum(self.losses.cpu().clone())

    def all_hits(self) -> int:
        """Number of correct answers in this epoch, over all processes."""
        return int(self.world.sum(self.hits.cpu().clone()))

    def checked_hits(self) -> int:
        """The same at the end of an epoch, after a check that its last step left a usable network.

        Until the next step, nothing else shows that a gradient was not finite although the loss was. One copy
        reads both numbers, because each copy waits for the device.

        Raises:
            DivergedError: a parameter is not finite.
        """
        finite = torch.stack([parameter.isfinite().all() for parameter in self.model.parameters()])
        both = torch.stack([self.hits, (~finite.all()).long()])
        hits, broken = self.world.sum(both.cpu().clone()).tolist()
        if broken:  # in all processes, because all have the same parameters
            bad = next(name for name, p in self.model.named_parameters() if not bool(p.isfinite().all()))
            self.raise_diverged(self.step, math.nan, f"the parameter {bad} is not finite after the update")
        return int(hits)

    def mean_loss(self) -> float:
        """Mean loss of this epoch's steps, without skipped ones; nan if there are no others."""
        done = torch.arange(self.epoch * self.steps_per_epoch + 1, self.step + 1)
        kept = ~torch.isin(done, torch.tensor(self.skipped, dtype=torch.int64))
        losses = self.all_losses()[: len(done)]
        return float(losses[kept].double().mean()) if bool(kept.any()) else math.nan

    def check_losses(self, losses: Tensor | None = None) -> float:
        """Check this epoch's losses and return the newest one.

        Args:
            losses: the losses of the epoch's first steps, float32 [steps] on the CPU, if they have been read
                already. By default, all losses are read from the device, which waits for it.

        Raises:
            DivergedError: a loss is not finite and ``training.on_nonfinite`` is ``"stop"``. The error names
                the first such step. Or gradients overflow float16 at every scale.
        """
        losses = self.all_losses()[: self.step_in_epoch] if losses is None else losses
        bad = (~losses.isfinite()).nonzero()
        if len(bad) and self.recipe.training.on_nonfinite == "stop":
            self.raise_diverged(self.epoch * self.steps_per_epoch + int(bad[0]) + 1, float(losses[bad[0]]))
        if self.scaler.is_enabled() and self.scaler.get_scale() < LEAST_SCALE:
            self.raise_diverged(self.step, float(losses[-1]), "gradients overflow float16 at every scale")
        return float(losses[-1])

    def raise_diverged(self, step: int, loss: float, problem: str = "") -> NoReturn:
        """Raise a :class:`DivergedError` for ``step``, counted from 1."""
        raise DivergedError(step, loss, self.lr_at(step - 1), problem)

    def close_epoch(self, result: EpochResult) -> EpochResult:
        """Keep the weights if they are the best yet, record the result, and start the next epoch.

        Returns:
            The result as recorded: it says if the training ends here.
        """
        if result.score is not None and result.score.split == "val":
            if self._is_best(result.score):
                self.best_epoch = result.epoch
                if self.recipe.training.keep != "last":
                    weights = self.evaluated_model.state_dict()
                    self.best_weights = {name: tensor.detach().clone() for name, tensor in weights.items()}
            why = result.stopped or self._why_stop(result.epoch, result.score)
            result = replace(result, stopped=why)
        self.history.append(result)
        self.seconds_in_epoch = 0.0
        self.pictures_in_epoch = 0
        self.losses.zero_()
        self.hits.zero_()
        return result

    def _why_stop(self, epoch: int, score: Score) -> str:
        """Why the training ends with ``epoch``; empty if it goes on, or would end there anyway.

        Depends only on the scores, so a resumed training stops at the same epoch.
        """
        patience = self.recipe.training.patience
        if not patience or self.best_epoch is None or epoch - self.best_epoch < patience:
            return ""
        if self.step >= self.total_steps:
            return ""
        by = self.recipe.training.choose_by
        measure = "mAP" if by == "accuracy" and score.map is not None else by.replace("-", " ")
        return f"no better val {measure} since epoch {self.best_epoch}"

    def _is_best(self, score: Score) -> bool:
        """Whether this ``val`` score beats every earlier one, by ``training.choose_by``."""
        before = [r.score for r in self.history if r.score is not None and r.score.split == "val"]
        by = self.recipe.training.choose_by
        return all(score.rank(by) > earlier.rank(by) for earlier in before)

    def newest_weight(self, step: int) -> float:
        """The weight of the newest network in the average after ``step``, counted from 0."""
        # The decay starts low (1 - 9 / (10 + step)), so that the average forgets the random initial weights.
        return 1 - min(self.recipe.training.ema_decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update_average(self, weight: Tensor | None = None) -> None:
        """Move the averaged weights and running statistics towards the newest ones.

        Args:
            weight: :meth:`newest_weight` of this step, if it is on the device: float32 [].
        """
        if self.average is None:
            return
        pairs = list(zip(_stored(self.average), _stored(self.model), strict=True))
        floats = [(a, b) for a, b in pairs if a.is_floating_point()]
        old, new = [a for a, _ in floats], [b for _, b in floats]
        if weight is None:
            torch._foreach_lerp_(old, new, self.newest_weight(self.step))
        else:
            torch._foreach_lerp_(old, new, [weight] * len(old))
        for a, b in pairs:
            if not a.is_floating_point():  # counters
                a.copy_(b)


def _distributed(model: nn.Module, device: torch.device, freezes: bool) -> DistributedDataParallel:
    """``model``, whose gradients all processes average; ``freezes``: some layers do not always learn."""
    # No step sends running statistics: they are equal in all processes, or sent before an evaluation.
    new = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters  # from 2.13
    buffers: dict[str, Any] = {"forward_sync_buffers" if new else "broadcast_buffers": False}
    return DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=freezes,  # frozen layers have no gradient to wait for
        **buffers,
    )


def _stored(model: nn.Module) -> list[Tensor]:
    """The parameters and buffers that are saved with a model, each one once even if it has two names."""
    return list({id(one): one for one in model.state_dict(keep_vars=True).values()}.values())
