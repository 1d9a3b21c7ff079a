"""FastNet's first layer in one pass over memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thumbnet.kernels.calls import MAX_CHANNELS, applies, call, empty

_MAX_INPUTS, _MAX_OUTPUTS = 4, 32  # as in whiten.c


def whiten_act(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """``silu(conv(x))`` for a 2x2 convolution that does not learn.

    Args:
        x: [B, C, H, W].
        conv: without stride or padding; it has a bias.

    Returns:
        [B, O, H - 1, W - 1].
    """
    return _whiten_act(x.float(), conv) if _fits(x, conv) else plain_whiten_act(x, conv)


def plain_whiten_act(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """The reference implementation of :func:`whiten_act`."""
    return F.silu(conv(x), inplace=True)


def _whiten_act(x: Tensor, conv: nn.Conv2d) -> Tensor:
    count, channels, height, width = x.shape
    y = empty(count, conv.out_channels, height - 1, width - 1)
    filters = conv.weight.detach().bfloat16().permute(0, 2, 3, 1).contiguous()
    assert conv.bias is not None
    bias = F.pad(conv.bias.detach().float(), (0, _MAX_OUTPUTS - conv.out_channels))
    call("whiten_and_activate", x, filters, bias, y, count, height, width, channels, conv.out_channels)
    return y


def _fits(x: Tensor, conv: nn.Conv2d) -> bool:
    """Whether the kernel can run. If ``x`` has a wrong number of channels, PyTorch must report that."""
    if not applies(x) or x.shape[1] != conv.in_channels or conv.bias is None:
        return False
    learns = torch.is_grad_enabled() and any(one.requires_grad for one in (x, conv.weight, conv.bias))
    small = x.shape[1] <= _MAX_INPUTS and conv.out_channels <= _MAX_OUTPUTS
    return small and not learns and min(x.shape[2:]) >= 2 and x.shape[1] * x.shape[3] <= MAX_CHANNELS
