"""FastNet: the small network of the ``fast`` recipe.

The ideas come from airbench (Jordan 2024, https://arxiv.org/abs/2404.00498) and from the work that it builds
on (Page 2019; tysam's hlb-CIFAR10 2023). The first layer whitens 2x2 patches; its weights are computed from
the data instead of learned. Convolutions start as the identity. Normalisation has a bias but no scale. At the
end, each channel's maximum over all positions goes to a linear layer, and the logits are scaled down.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thumbnet.kernels.conv import Conv3x3
from thumbnet.kernels.norm import conv_norm_act, norm_act
from thumbnet.kernels.whiten import whiten_act
from thumbnet.models.registry import register_model
from thumbnet.models.resnet import scaled

PATCH = 2
NORM_MOMENTUM = 0.4  # in PyTorch, the weight of the newest batch; short trainings need a high one
HEAD_SCALE = 1 / 9
# Patches with less variance than this along an axis count as constant there. Rounding normalised pixels to
# bfloat16 causes about half as much variance.
LEAST_VARIANCE = 1e-5
ADDED_VARIANCE = 5e-4  # so that axes with little variance are not amplified without bound
SAME_WEIGHTS = 0.01  # relative difference up to which a filter weighs the channels alike


class FastBlock(nn.Module):
    """conv, max-pool, norm, act; conv, norm, act. [B, C, H, W] → [B, out_channels, H // 2, W // 2]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = _identity_conv(in_channels, out_channels)
        self.norm1 = _norm(out_channels)
        self.conv2 = _identity_conv(out_channels, out_channels)
        self.norm2 = _norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] → [B, out_channels, H // 2, W // 2]."""
        x = conv_norm_act(x, self.conv1, self.norm1, "silu", pool=2)
        return norm_act(self.conv2(x), self.norm2, "silu")


class FastNet(nn.Module):
    """Whitening, three blocks, a global maximum, a linear layer.

    Shapes: [B, in_channels, H, W] → [B, num_classes], for any H and W from 16 up.
    """

    def __init__(self, widths: Sequence[int], num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        whitened = 2 * in_channels * PATCH**2
        self.whiten = nn.Conv2d(in_channels, whitened, PATCH)
        nn.init.zeros_(self.whiten.bias)  # type: ignore[arg-type]
        self.whiten.requires_grad_(False)  # so the first block computes no gradient of its input
        self.blocks = nn.Sequential(
            *(FastBlock(a, b) for a, b in zip([whitened, *widths[:-1]], widths, strict=True))
        )
        self.head = nn.Linear(widths[-1], num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] → logits [B, num_classes]."""
        x = self.blocks(whiten_act(x, self.whiten))
        # In training not amax: its gradient takes ten times as long on a CPU, and compiled it would be 0 / 0:
        # it compares the result, rounded to bfloat16, with inputs that are not rounded, so none matches.
        # Elsewhere amax, because the export to ONNX in PyTorch 2.11 does not know the other.
        largest = F.adaptive_max_pool2d(x, 1).flatten(1) if self.training else x.amax(dim=(2, 3))
        return self.head(largest) * HEAD_SCALE

    @torch.no_grad()
    def initialise_from(self, images: Tensor) -> None:
        """Make the first layer whiten ``images``, float32 [N, C, H, W], normalised; a few thousand suffice.

        Its filters are the principal axes of the patches, each divided by the standard deviation along it,
        and their negatives, because the activation treats the two signs differently.

        Pictures may be constant along some axes: grey pictures are along 8 of 12. Normalising a constant
        would make its gradient grow from layer to layer, in bfloat16 without bound. Such axes get no filter
        of their own; the filters of the other axes are repeated in their place.
        """
        values, vectors = torch.linalg.eigh(_patch_moments(images).cpu())
        # The sign of an axis is arbitrary, and libraries choose differently. Make its largest entry positive.
        largest = vectors.abs().argmax(dim=0)
        vectors = vectors * vectors.gather(0, largest[None]).sign()
        filters = (vectors / (values + ADDED_VARIANCE).sqrt()).T.flip(0)
        filters = filters.reshape(-1, PATCH, PATCH, images.shape[1]).permute(0, 3, 1, 2)
        varied = max(1, int((values > LEAST_VARIANCE).sum()))
        filters = filters[torch.arange(len(filters)) % varied]
        self.whiten.weight.copy_(torch.cat([filters, -filters]))


@register_model("fastnet")
def fastnet(num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> FastNet:
    """The network of the ``fast`` recipe."""
    return FastNet(scaled([32, 256, 256], width), num_classes, in_channels)


def sees_colour(model: nn.Module) -> bool:
    """Whether a network can tell colours apart: false for a FastNet whose first layer whitens grey pictures.

    Its filters then weigh all channels alike, and they never change.
    """
    if not isinstance(model, FastNet):
        return True
    weight = model.whiten.weight
    difference = (weight - weight.mean(dim=1, keepdim=True)).abs().max()
    return bool(difference > SAME_WEIGHTS * weight.abs().max())


def _patch_moments(images: Tensor) -> Tensor:
    """The second moments of all 2x2 patches of ``images`` [N, C, H, W]: float64 [P, P] with P = 4 C.

    The values of a patch are ordered by corner, then by channel.
    """
    channels, height, width = images.shape[1], images.shape[2] - PATCH + 1, images.shape[3] - PATCH + 1
    corners = [(top, left) for top in range(PATCH) for left in range(PATCH)]
    # In float64, which Apple's GPUs do not support.
    device = torch.device("cpu") if images.device.type == "mps" else images.device
    moments = torch.zeros(PATCH**2 * channels, PATCH**2 * channels, dtype=torch.float64, device=device)
    for some in images.split(250):  # one product over all pictures took four times as long
        planes = some.to(device).transpose(0, 1)  # [C, N, H, W]
        shifted = moments.new_empty(len(corners), channels, len(some), height, width)
        for at, (top, left) in enumerate(corners):
            shifted[at] = planes[:, :, top : top + height, left : left + width]
        patches = shifted.view(len(moments), -1)
        moments += patches @ patches.T
    return moments / (len(images) * height * width)


def _identity_conv(in_channels: int, out_channels: int) -> Conv3x3:
    conv = Conv3x3(in_channels, out_channels)
    with torch.no_grad():
        nn.init.dirac_(conv.weight[:in_channels])
    return conv


def _norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, momentum=NORM_MOMENTUM)
    norm.weight.requires_grad_(False)
    return norm
