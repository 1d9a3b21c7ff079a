"""The networks, and how to build one from a recipe's ``[model]``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from thumbnet.errors import RecipeError, nearest
from thumbnet.models.fastnet import FastNet, fastnet
from thumbnet.models.resnet import ResidualBlock, ResNet, narrow_resnet, resnet18, resnet34
from thumbnet.recipes.settings import ModelSettings

__all__ = [
    "DataInitialised",
    "FastNet",
    "ResNet",
    "ResidualBlock",
    "build_model",
    "count_parameters",
    "fastnet",
    "narrow_resnet",
    "resnet18",
    "resnet34",
]

_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": resnet18,
    "resnet34": resnet34,
    **{f"resnet{depth}": partial(narrow_resnet, depth) for depth in (20, 32, 44, 56)},
    "fastnet": fastnet,
}


@runtime_checkable
class DataInitialised(Protocol):
    """A network that takes some of its weights from the training pictures before the training."""

    def initialise_from(self, images: Tensor) -> None:
        """Set weights from ``images``: float32 [N, C, H, W], normalised."""


def build_model(settings: ModelSettings, num_classes: int, in_channels: int = 3) -> nn.Module:
    """The network that a recipe asks for: [B, in_channels, H, W] → logits [B, num_classes].

    Its weights are drawn from torch's global generator.

    Raises:
        RecipeError: there is no network of that name.
    """
    builder = _BUILDERS.get(settings.name)
    if builder is None:
        raise RecipeError(f"there is no network {settings.name!r}. {nearest(settings.name, _BUILDERS)}")
    return builder(num_classes=num_classes, in_channels=in_channels, width=settings.width)


def count_parameters(weights: Mapping[str, Tensor], settings: ModelSettings, num_classes: int) -> int:
    """Parameters among a network's ``weights``: running statistics do not count."""
    learnt = dict(build_model(settings, num_classes).named_parameters())
    return sum(tensor.numel() for name, tensor in weights.items() if name in learnt)
