"""The benchmark of input sizes: what it measures, and that it continues where it was interrupted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from helpers import write_class_folders
from thumbnet.runs.folder import Run
from thumbnet.training.train import train

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import input_sizes  # noqa: E402


def test_a_network_is_judged_by_the_third_that_it_was_trained_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_little(*words: Any, overrides: list[str], **options: Any) -> Run:
        return train(*words, overrides=[*overrides, "training.epochs=1", "model.width=0.125"], **options)

    monkeypatch.setattr(input_sizes, "train", train_little)
    folder = write_class_folders(tmp_path / "data", ["train", "test"], per_class=9, side=20)
    found = input_sizes.judged(str(folder), "16", "crop", 0, "cpu")
    assert found["pictures"] == 9  # of 27 training pictures
    assert 0 <= found["accuracy"] <= 1
    assert found["loss"] > 0
    assert found["seconds"] > 0


def test_every_way_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[tuple[str, str, int]] = []

    def judged(folder: str, size: str, fit: str, seed: int, device: str) -> dict[str, Any]:
        if len(called) == 5:
            raise KeyboardInterrupt
        called.append((size, fit, seed))
        return {"accuracy": 0.7 + 0.1 * seed, "loss": 0.5, "pictures": 9, "seconds": 3.0}

    monkeypatch.setattr(input_sizes, "judged", judged)
    words = ["photos/", "--sizes", "32", "64", "--fits", "pad", "crop", "--seeds", "2", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["input_sizes.py", *words, "--json", str(tmp_path / "found.json")])
    with pytest.raises(KeyboardInterrupt):
        input_sizes.main()
    before, called = called, []
    input_sizes.main()
    assert len({*before, *called}) == len(before) + len(called) == 8
    assert capsys.readouterr().out.count("75.00 ± 7.07  0.500") == 4
