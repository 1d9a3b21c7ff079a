"""3x3 convolutions for processors with matrix tiles (AMX).

Multiplications cost almost nothing there, so oneDNN's convolutions are fast except where they move too much
memory: for the weight gradient, and on small maps.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_weight

from thumbnet.kernels.calls import call

_SMALL_MAP = 4 * 4


class TileConv(torch.autograd.Function):
    """``TileConv.apply(x, weight, stride)``: a 3x3 convolution, padding 1; the kernel computes only dw."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        """[B, CI, H, W] → bfloat16 [B, CO, H / stride, W / stride]."""
        x = x.bfloat16().contiguous(memory_format=torch.channels_last)
        weight = weight.bfloat16().contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return conv3x3(x, weight, stride)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x and weight."""
        x, weight = ctx.saved_tensors
        dy = dy.bfloat16().contiguous(memory_format=torch.channels_last)
        dx = input_gradient(x, weight, dy, ctx.stride) if ctx.needs_input_grad[0] else None
        dw = weight_gradient(x, dy, ctx.stride) if ctx.needs_input_grad[1] else None
        return dx, dw, None


def conv3x3(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """The convolution with padding 1, bfloat16 [B, CI, H, W] → [B, CO, H / stride, W / stride]."""
    if stride > 1 or x.shape[2] * x.shape[3] > _SMALL_MAP:
        return F.conv2d(x, weight, stride=stride, padding=1)
    return _by_patches(x, weight.permute(0, 2, 3, 1).flatten(1).T)


def input_gradient(x: Tensor, weight: Tensor, dy: Tensor, stride: int = 1) -> Tensor:
    """The gradient of :func:`conv3x3` with respect to ``x``, from its result's gradient ``dy``."""
    if stride > 1 or x.shape[2] * x.shape[3] > _SMALL_MAP:
        steps, padding = [stride, stride], [1, 1]
        dx: Tensor = torch.ops.aten.convolution_backward(
            dy, x, weight, None, steps, padding, [1, 1], False, [0, 0], 1, [True, False, False]
        )[0]
        return dx
    # A convolution of dy with the filters rotated by 180 degrees, and with inputs and outputs exchanged.
    return _by_patches(dy, weight.flip(2, 3).permute(2, 3, 0, 1).flatten(0, 2))


def weight_gradient(x: Tensor, dy: Tensor, stride: int = 1) -> Tensor:
    """The weight gradient of a 3x3 convolution with padding 1: float32 [CO, CI, 3, 3].

    oneDNN's took two thirds of the convolutions' time. On maps of up to 8x8 it is 3 to 10 times slower.

    Args:
        x: the convolution's input, bfloat16 [B, CI, H * stride, W * stride], channels last.
        dy: the gradient of its result, bfloat16 [B, CO, H, W], channels last.
        stride: 1 or 2.

    Raises:
        MemoryError: the kernel cannot allocate its memory.
    """
    count, outputs, height, width = dy.shape
    inputs = x.shape[1]
    dw = torch.empty(outputs, 3, 3, inputs)
    call("conv3x3_weight_gradient", x, dy, dw, count, height, width, inputs, outputs, stride)
    return dw.permute(0, 3, 1, 2)


def plain_weight_gradient(x: Tensor, dy: Tensor, stride: int = 1) -> Tensor:
    """The reference implementation of :func:`weight_gradient`, in the precision of its inputs."""
    shape = [dy.shape[1], x.shape[1], 3, 3]
    return conv2d_weight(x, shape, dy, stride=stride, padding=1)


def _by_patches(x: Tensor, matrix: Tensor) -> Tensor:
    """A 3x3 convolution as one product of all patches with ``matrix`` [9 CI, CO].

    The rows of the matrix are ordered by filter row, filter column and input channel. On maps of up to 4x4
    with 512 channels this is twice as fast as oneDNN's convolution.
    """
    count, inputs, height, width = x.shape
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    patches = padded.unfold(1, 3, 1).unfold(2, 3, 1)  # [B, H, W, CI, 3, 3]
    rows = patches.permute(0, 1, 2, 4, 5, 3).reshape(-1, 9 * inputs)
    return (rows @ matrix).view(count, height, width, -1).permute(0, 3, 1, 2)
