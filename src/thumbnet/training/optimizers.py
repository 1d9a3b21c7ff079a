"""Build a recipe's optimizer, with parameter groups by name pattern."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from thumbnet.errors import RecipeError
from thumbnet.recipes.settings import GroupSettings, OptimizerSettings
from thumbnet.training.muon import Muon


def build_optimizer(
    settings: OptimizerSettings, model: nn.Module, *, fused: bool = False
) -> torch.optim.Optimizer:
    """SGD, AdamW or Muon over the trainable parameters of ``model``.

    Each group keeps its full learning rate as ``base_lr``; :func:`set_learning_rate` scales that.

    Args:
        settings: the recipe's ``[optimizer]``.
        model: the network, on its device.
        fused: whether AdamW computes in one kernel, which also counts its steps on the device.

    Raises:
        RecipeError: a group's pattern matches no parameter.
    """
    groups = parameter_groups(settings, model)
    if settings.name == "adamw":
        first, second = settings.betas
        return torch.optim.AdamW(groups, lr=settings.lr, betas=(first, second), fused=fused)
    if settings.name == "muon":
        return Muon(groups, lr=settings.lr, momentum=settings.momentum)
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov)


def parameter_groups(settings: OptimizerSettings, model: nn.Module) -> list[dict[str, Any]]:
    """One group per pattern of the recipe, and one for all other parameters."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    wanted = [*settings.groups, GroupSettings(match="*")]
    members: list[list[str]] = [[] for _ in wanted]
    for name in trainable:
        first = next(i for i, group in enumerate(wanted) if fnmatchcase(name, group.match))
        members[first].append(name)
    groups = []
    for group, names in zip(wanted, members, strict=True):
        if not names and group.match != "*":
            raise RecipeError(
                f"recipe key 'optimizer.groups': the pattern {group.match!r} matches no parameter that is "
                f"still free. Parameters: {', '.join(trainable)}"
            )
        if names:
            lr = settings.lr if group.lr is None else group.lr
            decay = settings.weight_decay if group.weight_decay is None else group.weight_decay
            parameters = [trainable[name] for name in names]
            made = {"params": parameters, "lr": lr, "base_lr": lr, "weight_decay": decay}
            if settings.name != "adamw":
                made["momentum"] = settings.momentum if group.momentum is None else group.momentum
            groups.append(made)
    return groups


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to ``factor`` times its full one."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
