from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from thumbnet.data.splits import ArraySplit, Data
from thumbnet.training.mirrored import suspicious_pairs
from thumbnet.training.train import train


def arrows(count: int) -> Data:
    """Case r07 with names that tell nothing: ``b`` is ``a`` mirrored."""
    made = []
    for number in range(count):
        random = np.random.default_rng(number)
        image = random.integers(0, 90, (24, 24, 3), dtype=np.uint8)
        row, column = (int(v) for v in random.integers(3, 10, 2))
        for step in range(5):
            image[row + 4 - step : row + 6 - step, column + step : column + step + 2] = 255
            image[row + 4 + step : row + 6 + step, column + step : column + step + 2] = 255
        image[row + 4 : row + 6, column : column + 11] = 255
        made.append(image[:, ::-1] if number % 2 else image)
    images, labels = np.stack(made), np.arange(count) % 2
    split = count - count // 4
    parts = {"train": ArraySplit(images[:split], labels[:split], "train")}
    parts["test"] = ArraySplit(images[split:], labels[split:], "test")
    return Data("arrows", "made by the tests", ("a", "b"), dict(parts))


def test_only_pairs_confused_by_chance_among_classes_told_apart_are_suspicious() -> None:
    assert suspicious_pairs(np.array([[25, 25, 0], [24, 26, 0], [0, 1, 49]])) == [(0, 1)]
    assert suspicious_pairs(np.array([[50, 0], [50, 0]])) == [(0, 1)]  # all called the same
    assert suspicious_pairs(np.array([[45, 5, 0], [6, 44, 0], [0, 1, 49]])) == []
    assert suspicious_pairs(np.array([[17, 17, 16], [17, 17, 16], [16, 17, 17]])) == []  # nothing is learned
    assert suspicious_pairs(np.array([[3, 3], [3, 3]])) == []  # too few


@pytest.mark.usefixtures("whole_probe")
def test_classes_that_mirroring_makes_alike_are_found_by_measuring(tmp_path: Path) -> None:
    overrides = ["training.epochs=6", "model.width=0.25", "seed=3"]
    run = train(arrows(400), "small", overrides=overrides, out=tmp_path / "run", device="cpu")
    (warning,) = run.summary["warnings"]
    assert "a and b are mixed up" in warning
    assert "--set augment.flip=none" in warning
    better = [*overrides, "augment.flip=none"]
    mended = train(arrows(400), "small", overrides=better, out=tmp_path / "mended", device="cpu")
    assert mended.summary["warnings"] == []
    assert mended.summary["accuracy"] > 0.9
