"""Everything that changes during a training, and its state at the start."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from thumbnet.batches.prepare import Prepared
from thumbnet.batches.selection import Selection
from thumbnet.distributed import ALONE, World, synchronise_norms
from thumbnet.errors import DivergedError, RecipeError, SeveralLabelsError, memory_guard
from thumbnet.hardware import DTYPES, can_compile, compute_dtype, keep_freed_memory, memory_layout, seeded
from thumbnet.kernels.library import load_kernels
from thumbnet.models import DataInitialised, build_model
from thumbnet.recipes.recipe import Recipe
from thumbnet.runs.any_weights import AnyWeights
from thumbnet.seeds import derive_seed
from thumbnet.training.optimizers import build_optimizer
from thumbnet.training.own_loss import own_loss
from thumbnet.training.pretrained import begin_pretrained
from thumbnet.training.scaling import LEAST_SCALE
from thumbnet.training.schedules import factor_at, replanned, smaller_sizes
from thumbnet.training.transfer import Start, begin_from

ON_REQUEST = "ended on request"  # why a training ended early: --finish
INITIAL_PICTURES = 5000  # pictures for networks that initialise weights from data; more make no difference


@dataclass(frozen=True)
class Score:
    """The result of evaluating after an epoch: accuracy (0 to 1) and loss on ``pictures`` of a split.

    If the pictures have several labels each, ``accuracy`` is the share of those whose labels are all right,
    and ``map`` the mean average precision, 0 to 1. Otherwise ``balanced_accuracy`` is the mean recall of the
    classes, 0 to 1; None in the scores of earlier versions.
    """

    split: str
    accuracy: float
    loss: float
    pictures: int = 0
    map: float | None = None
    balanced_accuracy: float | None = None

    @property
    def headline(self) -> float:
        """The main measure: mAP if the pictures have several labels, else accuracy."""
        return self.accuracy if self.map is None else self.map

    def rank(self, choose_by: str) -> tuple[float, float]:
        """Two numbers that are larger for a better score, by ``training.choose_by``; the first counts more.

        A loss that is not a number is the worst.
        """
        likelihood = -math.inf if math.isnan(self.loss) else -self.loss
        if choose_by == "loss":
            return likelihood, self.headline
        if choose_by == "balanced-accuracy":
            assert self.balanced_accuracy is not None  # several labels are refused with it
            return self.balanced_accuracy, likelihood
        return self.headline, likelihood


@dataclass(frozen=True)
class EpochResult:
    """The result of one epoch.

    Attributes:
        epoch: counted from 1.
        step: optimisation steps since the training began.
        loss: mean training loss over the epoch's steps, without skipped ones.
        lr: the recipe's learning rate at the epoch's last step.
        seconds: time spent training in this epoch, without evaluation.
        pictures_per_second: training speed.
        score: score on the whole split; None if this epoch was not evaluated on it.
        train_accuracy: 0 to 1, measured on the augmented pictures as they passed through the network, each
            with the weights of its step; nan if unknown. A mixed picture counts as right if the answer is the
            class with the larger share.
        sample: score on a fixed sample of the split, if there is no ``score``.
        stopped: why the training ends with this epoch, earlier than planned; empty if it does not.
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
    stopped: str = ""

    def row(self) -> dict[str, Any]:
        """The values for a line of ``metrics.jsonl``. The split's name prefixes those of the score."""
        values = asdict(self)
        score, sample = values.pop("score"), values.pop("sample")
        if not self.stopped:
            del values["stopped"]
        score = score or sample
        if score:
            split = score.pop("split")
            values |= {f"{split}_{key}": value for key, value in score.items() if value is not None}
        return values


