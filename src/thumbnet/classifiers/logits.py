"""Compute logits with torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thumbnet.batches.batches import Batches
from thumbnet.classifiers.tta import Views
from thumbnet.hardware import autocast, memory_layout


class Tensors(Views[Tensor]):
    """Views of tensors: pictures are float [B, C, H, W]; logits are kept on ``device``."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mirrored(self, pictures: Tensor) -> Tensor:
        return pictures.flip(-1)

    def shifted(self, pictures: Tensor) -> list[Tensor]:
        padded = F.pad(pictures, (1, 1, 1, 1), mode="reflect")
        height, width = pictures.shape[-2:]
        return [padded[:, :, :height, :width], padded[:, :, 2:, 2:]]

    def copy(self, logits: Tensor) -> Tensor:
        return logits.to(self.device, copy=True)

    def where(self, logits: Tensor, chosen: Callable[[np.ndarray], np.ndarray]) -> Tensor:
        return torch.from_numpy(chosen(logits.cpu().numpy())).to(self.device)


def predict_logits(
    model: nn.Module, images: Tensor, *, dtype: torch.dtype, tta: str = "none", plain: Tensor | None = None
) -> Tensor:
    """Compute the logits of a normalised batch, float32 [B, classes].

    Args:
        model: the network, in eval mode.
        images: float [B, C, H, W].
        dtype: the type to compute in.
        tta: test-time augmentation, see :meth:`thumbnet.classifiers.tta.Views.logits`.
        plain: the logits without test-time augmentation, if they are known.
    """

    layout = memory_layout(images.device)

    def forward(view: Tensor) -> Tensor:
        return model(view.contiguous(memory_format=layout)).float()

    with torch.inference_mode(), autocast(dtype, images.device):
        known = forward(images) if plain is None else plain
        return known if tta == "none" else Tensors(images.device).logits(forward, images, known, tta)


def collect_views(
    model: nn.Module, batches: Batches, *, dtype: torch.dtype, tta: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute a split's logits with and without ``tta``, reading each picture once. Sets eval mode.

    Returns:
        Logits with ``tta`` and logits without, float32 [N, classes] (one tensor if ``tta`` is ``none``), and
        the labels, int64 [N]; all on the CPU.
    """
    model.eval()
    logits: list[Tensor] = []
    plain: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in batches.epoch(0):
        alone = predict_logits(model, batch.images, dtype=dtype)
        plain.append(alone)
        if tta != "none":
            logits.append(predict_logits(model, batch.images, dtype=dtype, tta=tta, plain=alone))
        labels.append(batch.labels)
    whole = torch.cat(plain).cpu()
    return (torch.cat(logits).cpu() if logits else whole), whole, torch.cat(labels).cpu()


def collect_logits(
    model: nn.Module, batches: Batches, *, dtype: torch.dtype, tta: str = "none", plain: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute a split's logits, float32 [N, classes], and labels, int64 [N], on the CPU. Sets eval mode.

    ``plain`` holds the same split's logits without ``tta``, if they are known.
    """
    model.eval()
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    done = 0
    for batch in batches.epoch(0):
        known = None if plain is None else plain[done : done + len(batch.images)]
        logits.append(predict_logits(model, batch.images, dtype=dtype, tta=tta, plain=known))
        labels.append(batch.labels)
        done += len(batch.images)
    return torch.cat(logits).cpu(), torch.cat(labels).cpu()
