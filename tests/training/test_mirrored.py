from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import coloured_data
from thumbnet.batches.batches import TrainBatches
from thumbnet.batches.prepare import prepare
from thumbnet.data.splits import ArraySplit, Data
from thumbnet.recipes.recipe import load_recipe
from thumbnet.training import mirrored
from thumbnet.training.epochs import EpochResult
from thumbnet.training.fit import fit
from thumbnet.training.mirrored import _probe, suspicious_pairs
from thumbnet.training.state import TrainingState
from thumbnet.training.train import train
from training_helpers import refuse_seeds

CPU = torch.device("cpu")


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
def test_classes_that_mirroring_makes_alike_are_found_by_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_seeds(monkeypatch)  # also of the probe
    monkeypatch.setattr(mirrored, "PROBE_VIEWS", mirrored.PROBE_VIEWS // 3)  # they are enough for these
    overrides = ["training.epochs=6", "model.width=0.25", "seed=3"]
    run = train(arrows(400), "small", overrides=overrides, out=tmp_path / "run", device="cpu")
    (warning,) = run.summary["warnings"]
    assert "a and b are mixed up" in warning
    assert "--set augment.flip=none" in warning
    better = [*overrides, "augment.flip=none"]
    mended = train(arrows(400), "small", overrides=better, out=tmp_path / "mended", device="cpu")
    assert mended.summary["warnings"] == []
    assert mended.summary["accuracy"] > 0.9


def probe_of(count: int) -> float:
    """The accuracy of a probe on ``count`` of the smallest pictures; with 65, a batch would have one picture."""
    data = coloured_data(120, 16)
    two = np.flatnonzero(data.splits["train"].labels < 2)[:count]
    data = replace(data, splits={**data.splits, "train": data.splits["train"].subset(two)})
    recipe = load_recipe("small", ["training.precision=fp32"])
    return _probe(recipe, prepare(data, recipe, CPU), "test", (0, 1), CPU)[0]


@pytest.mark.usefixtures("whole_probe")
def test_a_probe_of_the_smallest_pictures_learns() -> None:
    assert probe_of(65) > 0.9


@pytest.mark.parametrize(("count", "batches"), [(64, 1), (65, 1), (66, 2)])
def test_a_probe_of_the_smallest_pictures_has_no_pass_of_one(
    count: int, batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []

    def noted(state: TrainingState, given: TrainBatches) -> Iterator[EpochResult]:
        lengths.append(len(given))
        return fit(state, given)

    monkeypatch.setattr(mirrored, "fit", noted)
    assert 0 <= probe_of(count) <= 1
    assert lengths == [batches]


def test_a_probe_that_has_nothing_to_train_on_finds_nothing() -> None:
    data = coloured_data(60, 16)
    third = np.flatnonzero(data.splits["train"].labels == 2)
    for places in (third, np.append(third, 0)):
        few = replace(data, splits={**data.splits, "train": data.splits["train"].subset(places)})
        recipe = load_recipe("small", ["training.precision=fp32"])
        assert _probe(recipe, prepare(few, recipe, CPU), "test", (0, 1), CPU) == (0.0, 0.0)
