"""Random changes to training pictures, for a whole batch at once on the batch's device.

Drawing random choices and applying them are separate. The random numbers come from one generator on the CPU,
so every device and engine gives the same pictures; applying them is a pure function. Pictures stay uint8
[B, C, H, W] until they are normalised, a quarter of float32's traffic. Rotation, scale, hue and saturation
compute with floats in between; a user's own augmentation comes last
(:mod:`~thumbnet.batches.own_augmentation`). Brightness, contrast and mixing follow the normalisation.

A setting that is off draws no random numbers, and its tensor in a :class:`Draw` is empty. Shift, hole and
light are the exception: they are always drawn, because leaving one out would change the results of older
recipes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from thumbnet.batches.distort import colour_matrices, recolour, turn_matrices, warp
from thumbnet.batches.mixing import Mixed, draw_mixing, inside_box, mix
from thumbnet.hardware import send
from thumbnet.kernels.augment import can_move, mirror_and_translate
from thumbnet.recipes.settings import AugmentSettings

ERASE_ASPECT = 0.3  # height over width of an erased rectangle is between this and its inverse (Zhong 2017)


class Draw(NamedTuple):
    """The random choices for one batch.

    The first four tensors always have a value per picture. From ``flip_vertical`` on, the tensor of a setting
    that is off has the shape [B, 0].

    Attributes:
        flip: bool [B], whether to mirror. Only ``augment.flip = "random"`` draws it.
        shift: int64 [B, 2], pixels down and right.
        hole: int64 [B, 2], row and column of the cutout's centre.
        light: float32 [B, 2], in [-1, 1): brightness and contrast, as fractions of the recipe's maximum.
        flip_vertical: bool [B], whether to mirror top to bottom.
        turn: float32 [B, 2, 2], rotation and scale, see :func:`~thumbnet.batches.distort.warp`.
        colours: float32 [B, 3, 3], hue and saturation, see :func:`~thumbnet.batches.distort.recolour`.
        erased: int64 [B, 4], the rectangle to erase: top, left, bottom, right. Its area is 0 if a picture
            stays whole.
        partner: int64 [B], position in the batch of the picture to mix with.
        share: float32 [B], a picture's own share in the mixture.
        pasted: int64 [B, 4], the rectangle that CutMix takes from the partner. Its area is 0 if the picture
            is blended instead.
    """

    flip: Tensor
    shift: Tensor
    hole: Tensor
    light: Tensor
    flip_vertical: Tensor
    turn: Tensor
    colours: Tensor
    erased: Tensor
    partner: Tensor
    share: Tensor
    pasted: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> Draw:
        """Apply ``change`` to each of the tensors."""
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

    @property
    def used(self) -> tuple[bool, ...]:
        """Whether each tensor of a :class:`Draw` is used."""
        settings = self.settings
        return (
            settings.flip != "none",
            settings.translate > 0,
            settings.cutout > 0,
            settings.brightness > 0 or settings.contrast > 0,
            settings.flip_vertical != "none",
            settings.warps,
            settings.recolours,
            settings.erase > 0,
            settings.mixes,
            settings.mixes,
            settings.cutmix > 0,
        )

    def draw(self, indices: Tensor, seen: Tensor | int, generator: torch.Generator) -> Draw:
        """Draw the choices for the pictures at ``indices`` (int64 [B]).

        ``seen`` (int, or int64 [B]) says how often each picture was seen before. Alternating flips are where
        the indices are, everything else is on the CPU.
        """
        count, (height, width), reach = len(indices), self.size, self.settings.translate
        if self.settings.flip == "alternating":
            if self._first_flip.device != indices.device:
                self._first_flip = send(self.first_flip, indices.device)
            flip = self._first_flip[indices] ^ (seen % 2 == 1)
        elif self.settings.flip == "random":
            flip = torch.rand(count, generator=generator) < 0.5
        else:
            flip = torch.zeros(count, dtype=torch.bool)
        shift = torch.randint(-reach, reach + 1, (count, 2), generator=generator)
        sides = torch.tensor([height, width])
        hole = (torch.rand(count, 2, generator=generator) * sides).long()
        light = 2 * torch.rand(count, 2, generator=generator) - 1
        return Draw(flip, shift, hole, light, *self._draw_more(count, generator))

    def _draw_more(self, count: int, generator: torch.Generator) -> list[Tensor]:
        """Draw what comes after the light, but only for the settings that are on."""
        settings, nothing = self.settings, torch.empty(count, 0)

        def spread() -> Tensor:
            """Random numbers in [-1, 1)."""
            return 2 * torch.rand(count, dtype=torch.float64, generator=generator) - 1

        vertical = turn = colours = erased = partner = share = pasted = nothing
        if settings.flip_vertical != "none":
            vertical = torch.rand(count, generator=generator) < 0.5
        if settings.warps:
            low, high = map(math.log, settings.scale)
            degrees, place = spread() * settings.rotate, spread()
            turn = turn_matrices(degrees, ((low + high) / 2 + (high - low) / 2 * place).exp())
        if settings.recolours:
            turned = spread() * settings.hue
            colours = colour_matrices(turned, 1 + spread() * settings.saturation)
        if settings.erase:
            erased = draw_erased(settings, count, self.size, generator)
        if settings.mixes:
            partner, share, box = draw_mixing(settings, count, self.size, generator)
            pasted = box if settings.cutmix else nothing
        return [vertical, turn, colours, erased, partner, share, pasted]

    def apply(self, images: Tensor, draw: Draw, fill: Tensor) -> Tensor:
        """Apply ``draw``, except for the light and the mixing, to ``images`` (uint8 [B, C, H, W]).

        ``fill`` (uint8 [C]) is the colour of what is cut out or erased. All are on one device.
        """
        reflect = self.settings.translate_fill == "reflect"
        if self.settings.translate and can_move(images):
            images = mirror_and_translate(images, draw.flip, draw.shift, reflect)
        else:
            if self.settings.flip != "none":
                images = mirror(images, draw.flip)
            if self.settings.translate:
                images = translate(images, draw.shift, reflect)
        if self.settings.flip_vertical != "none":
            images = mirror(images, draw.flip_vertical, dim=-2)
        if self.settings.warps:
            images = warp(images, draw.turn, reflect)
        if self.settings.recolours:
            images = recolour(images, draw.colours)
        if self.settings.cutout:
            images = cutout(images, draw.hole, self.settings.cutout, fill)
        if self.settings.erase:
            height, width = images.shape[-2:]
            images = torch.where(inside_box(draw.erased, height, width)[:, None], fill[:, None, None], images)
        return images

    def relight(self, images: Tensor, draw: Draw) -> Tensor:
        """Change brightness and contrast of normalised ``images``, float32 [B, C, H, W], in place."""
        if not (self.settings.brightness or self.settings.contrast):
            return images
        light = draw.light[:, :, None, None, None]
        shift, factor = light[:, 0] * self.settings.brightness, 1 + light[:, 1] * self.settings.contrast
        return images.add_(shift).mul_(factor)

    def mix(self, images: Tensor, labels: Tensor, draw: Draw) -> tuple[Tensor, Mixed | None]:
        """Mix normalised ``images``, float32 [N, C, H, W], and say with what; None if nothing is mixed.

        The result has as many pictures as ``draw.partner``, and they are the first ones of ``images``. The
        partners may come after them. ``labels`` are those of all N pictures.
        """
        if not self.settings.mixes:
            return images, None
        box = draw.pasted if self.settings.cutmix else None
        mixed = Mixed(labels.index_select(0, draw.partner), draw.share)
        return mix(images, draw.partner, draw.share, box), mixed


def mirror(images: Tensor, where: Tensor, dim: int = -1) -> Tensor:
    """Mirror the pictures where ``where`` (bool [B]) is true: left to right, or along another ``dim``."""
    return torch.where(where[:, None, None, None], images.flip(dim), images)


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


def draw_erased(
    settings: AugmentSettings, count: int, size: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """Draw the rectangles of random erasing, int64 [B, 4]: top, left, bottom, right; empty for no erasing.

    A rectangle lies within the picture. One that would be longer than the picture is cut to it, so it is
    smaller than its area says.
    """
    chosen, area, aspect, *place = torch.rand(5, count, dtype=torch.float64, generator=generator)
    low, high = settings.erase_area
    sides = torch.tensor(size, dtype=torch.float64)
    pixels = (low + (high - low) * area) * sides.prod()
    aspect = ((2 * aspect - 1) * math.log(ERASE_ASPECT)).exp()
    lengths = torch.stack([(pixels * aspect).sqrt(), (pixels / aspect).sqrt()], dim=1)
    lengths = lengths.round().clamp(min=1).minimum(sides)
    first = (torch.stack(place, dim=1) * (sides - lengths + 1)).floor()
    return torch.cat([first, first + lengths], dim=1).long() * (chosen < settings.erase)[:, None]


def _inside(positions: Tensor, length: int) -> Tensor:
    return (positions >= 0) & (positions < length)


def _reflect(positions: Tensor, length: int) -> Tensor:
    """Fold positions beyond the ends back, without repeating the ends themselves."""
    positions = positions.abs()
    return torch.where(positions < length, positions, 2 * (length - 1) - positions).clamp(0, length - 1)
