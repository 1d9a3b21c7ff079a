"""The networks' convolutions: 3x3, and 1x1 for shortcuts.

A kernel computes the 3x3 convolution where that is faster, otherwise PyTorch does. There are kernels for two
kinds of processors. On processors with matrix tiles (AMX), multiplications cost almost nothing, and the
kernels save memory accesses (:mod:`~thumbnet.kernels.tiles`). On other processors, Winograd's algorithm saves
multiplications, with stride 1 (:mod:`~thumbnet.kernels.winograd`) and with stride 2
(:mod:`~thumbnet.kernels.strided`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from thumbnet.kernels.calls import MAX_CHANNELS, applies, empty, has_geometry, strided_available
from thumbnet.kernels.library import has_tiles
from thumbnet.kernels.strided import StridedConv, strided_pays
from thumbnet.kernels.tiles import MIN_PICTURES, TileConv
from thumbnet.kernels.winograd import WinogradConv, winograd_pays

_MIN_MULTIPLIED = 64  # channels from which a 1x1 convolution with a stride is faster as a matrix product
_MIN_TILE_INPUTS = 16  # with fewer channels, more than half of a tile would be zeros, and oneDNN is faster


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution with padding 1 and no bias."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] → [B, out_channels, ceil(H / stride), ceil(W / stride)].

        Raises:
            MemoryError: a kernel cannot allocate its memory.
        """
        convolved: Tensor
        if uses_winograd(x, self):
            convolved = WinogradConv.apply(x, self.weight, 1)  # type: ignore[no-untyped-call]
        elif uses_strided(x, self):
            convolved = StridedConv.apply(x, self.weight)  # type: ignore[no-untyped-call]
        elif uses_tiles(x, self):
            convolved = TileConv.apply(x, self.weight, self.stride[0], 1)  # type: ignore[no-untyped-call]
        else:
            convolved = super().forward(x)
        return convolved


class Conv1x1(nn.Conv2d):
    """A 1x1 convolution without bias, [B, in_channels, H, W] → [B, out_channels, ceil(H / s), ceil(W / s)].

    With a stride and fewer than 16 input channels, it selects the positions before it convolves. Otherwise
    oneDNN 3.12 writes past its memory when it computes the filters' gradient in float32 with a stride other
    than 1 (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] → [B, out_channels, ceil(H / s), ceil(W / s)]."""
        down, right = self.stride
        if down == right == 1:
            return super().forward(x)
        if self._multiplies(x):
            multiplied: Tensor = _Selected.apply(x, self.weight, down)  # type: ignore[no-untyped-call]
            return multiplied
        if self.in_channels >= 16:
            return super().forward(x)
        return F.conv2d(x[:, :, ::down, ::right], self.weight, self.bias)

    def _multiplies(self, x: Tensor) -> bool:
        """Whether this is faster as matrix products of the selected positions: in a training on the CPU."""
        if not applies(x) or x.shape[1] < _MIN_MULTIPLIED:
            return False
        learns = torch.is_grad_enabled() and self.weight.requires_grad
        return learns and self.bias is None and has_geometry(self, x.shape[1], 1, padding=0)


class _Selected(torch.autograd.Function):
    """``_Selected.apply(x, weight, stride)``: a 1x1 convolution as three matrix products, in bfloat16.

    oneDNN takes two to three times as long for the two gradients.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        """[B, CI, H, W] → bfloat16 [B, CO, ceil(H / stride), ceil(W / stride)]."""
        selected = x[:, :, ::stride, ::stride].bfloat16()
        pixels, filters = _pixels(selected), weight.flatten(1).bfloat16()
        ctx.save_for_backward(pixels, filters)
        ctx.shape, ctx.stride = x.shape, stride
        y = empty(len(x), len(weight), *selected.shape[2:])
        torch.mm(pixels, filters.T, out=_pixels(y))  # a view, if returned, could not be changed in place
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x and weight."""
        pixels, filters = ctx.saved_tensors
        gradients = _pixels(dy.bfloat16())
        dx = None
        if ctx.needs_input_grad[0]:
            dx = empty(*ctx.shape).zero_()
            dx[:, :, :: ctx.stride, :: ctx.stride] = _maps(gradients @ filters, dy.shape)
        return dx, (gradients.T @ pixels).float()[:, :, None, None], None


def _pixels(maps: Tensor) -> Tensor:
    """[B, C, H, W] → [B H W, C]."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def _maps(pixels: Tensor, shape: torch.Size) -> Tensor:
    """[B H W, C] → [B, C, H, W], for the B, H and W of ``shape``."""
    return pixels.view(shape[0], shape[2], shape[3], -1).permute(0, 3, 1, 2)


def uses_winograd(x: Tensor, conv: Conv3x3, pool: int = 1) -> bool:
    """Whether to convolve ``x`` with Winograd's algorithm, followed by 2x2 pooling if ``pool`` is 2."""
    return (
        applies(x)
        and not has_tiles()
        and conv.stride[0] == 1
        and winograd_pays(x, conv.weight, pool)
        and _fits(x, conv)
    )


def uses_strided(x: Tensor, conv: Conv3x3) -> bool:
    """Whether to convolve ``x`` with Winograd's algorithm for stride 2."""
    return (
        applies(x)
        and not has_tiles()
        and conv.stride[0] == 2
        and strided_pays(x, conv.weight)
        and _fits(x, conv)
        and strided_available()
    )


def uses_tiles(x: Tensor, conv: Conv3x3, pool: int = 1) -> bool:
    """Whether to convolve ``x`` with matrix tiles, followed by 2x2 pooling if ``pool`` is 2."""
    return (
        applies(x)
        and has_tiles()
        and len(x) >= MIN_PICTURES
        and x.shape[1] >= _MIN_TILE_INPUTS
        and conv.stride[0] <= 2 // pool
        and min(x.shape[2:]) >= pool
        and _fits(x, conv)
    )


def _fits(x: Tensor, conv: Conv3x3) -> bool:
    """Whether ``conv`` is what the kernels compute. If ``x`` has other channels, PyTorch must report that."""
    standard = has_geometry(conv, x.shape[1], 3, padding=1)
    return standard and conv.bias is None and len(conv.weight) <= MAX_CHANNELS
