"""Mix pictures and labels within a batch: mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019).

Each picture has a partner in its batch, and a share of its own in the result. The loss is the same mixture of
the losses for both labels. So mixing works with one class and with several labels per picture, with class
weights and with label smoothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from thumbnet.recipes.settings import AugmentSettings


@dataclass(frozen=True)
class Mixed:
    """What the pictures of a batch were mixed with.

    Attributes:
        labels: the partners' labels, like the batch's own: int64 [B] or int8 [B, classes].
        share: each picture's own share in the result, in [0, 1]: float32 [B]. The rest is its partner's.
    """

    labels: Tensor
    share: Tensor

    def split(self, sizes: list[int]) -> list[Mixed]:
        """Parts of these numbers of pictures."""
        parts = zip(self.labels.split(sizes), self.share.split(sizes), strict=True)
        return [Mixed(*part) for part in parts]

    def leading(self, own: Tensor) -> Tensor:
        """The labels with the larger share in each picture; ``own`` are the batch's labels."""
        leads = self.share >= 0.5
        return torch.where(leads if own.ndim == 1 else leads[:, None], own, self.labels)


def draw_mixing(
    settings: AugmentSettings, count: int, size: tuple[int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw how ``count`` pictures of ``size`` (height, width) are mixed; something must be on.

    Returns:
        The positions of the partners in the batch, int64 [B]; the shares, float32 [B]; and the rectangles to
        paste, int64 [B, 4] (top, left, bottom, right), empty for mixup.
    """
    partner = torch.randperm(count, generator=generator)
    # PyTorch has no beta distribution that takes a generator.
    seed = int(torch.randint(2**62, (), generator=generator))
    random = np.random.Generator(np.random.PCG64(seed))

    def shares(alpha: float) -> Tensor:
        return torch.from_numpy(random.beta(alpha, alpha, count))

    if not settings.cutmix:
        return partner, shares(settings.mixup).float(), torch.zeros(count, 4, dtype=torch.int64)
    box, share = _cut(shares(settings.cutmix), size, torch.from_numpy(random.random((count, 2))))
    if settings.mixup:
        blended = torch.from_numpy(random.random(count)) < 0.5
        share = torch.where(blended, shares(settings.mixup), share)
        box *= ~blended[:, None]
    return partner, share.float(), box


def _cut(share: Tensor, size: tuple[int, int], centre: Tensor) -> tuple[Tensor, Tensor]:
    """Rectangles of area 1 - ``share`` around ``centre`` ([B, 2] in [0, 1)), clipped; and the shares left."""
    sides = torch.tensor(size, dtype=torch.float64)
    middle, half = centre * sides, (1 - share).sqrt()[:, None] * sides / 2
    first, last = (middle - half).round().clamp(min=0), (middle + half).round().minimum(sides)
    area = (last - first).prod(dim=1)
    return torch.cat([first, last], dim=1).long(), 1 - area / sides.prod()


def mix(images: Tensor, partner: Tensor, share: Tensor, box: Tensor | None) -> Tensor:
    """Blend the first pictures of ``images`` (float32 [N, C, H, W]) with their partners.

    Args:
        images: at least B pictures.
        partner: positions in ``images``, int64 [B].
        share: float32 [B], of pictures that are blended.
        box: int64 [B, 4]; a picture gets this rectangle of its partner instead, unless it is empty. None if
            all are blended.

    Returns:
        float32 [B, C, H, W].
    """
    own, others = images[: len(partner)], images.index_select(0, partner)
    if box is None:
        weight = share[:, None, None, None]
        return own * weight + others * (1 - weight)
    inside = inside_box(box, images.shape[-2], images.shape[-1])[:, None]
    pasted = (box[:, 2:] > box[:, :2]).all(dim=1)
    weight = torch.where(pasted, torch.ones_like(share), share)[:, None, None, None]
    return torch.where(inside, others, own * weight + others * (1 - weight))


def inside_box(box: Tensor, height: int, width: int) -> Tensor:
    """Which pixels lie in rectangles: bool [B, H, W].

    ``box`` is int64 [B, 4]: top, left, bottom, right. The last row is bottom - 1, the last column right - 1.
    """
    rows = torch.arange(height, device=box.device)
    columns = torch.arange(width, device=box.device)
    down = (rows >= box[:, 0, None]) & (rows < box[:, 2, None])
    across = (columns >= box[:, 1, None]) & (columns < box[:, 3, None])
    return down[:, :, None] & across[:, None, :]
