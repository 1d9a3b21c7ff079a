"""``fit`` computes what a plain training loop of the usual kind computes, to the bit, in float32.

:func:`plain_loop` is such a loop: about 60 lines of PyTorch that share no code with thumbnet's loop,
schedules, optimizers or augmentation. It gets the same network, the same order of the pictures and the same
random draws, because those are arbitrary. Everything that is computed from them has to agree.
"""

from __future__ import annotations

import copy
import fnmatch
import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thumbnet.batches.batches import TrainBatches
from thumbnet.batches.prepare import prepare
from thumbnet.data.splits import ArraySplit, Data
from thumbnet.recipes.recipe import Recipe, load_recipe
from thumbnet.training.build import balanced_weights
from thumbnet.training.fit import fit
from thumbnet.training.state import TrainingState

CPU = torch.device("cpu")
EPOCHS, BATCH = 4, 8
BASE = [
    "training.precision=fp32", f"training.epochs={EPOCHS}", f"training.batch_size={BATCH}", "training.drop_last=false",
    "augment.flip=none", "augment.translate=0", "augment.cutout=0", "optimizer.weight_decay=0", "optimizer.momentum=0",
    "optimizer.nesterov=false", "optimizer.lr=0.05", "schedule.name=constant", "schedule.warmup=0",
    "data.mean=[0.5, 0.4, 0.6]", "data.std=[0.2, 0.3, 0.25]", "data.image_size=24", "evaluation.every=0",
]  # fmt: skip


# --- the plain loop --------------------------------------------------------------------------------------


def plain_loop(
    model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe, given: TrainBatches
) -> tuple[list[Tensor], nn.Module | None]:
    """Train ``model``; return the loss of each step, and the average of the weights."""
    training, optimizer_settings = recipe.training, recipe.optimizer
    optimizer, full_rates = plain_optimizer(model, recipe)
    average = copy.deepcopy(model) if training.ema_decay else None
    mean, std = torch.tensor(recipe.data.mean), torch.tensor(recipe.data.std)
    offset, scale = mean.view(3, 1, 1) * 255, 1 / (std.view(3, 1, 1) * 255)
    weights = torch.ones(3)
    if training.class_weights == "balanced":
        weights = len(labels) / (3 * labels.bincount()).float()
    steps = len(labels) // BATCH if training.drop_last else -(-len(labels) // BATCH)
    losses, step, total = [], 0, steps * EPOCHS
    assert optimizer_settings.name in ("sgd", "adamw")
    for epoch in range(EPOCHS):
        order = given.shuffle(epoch)
        for number in range(steps):
            chosen = order[number * BATCH : (number + 1) * BATCH]
            draw = given.draw(chosen, epoch, epoch, number)
            batch = torch.stack(
                [
                    plain_augment(
                        images[index], recipe, bool(draw.flip[i]), draw.shift[i], draw.hole[i], mean
                    )
                    for i, index in enumerate(chosen.tolist())
                ]
            )
            batch = (batch.float() - offset) * scale
            if recipe.augment.brightness or recipe.augment.contrast:
                light = draw.light.view(-1, 2, 1, 1, 1)
                batch = batch + light[:, 0] * recipe.augment.brightness
                batch = batch * (1 + light[:, 1] * recipe.augment.contrast)
            batch = plain_resize(batch, recipe, step / total)
            factor = plain_factor(recipe, step, total)
            for group, rate in zip(optimizer.param_groups, full_rates, strict=True):
                group["lr"] = rate * factor
            optimizer.zero_grad()
            part = training.micro_batch or len(chosen)
            loss = torch.zeros(())
            for some, wanted in zip(batch.split(part), labels[chosen].split(part), strict=True):
                logits = model(some.contiguous(memory_format=torch.channels_last))
                each = F.cross_entropy(
                    logits, wanted, label_smoothing=training.label_smoothing, reduction="none"
                )
                summed = (each * weights[wanted]).sum() if training.class_weights == "balanced" else None
                if summed is None:
                    summed = F.cross_entropy(
                        logits, wanted, label_smoothing=training.label_smoothing, reduction="sum"
                    )
                share = summed / len(chosen)
                share.backward()
                loss += share.detach()
            optimizer.step()
            if average is not None:
                newest = 1 - min(training.ema_decay, (1 + step) / (10 + step))
                for old, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                    old.copy_(torch.lerp(old, new, newest) if old.is_floating_point() else new)
            losses.append(loss)
            step += 1
    return losses, average


