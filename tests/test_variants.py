"""The benchmark of a recipe's variants: what it measures, and that it continues where it was interrupted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from benchmark_helpers import interrupt_and_continue
from helpers import coloured_data, write_class_folders
from thumbnet.data.splits import Data
from thumbnet.runs.folder import Run
from thumbnet.training.train import train

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import variants as benchmark  # noqa: E402

LITTLE = ["--set", "model.width=0.125", "--set", "training.epochs=2", "--device", "cpu"]


def test_a_variant_is_judged_by_the_third_that_it_was_trained_without(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "data", ["train", "test"], per_class=9, side=20)
    options = benchmark.arguments().parse_args([str(folder), *LITTLE])
    found = benchmark.judged(options, str(folder), "data.image_size=16 training.epochs=1", 0)
    assert found["pictures"] == 9  # of 27 training pictures
    assert 0 <= found["accuracy"] <= 1
    assert found["loss"] > 0
    assert found["seconds"] > 0


def test_so_many_pictures_train_and_so_many_others_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "load_data", lambda _: coloured_data(count=150))
    trained: list[tuple[int, int, float, int]] = []

    def noted(data: Data, *words: Any, **options: Any) -> Run:
        run = train(data, *words, **options)
        trained.append(
            (len(data.splits["train"]), run.summary["epochs"], run.recipe.optimizer.lr, run.recipe.seed)
        )
        return run

    monkeypatch.setattr(benchmark, "train", noted)
    options = benchmark.arguments().parse_args(["cifar", *LITTLE, "--pictures", "60", "--held-out", "30"])
    found = benchmark.judged(options, "cifar", "training.epochs=3 optimizer.lr=0.05", 7)
    assert found["pictures"] == pytest.approx(30, abs=2)
    assert trained == [(90, 3, 0.05, 7)]


@pytest.mark.parametrize(
    ("pictures", "held_out", "both", "fraction"),
    [(0, 30, 120, 0.25), (60, 0.25, 80, 0.25), (60, 20, 80, 0.25)],
)
def test_numbers_and_fractions_of_pictures(
    pictures: int, held_out: float, both: int, fraction: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "load_data", lambda _: coloured_data(count=120))
    data, found = benchmark.chosen_pictures("cifar", pictures, held_out)
    assert isinstance(data, Data)
    assert (len(data.splits["train"]), found) == (both, fraction)


def test_every_variant_is_measured_once_and_compared_with_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def judged(_: Any, source: str, variant: str, seed: int) -> dict[str, Any]:
        accuracy = 0.7 + 0.1 * seed + (0.01 + 0.02 * seed) * bool(variant)
        return {"accuracy": accuracy, "loss": 0.5, "pictures": 9, "seconds": 3.0}

    words = ["photos/", "pictures/", "--try", "", "--try", "a=1 b=2", "--seeds", "2"]
    file = tmp_path / "found.json"
    assert interrupt_and_continue(benchmark, "judged", judged, words, file, monkeypatch) == 8
    table = " ".join(capsys.readouterr().out.split())
    assert table.count("as it is 75.00 ± 7.07 0.500 3") == 2
    assert table.count("a=1 b=2 77.00 ± 8.49 +2.00 ± 1.00 0.500 3") == 2
