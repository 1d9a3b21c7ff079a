"""3x3 convolutions with a quarter of the multiplications, by Winograd's algorithm, for AVX-512 BF16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from thumbnet.kernels.calls import call, empty

_MIN_INPUTS = 16  # with fewer channels, more than half of a vector would be zeros, and oneDNN is faster
# With fewer pairs of channels or fewer tiles, the transforms cost more than they save
# (docs/notebook/kernels.md).
_MIN_PAIRS = 32 * 64
_MAX_PAIRS = 1 << 20  # the transformed filters take 72 bytes per pair, the sums of their gradients 144
_MIN_TILES = 256


class WinogradConv(torch.autograd.Function):
    """``WinogradConv.apply(x, weight, pool)``: a 3x3 convolution, padding 1; then 2x2 maxima if pool is 2."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, pool: int) -> Tensor:
        """[B, CI, H, W] → bfloat16 [B, CO, H / pool, W / pool]."""
        x = x.bfloat16().contiguous(memory_format=torch.channels_last)
        weight = weight.float()
        y, which = winograd_pooled(x, weight) if pool == 2 else (winograd(x, weight), None)
        ctx.save_for_backward(x, weight, which)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x and weight."""
        x, weight, which = ctx.saved_tensors
        dy = dy.bfloat16().contiguous(memory_format=torch.channels_last)
        dx = winograd_input_gradient(dy, weight, x.shape[2:], which) if ctx.needs_input_grad[0] else None
        dw = winograd_weight_gradient(x, dy, which) if ctx.needs_input_grad[1] else None
        return dx, dw, None


def winograd_pays(x: Tensor, weight: Tensor, pool: int = 1) -> bool:
    """Whether :func:`winograd` is faster than a plain convolution of ``x`` [B, CI, H, W] with ``weight``.

    With pooling, a quarter of the pairs of channels is enough.
    """
    count, inputs, height, width = x.shape
    tiles = -(-height // 4) * -(-width // 4)
    fits = _MIN_PAIRS // pool**2 <= inputs * len(weight) <= _MAX_PAIRS
    return fits and inputs >= _MIN_INPUTS and min(height, width) > 1 and count * tiles >= _MIN_TILES


def winograd(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve like ``F.conv2d(x, weight, padding=1)``, the reference, with a quarter of the multiplications.

    The result has an error of 1.0 to 1.4 % (root mean square), because the factors are rounded to bfloat16
    after they are transformed.

    Args:
        x: bfloat16 [B, CI, H, W], channels last.
        weight: float32 [CO, CI, 3, 3].

    Returns:
        bfloat16 [B, CO, H, W], channels last.

    Raises:
        MemoryError: the kernel cannot allocate its memory.
    """
    y = empty(len(x), len(weight), *x.shape[2:])
    _convolve(x, None, weight.permute(1, 2, 3, 0), y, None, x.shape[2:], rotated=False)
    return y


def winograd_pooled(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Convolve with :func:`winograd`, and pool.

    The reference is ``F.max_pool2d(F.conv2d(x, weight, padding=1), 2)``.

    Returns:
        The maxima, bfloat16 [B, CO, H / 2, W / 2], and their positions in the windows, uint8
        [B, H / 2, W / 2, CO]: 0 to 3 in reading order, the first if several are equal.
    """
    y = empty(len(x), len(weight), x.shape[2] // 2, x.shape[3] // 2)
    which = y.new_empty(y.permute(0, 2, 3, 1).shape, dtype=torch.uint8)
    _convolve(x, None, weight.permute(1, 2, 3, 0), y, which, x.shape[2:], rotated=False)
    return y, which


def winograd_input_gradient(
    dy: Tensor, weight: Tensor, size: tuple[int, int], which: Tensor | None = None
) -> Tensor:
    """The gradient of :func:`winograd` with respect to ``x``: a convolution of ``dy`` with rotated filters.

    Args:
        dy: the gradient of the result, bfloat16, channels last.
        weight: float32 [CO, CI, 3, 3].
        size: height and width of ``x``.
        which: for :func:`winograd_pooled`, the positions that it returned.
    """
    dx = empty(len(dy), weight.shape[1], *size)
    _convolve(dy, which, weight.permute(0, 2, 3, 1), dx, None, size, rotated=True)
    return dx


def winograd_weight_gradient(x: Tensor, dy: Tensor, which: Tensor | None = None) -> Tensor:
    """The gradient of :func:`winograd` with respect to ``weight``: float32 [CO, CI, 3, 3].

    Its error is similar to that of :func:`winograd`.

    Args:
        x: bfloat16 [B, CI, H, W], channels last.
        dy: the gradient of the result, bfloat16, channels last.
        which: for :func:`winograd_pooled`, the positions that it returned.
    """
    count, inputs, height, width = x.shape
    outputs = dy.shape[1]
    dw = x.new_empty(outputs, 3, 3, inputs, dtype=torch.float32)
    call("winograd_weight_gradient", x, dy, which, dw, count, height, width, inputs, outputs)
    return dw.permute(0, 3, 1, 2)


def _convolve(
    x: Tensor,
    x_which: Tensor | None,
    filters: Tensor,
    y: Tensor,
    y_which: Tensor | None,
    size: tuple[int, ...],
    rotated: bool,
) -> None:
    """Convolve into ``y``. ``filters`` are [inputs, 3, 3, outputs]; ``size`` is before any pooling."""
    inputs, outputs = filters.shape[0], filters.shape[3]
    shape = (len(x), *size, inputs, outputs)
    call("winograd", x, x_which, filters.contiguous(), y, y_which, *shape, int(rotated))
