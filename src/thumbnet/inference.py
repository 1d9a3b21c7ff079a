"""From a network and pictures to logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thumbnet.data.batches import Batches
from thumbnet.hardware import autocast


def views(images: Tensor, tta: str) -> list[Tensor]:
    """The views of a batch (float [B, C, H, W]) whose logits are averaged; see ``evaluation.tta``."""
    if tta == "none":
        return [images]
    seen = [images]
    if tta == "mirror-shift":
        padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
        height, width = images.shape[-2:]
        seen += [padded[:, :, :height, :width], padded[:, :, 2:, 2:]]
    return seen + [view.flip(-1) for view in seen]


def predict_logits(model: nn.Module, images: Tensor, *, bf16: bool, tta: str = "none") -> Tensor:
    """Logits float32 [B, classes] of a normalised batch, the mean over its views.

    With ``mirror-shift`` the two shifted views count half: together as much as the middle one.
    """
    weights = {1: [1.0], 2: [0.5, 0.5], 6: [0.25, 0.125, 0.125, 0.25, 0.125, 0.125]}
    seen = views(images, tta)
    total: Tensor | None = None
    with torch.inference_mode(), autocast(bf16, images.device):
        for view, weight in zip(seen, weights[len(seen)], strict=True):
            logits = model(view.contiguous(memory_format=torch.channels_last)).float() * weight
            total = logits if total is None else total + logits
    assert total is not None
    return total


def collect_logits(
    model: nn.Module, batches: Batches, *, bf16: bool, tta: str = "none"
) -> tuple[Tensor, Tensor]:
    """Logits float32 [N, classes] and labels int64 [N] of a split, on the CPU. Sets eval mode."""
    model.eval()
    logits, labels = [], []
    for batch in batches.epoch(0):
        logits.append(predict_logits(model, batch.images, bf16=bf16, tta=tta))
        labels.append(batch.labels)
    return torch.cat(logits).cpu(), torch.cat(labels).cpu()
