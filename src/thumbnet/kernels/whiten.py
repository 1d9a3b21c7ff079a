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
        conv: without stride or padding.

    Returns:
        [B, O, H - 1, W - 1].
    """
    if conv.bias is None or not _fits(x, conv):
        return plain_whiten_act(x, conv)
    count, channels, height, width = x.shape
    y = empty(count, conv.out_channels, height - 1, width - 1)
    filters = conv.weight.detach().bfloat16().permute(0, 2, 3, 1).contiguous()
    sizes = (count, height, width, channels, conv.out_channels)
    call("whiten_and_activate", x.float(), filters, conv.bias.detach().float(), y, *sizes)
    return y


def plain_whiten_act(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """The reference implementation of :func:`whiten_act`."""
    return F.silu(conv(x), inplace=True)


def _fits(x: Tensor, conv: nn.Conv2d) -> bool:
    """Whether the kernel can run. If ``x`` has a wrong number of channels, PyTorch must report that."""
    if not applies(x) or x.shape[1] != conv.in_channels:
        return False
    learns = torch.is_grad_enabled() and any(one.requires_grad for one in (x, *conv.parameters()))
    small = x.shape[1] <= _MAX_INPUTS and conv.out_channels <= _MAX_OUTPUTS
    return small and not learns and min(x.shape[2:]) >= 2 and x.shape[1] * x.shape[3] <= MAX_CHANNELS
