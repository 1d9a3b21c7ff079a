from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from thumbnet import load_data, load_run
from thumbnet.classifiers.temperature import fit_temperature
from thumbnet.evaluation import log_softmax
from thumbnet.training.train import train


def test_a_temperature_undoes_the_one_that_logits_were_made_with() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(4000, 5)) * 2
    labels = np.array([random.choice(5, p=row) for row in np.exp(log_softmax(logits))])
    assert fit_temperature(logits * 3, labels) == pytest.approx(3, rel=0.05)
    assert fit_temperature(logits / 3, labels) == pytest.approx(1 / 3, rel=0.05)
    right = np.eye(5)[np.arange(25) % 5] * 4
    assert 0.2 < fit_temperature(right, np.arange(25) % 5) < 1  # all right: the prior holds it
    assert fit_temperature(right[:19], np.arange(19) % 5) == 1.0


def test_calibration_lowers_the_error_on_the_digits_and_changes_no_accuracy(tmp_path: Path) -> None:
    small = ["training.epochs=2", "model.width=0.25", "data.subset_size=600"]
    found = train("digits", "digits", overrides=small, out=tmp_path / "run", device="cpu")
    summary = found.summary
    assert summary["calibrated_on"] == "calibration"
    assert summary["calibration_pictures"] == 71
    assert summary["calibration_error"] < 0.5 * summary["calibration_error_before"]
    info = load_run(found.path, "cpu").info
    assert info.temperature == summary["temperature"] != 1.0
    assert load_run(found.path, "cpu").evaluate(load_data("digits"), "test").accuracy == summary["accuracy"]
