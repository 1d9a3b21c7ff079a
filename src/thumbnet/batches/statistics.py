"""Statistics over all pixels of a split, and normalisation with them."""

from __future__ import annotations

import torch
from torch import Tensor

from thumbnet.data.images import Preprocessing
from thumbnet.hardware import send

CHANNELS = 3


def count_values(images: Tensor) -> Tensor:
    """How often each value occurs in each channel of ``images`` (uint8 [N, 3, H, W]): int64 [3, 256]."""
    counts = torch.zeros(CHANNELS, 256, dtype=torch.int64)
    for part in images.split(1000):
        for channel in range(CHANNELS):
            counts[channel] += torch.bincount(part[:, channel].reshape(-1).cpu(), minlength=256)
    return counts


def channel_statistics(counts: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels, in [0, 1].

    They come from exact counts of the 256 values, so they do not depend on the order of summation.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    weights = counts.double() / counts.sum(dim=1, keepdim=True)
    mean = weights @ values
    std = (weights @ values.square() - mean.square()).clamp(min=0).sqrt()
    # At least one grey level, because the deviation of a constant channel is 0 and cannot divide.
    return tuple(round(m, 6) for m in mean.tolist()), tuple(round(max(s, 1 / 255), 6) for s in std.tolist())


class Normalise:
    """uint8 [B, C, H, W] → float32: (pixel / 255 - mean) / std per channel, on ``device``.

    Attributes:
        device: where the normalised pictures are.
        mean_pixel: the mean colour, uint8 [C], on ``device``.
    """

    def __init__(self, preprocessing: Preprocessing, device: torch.device) -> None:
        mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
        self.device = device
        self._offset = (mean * 255).view(-1, 1, 1).to(device)
        self._scale = (1 / (std * 255)).view(-1, 1, 1).to(device)
        self.mean_pixel = (mean * 255).round().to(torch.uint8).to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise uint8 pictures [B, C, H, W] to float32 of the same shape."""
        return send(images, self.device).float().sub_(self._offset).mul_(self._scale)
