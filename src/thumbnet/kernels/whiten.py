"""FastNet's first layer in one pass over memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thumbnet.kernels.calls import CAST, MAX_CHANNELS, applies, call, empty, has_geometry, in_memory, is_plain

_MAX_INPUTS, _MAX_OUTPUTS = 4, 32  # as in whiten.c


def whiten_act(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """``silu(conv(x))`` for a 2x2 convolution that does not learn.

    Args:
        x: [B, C, H, W].
        conv: without stride or padding. Any other module runs in PyTorch.

    Returns:
        [B, O, H - 1, W - 1].
    """
    if not _fits(x, conv):
        return plain_whiten_act(x, conv)
    assert conv.bias is not None
    count, channels, height, width = x.shape
    outputs = len(conv.weight)
    y = empty(count, outputs, height - 1, width - 1)
    filters = conv.weight.detach().bfloat16().permute(0, 2, 3, 1).contiguous()
    sizes = (count, height, width, channels, outputs)
    call("whiten_and_activate", x.float(), filters, conv.bias.detach().float().contiguous(), y, *sizes)
    return y


def plain_whiten_act(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """The reference implementation of :func:`whiten_act`."""
    # Not in place if a hook may keep the result, or another module may return ``x`` itself.
    return F.silu(conv(x), inplace=is_plain(conv, nn.Conv2d))


def _fits(x: Tensor, conv: nn.Conv2d) -> bool:
    """Whether the kernel can run. If shapes do not match, PyTorch must report that."""
    if not applies(x) or not is_plain(conv, nn.Conv2d) or not has_geometry(conv, x.shape[1], 2, padding=0):
        return False
    outputs, channels = conv.weight.shape[:2]
    biased = in_memory(conv.bias, CAST) and conv.bias.shape == (outputs,)
    learns = torch.is_grad_enabled() and any(one.requires_grad for one in (x, *conv.parameters()))
    small = channels <= _MAX_INPUTS and outputs <= _MAX_OUTPUTS and channels * x.shape[3] <= MAX_CHANNELS
    return small and biased and not learns and conv.stride == (1, 1) and min(x.shape[2:]) >= 2
