"""The networks' convolutions: 3x3, and 1x1 for shortcuts.

A kernel computes the 3x3 convolution where that is faster, otherwise PyTorch does. There are kernels for two
kinds of processors. On processors with matrix tiles (AMX), multiplications cost almost nothing, and the
kernels save memory accesses (:mod:`~thumbnet.kernels.tiles`). On other processors, Winograd's algorithm saves
multiplications, with stride 1 (:mod:`~thumbnet.kernels.winograd`) and with stride 2
(:mod:`~thumbnet.kernels.strided`).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from thumbnet.kernels.calls import MAX_CHANNELS, applies, strided_available
from thumbnet.kernels.library import has_tiles
from thumbnet.kernels.strided import StridedConv, strided_pays
from thumbnet.kernels.tiles import MIN_PICTURES, TileConv
from thumbnet.kernels.winograd import WinogradConv, winograd_pays

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

    With fewer than 16 input channels, it selects the positions before it convolves. Otherwise oneDNN 3.12
    writes past its memory when it computes the filters' gradient in float32 with a stride other than 1
    (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] → [B, out_channels, ceil(H / s), ceil(W / s)]."""
        if self.in_channels >= 16 or self.stride[0] == 1:
            return super().forward(x)
        return F.conv2d(x[:, :, :: self.stride[0], :: self.stride[1]], self.weight)


def uses_winograd(x: Tensor, conv: Conv3x3, pool: int = 1) -> bool:
    """Whether to convolve ``x`` with Winograd's algorithm, followed by 2x2 pooling if ``pool`` is 2."""
    return _fits(x, conv) and not has_tiles() and conv.stride[0] == 1 and winograd_pays(x, conv.weight, pool)


def uses_strided(x: Tensor, conv: Conv3x3) -> bool:
    """Whether to convolve ``x`` with Winograd's algorithm for stride 2."""
    return (
        _fits(x, conv)
        and not has_tiles()
        and conv.stride[0] == 2
        and strided_pays(x, conv.weight)
        and strided_available()
    )


def uses_tiles(x: Tensor, conv: Conv3x3, pool: int = 1) -> bool:
    """Whether to convolve ``x`` with matrix tiles, followed by 2x2 pooling if ``pool`` is 2."""
    return (
        _fits(x, conv)
        and has_tiles()
        and len(x) >= MIN_PICTURES
        and x.shape[1] >= _MIN_TILE_INPUTS
        and conv.stride[0] <= 2 // pool
        and min(x.shape[2:]) >= pool
    )


def _fits(x: Tensor, conv: Conv3x3) -> bool:
    """Whether kernels can run. If ``x`` has a wrong number of channels, PyTorch must report that."""
    return applies(x) and x.shape[1] == conv.in_channels and conv.out_channels <= MAX_CHANNELS
