"""Build the state at the start of a training from its recipe and its data."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from thumbnet.batches.prepare import Prepared
from thumbnet.distributed import ALONE, World
from thumbnet.errors import RecipeError, SeveralLabelsError, memory_guard
from thumbnet.hardware import as_device, keep_freed_memory, seeded
from thumbnet.kernels.calls import agree_on_kernels
from thumbnet.models import DataInitialised, build_model
from thumbnet.models.fastnet import sees_colour
from thumbnet.recipes.recipe import Recipe
from thumbnet.runs.any_weights import AnyWeights
from thumbnet.seeds import derive_seed
from thumbnet.training.pretrained import begin_pretrained
from thumbnet.training.schedules import smaller_sizes
from thumbnet.training.state import TrainingState
from thumbnet.training.step import pass_sizes
from thumbnet.training.transfer import begin_from

INITIAL_PICTURES = 5000  # pictures for networks that initialise weights from data; more make no difference


def build_state(
    recipe: Recipe,
    prepared: Prepared,
    class_names: Sequence[str],
    device: torch.device | str,
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
    device = as_device(device)
    keep_freed_memory()
    if world.size > 1 and device.type == "cpu":
        agree_on_kernels(world)
    with memory_guard(str(device), "building the network", "Use a narrower one: --set model.width=0.5"):
        with seeded(derive_seed(recipe.seed, "weights"), device):
            size = prepared.preprocessing.size
            sizes = [size, *smaller_sizes(recipe.schedule, size)]
            model = build_model(recipe.model, len(class_names), sizes=sizes)
        if isinstance(model, DataInitialised):
            model.initialise_from(initial_pictures(prepared))
        if world.size == 1 and 1 in passes(recipe, prepared.train.taken):
            check_pass_of_one(model, sizes, recipe, prepared.train.taken)
        pretrained = None
        if recipe.model.pretrained is True and not restored:
            pretrained = begin_pretrained(model, recipe.model, len(class_names), size)
        start = None
        if recipe.training.init and not restored:
            multilabel = prepared.train.engine.labels.ndim == 2
            source = recipe.training.init
            in_colour = sees_colour(model)  # the new pictures, by what has just been computed from them
            start = begin_from(model, recipe.model, source, class_names, multilabel=multilabel, file=initial)
            start = replace(start, loses_colour=in_colour and not sees_colour(model))
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
    rest = 0 if settings.drop_last else pictures % batch
    batches = [batch, rest] if rest else [batch]
    return {size for own in batches for size in pass_sizes(own, own, settings.micro_batch, processes=1)}


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


def initial_pictures(prepared: Prepared) -> torch.Tensor:
    """A random sample of training pictures, normalised but not augmented: float32 [N, 3, H, W]."""
    engine, normalise = prepared.train.engine, prepared.train.normalise
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(engine.labels), generator=generator)[:INITIAL_PICTURES]
    return torch.cat([normalise(images) for images in engine.fetch(chosen.split(1000))])
