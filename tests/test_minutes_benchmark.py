"""The benchmark of `thumbnet train --minutes`: what it measures, and that it continues where it was interrupted."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmark_helpers import interrupt_and_continue
from helpers import write_class_folders

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import minutes as benchmark  # noqa: E402


def test_a_training_is_the_whole_command_with_an_empty_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THUMBNET_KERNELS", "0")  # compiling them takes longer than this training
    monkeypatch.setattr(benchmark, "matrix_rate", lambda _: 2.0)
    cache = tmp_path / "cache"
    monkeypatch.setenv("THUMBNET_CACHE", str(cache))
    folder = write_class_folders(tmp_path / "data", ["train", "test"], per_class=9, side=20)
    found = benchmark.trained(str(folder), 0.1, 0, "cpu")
    assert 0 <= found["accuracy"] <= 1
    assert 0 < found["seconds_training"] < found["seconds"] < 60
    assert found["epochs"] >= 1
    assert found["product_tflops"] == 2.0
    assert not cache.exists()


def test_every_time_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def trained(source: str, minutes: float, seed: int, device: str) -> dict[str, float]:
        seconds = 60 * minutes + 3 * seed - 2
        return {
            "accuracy": 0.7 + 0.1 * seed,
            "seconds": seconds,
            "epochs": 2,
            "width": 0.5,
            "product_tflops": 2.0,
        }

    words = ["photos/", "pictures/", "--minutes", "0.5", "2", "--seeds", "2"]
    file = tmp_path / "found.json"
    assert interrupt_and_continue(benchmark, "trained", trained, words, file, monkeypatch) == 8
    table = " ".join(capsys.readouterr().out.split())
    assert "photos 0.5 75.00 ± 7.07 29.5 (28.0 to 31.0) 98 % +1.0 2 0.5 2.00" in table
    assert "pictures 2 75.00 ± 7.07 119.5 (118.0 to 121.0) 100 % +1.0" in table
