"""Where a network looks, and which labels are probably wrong."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from thumbnet.classifiers import explain
from thumbnet.classifiers.base import Classifier
from thumbnet.classifiers.explain import (
    confident_classes,
    doubts,
    highlight,
    likely_label_errors,
    occlusion_map,
)


class SeesACorner:
    """Predicts the second class if a corner is bright. The pictures are 24 wide and 16 high."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, str | None]] = []

    def logits(self, pixels: np.ndarray, *, tta: str | None = None) -> np.ndarray:
        self.asked.append((len(pixels), tta))
        bright = pixels[:, 2:6, 16:22].mean(axis=(1, 2, 3)) / 255
        return np.stack([np.zeros_like(bright), 8 * bright - 4], axis=1).astype(np.float32)


def corner_map(pixels: np.ndarray, label: int, classifier: SeesACorner | None = None) -> np.ndarray:
    return occlusion_map(cast(Classifier, classifier or SeesACorner()), pixels, label)


def test_the_heat_is_where_the_classifier_looks() -> None:
    pixels = np.zeros((16, 24, 3), dtype=np.uint8)
    pixels[2:6, 16:22] = 255
    heat = corner_map(pixels, 1)
    assert heat.shape == (16, 24)
    assert (heat.min(), heat.max()) == (0, 1)
    assert heat[2:6, 16:22].mean() > 0.8
    assert heat[:, :8].max() < 0.01
    # For the other class, covering the corner helps, and covering other places makes no difference.
    assert corner_map(pixels, 0).max() < 0.01


def test_highlighting_darkens_pixels_without_heat() -> None:
    pixels = np.full((4, 4, 3), 200, dtype=np.uint8)
    shown = highlight(pixels, np.eye(4, dtype=np.float32))
    assert (shown[0, 0] == 200).all()
    assert (shown[0, 1] < 30).all()


def test_planted_label_errors_are_found() -> None:
    rng = np.random.default_rng(0)
    actual = rng.integers(0, 4, 2000)
    logits = rng.normal(size=(2000, 4))
    logits[np.arange(2000), actual] += 5
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = actual.copy()
    planted = rng.choice(2000, 60, replace=False)
    labels[planted] = (actual[planted] + rng.integers(1, 4, 60)) % 4
    found = likely_label_errors(probabilities, labels)
    assert len(set(found[:60]) & set(planted)) >= 52  # precision of the first 60
    assert len(set(found) & set(planted)) >= 56  # recall
    assert len(likely_label_errors(probabilities, actual)) < 40


def test_a_class_without_pictures_is_never_suggested() -> None:
    probabilities = np.array([[0.1, 0.9], [0.2, 0.8]])
    assert likely_label_errors(probabilities, np.array([0, 0])).tolist() == []


def test_covered_pictures_are_classified_in_batches_and_without_augmentation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pixels = np.zeros((16, 24, 3), dtype=np.uint8)
    pixels[2:6, 16:22] = 255
    whole, parts = SeesACorner(), SeesACorner()
    expected = corner_map(pixels, 1, whole)
    monkeypatch.setattr(explain, "BATCH", 100)
    assert np.array_equal(corner_map(pixels, 1, parts), expected)
    assert {tta for _, tta in parts.asked} == {"none"}
    sizes = [count for count, _ in parts.asked]
    assert sizes[0] == 1
    assert max(sizes) == 100
    assert sum(sizes) == sum(count for count, _ in whole.asked)
    few = SeesACorner()
    found = occlusion_map(cast(Classifier, few), pixels, 1, batch_size=30)
    assert np.array_equal(found, expected)
    assert max(count for count, _ in few.asked) == 30


def test_a_picture_of_one_colour_has_no_heat() -> None:
    assert (corner_map(np.full((16, 24, 3), 90, dtype=np.uint8), 1) == 0).all()


@pytest.mark.parametrize("heat", [0.0, 0.5, 1.0])
def test_highlighting_keeps_the_type_and_never_brightens(heat: float) -> None:
    pixels: Any = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    shown = highlight(pixels, np.full((5, 6), heat, dtype=np.float32))
    assert shown.dtype == np.uint8
    assert shown.shape == pixels.shape
    assert (shown <= pixels).all()
    assert np.array_equal(shown, pixels) is (heat == 1.0)


def test_the_most_doubtful_label_comes_first() -> None:
    probabilities = np.array([[0.9, 0.1], [0.3, 0.7], [0.1, 0.9], [0.2, 0.8], [0.05, 0.95]])
    assert likely_label_errors(probabilities, np.array([0, 0, 0, 1, 1])).tolist() == [2]
    # Thresholds are the mean probability of a class on its own pictures: 0.5 and 0.8 here.
    probabilities = np.array([[0.9, 0.1], [0.1, 0.9], [0.5, 0.5], [0.2, 0.8], [0.2, 0.8]])
    assert likely_label_errors(probabilities, np.array([0, 0, 0, 1, 1])).tolist() == [1]


def test_the_confident_class_is_the_most_probable_one_that_reaches_its_threshold() -> None:
    # The thresholds are 0.7, 0.2 and 0.8, the means of the classes' own pictures.
    probabilities = np.array([[0.9, 0.1, 0.0], [0.5, 0.4, 0.1], [0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    labels = np.array([0, 0, 1, 2])
    assert confident_classes(probabilities, labels).tolist() == [0, 1, 0, 2]
    assert likely_label_errors(probabilities, labels).tolist() == [2, 1]


def test_the_doubt_is_1_or_0_where_the_network_is_sure() -> None:
    probabilities = np.array([[0.0, 1.0], [0.0, 1.0], [0.25, 0.75]], dtype=np.float32)
    assert doubts(probabilities, np.array([0, 1, 0])).tolist() == [1.0, 0.0, 0.75]


def test_a_picture_that_reaches_no_threshold_keeps_its_label() -> None:
    probabilities = np.array([[1.0, 0.0], [0.6, 0.4], [0.0, 1.0]])
    assert confident_classes(probabilities, np.array([0, 0, 1])).tolist() == [0, 0, 1]
