"""A classifier and pictures for tests of sorting. Imports no torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from helpers import write_picture
from thumbnet.classifiers.base import Classifier
from thumbnet.data.rendering import Preprocessing
from thumbnet.recipes.settings import ModelSettings
from thumbnet.runs.certainty import LOOKS, Threshold, Thresholds, Unlikeness
from thumbnet.runs.weights_info import WeightsInfo

THRESHOLDS = Thresholds(
    "val",
    500,
    0.9871,
    (Threshold(0.9, 0.4, 450, 425), Threshold(0.95, 0.8, 400, 392), Threshold(0.98, 0.9, 380, 379)),
)


def unlike_above(threshold: float, score: str = "energy") -> Unlikeness:
    """Calls a picture unlike if the score of its logits is above the threshold, however it looks."""
    flat = (0.0,) * LOOKS
    return Unlikeness(score, threshold - 1, threshold, flat, (flat,) * LOOKS, 1e6, 1e6 + 1, 0.99, 500)


UNLIKE = unlike_above(5.0)
DARK, BETWEEN, MIDDLE, BRIGHT = 0, 63, 128, 255  # grey levels; BETWEEN is unsure
RED = (255, 0, 0)  # unlike the training pictures


class Grey(Classifier):
    """Classifies a picture's brightness. All logits of a red picture are low, so its energy is high."""

    def __init__(
        self,
        names: tuple[str, ...] = ("dark", "middle", "bright"),
        thresholds: Thresholds | None = THRESHOLDS,
        unlike: Unlikeness | None = UNLIKE,
    ) -> None:
        pre = Preprocessing((8, 8), "squash", (0.5,) * 3, (0.5,) * 3)
        super().__init__(
            WeightsInfo(ModelSettings(), names, pre, "fp32", "", "", thresholds=thresholds, unlike=unlike)
        )
        self.classified = 0

    def _forward(self, pixels: np.ndarray) -> np.ndarray:
        self.classified += len(pixels)
        level = pixels.mean(axis=(1, 2, 3))[:, None] / 255
        redness = (pixels[..., 0].astype(int) - pixels[..., 2]).mean(axis=(1, 2))[:, None] / 255
        logits: np.ndarray = 5 - 20 * np.abs(level - np.array([[0.0, 0.5, 1.0]])) - 20 * redness
        return logits.astype(np.float32)


def picture(path: Path, level: int | tuple[int, int, int]) -> Path:
    """Write a picture of one grey level or colour."""
    return write_picture(path, np.full((8, 8, 3), level, dtype=np.uint8))


def inbox(root: Path) -> Path:
    """Pictures of every kind, in two folders with the same file names, and a file that is no picture."""
    levels: dict[str, int | tuple[int, int, int]] = {
        "a": DARK,
        "b": BETWEEN,
        "c": MIDDLE,
        "d": BRIGHT,
        "e": RED,
    }
    for name, level in levels.items():
        picture(root / f"{name}.png", level)
    picture(root / "deep" / "er" / "a.png", BRIGHT)
    (root / "deep" / "broken.png").write_bytes(b"no picture")
    return root


def tree(root: Path) -> list[str]:
    """The paths of all files below a folder, hidden ones too."""
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir())


SORTED = [
    "bright/d.png",
    "bright/deep/er/a.png",
    "dark/a.png",
    "middle/c.png",
    "unlike/e.png",
    "unsure/b.png",
]
"""What sorting :func:`inbox` gives."""
