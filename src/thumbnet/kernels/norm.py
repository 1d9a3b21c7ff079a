"""Max-pooling, batch normalisation, addition and activation in one pass over memory."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from thumbnet.distributed import SyncBatchNorm2d, sum_over_processes, track_running
from thumbnet.kernels.calls import CAST, applies, call, empty, in_memory, is_plain
from thumbnet.kernels.conv import Conv3x3, uses_tiles, uses_winograd
from thumbnet.kernels.tiles import TileConv
from thumbnet.kernels.winograd import WinogradConv

Activation = Literal["none", "relu", "silu"]
_ACTIVATIONS: dict[str, int] = {"none": 0, "relu": 1, "silu": 2}  # as in norm.c
_LINE = 32  # the kernels work on this many channels at a time


def conv_norm_act(
    x: Tensor, conv: Conv3x3, norm: nn.BatchNorm2d, act: Activation = "relu", *, pool: int = 1
) -> Tensor:
    """:func:`norm_act` of ``conv(x)``, the reference. The kernels pool inside the convolution.

    The convolution's result is four times as large as the maxima. So is its gradient, three quarters of which
    are zeros. With pooling inside the convolution, neither is written to memory.

    Raises:
        MemoryError: a kernel cannot allocate its memory.
    """
    pools = pool == 2 and is_plain(conv, Conv3x3)
    if pools and uses_winograd(x, conv, pool):
        return norm_act(WinogradConv.apply(x, conv.weight, pool), norm, act)  # type: ignore[no-untyped-call]
    if pools and uses_tiles(x, conv, pool):
        return norm_act(TileConv.apply(x, conv.weight, 1, pool), norm, act)  # type: ignore[no-untyped-call]
    return norm_act(conv(x), norm, act, pool=pool)


def norm_act(
    x: Tensor, norm: nn.BatchNorm2d, act: Activation = "relu", *, pool: int = 1, add: Tensor | None = None
) -> Tensor:
    """Max-pooling, batch normalisation, an addition and the activation.

    Args:
        x: [B, C, H, W].
        norm: the normalisation; in training mode, its running statistics are updated.
        act: the activation.
        pool: 2 for the maxima of 2x2 windows, without an odd last row or column; 1 for no pooling.
        add: [B, C, H / pool, W / pool], added before the activation.

    Returns:
        [B, C, H / pool, W / pool].

    Raises:
        MemoryError: a kernel cannot allocate its memory.
    """
    if not _fits(x, norm, act, pool, add):
        return plain_norm_act(x, norm, act, pool=pool, add=add)
    x = x.bfloat16()
    add = None if add is None else add.bfloat16().contiguous(memory_format=torch.channels_last)
    if norm.training:
        return _NormAct.apply(x, norm.weight, norm.bias, add, norm, act, pool)  # type: ignore[no-untyped-call]
    learns = any(one is not None and one.requires_grad for one in (x, add, norm.weight, norm.bias))
    if torch.is_grad_enabled() and learns:
        return plain_norm_act(x, norm, act, pool=pool, add=add)
    scale, shift = _scale_and_shift(norm, norm.running_mean, norm.running_var)  # type: ignore[arg-type]
    return _scale_and_activate(x, add, scale, shift, act, pool)


def plain_norm_act(
    x: Tensor, norm: nn.BatchNorm2d, act: Activation = "relu", *, pool: int = 1, add: Tensor | None = None
) -> Tensor:
    """The reference implementation of :func:`norm_act`."""
    x = norm(F.max_pool2d(x, pool) if pool > 1 else x)
    if add is not None:
        x = x + add
    return F.relu(x) if act == "relu" else F.silu(x) if act == "silu" else x


def for_two(x: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """``x`` twice, [B, C, H, W], for two operations whose gradients a kernel adds up.

    The reference is ``(x, x)``. PyTorch then adds up the gradients, which takes three times as long.

    Args:
        x: the pictures.
        norm: the normalisation that follows both operations. The kernel runs only where ``norm`` trains:
            there, second derivatives and batches of gradients are not possible anyway.
    """
    if not _comes_in_lines(x) or x.dtype != torch.bfloat16 or not (norm.training and _is_standard(norm)):
        return x, x
    if not torch.is_grad_enabled() or not x.requires_grad:
        return x, x
    both: tuple[Tensor, Tensor] = _ForTwo.apply(x)  # type: ignore[no-untyped-call]
    return both


class _ForTwo(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.view_as(x), x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, one: Tensor, other: Tensor) -> Tensor:
        one, other = (dy.bfloat16().contiguous(memory_format=torch.channels_last) for dy in (one, other))
        ones, zeros = (one.new_full((one.shape[1],), value, dtype=torch.float32) for value in (1, 0))
        return _scale_and_activate(one, other, ones, zeros, "none", 1)


class _NormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        add: Tensor | None,
        norm: nn.BatchNorm2d,
        act: Activation,
        pool: int,
    ) -> Tensor:
        count, channels, height, width = x.shape
        if pool == 1:
            pooled, which = x, None
        else:
            pooled = empty(count, channels, height // pool, width // pool)
            which = x.new_empty(pooled.numel(), dtype=torch.uint8)
        shape = _in_lines(x.shape)
        sums = x.new_empty(2, shape[-1], dtype=torch.float64)
        call("pool_and_sum", x, pooled, which, sums, *shape, pool)
        sums = _of_channels(sums, channels)
        positions = pooled.numel() // channels
        if isinstance(norm, SyncBatchNorm2d):
            totals = torch.cat([sums.flatten(), sums.new_tensor([positions])])
            sum_over_processes(totals)
            sums, positions = totals[:-1].view(2, -1), int(totals[-1])
        mean = sums[0] / positions
        variance = (sums[1] / positions - mean.square()).clamp(min=0)
        track_running(norm, mean, variance * positions / max(positions - 1, 1))
        scale, shift = _scale_and_shift(norm, mean, variance)
        y = _scale_and_activate(pooled, add, scale, shift, act, 1)
        ctx.save_for_backward(pooled, which, y if act == "relu" else None, scale, shift, mean, variance)
        ctx.shape, ctx.act, ctx.pool, ctx.eps, ctx.adds = x.shape, act, pool, norm.eps, add is not None
        ctx.positions, ctx.sync = positions, isinstance(norm, SyncBatchNorm2d)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        pooled, which, y, scale, shift, mean, variance = ctx.saved_tensors
        dy = dy.bfloat16().contiguous(memory_format=torch.channels_last)
        dz = dy if ctx.act == "none" else empty(*pooled.shape)
        count, height, width, lanes = _in_lines(pooled.shape)
        sums = dy.new_empty(2, lanes, dtype=torch.float64)
        factors = _for_lanes(scale, lanes), _for_lanes(shift, lanes)
        positions = (count, height * width, lanes)
        call("backward_sums", dy, pooled, y, dz, *factors, sums, *positions, _ACTIVATIONS[ctx.act])
        sums = _of_channels(sums, len(scale))
        # Let u = (pooled - mean) / deviation, so that weight * u + bias is the activation's argument. Then
        # dx = scale * (dz - mean(dz) - u * mean(dz * u)) = scale * dz + slope * pooled + base.
        inverse = (variance + ctx.eps).rsqrt()
        dweight, dbias = inverse * (sums[1] - mean * sums[0]), sums[0].float()
        if ctx.sync:  # dx needs sums over all processes; dweight and dbias are summed later
            sum_over_processes(sums)
        slope = -scale.double() * inverse.square() * (sums[1] - mean * sums[0]) / ctx.positions
        base = -scale.double() * sums[0] / ctx.positions - slope * mean
        # Without pooling, dz can become dx in its place: the memory need not be fetched anew.
        own_dz = ctx.act != "none" and not ctx.adds
        dx = dz if ctx.pool == 1 and own_dz else empty(*ctx.shape)
        terms = (_for_lanes(one.float(), lanes) for one in (scale, slope, base))
        call("backward", dz, pooled, which, dx, *terms, *_in_lines(ctx.shape), ctx.pool)
        return dx, dweight.float(), dbias, dz if ctx.adds else None, None, None, None


def _fits(x: Tensor, norm: nn.BatchNorm2d, act: Activation, pool: int, add: Tensor | None) -> bool:
    """Whether the kernels can run. If shapes do not match, PyTorch must report that."""
    if not _comes_in_lines(x) or not _is_standard(norm):
        return False
    count, channels, height, width = x.shape
    if channels % _LINE and pool > 1:
        return False
    result = (count, channels, height // pool, width // pool)
    # A single value has no variance, except together with those of the other processes. The kernels exchange
    # sums of another type than PyTorch, so a process with a single value runs them like all others.
    least = 1 if isinstance(norm, SyncBatchNorm2d) else 2
    varies = count * result[2] * result[3] >= least
    adds = add is None or (act != "silu" and in_memory(add, CAST) and add.shape == result)
    counts = norm.num_batches_tracked is not None
    tracks = norm.track_running_stats and counts and norm.momentum is not None
    tensors = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    fit = all(in_memory(one, CAST) and one.shape == (channels,) for one in tensors)
    return varies and adds and tracks and fit


def _is_standard(norm: nn.Module) -> bool:
    return is_plain(norm, nn.BatchNorm2d, SyncBatchNorm2d)


def _comes_in_lines(x: Tensor) -> bool:
    """Whether kernels can run, and ``x`` is a whole number of lines, see :func:`_in_lines`."""
    if not applies(x):
        return False
    _, channels, height, width = x.shape
    return channels % _LINE == 0 or (_LINE % channels == 0 and channels * height * width % _LINE == 0)


def _scale_and_shift(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """The factor and the summand, float32 [C] each, that normalise a channel."""
    scale = norm.weight.double() * (variance.double() + norm.eps).rsqrt()
    return scale.float(), (norm.bias.double() - mean.double() * scale).float()


def _scale_and_activate(
    x: Tensor, add: Tensor | None, scale: Tensor, shift: Tensor, act: Activation, pool: int
) -> Tensor:
    count, channels, height, width = x.shape
    y = empty(count, channels, height // pool, width // pool)
    shape = _in_lines(x.shape)
    factors = _for_lanes(scale, shape[-1]), _for_lanes(shift, shape[-1])
    call("scale_and_activate", x, add, y, *factors, *shape, pool, _ACTIVATIONS[act])
    return y


def _in_lines(shape: torch.Size) -> tuple[int, int, int, int]:
    """[B, C, H, W] as the kernels see it: B, height, width, and lanes that are a multiple of 32.

    With fewer channels than a line has, 16 for example, each line is of several neighbouring positions. A
    channel then has several lanes.
    """
    count, channels, height, width = shape
    if channels % _LINE == 0:
        return count, height, width, channels
    return count, 1, channels * height * width // _LINE, _LINE


def _for_lanes(of_channels: Tensor, lanes: int) -> Tensor:
    """[C] → [lanes]."""
    return of_channels if len(of_channels) == lanes else of_channels.repeat(lanes // len(of_channels))


def _of_channels(of_lanes: Tensor, channels: int) -> Tensor:
    """The sums over the lanes of each channel, [K, lanes] → [K, C]."""
    return of_lanes.view(len(of_lanes), -1, channels).sum(1)
