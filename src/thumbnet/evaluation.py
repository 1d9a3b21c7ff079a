"""From logits to what one wants to know: accuracy, confusion, calibration.

logits, labels = collect_logits(model, batches, bf16=False, device=device)
evaluation = evaluate_logits(logits, labels, class_names)
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thumbnet.data.batches import Batches
from thumbnet.hardware import autocast

CALIBRATION_BINS = 15
Z95 = 1.959963984540054  # of the normal distribution, two-sided


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


@dataclass(frozen=True)
class ClassScore:
    """Of one class: its pictures, and precision, recall and F1 in 0 to 1; 0 where undefined."""

    name: str
    pictures: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Evaluation:
    """What a network does on a split.

    Attributes:
        pictures: how many.
        accuracy: top-1, 0 to 1.
        interval: its 95 % interval (Wilson 1927).
        top5: accuracy of the five likeliest; None with five classes or fewer.
        loss: mean cross-entropy, in nats.
        calibration_error: expected calibration error over 15 equal bins of confidence (Guo et al. 2017).
        confusion: [true][predicted], counts.
        classes: of each class.
    """

    pictures: int
    accuracy: float
    interval: tuple[float, float]
    top5: float | None
    loss: float
    calibration_error: float
    confusion: list[list[int]]
    classes: list[ClassScore]

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def evaluate_logits(logits: Tensor, labels: Tensor, class_names: tuple[str, ...]) -> Evaluation:
    """All measures of ``logits`` (float [N, classes]) against ``labels`` (int64 [N]), N at least 1."""
    count, classes = logits.shape
    probabilities = logits.double().softmax(dim=1)
    confidence, predicted = probabilities.max(dim=1)
    right = predicted == labels
    pairs = labels * classes + predicted
    confusion = torch.bincount(pairs, minlength=classes * classes).reshape(classes, classes)
    top5 = None
    if classes > 5:
        top5 = float((logits.topk(5).indices == labels[:, None]).any(dim=1).double().mean())
    correct = int(right.sum())
    return Evaluation(
        pictures=count,
        accuracy=correct / count,
        interval=wilson_interval(correct, count),
        top5=top5,
        loss=float(F.cross_entropy(logits.double(), labels)),
        calibration_error=_calibration_error(confidence, right),
        confusion=confusion.tolist(),
        classes=[_class_score(name, confusion, label) for label, name in enumerate(class_names)],
    )


def wilson_interval(correct: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson 1927); it stays within 0 and 1 and works near them."""
    share = correct / count
    spread = Z95 * math.sqrt(share * (1 - share) / count + Z95**2 / (4 * count**2))
    middle = share + Z95**2 / (2 * count)
    scale = 1 + Z95**2 / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def _calibration_error(confidence: Tensor, right: Tensor) -> float:
    bins = (confidence * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1
    sums = torch.zeros(2, CALIBRATION_BINS, dtype=torch.float64)
    sums[0].index_add_(0, bins, confidence)
    sums[1].index_add_(0, bins, right.double())
    return float((sums[0] - sums[1]).abs().sum() / len(confidence))


def _class_score(name: str, confusion: Tensor, label: int) -> ClassScore:
    hits = int(confusion[label, label])
    pictures, predicted = int(confusion[label].sum()), int(confusion[:, label].sum())
    precision = hits / predicted if predicted else 0.0
    recall = hits / pictures if pictures else 0.0
    f1 = 2 * hits / (pictures + predicted) if pictures + predicted else 0.0
    return ClassScore(name, pictures, precision, recall, f1)