def plain_optimizer(model: nn.Module, recipe: Recipe) -> tuple[torch.optim.Optimizer, list[float]]:
    """PyTorch's optimizer with one group per parameter, and each group's full learning rate."""
    wanted = recipe.optimizer
    groups: list[dict[str, Any]] = []
    for name, parameter in model.named_parameters():
        own = {"lr": wanted.lr, "weight_decay": wanted.weight_decay, "momentum": wanted.momentum}
        for group in wanted.groups:
            if fnmatch.fnmatchcase(name, group.match):
                own |= {key: getattr(group, key) for key in own if getattr(group, key) is not None}
                break
        groups.append({"params": [parameter], **own})
    rates = [group["lr"] for group in groups]
    if wanted.name == "adamw":
        for one in groups:
            del one["momentum"]
        return torch.optim.AdamW(groups, betas=(wanted.betas[0], wanted.betas[1])), rates
    return torch.optim.SGD(groups, lr=wanted.lr, momentum=wanted.momentum, nesterov=wanted.nesterov), rates


def plain_factor(recipe: Recipe, step: int, total: int) -> float:
    """The factor on the learning rate, as textbooks write it; a warm-up counts the middle of a step."""
    plan = recipe.schedule
    if (step + 0.5) / total < plan.warmup:
        risen = (step + 0.5) / total / plan.warmup
        if plan.name == "one-cycle":
            risen = (1 - math.cos(math.pi * risen)) / 2
        return plan.start + (1 - plan.start) * risen
    left = (step / total - plan.warmup) / (1 - plan.warmup)
    if plan.name == "multistep":
        return plan.factor ** sum(step >= round(total * milestone) for milestone in plan.milestones)
    heights = {"constant": 1.0, "linear": 1 - left}
    height = heights.get(plan.name, (1 + math.cos(math.pi * left)) / 2)
    return 1.0 if plan.name == "constant" else plan.end + (1 - plan.end) * height


def plain_augment(
    image: Tensor, recipe: Recipe, flip: bool, shift: Tensor, hole: Tensor, mean: Tensor
) -> Tensor:
    """Mirror, translate and cut one picture, uint8 [3, H, W], as tutorials do: pad, then crop."""
    settings, (height, width) = recipe.augment, image.shape[1:]
    if flip:
        image = image.flip(2)
    if settings.translate:
        reach = settings.translate
        mode = "reflect" if settings.translate_fill == "reflect" else "constant"
        padded = F.pad(image[None].float(), [reach] * 4, mode=mode)[0].to(torch.uint8)
        top, left = (reach - shift).tolist()
        image = padded[:, top : top + height, left : left + width]
    if settings.cutout:
        row, column = (hole - settings.cutout // 2).tolist()
        image = image.clone()
        fill = (mean * 255).round().to(torch.uint8)
        rows = slice(max(row, 0), max(row + settings.cutout, 0))
        image[:, rows, max(column, 0) : max(column + settings.cutout, 0)] = fill.view(3, 1, 1)
    return image


def plain_resize(batch: Tensor, recipe: Recipe, done: float) -> Tensor:
    """Smaller pictures for the first part of the training."""
    plan = recipe.schedule
    if done >= plan.small_until:
        return batch
    side = plan.small_sides[int(done / plan.small_until * len(plan.small_sides))]
    size = (round(batch.shape[2] * side), round(batch.shape[3] * side))
    return F.interpolate(batch, size, mode="bilinear", antialias=True)


# --- the comparison --------------------------------------------------------------------------------------


def network(*, normalised: bool = True) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4) if normalised else nn.Identity(), nn.ReLU()]
    more = [nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, 3)]
    return nn.Sequential(*layers, *more).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@functools.cache
def noise() -> Data:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (21, 24, 24, 3), dtype=np.uint8)
    labels = np.array([0] * 12 + [1] * 6 + [2] * 3)
    images[..., 1] = np.minimum(images[..., 1], 80) + 60 * labels[:, None, None].astype(np.uint8)
    return Data("noise", "made", ("a", "b", "c"), {"train": ArraySplit(images, labels, "train")})


