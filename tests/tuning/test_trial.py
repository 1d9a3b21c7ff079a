from __future__ import annotations

import shutil
import statistics
from pathlib import Path

import pytest
import torch

from helpers import TINY, coloured_data, coloured_labels
from thumbnet.data.calibration import FEWEST
from thumbnet.errors import DivergedError
from thumbnet.recipes.recipe import load_recipe
from thumbnet.runs.folder import Run
from thumbnet.tuning import trial
from thumbnet.tuning.parts import divide
from thumbnet.tuning.trial import POINTS, HopelessTrialError, run_trial
from tuning_helpers import TINY_SEARCH

CPU = torch.device("cpu")
RECIPE = load_recipe("small", [*TINY_SEARCH, "training.epochs=3", "data.image_size=16"])
NAMES = ("red", "green", "blue")


def test_a_trial_is_judged_over_all_folds_and_repeats_to_the_bit() -> None:
    parts = divide(coloured_data(48), RECIPE, CPU).parts
    seen: list[tuple[int, float]] = []

    def note(point: int, loss: float) -> bool:
        seen.append((point, loss))
        return False

    first = run_trial(RECIPE, parts, NAMES, CPU, note)
    points = [point for point, _ in seen]
    assert points == sorted(set(points))
    assert points[-1] == POINTS * len(parts)
    assert seen[-1][1] == pytest.approx(statistics.fmean(first.losses))
    assert seen[-1][1] < seen[0][1]
    assert (first.value * 48) % 1 == pytest.approx(0, abs=1e-9)  # a share of all 48 held-out pictures
    assert first.value > 0.5  # better than guessing one of three
    assert run_trial(RECIPE, parts, NAMES, CPU, lambda *_: False) == first


@pytest.fixture
def uncalibrated(monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """The losses that each judgement in this test would have found at the temperature 1."""
    seen: list[list[float]] = []
    losses = trial._Judge.losses

    def both(self: trial._Judge) -> list[float]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trial, "fit_temperature", lambda *_, **__: 1.0)
            seen.append(losses(self))
        return losses(self)

    monkeypatch.setattr(trial._Judge, "losses", both)
    return seen


def test_the_loss_of_a_trial_is_that_of_calibrated_probabilities(uncalibrated: list[list[float]]) -> None:
    parts = divide(coloured_data(90), RECIPE, CPU).parts
    smooth = RECIPE.override(["training.label_smoothing=0.5", "training.epochs=20"])
    found = run_trial(smooth, parts, NAMES, CPU, lambda *_: False)
    assert found.value > 0.9
    assert len(found.losses) == 90
    assert len(uncalibrated) == POINTS * len(parts)
    plain = sum(sum(losses) for losses in uncalibrated[POINTS - 1 :: POINTS])  # of each network at its end
    assert sum(found.losses) < 0.8 * plain  # the network is right and is not sure


def test_a_few_held_out_pictures_are_judged_by_calibrated_probabilities_too(
    uncalibrated: list[list[float]],
) -> None:
    parts = divide(coloured_data(30), RECIPE, CPU).parts
    assert max(len(part.evaluation["val"].engine.labels) for part in parts) < FEWEST
    found = run_trial(RECIPE, parts, NAMES, CPU, lambda *_: False)
    each = len(uncalibrated) // len(parts)
    assert sum(found.losses) < sum(sum(losses) for losses in uncalibrated[each - 1 :: each])


def test_a_hopeless_trial_stops_at_once() -> None:
    parts = divide(coloured_data(48), RECIPE, CPU).parts
    steps: list[int] = []
    with pytest.raises(HopelessTrialError):
        run_trial(RECIPE, parts, NAMES, CPU, lambda *_: True, lambda step, part: steps.append(part))
    assert set(steps) == {0}


def test_a_trial_with_several_labels_per_picture_is_judged_by_map() -> None:
    data = coloured_labels(60)
    parts = divide(data, RECIPE, CPU).parts
    found = run_trial(RECIPE, parts, data.class_names, CPU, lambda *_: False)
    assert 0.4 < found.value <= 1
    assert len(found.losses) == 60
    assert min(found.losses) > 0


def test_a_trial_that_diverges_says_so() -> None:
    parts = divide(coloured_data(48), RECIPE, CPU).parts
    wild = RECIPE.override(["optimizer.name=sgd", "optimizer.lr=1e30", "optimizer.groups=[]"])
    with pytest.raises(DivergedError):
        run_trial(wild, parts, NAMES, CPU, lambda *_: False)


def test_first_weights_are_read_once_for_all_trials(tiny_run: Run, tmp_path: Path) -> None:
    first = Path(shutil.copytree(tiny_run.path, tmp_path / "first"))
    recipe = load_recipe("one-cycle", [*TINY, "training.epochs=1", f'training.init="{first}"'])
    found = divide(coloured_data(48, splits=("test", "train")), recipe, CPU)
    parts, initial = found.parts, found.initial
    assert initial is not None
    read = run_trial(recipe, parts, NAMES, CPU, lambda *_: False)
    shutil.rmtree(first)
    assert run_trial(recipe, parts, NAMES, CPU, lambda *_: False, initial=initial) == read
