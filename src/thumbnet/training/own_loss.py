"""The loss that a user wrote: how it is called, what it must return, and which settings go with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from dataclasses import replace
from operator import attrgetter

import torch
from torch import Tensor

from thumbnet.batches.own_augmentation import own_augmentation
from thumbnet.errors import ModelCodeError, OwnCodeError, RecipeError
from thumbnet.models.registry import find_builder, is_built_in
from thumbnet.recipes.functions import AUGMENTATIONS, LOSSES, Function
from thumbnet.recipes.networks import is_timm
from thumbnet.recipes.own_code import TEXT, failing, source_digest, type_and_shape
from thumbnet.recipes.recipe import Recipe

SMOOTHING = "training.label_smoothing"


def find_code(recipe: Recipe) -> None:
    """Find the network, the loss and the augmentation that ``recipe`` names, so that a training can begin.

    Raises:
        ModelCodeError: the user has neither registered one of them nor allowed its import path.
        OwnCodeError: the user's code cannot be imported, or is not what it should be.
        MissingExtraError: the network is one of timm, and timm is not installed.
    """
    find_builder(recipe.model.name)
    LOSSES.find(recipe.training.loss)
    own_augmentation(recipe.augment.custom)


def code_digests(recipe: Recipe) -> dict[str, str]:
    """The :func:`~thumbnet.recipes.own_code.source_digest` of the user's code, by the key that names it.

    The keys are ``model.name``, ``training.loss`` and ``augment.custom``. Code of thumbnet and timm, and code
    that cannot be found or read, has none.
    """
    finders: dict[str, Callable[[str], Function | None]] = {
        "model.name": _own_network,
        LOSSES.key: LOSSES.find,
        AUGMENTATIONS.key: AUGMENTATIONS.find,
    }
    digests = {}
    for key, find in finders.items():
        name = attrgetter(key)(recipe)
        with suppress(ModelCodeError, OwnCodeError):
            code = find(name)
            digest = None if code is None else source_digest(code, name)
            if digest is not None:
                digests[key] = digest
    return digests


def _own_network(name: str) -> Function | None:
    """The builder of a network of the user's own; None for one of thumbnet or timm."""
    return None if is_built_in(name) or is_timm(name) else find_builder(name)


def changed_code(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The keys of the user's code that has changed between two results of :func:`code_digests`.

    What one of them lacks is unknown, and counts as unchanged. So does code that was in a script and is in a
    module now: a digest of its text cannot be compared with one of its file.
    """
    return [
        key
        for key in before
        if key in now
        and before[key] != now[key]
        and before[key].startswith(TEXT) == now[key].startswith(TEXT)
    ]


def for_own_loss(recipe: Recipe, named: Set[str]) -> tuple[Recipe, list[str]]:
    """The recipe for a loss of the user's own, and notes; both unchanged for the cross-entropy.

    Label smoothing belongs to the cross-entropy. If the recipe has some, it becomes 0.

    Args:
        recipe: any recipe.
        named: the keys that the user set.

    Raises:
        RecipeError: the user asked for label smoothing as well.
    """
    smoothing, loss = recipe.training.label_smoothing, recipe.training.loss
    if not smoothing or not LOSSES.is_own(loss):
        return recipe, []
    if SMOOTHING in named:
        raise _no_smoothing(recipe)
    note = f"{SMOOTHING} is 0 instead of {smoothing:g}, because the loss {loss} is your own"
    return replace(recipe, training=replace(recipe.training, label_smoothing=0.0)), [note]


def own_loss(recipe: Recipe) -> OwnLoss | None:
    """The loss that ``training.loss`` names; None for the cross-entropy.

    Raises:
        ModelCodeError: it is not registered, and the user has not allowed its import path.
        OwnCodeError: its module cannot be imported, or does not contain such a function.
        RecipeError: the recipe has label smoothing as well.
    """
    function = LOSSES.find(recipe.training.loss)
    if function is None:
        return None
    if recipe.training.label_smoothing:
        raise _no_smoothing(recipe)
    return OwnLoss(recipe.training.loss, function)


def _no_smoothing(recipe: Recipe) -> RecipeError:
    return RecipeError(
        f"{SMOOTHING} is {recipe.training.label_smoothing:g}, but it belongs to the cross-entropy, and the "
        f"loss {recipe.training.loss} is your own. Smooth the labels in your function, and set {SMOOTHING}=0"
    )


class OwnLoss:
    """Calls a user's loss and checks what it returns.

    Args:
        name: its name in the recipe, for errors.
        function: see :func:`thumbnet.register_loss`.
    """

    def __init__(self, name: str, function: Function) -> None:
        self._name, self._function = name, function

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of each picture: float32 [B]; 0 for a picture that does not count.

        Args:
            logits: float32 [B, classes]. The function gets a copy, which it may change in place.
            labels: int64 [B], or int8 [B, classes] of 0 and 1 for several labels; negative for a picture that
                does not count. The function gets 0 in its place, and for several labels float32.

        Raises:
            OwnCodeError: the function fails, or returns something of another shape or type, or losses without
                a gradient.
        """
        targets = labels.clamp(min=0)
        if labels.ndim == 2:
            targets = targets.to(logits.dtype)
        shapes = f"logits of shape {list(logits.shape)} and targets of shape {list(targets.shape)}"
        with failing(f"the loss {self._name} fails on {shapes}"):
            losses = self._function(logits.clone(), targets)
        self._check(losses, logits)
        counts = labels >= 0 if labels.ndim == 1 else (labels >= 0).all(dim=1)
        return torch.where(counts, losses.float(), 0.0)

    def _check(self, losses: object, logits: Tensor) -> None:
        expected = f"expected the loss of each picture, floating point [{len(logits)}]"
        if not isinstance(losses, Tensor):
            raise OwnCodeError(f"the loss {self._name} returns a {type(losses).__name__}: {expected}")
        if losses.shape != (len(logits),) or not losses.is_floating_point():
            hint = ", without taking the mean (reduction='none')" if losses.ndim == 0 else ""
            raise OwnCodeError(f"the loss {self._name} returns {type_and_shape(losses)}: {expected}{hint}")
        if losses.device != logits.device:
            raise OwnCodeError(
                f"the loss {self._name} returns losses on {losses.device}: expected them on {logits.device}, "
                "like the logits"
            )
        if logits.requires_grad and torch.is_grad_enabled() and not losses.requires_grad:
            raise OwnCodeError(
                f"the loss {self._name} returns losses without a gradient, so nothing could be learned. "
                "Compute them from the logits with torch's functions, without argmax, detach or item"
            )
