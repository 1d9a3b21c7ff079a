"""Statistics over all pixels of a split, and normalisation with them."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from thumbnet.data.rendering import Preprocessing
from thumbnet.hardware import send

CHANNELS = 3
_COUNTED = 1 << 20  # pixels to count at a time


def count_values(images: Tensor) -> Tensor:
    """How often each value occurs in each channel of ``images`` (uint8 [N, 3, H, W]): int64 [3, 256]."""
    counts = np.zeros((CHANNELS, 256), dtype=np.int64)
    height, width = images.shape[2:]
    for part in images.split(max(1, _COUNTED // max(1, height * width))):
        pixels = part.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        if pixels.size:
            # Pillow counts 10 times as fast as torch.bincount. For it, the pictures are one high picture.
            column = Image.frombuffer("RGB", (width, len(part) * height), pixels, "raw", "RGB", 0, 1)
            counts += np.reshape(column.histogram(), counts.shape)
    return torch.from_numpy(counts)


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
        normalised = send(images, self.device).float()
        rows = normalised.permute(0, 2, 3, 1)
        if rows.is_contiguous() and normalised.device.type == "cpu":
            # Channels last: PyTorch would loop over three numbers at a time, and this takes a row at a time.
            width = normalised.shape[3]
            rows = rows.flatten(2)
            rows.sub_(self._offset.flatten().repeat(width)).mul_(self._scale.flatten().repeat(width))
            return normalised
        return normalised.sub_(self._offset).mul_(self._scale)
