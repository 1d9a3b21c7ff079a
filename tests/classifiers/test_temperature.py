"""The temperature that calibrates a network's probabilities."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from thumbnet import load_data, load_run
from thumbnet.classifiers.temperature import calibrated, fit_sigmoid_temperature, fit_temperature
from thumbnet.data.calibration import FEWEST
from thumbnet.evaluation import log_softmax
from thumbnet.training.train import train


def drawn(count: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from their softmax, so they are calibrated at temperature 1."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(count, classes)) * 2
    labels = [random.choice(classes, p=row) for row in np.exp(log_softmax(logits))]
    return logits.astype(np.float32), np.array(labels)


def mean_surprise(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(-log_softmax(logits)[np.arange(len(labels)), labels].mean())


@pytest.mark.parametrize("factor", [0.25, 1.0, 3.0])
def test_the_temperature_undoes_the_factor_by_which_logits_are_too_large(factor: float) -> None:
    logits, labels = drawn(3000, 4)
    assert fit_temperature(logits * factor, labels) == pytest.approx(factor, rel=0.06)


def test_no_other_temperature_fits_many_pictures_better() -> None:
    logits, labels = drawn(3000, 4)
    found = fit_temperature(logits * 2.5, labels)
    best = mean_surprise(logits * 2.5 / found, labels)
    for other in (0.9 * found, 0.97 * found, 1.03 * found, 1.1 * found):
        assert mean_surprise(logits * 2.5 / other, labels) > best


def test_the_temperature_is_1_with_too_few_pictures() -> None:
    logits, labels = drawn(FEWEST, 3)
    assert fit_temperature(logits[:-1] * 4, labels[:-1]) == 1.0
    assert fit_temperature(logits[:-1] * 4, labels[:-1], fewest=1) != 1.0
    assert fit_temperature(logits * 4, labels) != 1.0


def test_the_temperature_is_1_if_a_logit_is_not_finite() -> None:
    logits, labels = drawn(100, 3)
    targets = np.eye(3)[labels]
    assert fit_sigmoid_temperature(logits * 4, targets) != 1.0
    for wrong in (np.nan, np.inf):
        logits[7] = wrong
        assert fit_temperature(logits * 4, labels) == 1.0
        assert fit_sigmoid_temperature(logits * 4, targets) == 1.0


def test_the_prior_keeps_a_few_correct_predictions_from_making_the_network_certain() -> None:
    right = np.eye(5)[np.arange(25) % 5] * 4
    few = fit_temperature(right, np.arange(25) % 5)
    many = fit_temperature(np.tile(right, (40, 1)), np.tile(np.arange(25) % 5, 40))
    assert np.exp(-3) < many < few < 1


def test_the_temperature_stays_between_its_bounds() -> None:
    labels = np.arange(4000) % 2
    right, wrong = np.eye(2)[labels], np.eye(2)[1 - labels]
    assert fit_temperature(0.001 * right, labels) == pytest.approx(np.exp(-3), rel=1e-4)
    assert fit_temperature(1000 * wrong, labels) == pytest.approx(np.exp(3), rel=1e-4)


def test_the_temperature_has_six_digits_so_that_files_and_output_agree() -> None:
    found = fit_temperature(*drawn(500, 3))
    assert found == float(f"{found:.6g}")


def test_calibrating_keeps_type_order_and_predictions() -> None:
    logits, _ = drawn(50, 4)
    found = calibrated(logits, 2.0)
    assert found.dtype == np.float32
    assert np.array_equal(found, logits / 2)
    assert np.array_equal(found.argmax(axis=1), logits.argmax(axis=1))
    assert calibrated(logits, 1.0) is logits


def test_calibration_lowers_the_calibration_error_but_keeps_the_accuracy(tmp_path: Path) -> None:
    small = ["training.epochs=2", "model.width=0.25", "data.subset_size=600"]
    found = train("digits", "digits", overrides=small, out=tmp_path / "run", device="cpu")
    summary = found.summary
    assert summary["calibrated_on"] == "calibration"
    assert summary["calibration_pictures"] == 71
    assert summary["calibration_error"] < 0.5 * summary["calibration_error_before"]
    classifier = load_run(found.path, "cpu")
    info = classifier.info
    assert info.temperature == summary["temperature"] != 1.0
    assert info.thresholds is not None
    assert (info.thresholds.split, info.thresholds.pictures) == ("calibration", 71)
    assert json.loads(json.dumps(info.thresholds.to_dict())) == summary["thresholds"]
    assert info.unlike is not None
    assert json.loads(json.dumps(asdict(info.unlike))) == summary["unlike"]
    predictions = classifier.predict(np.zeros((1, 32, 32, 3), np.uint8))
    assert predictions[0].unlike is (predictions[0].unlikeness > 1)  # type: ignore[operator]
    assert classifier.evaluate(load_data("digits"), "test").accuracy == summary["accuracy"]
