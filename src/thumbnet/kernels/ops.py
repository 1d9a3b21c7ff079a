"""What the networks call: each operation by a kernel of ``cpu.c`` where that can be, else by its plain twin.

The twins say in PyTorch what is computed; tests hold the kernels against them in float64, forwards and
backwards. A kernel runs on a CPU with AVX-512 BF16, under autocast to bfloat16, on pictures stored channels
last. For convolutions there are two ways: with AMX, whose multiplications cost next to nothing, a kernel for
the weights' gradient; without, Winograd's algorithm, which multiplies less.
"""

from __future__ import annotations

import ctypes
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_weight

from thumbnet.distributed import SyncBatchNorm2d, sum_over_processes
from thumbnet.kernels.build import has_tiles, library

Activation = Literal["none", "relu", "silu"]
_ACTIVATIONS: dict[str, int] = {"none": 0, "relu": 1, "silu": 2}
_MAX_CHANNELS = 4096
_SMALL_MAP = 4 * 4
_FEW_CHANNELS = 16  # below which half a tile and more would be zeros, and oneDNN is the faster one
# Winograd's transforms pay (docs/notebook/kernels.md) from so many pairs of channels on, and so many tiles.
_MANY_PAIRS = 32 * 64
_MOST_PAIRS = 1 << 20  # the filters' points take 72 bytes a pair, their gradients' sums 144
_MANY_TILES = 256


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution, padded by 1, without bias."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] → [B, out_channels, H / stride, W / stride]."""
        stride = self.stride[0]
        convolved: Tensor
        if _by_winograd(x, self):
            convolved = _Winograd.apply(x, self.weight, 1)  # type: ignore[no-untyped-call]
        elif _by_tiles(x) and x.shape[2] % stride == 0 and x.shape[3] % stride == 0:
            convolved = _Conv3x3.apply(x, self.weight, stride)  # type: ignore[no-untyped-call]
        else:
            convolved = super().forward(x)
        return convolved


def conv_norm_act(
    x: Tensor, conv: Conv3x3, norm: nn.BatchNorm2d, act: Activation = "relu", *, pool: int = 1
) -> Tensor:
    """:func:`norm_act` of ``conv(x)``, its twin; pooling on the way where Winograd's algorithm runs.

    What is pooled is four times as large as the maxima, and so is its gradient, zero but for a quarter: then
    neither is written to memory.
    """
    if pool == 2 and _by_winograd(x, conv, pool):
        return norm_act(_Winograd.apply(x, conv.weight, pool), norm, act)  # type: ignore[no-untyped-call]
    return norm_act(conv(x), norm, act, pool=pool)