class TrainingState:
    """Everything that changes during a training: weights, their average, optimizer and progress.

    Attributes:
        model: the network in training.
        step: optimisation steps done.
        history: the results of all finished epochs.
        dtype: the type in which convolutions and matrix products are computed.
        scaler: scales the loss if that is float16; otherwise it is not enabled.
        compiled: whether ``torch.compile`` is in use.
        loss: the user's own loss; None for the cross-entropy.
        selection: chooses each epoch's pictures; None unless the recipe sets ``data.skip_easy``.
        skipped: steps (from 1) that were skipped, see ``training.on_nonfinite``.
        best_epoch, best_weights: the epoch that is best on ``val``, and its weights; None without ``val``.
            The weights are also None if the recipe keeps the last epoch.
        start: what the training took from ``training.init``; None if that is empty.
        pretrained: where the pretrained weights of a network of timm come from, if it began with some.
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
        self.loss = own_loss(recipe)
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
            # No step sends running statistics: they are equal in all processes, or sent before an evaluation.
            new = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters  # from 2.13
            buffers: dict[str, Any] = {"forward_sync_buffers" if new else "broadcast_buffers": False}
            forward = DistributedDataParallel(
                self.model,
                device_ids=[device] if device.type == "cuda" else None,
                # The layers that `head_first` freezes have no gradient to wait for.
                find_unused_parameters=recipe.schedule.head_first > 0,
                **buffers,
            )
        self.hold_gradients = getattr(forward, "no_sync", contextlib.nullcontext)
        self.forward: Callable[[Tensor], Tensor] = forward
        self.compiled = recipe.training.compile and can_compile(device)
        if self.compiled:
            # Pictures have few different sizes, so each size gets its own compiled code.
            self.forward = torch.compile(forward, mode=recipe.training.compile_mode, dynamic=False)
        self.average = copy.deepcopy(self.model).eval() if recipe.training.ema_decay else None
        # In float16 the device decides whether a step counts, so AdamW's counter must be there too.
        self.optimizer = build_optimizer(recipe.optimizer, self.model, fused=self.scaler.is_enabled())
        self.step = 0
        # Losses of this epoch, on the device: this process's share of each step's mean over all processes.
        self.losses = torch.zeros(steps_per_epoch, device=device)
        self.hits = torch.zeros(
            (), dtype=torch.int64, device=device
        )  # correct answers in this epoch, for this process's pictures
        self.skipped: list[int] = []
        self.seconds_in_epoch = 0.0
        self.pictures_in_epoch = 0
        self.history: list[EpochResult] = []
        self.best_epoch: int | None = None
        self.best_weights: dict[str, Tensor] | None = None
        self.start: Start | None = None
        self.pretrained: dict[str, str] | None = None

    @property
    def precision(self) -> str:
        """The resolved ``training.precision``: ``fp32``, ``bf16`` or ``fp16``."""
        return next(name for name, dtype in DTYPES.items() if dtype == self.dtype)

    @property
    def bf16(self) -> bool:
        """Whether convolutions and matrix products are computed in bfloat16."""
        return self.dtype == torch.bfloat16

    @property
    def uses_kernels(self) -> bool:
        """Whether the training uses the CPU kernels, see :mod:`thumbnet.kernels`."""
        return self.device.type == "cpu" and self.bf16 and not self.compiled and load_kernels() is not None

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

    @property
    def lr(self) -> float:
        """The recipe's learning rate at the current step."""
        return self.recipe.optimizer.lr * factor_at(self.recipe.schedule, self.step, self.total_steps)

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
        self.history = [epoch_result_from_dict(result) for result in state["history"]]
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

    def raise_diverged(self, step: int, loss: float, problem: str = "") -> None:
        """Raise a :class:`DivergedError` for ``step``, counted from 1."""
        lr = self.recipe.optimizer.lr * factor_at(self.recipe.schedule, step - 1, self.total_steps)
        raise DivergedError(step, loss, lr, problem)

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


def _stored(model: nn.Module) -> list[Tensor]:
    """The parameters and buffers that are saved with a model, each one once even if it has two names."""
    return list({id(one): one for one in model.state_dict(keep_vars=True).values()}.values())


def epoch_result_from_dict(values: dict[str, Any]) -> EpochResult:
    """Rebuild a result from the output of ``dataclasses.asdict``."""
    scores = {key: None if values[key] is None else Score(**values[key]) for key in ("score", "sample")}
    return EpochResult(**{**values, **scores})


