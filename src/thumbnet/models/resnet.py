"""Residual networks for small pictures (He et al. 2015, https://arxiv.org/abs/1512.03385).

Two families of one class. ResNet-18 and 34 are ImageNet's with the first layers made for small
pictures: a 3x3 convolution with stride 1, no pooling. ResNet-20, 32, 44 and 56 are the paper's own
for CIFAR: three stages, 16, 32 and 64 wide, of (depth - 2) / 6 blocks; their shortcuts are
projections where the shape changes (the paper's option B), as everywhere here.

    logits = resnet18(num_classes=10)(torch.randn(8, 3, 32, 32))  # [8, 10]
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from thumbnet.kernels.conv import Conv3x3
from thumbnet.kernels.norm import norm_act


class Conv1x1(nn.Conv2d):
    """A 1x1 convolution without bias, [B, in_channels, H, W] → [B, out_channels, ceil(H / s), ceil(W / s)].

    Of fewer than 16 channels the positions are chosen first: for their filters' gradient oneDNN 3.12 writes
    past its memory if the stride is not 1 (https://github.com/uxlfoundation/oneDNN/issues/6035; float32).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        if self.in_channels >= 16 or self.stride[0] == 1:
            return super().forward(x)
        return F.conv2d(x[:, :, :: self.stride[0], :: self.stride[1]], self.weight)


class ResidualBlock(nn.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)).

    The shortcut is the identity, or a 1x1 convolution and normalisation where ``stride`` is not 1 or
    the widths differ.

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
            self.shortcut = nn.Sequential(
                Conv1x1(in_channels, out_channels, stride),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, H, W] → [B, out_channels, H', W']."""
        out = norm_act(self.conv1(x), self.norm1, "relu")
        return norm_act(self.conv2(out), self.norm2, "relu", add=self.shortcut(x))


class ResNet(nn.Module):
    """A stem, stages of residual blocks, the mean over all positions, and a linear layer.

    Args:
        blocks: number of blocks of each stage.
        widths: channels of each stage. Each stage but the first halves height and width.
        num_classes: length of the logits.
        in_channels: of the pictures.

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
        # The mean over whatever positions are left: a fixed AvgPool2d(4) would do for 32x32 only.
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


def resnet18(num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> ResNet:
    """11,173,962 parameters at 10 classes; the tutorial's network."""
    return ResNet([2, 2, 2, 2], scaled([64, 128, 256, 512], width), num_classes, in_channels)


def resnet34(num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> ResNet:
    """21,282,122 parameters at 10 classes."""
    return ResNet([3, 4, 6, 3], scaled([64, 128, 256, 512], width), num_classes, in_channels)


def narrow_resnet(depth: int, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> ResNet:
    """The paper's CIFAR family: ``depth`` is 6n + 2, as 20, 32, 44, 56.

    Raises:
        ValueError: ``depth`` is not of that form.
    """
    count, rest = divmod(depth - 2, 6)
    if rest or count < 1:
        raise ValueError(f"depth is {depth}: expected 6n + 2, such as 20, 32, 44 or 56")
    return ResNet([count] * 3, scaled([16, 32, 64], width), num_classes, in_channels)


def scaled(widths: Sequence[int], factor: float) -> list[int]:
    """Widths times ``factor``, rounded to a multiple of 8, on which vector units work best."""
    return [max(8, round(width * factor / 8) * 8) for width in widths]
