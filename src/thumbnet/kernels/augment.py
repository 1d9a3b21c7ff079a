"""Mirror and shift pictures in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from thumbnet.kernels.calls import available, call, in_memory, intercepted


def mirror_and_translate(images: Tensor, flip: Tensor, shift: Tensor, reflect: bool) -> Tensor:
    """Mirror and shift pictures in one pass.

    The reference is ``translate(mirror(images, flip), shift, reflect)`` in :mod:`thumbnet.batches.augment`.

    Args:
        images: uint8 [B, 3, H, W] for which :func:`can_move` is true.
        flip: bool [B], whether to mirror.
        shift: int64 [B, 2], pixels down and right.
        reflect: whether to fill the border with a reflection; otherwise it becomes 0.

    Raises:
        MemoryError: the system is out of memory.
    """
    count, _, height, width = images.shape
    moved = torch.empty_like(images)
    arguments = (images, moved, flip.contiguous(), shift.contiguous())
    call("mirror_and_translate", *arguments, count, height, width, int(reflect))
    return moved


def can_move(images: Tensor) -> bool:
    """Whether :func:`mirror_and_translate` can run: on uint8 ``images`` on the CPU, stored [B, H, W, 3]."""
    return (
        not intercepted()
        and in_memory(images, (torch.uint8,))
        and images.ndim == 4
        and images.shape[1] == 3
        and images.is_contiguous(memory_format=torch.channels_last)
        and available()
    )
