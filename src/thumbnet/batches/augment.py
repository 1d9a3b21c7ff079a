"""Random changes to training pictures, for a whole batch at once on the batch's device.

Drawing random choices and applying them are separate. The random numbers come from one generator on the CPU,
so every device and engine gives the same pictures; applying them is a pure function. Pictures stay uint8
[B, C, H, W] until they are normalised, a quarter of float32's traffic; only brightness and contrast work on
floats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from thumbnet.hardware import send
from thumbnet.kernels.augment import can_move, mirror_and_translate
from thumbnet.recipes.settings import AugmentSettings


class Draw(NamedTuple):
    """The random choices for one batch.

    Attributes:
        flip: bool [B], whether to mirror.
        shift: int64 [B, 2], pixels down and right.
        hole: int64 [B, 2], row and column of the cutout's centre.
        light: float32 [B, 2], in [-1, 1): brightness and contrast, as fractions of the recipe's maximum.
    """

    flip: Tensor
    shift: Tensor
    hole: Tensor
    light: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> Draw:
        """Apply ``change`` to each of the four tensors."""
        return Draw(*map(change, self))


class Augmentation:
    """A recipe's augmentation, for a training split of ``count`` pictures of ``size`` (height, width).

    Attributes:
        settings: the recipe's.
        size: height, width in pixels.
        first_flip: bool [count], whether ``flip = "alternating"`` mirrors a picture when it is first seen; on
            the CPU.
    """

    def __init__(self, settings: AugmentSettings, count: int, size: tuple[int, int], seed: int) -> None:
        self.settings = settings
        self.size = size
        generator = torch.Generator().manual_seed(seed)
        self.first_flip = torch.rand(count, generator=generator) < 0.5
        self._first_flip = self.first_flip  # on the device of the newest indices

    def draw(self, indices: Tensor, turns: Tensor | int, generator: torch.Generator) -> Draw:
        """Draw the choices for the pictures at ``indices`` (int64 [B]).

        ``turns`` (int, or int64 [B]) says how often each picture was seen before. Alternating flips are where
        the indices are, everything else is on the CPU.
        """
        count, (height, width), reach = len(indices), self.size, self.settings.translate
        if self.settings.flip == "alternating":
            if self._first_flip.device != indices.device:
                self._first_flip = send(self.first_flip, indices.device)
            flip = self._first_flip[indices] ^ (turns % 2 == 1)
        elif self.settings.flip == "random":
            flip = torch.rand(count, generator=generator) < 0.5
        else:
            flip = torch.zeros(count, dtype=torch.bool)
        shift = torch.randint(-reach, reach + 1, (count, 2), generator=generator)
        sides = torch.tensor([height, width])
        hole = (torch.rand(count, 2, generator=generator) * sides).long()
        light = 2 * torch.rand(count, 2, generator=generator) - 1
        return Draw(flip, shift, hole, light)

    def apply(self, images: Tensor, draw: Draw, fill: Tensor) -> Tensor:
        """Apply ``draw``, except for the light, to ``images`` (uint8 [B, C, H, W]).

        ``fill`` (uint8 [C]) is the colour of the cutout. All are on one device.
        """
        reflect = self.settings.translate_fill == "reflect"
        if self.settings.translate and can_move(images):
            images = mirror_and_translate(images, draw.flip, draw.shift, reflect)
        else:
            if self.settings.flip != "none":
                images = mirror(images, draw.flip)
            if self.settings.translate:
                images = translate(images, draw.shift, reflect)
        if self.settings.cutout:
            images = cutout(images, draw.hole, self.settings.cutout, fill)
        return images

    def relight(self, images: Tensor, draw: Draw) -> Tensor:
        """Change brightness and contrast of normalised ``images``, float32 [B, C, H, W], in place."""
        if not (self.settings.brightness or self.settings.contrast):
            return images
        light = draw.light[:, :, None, None, None]
        shift, factor = light[:, 0] * self.settings.brightness, 1 + light[:, 1] * self.settings.contrast
        return images.add_(shift).mul_(factor)


def mirror(images: Tensor, where: Tensor) -> Tensor:
    """Mirror the pictures that ``where`` (bool [B]) selects, left to right."""
    return torch.where(where[:, None, None, None], images.flip(-1), images)


def translate(images: Tensor, shift: Tensor, reflect: bool) -> Tensor:
    """Shift pictures by ``shift`` (int64 [B, 2], pixels down and right).

    The border becomes a reflection that does not repeat the edge, as in ``F.pad(mode="reflect")``, or 0.
    """
    if len(images) == 0:
        return images
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) - shift[:, :1]  # [B, H]: each row's source
    columns = torch.arange(width, device=images.device) - shift[:, 1:]
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    # Indexing [B, H, W, C] by [B, H, W] keeps the bytes of a pixel together.
    pixels = images.permute(0, 2, 3, 1)
    if reflect:
        moved = pixels[batch, _reflect(rows, height)[:, :, None], _reflect(columns, width)[:, None, :]]
    else:
        moved = pixels[batch, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]]
        moved = moved * (_inside(rows, height)[:, :, None] & _inside(columns, width)[:, None, :])[..., None]
    return moved.permute(0, 3, 1, 2)


def cutout(images: Tensor, centre: Tensor, side: int, fill: Tensor) -> Tensor:
    """Set a square of ``side`` pixels around ``centre`` (int64 [B, 2]) to ``fill`` (uint8 [C])."""
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) - centre[:, :1] + side // 2
    columns = torch.arange(width, device=images.device) - centre[:, 1:] + side // 2
    hole = _inside(rows, side)[:, :, None] & _inside(columns, side)[:, None, :]
    return torch.where(hole[:, None], fill[:, None, None], images)


def _inside(positions: Tensor, length: int) -> Tensor:
    return (positions >= 0) & (positions < length)


def _reflect(positions: Tensor, length: int) -> Tensor:
    """Fold positions beyond the ends back, without repeating the ends themselves."""
    positions = positions.abs()
    return torch.where(positions < length, positions, 2 * (length - 1) - positions).clamp(0, length - 1)