def build_state(
    recipe: Recipe,
    prepared: Prepared,
    class_names: Sequence[str],
    device: torch.device,
    world: World = ALONE,
    *,
    restored: bool = False,
    initial: AnyWeights | None = None,
) -> TrainingState:
    """Build a new network and its optimizer, seeded by the recipe.

    Args:
        recipe, prepared, class_names, device, world: of the training.
        restored: the caller restores a checkpoint, so weights to start from are not read.
        initial: what ``training.init`` names, if it has been read already.

    Raises:
        RunError: the weights in ``training.init`` do not exist or belong to another network, or pretrained
            weights cannot be downloaded.
        OutOfMemoryError: the network does not fit into the device's memory.
        NetworkError: a network of the user's own fails on pictures of a size that the training uses.
    """
    keep_freed_memory()
    with memory_guard(str(device), "building the network", "Use a narrower one: --set model.width=0.5"):
        with seeded(derive_seed(recipe.seed, "weights"), device):
            size = prepared.preprocessing.size
            sizes = [size, *smaller_sizes(recipe.schedule, size)]
            model = build_model(recipe.model, len(class_names), sizes=sizes)
        if isinstance(model, DataInitialised):
            model.initialise_from(first_pictures(prepared))
        if world.size == 1 and 1 in passes(recipe, prepared.train.taken):
            check_pass_of_one(model, sizes, recipe, prepared.train.taken)
        pretrained = None
        if recipe.model.pretrained is True and not restored:
            pretrained = begin_pretrained(model, recipe.model, len(class_names), size)
        start = None
        if recipe.training.init and not restored:
            multilabel = prepared.train.engine.labels.ndim == 2
            source = recipe.training.init
            start = begin_from(model, recipe.model, source, class_names, multilabel=multilabel, file=initial)
        weights = None
        if recipe.training.class_weights == "balanced":
            weights = balanced_weights(prepared.train.engine.labels, len(class_names))
        state = TrainingState(
            model, recipe, len(prepared.train), device, world, weights, prepared.train.selection
        )
        state.start = start
        state.pretrained = pretrained
        return state


def passes(recipe: Recipe, pictures: int) -> set[int]:
    """The numbers of pictures that the forward passes of an epoch have, if it has ``pictures`` pictures."""
    settings = recipe.training
    batch = min(settings.batch_size, pictures)
    batches = {batch, 0 if settings.drop_last else pictures % batch}
    micro = settings.micro_batch or batch
    return ({min(micro, one) for one in batches} | {one % micro for one in batches}) - {0}


def check_pass_of_one(
    model: nn.Module, sizes: Sequence[tuple[int, int]], recipe: Recipe, pictures: int
) -> None:
    """Check that the network can train on a single picture, which an epoch's last pass has.

    BatchNorm cannot normalise one value per channel, and a small picture may be reduced to that.

    Args:
        model: the network.
        sizes: heights and widths of its pictures.
        recipe, pictures: see :func:`passes`.

    Raises:
        RecipeError: the network cannot.
    """
    trying = copy.deepcopy(model).cpu().train()  # its running statistics change
    for height, width in sizes:
        try:
            with torch.no_grad():
                trying(torch.zeros(1, 3, height, width))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            key = "micro_batch" if recipe.training.micro_batch else "batch_size"
            size = getattr(recipe.training, key) + 1
            while 1 in passes(_with_training(recipe, **{key: size}), pictures):
                size += 1
            raise RecipeError(
                f"a forward pass of each epoch would have only 1 picture, and the network reduces {height}x"
                f"{width} pixels to one value per channel, which BatchNorm cannot normalise. Use parts of "
                f"another size: --{key.replace('_', '-')} {size}"
            ) from None


def _with_training(recipe: Recipe, **values: Any) -> Recipe:
    return replace(recipe, training=replace(recipe.training, **values))


def balanced_weights(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Class weights, inversely proportional to class size and 1 on average per picture: float32 [classes].

    Raises:
        SeveralLabelsError: the pictures have several labels each.
    """
    if labels.ndim == 2:
        raise SeveralLabelsError
    counts = torch.bincount(labels.cpu(), minlength=num_classes)
    return len(labels) / (int((counts > 0).sum()) * counts.clamp(min=1)).float()


def first_pictures(prepared: Prepared) -> torch.Tensor:
    """A random sample of training pictures, normalised but not augmented: float32 [N, 3, H, W]."""
    engine, normalise = prepared.train.engine, prepared.train.normalise
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(engine.labels), generator=generator)[:INITIAL_PICTURES]
    return torch.cat([normalise(images) for images in engine.fetch(chosen.split(1000))])
