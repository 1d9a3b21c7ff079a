"""The benchmark of the number of epochs: what it measures, and that it continues where it was interrupted."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers import coloured_data, write_class_folders
from thumbnet.data.splits import Data
from thumbnet.runs.folder import Run
from thumbnet.training.train import train

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import epochs as benchmark  # noqa: E402
import input_sizes  # noqa: E402

WIDTH = ["model.width=0.125"]


def test_a_folder_is_judged_by_the_third_that_it_was_trained_without(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "data", ["train", "test"], per_class=9, side=20)
    options = argparse.Namespace(set=WIDTH, device="cpu")
    found = benchmark.judged(options, str(folder), 2, 0)
    assert found["pictures"] == 9  # of 27 training pictures
    assert 0 <= found["accuracy"] <= 1
    assert found["loss"] > 0
    assert found["seconds"] > 0


def test_a_part_of_cifar_is_judged_by_pictures_that_it_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "JUDGES", 30)
    monkeypatch.setattr(benchmark, "PARTS", {"cifar-500": 60})
    monkeypatch.setattr(benchmark, "load_data", lambda _: coloured_data(count=150))
    trained: list[int] = []

    def noted(data: Data, *words: Any, **options: Any) -> Run:
        assert len(data.splits["train"]) == 90
        run = train(data, *words, **options)
        trained.append(run.summary["epochs"])
        return run

    monkeypatch.setattr(input_sizes, "train", noted)
    options = argparse.Namespace(data="", set=WIDTH, device="cpu")
    assert benchmark.judged(options, "cifar-500", 3, 0)["pictures"] == pytest.approx(30, abs=2)
    assert trained == [3]


def test_every_way_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[tuple[str, int, int]] = []

    def judged(_: argparse.Namespace, case: str, epochs: int, seed: int) -> dict[str, Any]:
        if len(called) == 5:
            raise KeyboardInterrupt
        called.append((case, epochs, seed))
        return {"accuracy": 0.7 + 0.1 * seed, "loss": 0.5, "pictures": 9, "seconds": 3.0}

    monkeypatch.setattr(benchmark, "judged", judged)
    words = ["--folders", "photos/", "--cases", "cifar-500", "--epochs", "30", "60", "--seeds", "2"]
    monkeypatch.setattr(sys, "argv", ["epochs.py", *words, "--json", str(tmp_path / "found.json")])
    with pytest.raises(KeyboardInterrupt):
        benchmark.main()
    before, called = called, []
    benchmark.main()
    assert len({*before, *called}) == len(before) + len(called) == 8
    assert capsys.readouterr().out.count("75.00 ± 7.07  0.500") == 4
