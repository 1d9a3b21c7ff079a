"""Train only the last layer, on the features that a trained network computes: ``training.frozen``.

The network sees every training picture once, as it is and, if the recipe mirrors, mirrored. What reaches its
last layer are the features; they are kept in the cache. The last layer is then a multinomial logistic
regression on them (binary for several labels per picture), with weights held small by L2. Its loss is convex,
so L-BFGS finds the minimum without a learning rate, and the same features always give the same layer.

How strong L2 should be is chosen by the loss on held-out pictures: those of ``val``, or else a fifth of each
class, which are trained on again once it is chosen. Copies and pictures of one group are on the same side.
Pictures that are not new to the network choose nothing (:mod:`thumbnet.training.judges`), because their
features tell the classes too well.

The layer goes back into the network, so the result is a run like any other.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from thumbnet.batches.batches import EvalBatches
from thumbnet.batches.decoding import cached_array
from thumbnet.batches.engines import Engine
from thumbnet.batches.leaks import belonging
from thumbnet.batches.prepare import Prepared
from thumbnet.classifiers.logits import predict_logits
from thumbnet.data.folds import fold_numbers, rarest_labels
from thumbnet.data.splits import Split
from thumbnet.distributed import World
from thumbnet.errors import NetworkError, RecipeError, RunError, memory_guard
from thumbnet.hardware import seeded
from thumbnet.models.registry import head_name, is_of_head
from thumbnet.recipes.recipe import Recipe
from thumbnet.recipes.settings import (
    AUTO,
    AugmentSettings,
    OptimizerSettings,
    ScheduleSettings,
    TrainingSettings,
)
from thumbnet.runs.any_weights import AnyWeights
from thumbnet.runs.weights import weights_digest
from thumbnet.seeds import derive_seed
from thumbnet.training.epochs import EpochResult, Score
from thumbnet.training.fit import StepResult, fit
from thumbnet.training.judges import find_judges
from thumbnet.training.state import TrainingState
from thumbnet.training.step import count_hits, summed_loss

# Candidates for L2, strongest first: the loss of a picture plus l2 / 2 times the sum of the squared weights,
# for features of variance 1.
L2 = tuple(10 ** (-exponent / 2) for exponent in range(11))  # 1 to 1e-5
WORSE_BEFORE_END = 2  # candidates in a row that are worse than the best: weaker ones are worse still
HELD_OUT = 5  # a fifth of the pictures
ITERATIONS = 200  # of L-BFGS per candidate; each starts where the last one ended
AT_ONCE = 64 << 20  # bytes of features that are copied from the device together

# Settings that a frozen training does not use, and why.
_NO_RATES = "the last layer is the minimum of a convex loss, found without a learning rate"
_NO_CHANGES = "every picture passes the network as it is, and mirrored unless augment.flip is none"
_NO_CHOICE = "there is only one epoch, so none is chosen"
_UNUSED = {
    **{f"optimizer.{one.name}": _NO_RATES for one in fields(OptimizerSettings)},
    **{f"schedule.{one.name}": _NO_RATES for one in fields(ScheduleSettings)},
    **{f"augment.{one.name}": _NO_CHANGES for one in fields(AugmentSettings) if one.name != "flip"},
    **{f"training.{key}": _NO_CHOICE for key in ("patience", "keep", "choose_by")},
}
_HARMLESS = {"training.keep": "last"}  # what a frozen training does in any case


def check_frozen(recipe: Recipe, named: frozenset[str], minutes: float | None, world: World) -> None:
    """Check that a recipe with ``training.frozen`` can be trained like this.

    Args:
        recipe: the requested recipe; one that is not frozen passes.
        named: the keys that options and ``--set`` name.
        minutes: the time for the training, if the user gives one.
        world: the processes of the training.

    Raises:
        RecipeError: it names no trained network, or a setting has no meaning for it.
    """
    if not recipe.training.frozen:
        return
    if not recipe.training.init:
        raise RecipeError(
            f"the recipe {recipe.name} trains only the last layer, on the features of a trained network. "
            "Name that network: --init RUN"
        )
    if minutes is not None:
        raise RecipeError(
            f"the recipe {recipe.name} passes the pictures through the network once, however long that "
            "takes: leave out --minutes"
        )
    if world.size > 1:
        raise RecipeError(f"the recipe {recipe.name} trains in one process: start it without torchrun")
    if recipe.data.sampling != "uniform":
        raise RecipeError(
            "data.sampling = 'balanced' does not go with training.frozen, which uses every picture once. "
            "Weight the classes instead: --set training.class_weights=balanced"
        )
    if recipe.data.skip_easy:
        raise RecipeError(
            "data.skip_easy does not go with training.frozen, which uses every picture: set it to 0"
        )
    _check_used(recipe, named)


def _check_used(recipe: Recipe, named: frozenset[str]) -> None:
    """Check that no option or ``--set`` names anything that a frozen training does not use.

    What a file names may come from the recipe that it extends, and the file of a run names every setting. A
    default value does no harm, and neither does keeping the last epoch.

    Raises:
        RecipeError: a named setting has a value that would do nothing.
    """
    usual = Recipe()
    for key, why in _UNUSED.items():
        value, default = (attrgetter(key)(one) for one in (recipe, usual))
        if key in named and value not in (default, _HARMLESS.get(key, default)):
            raise RecipeError(
                f"{key} = {value!r} does not go with training.frozen: {why}. Leave it out, or train all "
                "layers with another recipe"
            )


def with_network_of_init(recipe: Recipe, named: frozenset[str], initial: AnyWeights | None) -> Recipe:
    """A frozen recipe with the network and the preprocessing of the run that it starts from.

    Frozen layers expect pictures of the size, and normalised in the way, that they were trained with. A file
    that thumbnet did not write says nothing about that, so the recipe stays as it is.

    Args:
        recipe: any recipe; one that is not frozen is returned as it is.
        named: the keys that the user set.
        initial: what ``training.init`` names; None if that is empty.

    Raises:
        RecipeError: the user set one of them to another value than ``auto``.
    """
    if not recipe.training.frozen or initial is None or initial.info is None:
        return recipe
    info = initial.info
    pre = info.preprocessing
    data: dict[str, Any] = {
        "image_size": f"{pre.size[0]}x{pre.size[1]}",
        "fit": pre.fit,
        "mean": pre.mean,
        "std": pre.std,
        "background": pre.background,
    }
    data |= {} if pre.range is None else {"range": pre.range}
    for key, value in data.items():
        given = getattr(recipe.data, key)
        same = given in (AUTO, value) or (key == "image_size" and _in_full(given) == value)
        if f"data.{key}" in named and not same:
            raise RecipeError(
                f"data.{key} is {given!r}, but the frozen network was trained with {value!r}: leave it out"
            )
    stem = recipe.model.stem
    if "model.stem" in named and AUTO not in (stem, info.model.stem) and stem != info.model.stem:
        raise RecipeError(
            f"model.stem is {stem!r}, but the frozen network has {info.model.stem!r}: leave it out"
        )
    own = {key: getattr(recipe.model, key) for key in ("name", "width") if named & {"model", f"model.{key}"}}
    model = replace(info.model, **own)  # begin_from refuses another network
    return replace(recipe, data=replace(recipe.data, **data), model=model)


def _in_full(size: str) -> str:
    """``"32"`` → ``"32x32"``."""
    return size if "x" in size.lower() else f"{size}x{size}"


def train_epochs(state: TrainingState, prepared: Prepared, **callbacks: Any) -> Iterator[EpochResult]:
    """:func:`fit` on the training pictures, or :func:`fit_last_layer` if the recipe freezes the rest."""
    if state.recipe.training.frozen:
        callbacks.pop("evaluate_sample", None)
        return fit_last_layer(state, prepared, **callbacks)
    return fit(state, prepared.train, **callbacks)


def fit_last_layer(
    state: TrainingState,
    prepared: Prepared,
    *,
    evaluate: Callable[[nn.Module], Score] | None = None,
    on_step: Callable[[StepResult], None] | None = None,
    on_note: Callable[[str], None] = lambda text: None,
) -> Iterator[EpochResult]:
    """Find the last layer of ``state.model``, in place. The arguments are those of :func:`fit`.

    A step is a batch of pictures that passes the network. If a training is interrupted, it begins again.

    Yields:
        The result of the only epoch. Its learning rate is 0.

    Raises:
        NetworkError: the logits are not a linear function of what reaches the last layer.
        RunError: not all other layers have trained weights, or the features are not finite.
    """
    if state.is_over:
        return
    if state.start is not None and not state.start.body_is_whole:
        raise RunError(
            f"training.frozen needs trained weights for all layers but the last, and {state.start.source} "
            f"lacks some. Left new: {', '.join(state.start.left_new)}. Train all layers instead: "
            "--recipe small or resnet18"
        )
    started = time.perf_counter()
    state.step = 0
    state.model.eval()
    device = str(state.device)
    with memory_guard(device, "computing features", "Use smaller batches: --set training.batch_size=100"):
        head, scale = last_layer(state.model, prepared)
        report = _StepReporter(state, on_step)
        seen = features(state, prepared.train.engine, prepared.splits["train"], prepared, report)
    problem = Problem.of(seen, prepared.train.engine.labels, state, head.bias is not None)
    with memory_guard(
        "this computer", "fitting the last layer", "Use fewer pictures: --set data.subset_size=N"
    ):
        l2, state.l2_chosen_on = _chosen_l2(problem, state, prepared, on_note)
        weight, bias = problem.minimum(l2)
    with torch.no_grad():
        head.weight.copy_(weight / scale)
        if head.bias is not None:
            head.bias.copy_(bias / scale)
    state.step = state.total_steps
    seconds = time.perf_counter() - started
    plain = seen[0] @ weight.T + bias
    count = len(problem.labels) // len(seen)
    result = EpochResult(
        epoch=1,
        step=state.step,
        loss=float(problem.loss(seen.flatten(0, 1) @ weight.T + bias)),
        lr=0.0,
        seconds=seconds,
        pictures_per_second=count / seconds if seconds else math.inf,
        score=None if evaluate is None else evaluate(state.model),
        train_accuracy=int(count_hits(plain, problem.labels[:count])) / count,
    )
    state.close_epoch(result)
    yield result


class _StepReporter:
    """Reports each batch of training pictures that has passed the network as a step."""

    def __init__(self, state: TrainingState, on_step: Callable[[StepResult], None] | None) -> None:
        self._state, self._on_step, self._pictures = state, on_step, 0

    def __call__(self, pictures: int) -> None:
        state = self._state
        state.step = min(state.step + 1, state.total_steps)
        self._pictures += pictures
        if self._on_step is not None:
            total = state.total_steps
            self._on_step(StepResult(1, state.step, total, state.step, total, self._pictures, None))


def last_layer(model: nn.Module, prepared: Prepared) -> tuple[nn.Linear, float]:
    """The last layer, and the constant that its output is multiplied by to give the logits.

    The network is tried on two pictures. ``model`` is in eval mode.

    Raises:
        NetworkError: the last layer is not linear, or the logits are not its output times a constant.
    """
    head = model.get_submodule(head_name(model))
    if type(head) is not nn.Linear:
        raise NetworkError(
            f"training.frozen needs a last layer of type nn.Linear; {head_name(model)} is a "
            f"{type(head).__name__}. Train all layers instead, with another recipe"
        )
    kept = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    outputs: list[Tensor] = []
    hook = head.register_forward_hook(lambda layer, inputs, output: outputs.append(output.cpu().double()))
    engine, normalise = prepared.train.engine, prepared.train.normalise
    try:
        with torch.no_grad(), seeded(0):
            # Its own weights may be zeros, which would hide the constant. Large ones show what is not linear.
            for tensor in head.parameters():
                tensor.copy_(100 * torch.randn(tensor.shape))
            images = _first_pictures(engine, normalise)
            logits = model(images).cpu().double()
    finally:
        hook.remove()
        head.load_state_dict(kept)
    output = outputs[0] if outputs else torch.zeros_like(logits)
    scale = float((logits * output).sum() / output.square().sum().clamp(min=1e-30))
    same = len(outputs) == 1 and output.shape == logits.shape and scale != 0
    if not same or not torch.allclose(
        logits, scale * output, rtol=1e-3, atol=1e-4 * float(logits.abs().max())
    ):
        raise NetworkError(
            f"training.frozen needs logits that are the output of {head_name(model)}, perhaps times a "
            "constant. Train all layers instead, with another recipe"
        )
    return head, scale


def _first_pictures(engine: Engine, normalise: Callable[[Tensor], Tensor]) -> Tensor:
    """The first two pictures of a split, or its only one, normalised: float32 [1 or 2, 3, H, W]."""
    return normalise(next(iter(engine.fetch([torch.arange(min(2, len(engine.labels)))]))))


def features(
    state: TrainingState,
    engine: Engine,
    split: Split,
    prepared: Prepared,
    on_batch: Callable[[int], None] = lambda pictures: None,
) -> Tensor:
    """What reaches the last layer for each view of each picture: float32 [views, N, features], on the CPU.

    The views are the picture and, if ``augment.flip`` is on, its mirror image. The cache keeps the result.
    Its key contains the features of the first two pictures, which are always computed: a network whose code
    has changed computes other ones from the same weights.
    """
    model, size = state.model, prepared.train.batch_size
    flips = (False, True) if state.recipe.augment.flip != "none" else (False,)
    head = model.get_submodule(head_name(model))
    assert isinstance(head, nn.Linear)
    shape = (len(flips), len(engine.labels), head.in_features)

    def reaching_head(images: Tensor) -> Tensor:
        found: list[Tensor] = []
        hook = head.register_forward_pre_hook(lambda layer, inputs: found.append(inputs[0].float()))
        try:
            predict_logits(model, images, dtype=state.dtype)
        finally:
            hook.remove()
        return found.pop()

    def compute() -> np.ndarray:
        made, start = torch.empty(shape), 0
        waiting: list[Tensor] = []  # [views, B, features] of each batch, on the device

        def keep() -> None:
            nonlocal start
            together = torch.cat(waiting, dim=1).cpu()  # makes the host wait for a GPU
            made[:, start : start + together.shape[1]] = together
            start += together.shape[1]
            waiting.clear()

        for batch in EvalBatches(engine, prepared.train.normalise, batch_size=size).epoch():
            views = [batch.images.flip(-1) if flip else batch.images for flip in flips]
            waiting.append(torch.stack([reaching_head(view) for view in views]))
            if sum(one.nbytes for one in waiting) >= AT_ONCE:
                keep()
            on_batch(len(batch.labels))
        if waiting:
            keep()
        return made.numpy()

    probe = reaching_head(_first_pictures(engine, prepared.train.normalise)).cpu().numpy().tobytes()
    depends = (
        f"{_body_digest(model)} {state.recipe.model} {hashlib.blake2b(probe, digest_size=16).hexdigest()} "
        f"{prepared.preprocessing} {flips} {state.dtype} {state.device.type} {size}"
    )
    what = f"features {depends} {torch.__version__}"
    made = torch.from_numpy(cached_array(split, what, shape, compute))
    if not bool(torch.isfinite(made).all()):
        raise RunError(f"the network of {state.recipe.training.init} computes features that are not finite")
    return made


def _body_digest(model: nn.Module) -> str:
    """A digest of all weights but those of the last layer."""
    body = {name: one.cpu() for name, one in model.state_dict().items() if not is_of_head(model, name)}
    return weights_digest(body, {"network": type(model).__qualname__})


@dataclass
class Problem:
    """A logistic regression.

    Attributes:
        inputs: the features of all views of all pictures, float32 [M, features], each with variance 1.
        labels: of each row of ``inputs``, as in :func:`summed_loss`.
        settings: for the label smoothing.
        class_weights: float32 [classes], or None for 1.
        centre, spread: what was subtracted from each feature and what it was divided by, float32 [features].
            Without a bias nothing is subtracted, because it could not be added again.
        has_bias: whether the layer has a bias.
        start: the weights [classes, features] and biases [classes] to start from.
    """

    inputs: Tensor
    labels: Tensor
    settings: TrainingSettings
    class_weights: Tensor | None
    centre: Tensor
    spread: Tensor
    has_bias: bool
    start: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, seen: Tensor, labels: Tensor, state: TrainingState, has_bias: bool) -> Problem:
        """The problem of features, float32 [views, N, features], and the labels of the N pictures."""
        rows = seen.flatten(0, 1)
        centre = rows.mean(dim=0) if has_bias else torch.zeros(rows.shape[1])
        spread = (rows - centre).square().mean(dim=0).sqrt().clamp(min=1e-6)
        labels = torch.cat([labels] * len(seen))
        head = state.model.get_submodule(head_name(state.model))
        assert isinstance(head, nn.Linear)
        start = torch.zeros(head.out_features, rows.shape[1]), torch.zeros(head.out_features)
        weights = None if state.class_weights is None else state.class_weights.cpu()
        settings = state.recipe.training
        return cls((rows - centre) / spread, labels, settings, weights, centre, spread, has_bias, start)

    def part(self, rows: Tensor) -> Problem:
        """The same with only these rows, bool [M]."""
        return replace(self, inputs=self.inputs[rows], labels=self.labels[rows])

    def loss(self, logits: Tensor) -> Tensor:
        """The mean loss of the rows, float32 []."""
        return summed_loss(logits, self.labels, self.settings, self.class_weights) / len(self.labels)

    def solve(self, l2: float) -> tuple[Tensor, Tensor]:
        """The minimum for scaled features. The next call starts there."""
        weight, bias = (one.clone().requires_grad_() for one in self.start)
        free = [weight, bias] if self.has_bias else [weight]
        search = torch.optim.LBFGS(
            free,
            max_iter=ITERATIONS,
            tolerance_grad=1e-5,
            tolerance_change=1e-8,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            search.zero_grad()
            loss = self.loss(self.inputs @ weight.T + bias) + l2 / 2 * weight.square().sum()
            loss.backward()
            return loss

        search.step(closure)
        self.start = weight.detach(), bias.detach()
        return self.start

    def minimum(self, l2: float) -> tuple[Tensor, Tensor]:
        """Weights [classes, features] and biases [classes] for the features themselves, float32."""
        weight, bias = self.solve(l2)
        weight = weight / self.spread
        return weight, bias - weight @ self.centre


def _chosen_l2(
    problem: Problem, state: TrainingState, prepared: Prepared, on_note: Callable[[str], None]
) -> tuple[float, str]:
    """The candidate with the smallest loss on held-out pictures that are new to the network.

    The second value is the split that they are of. If they are too few, it is empty, and the candidate is the
    one in the middle.
    """
    asked: np.ndarray | None = None
    if "val" in prepared.evaluation:
        engine, split, where = prepared.evaluation["val"].engine, "val", "val"
        seen = features(state, engine, prepared.splits["val"], prepared).flatten(0, 1)
        views = len(seen) // len(engine.labels)
        held = replace(
            problem,
            inputs=(seen - problem.centre) / problem.spread,
            labels=torch.cat([engine.labels] * views),
        )
        search = problem
    else:
        engine, split, where = prepared.train.engine, "train", "the training split"
        views = len(problem.labels) // len(engine.labels)
        together = belonging(engine, prepared.groups.get("train"))
        chosen = held_out(engine.labels, state.recipe.seed, together)
        held, search, asked = problem, problem.part(~chosen.repeat(views)), chosen.numpy()
    judges = find_judges(prepared, split, asked)
    reasons = judges.reasons(state.recipe.training.init, "pictures to choose L2 on")
    if judges.unsure or not judges.enough:
        middle = L2[len(L2) // 2]
        on_note(f"last layer: {reasons or 'too few pictures to choose L2 on'}, so L2 is {middle:.2g}")
        return middle, ""
    held = held.part(torch.from_numpy(judges.fair).repeat(views))
    losses: list[float] = []
    for l2 in L2:
        weight, bias = search.solve(l2)
        losses.append(float(held.loss(held.inputs @ weight.T + bias)))
        if len(losses) - 1 - int(np.argmin(losses)) >= WORSE_BEFORE_END:
            break
    best = L2[int(np.argmin(losses))]
    left_out = f" ({reasons})" if reasons else ""
    pictures = f"{len(judges.pictures):,} held-out pictures of {where}"
    on_note(f"last layer: L2 {best:.2g}, chosen on {pictures}{left_out}")
    return best, split


def held_out(labels: Tensor, seed: int, together: np.ndarray | None = None) -> Tensor:
    """A random fifth of each class, or of all pictures if they have several labels: bool [N].

    Args:
        labels: int64 [N], or 0 and 1, [N, classes], for several labels per picture.
        seed: that of the recipe.
        together: int [N]; pictures with equal numbers, such as those of one person, are on the same side. It
            is then a fold of :func:`~thumbnet.data.folds.fold_numbers`.
    """
    seed = derive_seed(seed, "held out")
    several = labels.ndim == 2
    if together is not None and len(np.unique(together)) < len(together):
        balanced = rarest_labels(labels.numpy()) if several else labels.numpy()
        numbers = fold_numbers(balanced, together, HELD_OUT, seed)
        return torch.from_numpy((numbers > 0) & (numbers == min(set(numbers.tolist()) - {0}, default=0)))
    generator = torch.Generator().manual_seed(seed)
    groups: Sequence[Tensor] = (
        [torch.arange(len(labels))]
        if several
        else [(labels == label).nonzero().flatten() for label in labels.unique()]
    )
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for group in groups:
        chosen[group[torch.randperm(len(group), generator=generator)[: len(group) // HELD_OUT]]] = True
    return chosen
