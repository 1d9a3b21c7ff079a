"""3x3 convolutions with stride 2 by Winograd's algorithm, 9/16 of the multiplications, for AVX-512 BF16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from thumbnet.kernels.calls import call, empty

# With fewer channels or tiles, or more zeros in the tiles, a plain convolution is faster
# (docs/notebook/kernels.md).
_MIN_CHANNELS = 32
_MIN_TILES = 64
_MIN_FILLED = 0.75
_MAX_PAIRS = 1 << 20  # the transformed filters take 72 bytes per pair, the sums of their gradients 144


class StridedConv(torch.autograd.Function):
    """``StridedConv.apply(x, weight)``: a 3x3 convolution with stride 2 and padding 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """[B, CI, H, W] → bfloat16 [B, CO, ceil(H / 2), ceil(W / 2)]."""
        x = x.bfloat16().contiguous(memory_format=torch.channels_last)
        weight = weight.float()
        ctx.save_for_backward(x, weight)
        return strided(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x and weight."""
        x, weight = ctx.saved_tensors
        dy = dy.bfloat16().contiguous(memory_format=torch.channels_last)
        dx = strided_input_gradient(dy, weight, x.shape[2:]) if ctx.needs_input_grad[0] else None
        dw = strided_weight_gradient(x, dy) if ctx.needs_input_grad[1] else None
        return dx, dw


def strided_pays(x: Tensor, weight: Tensor) -> bool:
    """Whether :func:`strided` is faster than a plain convolution of ``x`` [B, CI, H, W] with ``weight``."""
    count, inputs, *size = x.shape
    height, width = (-(-side // 2) for side in size)
    tiles = -(-height // 4) * -(-width // 4)
    return (
        min(inputs, len(weight)) >= _MIN_CHANNELS
        and inputs * len(weight) <= _MAX_PAIRS
        and count * tiles >= _MIN_TILES
        and height * width >= _MIN_FILLED * 16 * tiles
    )


def strided(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve like ``F.conv2d(x, weight, stride=2, padding=1)``, with 9/16 of the multiplications.

    The result has an error of 0.5 to 0.6 % (root mean square), because the factors are rounded to bfloat16
    after they are transformed.

    Args:
        x: bfloat16 [B, CI, H, W], channels last.
        weight: float32 [CO, CI, 3, 3].

    Returns:
        bfloat16 [B, CO, ceil(H / 2), ceil(W / 2)], channels last.

    Raises:
        MemoryError: the kernel cannot allocate its memory.
    """
    count, inputs, height, width = x.shape
    y = empty(count, len(weight), -(-height // 2), -(-width // 2))
    filters = weight.permute(1, 2, 3, 0).contiguous()
    call("strided", x, filters, y, count, height, width, inputs, len(weight), 0)
    return y


def strided_input_gradient(dy: Tensor, weight: Tensor, size: tuple[int, int]) -> Tensor:
    """The gradient of :func:`strided` with respect to ``x``, as precise as :func:`strided`.

    Args:
        dy: the gradient of the result, bfloat16 [B, CO, ceil(H / 2), ceil(W / 2)], channels last.
        weight: float32 [CO, CI, 3, 3].
        size: height H and width W of ``x``.
    """
    outputs, inputs = weight.shape[:2]
    dx = empty(len(dy), inputs, *size)
    filters = weight.permute(0, 2, 3, 1).contiguous()
    call("strided", dy, filters, dx, len(dy), *size, outputs, inputs, 1)
    return dx


def strided_weight_gradient(x: Tensor, dy: Tensor) -> Tensor:
    """The gradient of :func:`strided` with respect to ``weight``: float32 [CO, CI, 3, 3], as precise.

    Args:
        x: bfloat16 [B, CI, H, W], channels last.
        dy: the gradient of the result, bfloat16, channels last.
    """
    count, inputs, height, width = x.shape
    outputs = dy.shape[1]
    dw = x.new_empty(outputs, 3, 3, inputs, dtype=torch.float32)
    call("strided_weight_gradient", x, dy, dw, count, height, width, inputs, outputs)
    return dw.permute(0, 3, 1, 2)
