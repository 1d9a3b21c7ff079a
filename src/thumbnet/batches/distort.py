"""Rotate, scale and recolour a batch of pictures, each picture by a matrix of its own.

The matrices are computed on the CPU as the random numbers are drawn, so a device only multiplies.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# From RGB to YIQ, the colour space of NTSC: luma, and two axes of colour that are 0 for greys. Turning the
# plane of these two by an angle changes the hue, and scaling it changes the saturation; luma stays the same.
_TO_YIQ = torch.tensor(
    [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]], dtype=torch.float64
)


def turn_matrices(degrees: Tensor, zoom: Tensor) -> Tensor:
    """The matrices of :func:`warp` that rotate clockwise and enlarge: float32 [B, 2, 2].

    Args:
        degrees: float64 [B].
        zoom: factors, float64 [B].
    """
    angle = degrees * (math.pi / 180)
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    return torch.stack([cos, sin, -sin, cos], dim=1).view(-1, 2, 2).float()


def warp(images: Tensor, matrices: Tensor, reflect: bool) -> Tensor:
    """Rotate and scale pictures around their centre, with bilinear interpolation.

    Args:
        images: uint8 [B, C, H, W].
        matrices: float32 [B, 2, 2]. Each maps (x, y) in the result to (x, y) in the picture. Both are in
            pixels to the right of the centre and below it.
        reflect: fill the border with a reflection that does not repeat the edge; otherwise with 0.

    Returns:
        uint8 [B, C, H, W], stored channels last. Two devices may differ by one grey level, because they round
        differently.
    """
    height, width = images.shape[-2:]
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    y = (torch.arange(height, device=images.device) - (height - 1) / 2)[:, None]
    from_x = matrices[:, 0, 0, None, None] * x + matrices[:, 0, 1, None, None] * y  # [B, H, W]
    from_y = matrices[:, 1, 0, None, None] * x + matrices[:, 1, 1, None, None] * y
    # grid_sample counts from -1 at the centre of the first pixel to 1 at the centre of the last.
    grid = torch.stack([from_x * (2 / max(1, width - 1)), from_y * (2 / max(1, height - 1))], dim=-1)
    padding = "reflection" if reflect else "zeros"
    moved = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode=padding, align_corners=True)
    return _to_bytes(moved)


def colour_matrices(turn: Tensor, saturation: Tensor) -> Tensor:
    """The matrices of :func:`recolour`: float32 [B, 3, 3].

    Args:
        turn: angle by which the hue changes, as a fraction of the colour circle: float64 [B].
        saturation: factors, float64 [B].
    """
    angle = turn * (2 * math.pi)
    cos, sin, zero = saturation * angle.cos(), saturation * angle.sin(), torch.zeros_like(turn)
    rows = [zero + 1, zero, zero, zero, cos, -sin, zero, sin, cos]
    change = torch.stack(rows, dim=1).view(-1, 3, 3)
    return (torch.linalg.inv(_TO_YIQ) @ change @ _TO_YIQ).float()


def recolour(images: Tensor, matrices: Tensor) -> Tensor:
    """Multiply each pixel of ``images`` (uint8 [B, 3, H, W]) by its picture's matrix (float32 [B, 3, 3]).

    Products and sums are rounded one by one, so all devices give the same bytes. The result is stored
    channels last.
    """
    red, green, blue = images.float().split(1, dim=1)
    by_red, by_green, by_blue = matrices[:, :, :, None, None].unbind(dim=2)  # [B, 3, 1, 1]
    return _to_bytes(by_red * red + by_green * green + by_blue * blue)


def _to_bytes(values: Tensor) -> Tensor:
    rounded = values.round_().clamp_(0, 255).to(torch.uint8)
    return rounded.contiguous(memory_format=torch.channels_last)
