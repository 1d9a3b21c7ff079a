"""Muon's passes over memory: the momentum, and the step along it.

On two cores, PyTorch's operations spend most of their time on fetching and storing memory.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from thumbnet.kernels.calls import available, call, in_memory, intercepted


def add_momentum(gradients: list[Tensor], buffers: list[Tensor], momentum: float) -> list[Tensor]:
    """Add gradients of filters to their momentum, in place, and look ahead (Nesterov).

    Each buffer becomes ``momentum * buffer + gradient``. Then the update is ``gradient + momentum * buffer``.

    Args:
        gradients: float32 [O, I, k, k] each.
        buffers: of the same shapes.
        momentum: between 0 and 1.

    Returns:
        The updates, of the same shapes: bfloat16 from the kernel, float32 from PyTorch.
    """
    if not _fit(gradients, buffers):
        return plain_momentum(gradients, buffers, momentum)
    updates = [torch.empty_like(buffer, dtype=torch.bfloat16) for buffer in buffers]
    for gradient, buffer, update in zip(gradients, buffers, updates, strict=True):
        call("muon_momentum", gradient, buffer, update, gradient.numel(), float(momentum))
    increment_version(buffers)
    return updates


def plain_momentum(gradients: list[Tensor], buffers: list[Tensor], momentum: float) -> list[Tensor]:
    """The reference implementation of :func:`add_momentum`, for tensors of any shape."""
    torch._foreach_mul_(buffers, momentum)
    torch._foreach_add_(buffers, gradients)
    return list(torch._foreach_add(gradients, buffers, alpha=momentum))


def rescale_and_step(filters: list[Tensor], steps: list[Tensor], lr: float | Tensor) -> None:
    """Rescale each filter bank to the norm sqrt(O), and subtract ``lr`` times its step, both in place.

    Args:
        filters: float32 [O, I, k, k] each.
        steps: of the same shapes, in any floating-point type.
        lr: the rate; a tensor, float32 [], is on the device of the filters.
    """
    if isinstance(lr, Tensor) or not _fit(filters, steps, torch.bfloat16):
        plain_step(filters, steps, lr)
        return
    for bank, step in zip(filters, steps, strict=True):
        squares = bank.new_empty(len(bank), dtype=torch.float64)
        call("muon_step", bank, step, squares, len(bank), bank[0].numel(), float(lr))
    increment_version(filters)  # so that autograd refuses a backward pass through the filters before the step


def plain_step(filters: list[Tensor], steps: list[Tensor], lr: float | Tensor) -> None:
    """The reference implementation of :func:`rescale_and_step`."""
    sizes = list(torch._foreach_norm(filters))
    torch._foreach_clamp_min_(sizes, 1e-12)
    torch._foreach_div_(sizes, [len(bank) ** 0.5 for bank in filters])
    torch._foreach_div_(filters, sizes)
    descend(filters, [step.to(bank.dtype) for step, bank in zip(steps, filters, strict=True)], lr)


def descend(parameters: list[Tensor], updates: list[Tensor], lr: float | Tensor) -> None:
    """Subtract ``lr`` times ``updates`` from ``parameters``, in place in both."""
    if isinstance(lr, Tensor):  # on the device; ``alpha`` would have to be a number on the host
        torch._foreach_mul_(updates, -lr)
        torch._foreach_add_(parameters, updates)
    else:
        torch._foreach_add_(parameters, updates, alpha=-lr)


def _fit(tensors: list[Tensor], others: list[Tensor], other_type: torch.dtype = torch.float32) -> bool:
    """Whether the kernels can run: all are on the CPU, channels last, of these types, and pairs of one shape.

    PyTorch reports other shapes.
    """
    return (
        not intercepted()
        and [tensor.shape for tensor in tensors] == [other.shape for other in others]
        and all(_fits(tensor, torch.float32) for tensor in tensors)
        and all(_fits(other, other_type) for other in others)
        and available()
    )


def _fits(tensor: Tensor, dtype: torch.dtype) -> bool:
    return in_memory(tensor, (dtype,)) and tensor.is_contiguous(memory_format=torch.channels_last)
