"""Send small tensors to a GPU in one copy: each copy costs the host about as much as launching a kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from thumbnet.hardware import send

ALIGNMENT = 8  # bytes; each tensor in a packed buffer begins at a multiple


def send_together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Send those of ``tensors`` that are on the CPU to ``device``; to CUDA in one copy, without waiting.

    The results of that copy share one buffer.
    """
    if device.type != "cuda":
        return [send(tensor, device) for tensor in tensors]
    here = [tensor for tensor in tensors if tensor.device.type == "cpu"]
    arrived = iter(unpack(send(pack(here), device), here) if here else [])
    return [next(arrived) if tensor.device.type == "cpu" else tensor for tensor in tensors]


def pack(tensors: Sequence[Tensor]) -> Tensor:
    """The bytes of ``tensors`` one after another: uint8 [bytes]."""
    parts = []
    for tensor in tensors:
        content = tensor.contiguous().view(-1).view(torch.uint8)
        parts += [content, content.new_zeros(-len(content) % ALIGNMENT)]
    return torch.cat(parts)


def unpack(packed: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of a packed buffer with the shapes and types of ``like``."""
    views, start = [], 0
    for tensor in like:
        size = math.prod(tensor.shape) * tensor.element_size()
        views.append(packed[start : start + size].view(tensor.dtype).view(tensor.shape))
        start += size + -size % ALIGNMENT
    return views
