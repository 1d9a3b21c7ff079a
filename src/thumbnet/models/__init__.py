"""The networks, and how to build one from a recipe's ``[model]``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from thumbnet.models.fastnet import FastNet, fastnet
from thumbnet.models.from_timm import timm_builder
from thumbnet.models.registry import Builder, build, find_builder, is_built_in, register_model
from thumbnet.models.resnet import ResidualBlock, ResNet, narrow_resnet, resnet18, resnet34
from thumbnet.recipes.networks import is_timm
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
    "register_model",
    "resnet18",
    "resnet34",
]


@runtime_checkable
class DataInitialised(Protocol):
    """A network that computes some of its weights from the training pictures before the first step."""

    def initialise_from(self, images: Tensor) -> None:
        """Set weights from ``images``: float32 [N, C, H, W], normalised."""


def build_model(
    settings: ModelSettings,
    num_classes: int,
    in_channels: int = 3,
    *,
    sizes: Sequence[tuple[int, int]] = (),
    builder: Builder | None = None,
) -> nn.Module:
    """Build the network that a recipe names: [B, in_channels, H, W] → logits [B, num_classes].

    Its weights are drawn from torch's global generator.

    Args:
        settings: the recipe's ``[model]``.
        num_classes: length of the logits.
        in_channels: number of channels of the pictures.
        sizes: (height, width) in pixels of the pictures that it has to classify, the full size first. A
            network that does not come with thumbnet is tried on a tiny batch of each size. A network of timm
            is built for the first one.
        builder: a class or function that builds the network, in place of the one that ``settings`` names.

    Raises:
        ModelCodeError: the network is not part of thumbnet, and the user has not allowed its code.
        MissingExtraError: it is a network of timm, and timm is not installed.
        NetworkError: the user's network or timm's cannot be imported or built, or it breaks the contract in
            :mod:`thumbnet.models.registry`.
    """
    if builder is None and is_timm(settings.name):
        builder = timm_builder(settings, sizes[0] if sizes else None)
    elif builder is None:
        builder = find_builder(settings.name)
        if is_built_in(settings.name):
            return builder(num_classes=num_classes, in_channels=in_channels, width=settings.width)
    return build(builder, settings.name, num_classes, in_channels, settings.width, sizes)


def count_parameters(weights: Mapping[str, Tensor], settings: ModelSettings, num_classes: int) -> int:
    """Count the parameters among a network's ``weights``. Running statistics do not count.

    Raises:
        ModelCodeError, NetworkError: as in :func:`build_model`.
    """
    learned = dict(build_model(settings, num_classes).named_parameters())
    return sum(tensor.numel() for name, tensor in weights.items() if name in learned)