@functools.cache
def both(
    *overrides: str, normalised: bool = True
) -> tuple[list[Tensor], list[Tensor], TrainingState, nn.Module, nn.Module | None]:
    """The losses of all steps by ``fit`` and by the plain loop, and what both have trained."""
    data, recipe = noise(), load_recipe("tutorial", [*BASE, *overrides])
    batches = prepare(data, recipe, CPU).train
    weights = None
    if recipe.training.class_weights == "balanced":
        weights = balanced_weights(batches.engine.labels, 3)
    state = TrainingState(network(normalised=normalised), recipe, len(batches), CPU, class_weights=weights)
    found: list[Tensor] = []
    for _ in fit(state, batches, on_step=lambda s: found.append(state.losses[s.step_in_epoch - 1].clone())):
        pass
    split = data.splits["train"]
    assert isinstance(split, ArraySplit)
    images = torch.from_numpy(split.images).permute(0, 3, 1, 2)
    plain = network(normalised=normalised)
    expected, average = plain_loop(plain, images, torch.from_numpy(split.labels), recipe, batches)
    return found, expected, state, plain, average


FEATURES = {
    "sgd": [],
    "momentum": ["optimizer.momentum=0.9"],
    "nesterov": ["optimizer.momentum=0.9", "optimizer.nesterov=true"],
    "weight decay": ["optimizer.weight_decay=0.05", "optimizer.momentum=0.5"],
    "adamw": ["optimizer.name=adamw", "optimizer.lr=0.01", "optimizer.weight_decay=0.1"],
    "betas": ["optimizer.name=adamw", "optimizer.lr=0.01", "optimizer.betas=[0.8, 0.95]"],
    "groups": [
        "optimizer.momentum=0.9", "optimizer.weight_decay=0.01",
        'optimizer.groups=[{match="*.bias", lr=0.2, weight_decay=0.0}, {match="5.*", momentum=0.5}]',
    ],
    "adamw in groups": ["optimizer.name=adamw", "optimizer.lr=0.01", 'optimizer.groups=[{match="1.*", lr=0.1}]'],
    "multistep": ["schedule.name=multistep", "schedule.milestones=[0.5, 0.75]", "schedule.factor=0.2"],
    "cosine": ["schedule.name=cosine", "schedule.end=0.01"],
    "linear": ["schedule.name=linear"],
    "one-cycle": ["schedule.name=one-cycle", "schedule.warmup=0.3", "schedule.start=0.1", "schedule.end=0.001"],
    "warm-up": ["schedule.name=cosine", "schedule.warmup=0.4", "schedule.start=0.2"],
    "label smoothing": ["training.label_smoothing=0.1"],
    "class weights": ["training.class_weights=balanced"],
    "class weights and smoothing": ["training.class_weights=balanced", "training.label_smoothing=0.2"],
    "random flips": ["augment.flip=random"],
    "alternating flips": ["augment.flip=alternating"],
    "translation": ["augment.translate=3", "augment.translate_fill=reflect"],
    "translation over black": ["augment.translate=4", "augment.translate_fill=zero"],
    "cutout": ["augment.cutout=7"],
    "light": ["augment.brightness=0.3", "augment.contrast=0.2"],
    "all augmentation": ["augment.flip=random", "augment.translate=2", "augment.cutout=6", "augment.contrast=0.1"],
    "drop last": ["training.drop_last=true"],
    "small pictures first": ["schedule.small_until=0.5", "schedule.small_sides=[0.7, 0.85]"],
    "averaged weights": ["training.ema_decay=0.9", "optimizer.momentum=0.9"],
    "micro-batches": ["training.micro_batch=3"],
    "balanced sampling": ["data.sampling=balanced"],
}  # fmt: skip


@pytest.mark.parametrize("feature", FEATURES)
def test_fit_has_the_losses_and_weights_of_a_plain_loop_to_the_bit(feature: str) -> None:
    found, expected, state, plain, average = both(*FEATURES[feature])
    assert [float(loss) for loss in found] == [float(loss) for loss in expected]
    pairs = [(state.model, plain)]
    if average is not None:
        assert state.average is not None
        pairs.append((state.average, average))
    for ours, theirs in pairs:
        for name, tensor in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], tensor), name


def test_each_feature_changes_the_losses() -> None:
    """Otherwise the comparison would prove nothing."""
    plain = [float(loss) for loss in both()[1]]
    same = []
    for name, overrides in FEATURES.items():
        losses = [float(loss) for loss in both(*overrides)[1]]
        if losses == plain:
            same.append(name)
    assert same == ["sgd"]


def test_micro_batches_give_the_losses_of_the_whole_batch_up_to_rounding() -> None:
    """Without BatchNorm, which normalises over one micro-batch only."""
    whole = both(normalised=False)[1]
    parts = both("training.micro_batch=3", normalised=False)[0]
    assert torch.allclose(torch.stack(parts), torch.stack(whole), rtol=1e-5)