def norm_act(
    x: Tensor, norm: nn.BatchNorm2d, act: Activation = "relu", *, pool: int = 1, add: Tensor | None = None
) -> Tensor:
    """Max-pooling, batch normalisation, an addition and the activation.

    Args:
        x: [B, C, H, W].
        norm: in training mode its running statistics are brought up to date.
        act: the activation.
        pool: 2 for the maxima of 2x2 windows; an odd last row or column is left out.
        add: [B, C, H / pool, W / pool], added before the activation.

    Returns:
        [B, C, H / pool, W / pool].
    """
    single = x.shape[0] * (x.shape[2] // pool) * (x.shape[3] // pool) < 2  # has no variance
    if not _applies(x) or x.shape[1] % 32 or single or (add is not None and act == "silu"):
        return plain_norm_act(x, norm, act, pool=pool, add=add)
    x = x.bfloat16()
    add = None if add is None else add.bfloat16().contiguous(memory_format=torch.channels_last)
    if norm.training:
        fused: Tensor = _NormAct.apply(x, norm.weight, norm.bias, add, norm, act, pool)  # type: ignore[no-untyped-call]
        return fused
    if torch.is_grad_enabled() and x.requires_grad:
        return plain_norm_act(x, norm, act, pool=pool, add=add)
    scale, shift = _scale_and_shift(norm, norm.running_mean, norm.running_var)  # type: ignore[arg-type]
    return _scale_and_activate(x, add, scale, shift, act, pool)


def plain_norm_act(
    x: Tensor, norm: nn.BatchNorm2d, act: Activation = "relu", *, pool: int = 1, add: Tensor | None = None
) -> Tensor:
    """The twin of :func:`norm_act`."""
    x = norm(F.max_pool2d(x, pool) if pool > 1 else x)
    if add is not None:
        x = x + add
    return F.relu(x) if act == "relu" else F.silu(x) if act == "silu" else x


def weight_gradient(x: Tensor, gradient: Tensor, stride: int = 1) -> Tensor:
    """Of a 3x3 convolution with padding 1: float32 [CO, CI, 3, 3].

    oneDNN's own took two thirds of the convolutions' time: on maps of 8x8 and less it is three to ten times
    slower.

    Args:
        x: bfloat16 [B, CI, H * stride, W * stride], channels last, what the convolution was given.
        gradient: bfloat16 [B, CO, H, W], channels last, of what it returned.
        stride: 1 or 2.
    """
    count, outputs, height, width = gradient.shape
    inputs = x.shape[1]
    result = torch.empty(outputs, 3, 3, inputs)
    _call("conv3x3_weight_gradient", x, gradient, result, count, height, width, inputs, outputs, stride)
    return result.permute(0, 3, 1, 2)


def plain_weight_gradient(x: Tensor, gradient: Tensor, stride: int = 1) -> Tensor:
    """The twin of :func:`weight_gradient`, in the inputs' precision."""
    shape = [gradient.shape[1], x.shape[1], 3, 3]
    summed: Tensor = conv2d_weight(x, shape, gradient, stride=stride, padding=1)
    return summed


def conv3x3(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """The convolution, bfloat16 [B, CI, H, W] → [B, CO, H / stride, W / stride], padded by 1."""
    if stride > 1 or x.shape[2] * x.shape[3] > _SMALL_MAP:
        return F.conv2d(x, weight, stride=stride, padding=1)
    return _by_patches(x, weight.permute(0, 2, 3, 1).flatten(1).T)


def input_gradient(x: Tensor, weight: Tensor, gradient: Tensor, stride: int = 1) -> Tensor:
    """Of :func:`conv3x3` with regard to ``x``, in its shape."""
    if stride > 1 or x.shape[2] * x.shape[3] > _SMALL_MAP:
        steps, padding = [stride, stride], [1, 1]
        dx: Tensor = torch.ops.aten.convolution_backward(
            gradient, x, weight, None, steps, padding, [1, 1], False, [0, 0], 1, [True, False, False]
        )[0]
        return dx
    # The gradient's own convolution, with the filters turned about and read the other way.
    return _by_patches(gradient, weight.flip(2, 3).permute(2, 3, 0, 1).flatten(0, 2))


def winograd_pays(x: Tensor, weight: Tensor, pool: int = 1) -> bool:
    """Whether :func:`winograd` is faster than a plain convolution of ``x`` [B, CI, H, W] with ``weight``.

    Where it pools, it is from a quarter of the pairs of channels on.
    """
    count, inputs, height, width = x.shape
    tiles = -(-height // 4) * -(-width // 4)
    fits = _MANY_PAIRS // pool**2 <= inputs * len(weight) <= _MOST_PAIRS
    return fits and inputs >= _FEW_CHANNELS and min(height, width) > 1 and count * tiles >= _MANY_TILES


def winograd(x: Tensor, weight: Tensor) -> Tensor:
    """``F.conv2d(x, weight, padding=1)``, its twin, with a quarter of the multiplications.

    Off by 1.0 to 1.4 % in the mean square, as the factors are rounded to bfloat16 after they are transformed.

    Args:
        x: bfloat16 [B, CI, H, W], channels last.
        weight: float32 [CO, CI, 3, 3].

    Returns:
        bfloat16 [B, CO, H, W], channels last.
    """
    y = _empty(len(x), len(weight), *x.shape[2:])
    _winograd(x, None, weight.permute(1, 2, 3, 0), y, None, x.shape[2:], turned=False)
    return y


def winograd_pooled(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """``F.max_pool2d(F.conv2d(x, weight, padding=1), 2)``, its twin, by :func:`winograd`.

    Returns:
        bfloat16 [B, CO, H / 2, W / 2], and which of its window's four pixels each maximum is: uint8
        [B, H / 2, W / 2, CO], 0 to 3 in reading order, the first where several are equal.
    """
    y = _empty(len(x), len(weight), x.shape[2] // 2, x.shape[3] // 2)
    which = torch.empty(y.permute(0, 2, 3, 1).shape, dtype=torch.uint8)
    _winograd(x, None, weight.permute(1, 2, 3, 0), y, which, x.shape[2:], turned=False)
    return y, which


def winograd_input_gradient(
    gradient: Tensor, weight: Tensor, size: tuple[int, int], which: Tensor | None = None
) -> Tensor:
    """Of :func:`winograd` with regard to ``x``: the gradient convolved with the filters turned about.

    Args:
        gradient: of what was returned.
        weight: float32 [CO, CI, 3, 3].
        size: height and width of ``x``.
        which: what :func:`winograd_pooled` returned, if it was that.
    """
    dx = _empty(len(gradient), weight.shape[1], *size)
    _winograd(gradient, which, weight.permute(0, 2, 3, 1), dx, None, size, turned=True)
    return dx


def _winograd(
    x: Tensor, x_which: Tensor | None, filters: Tensor, y: Tensor, y_which: Tensor | None,
    size: tuple[int, ...], turned: bool,
) -> None:  # fmt: skip
    """``filters``: [inputs, 3, 3, outputs]; ``size``: height and width of what is not pooled."""
    inputs, outputs = filters.shape[0], filters.shape[3]
    _call(
        "winograd", x, x_which, filters.contiguous(), y, y_which, len(x), *size, inputs, outputs, int(turned)
    )


def winograd_weight_gradient(x: Tensor, gradient: Tensor, which: Tensor | None = None) -> Tensor:
    """:func:`weight_gradient`, as far off as :func:`winograd` is.

    ``which`` is what :func:`winograd_pooled` returned, if ``gradient`` is of that.
    """
    count, inputs, height, width = x.shape
    outputs = gradient.shape[1]
    result = torch.empty(outputs, 3, 3, inputs)
    _call("winograd_weight_gradient", x, gradient, which, result, count, height, width, inputs, outputs)
    return result.permute(0, 3, 1, 2)


def _by_patches(x: Tensor, matrix: Tensor) -> Tensor:
    """A 3x3 convolution as one product of all patches with ``matrix`` [9 CI, CO].

    Its rows go by filter row, column, input channel. On maps of up to 4x4 with 512 channels this is twice as
    fast as oneDNN's convolution.
    """
    count, inputs, height, width = x.shape
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    patches = padded.unfold(1, 3, 1).unfold(2, 3, 1)  # [B, H, W, CI, 3, 3]
    rows = patches.permute(0, 1, 2, 4, 5, 3).reshape(-1, 9 * inputs)
    return (rows @ matrix).view(count, height, width, -1).permute(0, 3, 1, 2)


def mirror_and_translate(images: Tensor, flip: Tensor, shift: Tensor, reflect: bool) -> Tensor:
    """``translate(mirror(images, flip), shift, reflect)``, its twin in :mod:`thumbnet.batches.augment`.

    Args:
        images: uint8 [B, 3, H, W], stored [B, H, W, 3], on the CPU; :func:`can_move` says whether it can be.
        flip: bool [B].
        shift: int64 [B, 2], pixels down and right.
        reflect: what comes in from outside is the reflection; else 0.
    """
    count, _, height, width = images.shape
    moved = torch.empty_like(images)
    arguments = (images, moved, flip.contiguous(), shift.contiguous())
    _call("mirror_and_translate", *arguments, count, height, width, int(reflect))
    return moved


def can_move(images: Tensor) -> bool:
    """Whether :func:`mirror_and_translate` can do ``images``."""
    stored = images.is_contiguous(memory_format=torch.channels_last) and images.shape[1] == 3
    return images.device.type == "cpu" and stored and images.numel() > 0 and library() is not None


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        x = x.bfloat16().contiguous(memory_format=torch.channels_last)
        weight = weight.bfloat16().contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return conv3x3(x, weight, stride)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride = ctx.stride
        gradient = gradient.bfloat16().contiguous(memory_format=torch.channels_last)
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = input_gradient(x, weight, gradient, stride)
        if ctx.needs_input_grad[1]:
            dw = weight_gradient(x, gradient, stride)
        return dx, dw, None


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, pool: int) -> Tensor:
        x = x.bfloat16().contiguous(memory_format=torch.channels_last)
        weight = weight.float()
        y, which = winograd_pooled(x, weight) if pool == 2 else (winograd(x, weight), None)
        ctx.save_for_backward(x, weight, which)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, which = ctx.saved_tensors
        gradient = gradient.bfloat16().contiguous(memory_format=torch.channels_last)
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = winograd_input_gradient(gradient, weight, x.shape[2:], which)
        if ctx.needs_input_grad[1]:
            dw = winograd_weight_gradient(x, gradient, which)
        return dx, dw, None


class _NormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None, norm: nn.BatchNorm2d,
        act: Activation, pool: int,
    ) -> Tensor:  # fmt: skip
        count, channels, height, width = x.shape
        if pool == 1:
            pooled, which = x, None
        else:
            pooled = _empty(count, channels, height // pool, width // pool)
            which = torch.empty(pooled.numel(), dtype=torch.uint8)
        sums = torch.empty(2, channels, dtype=torch.float64)
        _call("pool_and_sum", x, pooled, which, sums, count, height, width, channels, pool)
        positions = pooled.numel() // channels
        if isinstance(norm, SyncBatchNorm2d):
            totals = torch.cat([sums.flatten(), sums.new_tensor([positions])])
            sum_over_processes(totals)
            sums, positions = totals[:-1].view(2, -1), int(totals[-1])
        mean = sums[0] / positions
        variance = (sums[1] / positions - mean.square()).clamp(min=0)
        _update_running(norm, mean, variance, positions)
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
        count, channels, height, width = ctx.shape
        here = pooled.numel() // channels
        dz = dy if ctx.act == "none" else _empty(*pooled.shape)
        sums = torch.empty(2, channels, dtype=torch.float64)
        _call(
            "backward_sums", dy, pooled, y, dz, scale, shift, sums,
            count, here // count, channels, _ACTIVATIONS[ctx.act],
        )  # fmt: skip
        # With u = (pooled - mean) / deviation, and weight * u + bias before the activation:
        # dx = scale * (dz - mean(dz) - u * mean(dz * u)), which is scale * dz + slope * pooled + base.
        inverse = (variance + ctx.eps).rsqrt()
        weight_gradient, bias_gradient = inverse * (sums[1] - mean * sums[0]), sums[0].float()
        if ctx.sync:  # the parameters' gradients are summed later, with all others; the pictures' need it now
            sum_over_processes(sums)
        slope = -scale.double() * inverse.square() * (sums[1] - mean * sums[0]) / ctx.positions
        base = -scale.double() * sums[0] / ctx.positions - slope * mean
        dx = _empty(*ctx.shape)
        _call(
            "backward", dz, pooled, which, dx, scale, slope.float(), base.float(),
            count, height, width, channels, ctx.pool,
        )  # fmt: skip
        dadd = dz if ctx.adds else None
        return dx, weight_gradient.float(), bias_gradient, dadd, None, None, None


def _applies(x: Tensor) -> bool:
    """Whether the kernels can do ``x``, and autocast to bfloat16 is on. Compiling sees only the twins."""
    return (
        isinstance(x, Tensor)  # what is none gets PyTorch's own error
        and x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and x.ndim == 4
        and x.numel() > 0
        and x.shape[1] <= _MAX_CHANNELS
        and x.is_contiguous(memory_format=torch.channels_last)
        and library() is not None
    )


def _by_tiles(x: Tensor) -> bool:
    return _applies(x) and has_tiles() and x.shape[1] >= _FEW_CHANNELS


def _by_winograd(x: Tensor, conv: Conv3x3, pool: int = 1) -> bool:
    return _applies(x) and not has_tiles() and conv.stride[0] == 1 and winograd_pays(x, conv.weight, pool)


def _call(name: str, *arguments: Tensor | int | None) -> None:
    """A kernel: tensors as pointers, and the number of threads at the end."""
    loaded = library()
    assert loaded is not None
    pointers = [ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else a for a in arguments]
    loaded[name](*pointers, torch.get_num_threads())


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, memory_format=torch.channels_last)


def _scale_and_shift(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Normalisation as one multiplication and one addition: float32 [C] each."""
    scale = norm.weight.double() * (variance.double() + norm.eps).rsqrt()
    return scale.float(), (norm.bias.double() - mean.double() * scale).float()


def _scale_and_activate(
    x: Tensor, add: Tensor | None, scale: Tensor, shift: Tensor, act: Activation, pool: int
) -> Tensor:
    count, channels, height, width = x.shape
    y = _empty(count, channels, height // pool, width // pool)
    _call(
        "scale_and_activate", x, add, y, scale, shift,
        count, height, width, channels, pool, _ACTIVATIONS[act],
    )  # fmt: skip
    return y


def _update_running(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, positions: int) -> None:
    """As BatchNorm2d does: the unbiased variance, and the newest batch by ``norm.momentum``."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.momentum is not None
    unbiased = variance * positions / max(positions - 1, 1)
    norm.running_mean.lerp_(mean.float(), norm.momentum)
    norm.running_var.lerp_(unbiased.float(), norm.momentum)
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked += 1
