"""From a network and pictures to logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thumbnet.batches.batches import Batches
from thumbnet.evaluation import VIEW_WEIGHTS, unsure
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


def predict_logits(
    model: nn.Module, images: Tensor, *, bf16: bool, tta: str = "none", plain: Tensor | None = None
) -> Tensor:
    """Logits float32 [B, classes] of a normalised batch, the mean over its views.

    ``plain`` are those of the pictures as they are, where they are known.
    """

    def logits_of(view: Tensor) -> Tensor:
        logits: Tensor = model(view.contiguous(memory_format=torch.channels_last)).float()
        return logits

    with torch.inference_mode(), autocast(bf16, images.device):
        logits = logits_of(images) if plain is None else plain.to(images.device, copy=True)
        asked: Tensor | slice = slice(None)
        if tta == "adaptive":
            tta, asked = "mirror-shift", torch.from_numpy(unsure(logits.cpu().numpy())).to(logits.device)
            if not bool(asked.any()):
                return logits
        if tta == "none":
            return logits
        total = logits[asked] * VIEW_WEIGHTS[tta][0]
        for view, weight in zip(views(images[asked], tta)[1:], VIEW_WEIGHTS[tta][1:], strict=True):
            total += logits_of(view) * weight
        logits[asked] = total
    return logits


def collect_views(
    model: nn.Module, batches: Batches, *, bf16: bool, tta: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits with ``tta``, logits without, and labels of a split, reading each picture once. Sets eval mode.

    Returns:
        Float32 [N, classes] twice (the same tensor without ``tta``), and int64 [N]; on the CPU.
    """
    model.eval()
    logits: list[Tensor] = []
    plain: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in batches.epoch(0):
        alone = predict_logits(model, batch.images, bf16=bf16)
        plain.append(alone)
        if tta != "none":
            logits.append(predict_logits(model, batch.images, bf16=bf16, tta=tta, plain=alone))
        labels.append(batch.labels)
    whole = torch.cat(plain).cpu()
    return (torch.cat(logits).cpu() if logits else whole), whole, torch.cat(labels).cpu()


def collect_logits(
    model: nn.Module, batches: Batches, *, bf16: bool, tta: str = "none", plain: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Logits float32 [N, classes] and labels int64 [N] of a split, on the CPU. Sets eval mode.

    ``plain``: what this gave for the same without ``tta``, where that is known.
    """
    model.eval()
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    done = 0
    for batch in batches.epoch(0):
        known = None if plain is None else plain[done : done + len(batch.images)]
        logits.append(predict_logits(model, batch.images, bf16=bf16, tta=tta, plain=known))
        labels.append(batch.labels)
        done += len(batch.images)
    return torch.cat(logits).cpu(), torch.cat(labels).cpu()
