"""The 3x3 convolution that the networks use: by a kernel where one is faster, otherwise by PyTorch.

There are kernels for two kinds of processors. With matrix tiles (AMX), multiplying costs next to nothing, and
a kernel computes the weights' gradient (:mod:`~thumbnet.kernels.tiles`). Without them, Winograd's algorithm
multiplies less (:mod:`~thumbnet.kernels.winograd`).
"""

from __future__ import annotations

from torch import Tensor, nn

from thumbnet.kernels.calls import MAX_CHANNELS, applies
from thumbnet.kernels.library import has_tiles
from thumbnet.kernels.tiles import TileConv
from thumbnet.kernels.winograd import WinogradConv, winograd_pays

_MIN_TILE_INPUTS = 16  # with fewer channels, more than half of a tile would be zeros, and oneDNN is faster


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution with padding 1 and no bias."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] → [B, out_channels, H / stride, W / stride].

        Raises:
            MemoryError: the system refuses a kernel's memory.
        """
        convolved: Tensor
        if uses_winograd(x, self):
            convolved = WinogradConv.apply(x, self.weight, 1)  # type: ignore[no-untyped-call]
        elif uses_tiles(x, self):
            convolved = TileConv.apply(x, self.weight, self.stride[0])  # type: ignore[no-untyped-call]
        else:
            convolved = super().forward(x)
        return convolved


def uses_winograd(x: Tensor, conv: Conv3x3, pool: int = 1) -> bool:
    """Whether Winograd's algorithm convolves ``x``, followed by pooling if ``pool`` is 2."""
    return _fits(x, conv) and not has_tiles() and conv.stride[0] == 1 and winograd_pays(x, conv.weight, pool)


def uses_tiles(x: Tensor, conv: Conv3x3) -> bool:
    """Whether the kernel with matrix tiles will compute the weights' gradient for ``x``."""
    return (
        _fits(x, conv)
        and has_tiles()
        and x.shape[1] >= _MIN_TILE_INPUTS
        and x.shape[2] % conv.stride[0] == 0
        and x.shape[3] % conv.stride[0] == 0
    )


def _fits(x: Tensor, conv: Conv3x3) -> bool:
    """Whether kernels can run. An ``x`` with the wrong channels goes to PyTorch, which says so."""
    return applies(x) and x.shape[1] == conv.in_channels and conv.out_channels <= MAX_CHANNELS
