"""3x3 convolutions for processors with matrix tiles (AMX).

Multiplications cost almost nothing there: what counts is how much memory is moved. On large maps, oneDNN's
convolutions are as fast as ours; on small maps, and where the results are pooled, ours are faster. They also
compute every weight gradient.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from thumbnet.kernels.calls import call, empty

# The kernels work on 32 pictures at a time. With fewer than half of them, oneDNN is faster.
MIN_PICTURES = 16
_SMALL_MAP = (
    8 * 8
)  # pixels of a result up to which the kernel is faster than oneDNN (docs/notebook/kernels.md)


class TileConv(torch.autograd.Function):
    """``TileConv.apply(x, weight, stride, pool)``: a 3x3 convolution; then 2x2 maxima if pool is 2."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, pool: int) -> Tensor:
        """[B, CI, H, W] → bfloat16 [B, CO, ceil(H / stride) / pool, ceil(W / stride) / pool]."""
        x = x.bfloat16().contiguous(memory_format=torch.channels_last)
        weight = weight.bfloat16().contiguous(memory_format=torch.channels_last)
        y, which = conv3x3_pooled(x, weight) if pool == 2 else (conv3x3(x, weight, stride), None)
        ctx.save_for_backward(x, weight, which)
        ctx.stride = stride
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x and weight."""
        x, weight, which = ctx.saved_tensors
        dy = dy.bfloat16().contiguous(memory_format=torch.channels_last)
        dx = input_gradient(x, weight, dy, ctx.stride, which) if ctx.needs_input_grad[0] else None
        dw = weight_gradient(x, dy, ctx.stride, which) if ctx.needs_input_grad[1] else None
        return dx, dw, None, None


def conv3x3(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """The convolution with padding 1.

    Args:
        x: bfloat16 [B, CI, H, W], channels last.
        weight: bfloat16 [CO, CI, 3, 3], channels last.
        stride: 1 or 2.

    Returns:
        bfloat16 [B, CO, ceil(H / stride), ceil(W / stride)], channels last.

    Raises:
        MemoryError: the kernel cannot allocate its memory.
    """
    height, width = _result_size(x, stride)
    if height * width > _SMALL_MAP:
        return F.conv2d(x, weight, stride=stride, padding=1)
    y = empty(len(x), len(weight), height, width)
    _convolve(x, None, weight, y, None, (height, width), stride, back=False)
    return y


def conv3x3_pooled(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`conv3x3` with stride 1, and pool.

    Returns:
        The maxima, bfloat16 [B, CO, H / 2, W / 2], and their positions in the windows, uint8
        [B, H / 2, W / 2, CO]: 0 to 3 in reading order, the first if several are equal.
    """
    height, width = x.shape[2:]
    y = empty(len(x), len(weight), height // 2, width // 2)
    which = y.new_empty(y.permute(0, 2, 3, 1).shape, dtype=torch.uint8)
    _convolve(x, None, weight, y, which, (height, width), 1, back=False)
    return y, which


def input_gradient(
    x: Tensor, weight: Tensor, dy: Tensor, stride: int = 1, which: Tensor | None = None
) -> Tensor:
    """The gradient of :func:`conv3x3` with respect to ``x``, from its result's gradient ``dy``.

    Args:
        x: the input; only its shape counts.
        weight: bfloat16 [CO, CI, 3, 3], channels last.
        dy: the gradient of the result, bfloat16, channels last.
        stride: 1 or 2.
        which: for :func:`conv3x3_pooled`, the positions that it returned.
    """
    height, width = _result_size(x, stride)
    if which is None and height * width > _SMALL_MAP:
        steps, padding = [stride, stride], [1, 1]
        plain: Tensor = torch.ops.aten.convolution_backward(
            dy, x, weight, None, steps, padding, [1, 1], False, [0, 0], 1, [True, False, False]
        )[0]
        return plain
    dx = empty(*x.shape)
    _convolve(dy, which, weight, dx, None, (height, width), stride, back=True)
    return dx


def weight_gradient(x: Tensor, dy: Tensor, stride: int = 1, which: Tensor | None = None) -> Tensor:
    """The weight gradient of a 3x3 convolution with padding 1: float32 [CO, CI, 3, 3].

    oneDNN's took two thirds of the convolutions' time. On maps of up to 8x8 it is 3 to 10 times slower.

    Args:
        x: the convolution's input, bfloat16 [B, CI, H, W], channels last.
        dy: the gradient of its result, bfloat16, channels last.
        stride: 1 or 2.
        which: for :func:`conv3x3_pooled`, the positions that it returned.

    Raises:
        MemoryError: the kernel cannot allocate its memory.
    """
    inputs, outputs = x.shape[1], dy.shape[1]
    dw = x.new_empty(outputs, 3, 3, inputs, dtype=torch.float32)
    sizes = (len(x), *x.shape[2:], inputs, *_result_size(x, stride), outputs)
    call("tile_weight_gradient", x, dy, which, dw, *sizes, stride)
    return dw.permute(0, 3, 1, 2)


def _result_size(x: Tensor, stride: int) -> tuple[int, int]:
    """Height and width of the result before any pooling."""
    return -(-x.shape[2] // stride), -(-x.shape[3] // stride)


def _convolve(
    x: Tensor,
    x_which: Tensor | None,
    weight: Tensor,
    y: Tensor,
    y_which: Tensor | None,
    size: tuple[int, int],
    stride: int,
    back: bool,
) -> None:
    """Convolve into ``y``. ``size`` is that of the convolution's result before any pooling."""
    outputs, inputs = weight.shape[:2]
    if back:
        sizes = (len(x), *size, outputs, *y.shape[2:], inputs)
    else:
        sizes = (len(x), *x.shape[2:], inputs, *size, outputs)
    call("tile_conv", x, x_which, weight, y, y_which, *sizes, stride, int(back))
