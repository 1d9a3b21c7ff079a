"""Build a recipe's optimizer, with parameter groups by name pattern, and set its learning rates.

The learning rates are numbers on the host, or tensors on the device for steps that a CUDA graph repeats.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from thumbnet.errors import RecipeError, some_of
from thumbnet.models.registry import is_of_head
from thumbnet.recipes.settings import HEAD, VECTORS, GroupSettings, OptimizerSettings
from thumbnet.training.muon import Muon


def build_optimizer(
    settings: OptimizerSettings, model: nn.Module, *, fused: bool = False
) -> torch.optim.Optimizer:
    """SGD, AdamW or Muon over the trainable parameters of ``model``.

    Each group keeps its full learning rate as ``base_lr``; :func:`set_learning_rate` scales that.

    Args:
        settings: the recipe's ``[optimizer]``.
        model: the network, on its device.
        fused: whether AdamW computes in one kernel, which also counts its steps on the device. Otherwise
            PyTorch chooses: on a GPU it updates all parameters at once, without a loop in Python.

    Raises:
        RecipeError: a group's pattern matches no parameter.
    """
    groups = parameter_groups(settings, model)
    if settings.name == "adamw":
        first, second = settings.betas
        return torch.optim.AdamW(groups, lr=settings.lr, betas=(first, second), fused=fused or None)
    if settings.name == "muon":
        return Muon(groups, lr=settings.lr, momentum=settings.momentum, filters=normalised_filters(model))
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov)


def parameter_groups(settings: OptimizerSettings, model: nn.Module) -> list[dict[str, Any]]:
    """One group per pattern of the recipe, and one for all other parameters."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    wanted = [*settings.groups, GroupSettings(match="*")]
    members: list[list[str]] = [[] for _ in wanted]
    for name in trainable:
        first = next(i for i, group in enumerate(wanted) if _matches(group.match, name, model))
        members[first].append(name)
    groups = []
    for group, names in zip(wanted, members, strict=True):
        if not names and group.match != "*":
            raise RecipeError(
                f"recipe key 'optimizer.groups': the pattern {group.match!r} matches no parameter that is "
                f"still free. Parameters: {', '.join(trainable)}. Set the list without it; "
                "for no groups: --set optimizer.groups=[]"
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


def normalised_filters(model: nn.Module) -> list[Tensor]:
    """The filters that a normalisation seems to follow: those of convolutions without a bias.

    A bias would have no effect there, so networks leave it out. Elsewhere, as in squeeze-and-excitation or in
    the patches of a transformer, the norm of the filters is a part of what the network has learned, and Muon
    would change it in its first step at any learning rate.
    """
    return [part.weight for part in model.modules() if isinstance(part, nn.Conv2d) and part.bias is None]


def note_on_filters(settings: OptimizerSettings, model: nn.Module) -> list[str]:
    """Say which filters Muon leaves to SGD; it leaves none of thumbnet's own networks."""
    filters = set(normalised_filters(model))
    left = [
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim == 4 and parameter.requires_grad and parameter not in filters
    ]
    if settings.name != "muon" or not left:
        return []
    return [
        f"Muon steps the filters of convolutions without a bias, and leaves {some_of(left)} to SGD. If a "
        "normalisation follows, the convolution needs no bias: with bias=False, Muon steps its filters too"
    ]


def _matches(pattern: str, name: str, model: nn.Module) -> bool:
    """Whether a group's pattern stands for the parameter called ``name``."""
    if pattern == HEAD:
        return is_of_head(model, name)
    if pattern == VECTORS:
        return model.get_parameter(name).ndim == 1
    return fnmatchcase(name, pattern)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to ``factor`` times its full one."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def make_device_state(optimizer: torch.optim.Optimizer) -> None:
    """Allocate the state that the optimizer would allocate at its first step, all of it on the device.

    A CUDA graph must find all state at fixed places. The first step gives the same result as without this,
    because momentum starts at 0.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            names = _state_names(optimizer, group)
            for name in names:
                if name not in state or state[name] is None:
                    state[name] = torch.zeros_like(parameter)
            if isinstance(optimizer, torch.optim.AdamW):
                count = state.get("step", torch.zeros(()))
                state["step"] = count.to(parameter.device, torch.float32)


def drop_device_state(optimizer: torch.optim.Optimizer) -> None:
    """Put AdamW's step counters back on the host, where its ordinary step reads them without waiting."""
    for state in optimizer.state.values():
        if "step" in state:
            state["step"] = state["step"].cpu()


def _state_names(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> tuple[str, ...]:
    """The names of the tensors, shaped like the parameter, that the optimizer keeps for each parameter."""
    if isinstance(optimizer, torch.optim.AdamW):
        return ("exp_avg", "exp_avg_sq")
    return ("momentum_buffer",) if group["momentum"] or isinstance(optimizer, Muon) else ()


@contextmanager
def device_rates(optimizer: torch.optim.Optimizer, rates: Tensor) -> Iterator[None]:
    """In this block, the groups' learning rates are ``rates`` (float32 [groups], on the device).

    A step in this block never waits for the device. PyTorch's SGD and AdamW read a rate from the device only
    in their fused form, which rounds differently in the last bit. Afterwards, all settings are as before.
    """
    before = [dict(group) for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates.unbind(), strict=True):
        group["lr"] = rate
        if not isinstance(optimizer, Muon):
            group["fused"], group["foreach"] = True, False
        if isinstance(optimizer, torch.optim.AdamW):
            group["capturable"] = True
    try:
        yield
    finally:
        for group, settings in zip(optimizer.param_groups, before, strict=True):
            group.update(settings)
