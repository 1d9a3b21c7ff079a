"""Residual networks for small pictures (He et al. 2015, https://arxiv.org/abs/1512.03385).

One class makes two families. ResNet-18 and 34 are the ImageNet networks with a stem for small pictures: a
3x3 convolution with stride 1, and no pooling. ResNet-20, 32, 44 and 56 are the paper's CIFAR networks: three
stages of (depth - 2) / 6 blocks, with 16, 32 and 64 channels. Where the shape changes, the shortcut is a
projection (the paper's option B) in both families.

    logits = resnet18(num_classes=10)(torch.randn(8, 3, 32, 32))  # [8, 10]
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from thumbnet.kernels.conv import Conv1x1, Conv3x3
from thumbnet.kernels.norm import for_two, norm_act
from thumbnet.models.registry import register_model


class ResidualBlock(nn.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)).

    The shortcut is the identity. Where ``stride`` is not 1 or the number of channels changes, it is a 1x1
    convolution with normalisation.

    Shapes: [B, in_channels, H, W] → [B, out_channels, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = Conv3x3(in_channels, out_channels, stride)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = Conv3x3(out_channels, out_channels)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = Projection(
                Conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] → [B, out_channels, H', W']."""
        # The same tensor under two names, so that a kernel can add up the gradients of its two uses.
        x, same = for_two(x, self.norm2)
        out = norm_act(self.conv1(x), self.norm1, "relu")
        # This is relu(norm2(conv2(out)) + shortcut(x)), in one pass over memory where a kernel can.
        return norm_act(self.conv2(out), self.norm2, "relu", add=self.shortcut(same))


class Projection(nn.Sequential):
    """Modules in sequence, whose normalisations may run in a kernel."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] → [B, out_channels, H', W'], what the modules make of ``x``."""
        for module in self:
            x = norm_act(x, module, "none") if isinstance(module, nn.BatchNorm2d) else module(x)
        return x


class ResNet(nn.Module):
    """A stem, stages of residual blocks, the mean over all positions, and a linear layer.

    Args:
        blocks: number of blocks per stage.
        widths: number of channels per stage. Each stage but the first halves height and width.
        num_classes: length of the logits.
        in_channels: number of channels of the pictures.

    Shapes: [B, in_channels, H, W] → [B, num_classes], for any H and W from 16 up.
    """

    def __init__(
        self, blocks: Sequence[int], widths: Sequence[int], num_classes: int = 10, in_channels: int = 3
    ) -> None:
        super().__init__()
        self.stem = Conv3x3(in_channels, widths[0])
        self.norm = nn.BatchNorm2d(widths[0])
        stages = []
        previous = widths[0]
        for number, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            strides = [1 if number == 0 else 2] + [1] * (count - 1)
            stage = []
            for stride in strides:
                stage.append(ResidualBlock(previous, width, stride))
                previous = width
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(previous, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] → logits [B, num_classes]."""
        x = self.stages(norm_act(self.stem(x), self.norm, "relu"))
        # The mean over all positions works for any size; a fixed AvgPool2d(4) would only fit maps of 4x4.
        return self.head(x.mean(dim=(2, 3)))


@register_model("resnet18")
def resnet18(num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> ResNet:
    """11,173,962 parameters at 10 classes; the tutorial's network."""
    return ResNet([2, 2, 2, 2], scaled([64, 128, 256, 512], width), num_classes, in_channels)


@register_model("resnet34")
def resnet34(num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> ResNet:
    """21,282,122 parameters at 10 classes."""
    return ResNet([3, 4, 6, 3], scaled([64, 128, 256, 512], width), num_classes, in_channels)


def narrow_resnet(depth: int, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> ResNet:
    """A network of the paper's CIFAR family; ``depth`` is 6n + 2, such as 20, 32, 44 or 56.

    Raises:
        ValueError: ``depth`` does not have this form.
    """
    count, rest = divmod(depth - 2, 6)
    if rest or count < 1:
        raise ValueError(f"depth is {depth}: expected 6n + 2, such as 20, 32, 44 or 56")
    return ResNet([count] * 3, scaled([16, 32, 64], width), num_classes, in_channels)


for _depth in (20, 32, 44, 56):
    register_model(f"resnet{_depth}")(partial(narrow_resnet, _depth))


def scaled(widths: Sequence[int], factor: float) -> list[int]:
    """Multiply channel counts by ``factor``, and round them to multiples of 8 for the vector units."""
    return [max(8, round(width * factor / 8) * 8) for width in widths]
