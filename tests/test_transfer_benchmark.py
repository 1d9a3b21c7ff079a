"""The benchmark about few pictures of new classes: what it trains, and what it prints."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from thumbnet.data.splits import ArraySplit, Data
from thumbnet.recipes.recipe import load_recipe

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import resumable  # noqa: E402
import transfer  # noqa: E402

CLASSES = tuple(sorted((*transfer.ANIMALS, *transfer.VEHICLES)))


def pictures(name: str, per_class: int) -> ArraySplit:
    labels = np.repeat(np.arange(len(CLASSES)), per_class)
    return ArraySplit(np.zeros((len(labels), 16, 16, 3), dtype=np.uint8), labels, name)


def test_the_network_has_never_seen_the_classes_and_every_way_gets_the_same_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: dict[str, tuple[Data, str, list[str]]] = {}

    def train(data: Data, recipe: str, *, overrides: list[str], out: Path, **rest: Any) -> Any:
        trained[out.name] = data, recipe, overrides
        load_recipe(recipe, overrides)  # they are valid
        return SimpleNamespace(summary={"accuracy": 0.5 + len(trained) / 100, "seconds_total": 2.0})

    data = Data("cifar10", "made here", CLASSES, {"train": pictures("train", 9), "test": pictures("test", 2)})
    monkeypatch.setattr(resumable, "describe", lambda device: {})
    monkeypatch.setattr(transfer, "train", train)
    monkeypatch.setattr(transfer, "load_data", lambda name: data)
    words = [
        "transfer.py",
        "--pictures",
        "3",
        "5",
        "--seeds",
        "2",
        "--work",
        str(tmp_path),
        "--device",
        "cpu",
    ]
    monkeypatch.setattr(sys, "argv", words)
    transfer.main()
    printed = capsys.readouterr().out
    assert len(trained) == 1 + 2 * 2 * 3
    source, *_ = trained["source"]
    assert set(source.class_names).isdisjoint(transfer.VEHICLES)
    for name, (few, recipe, overrides) in trained.items():
        if name == "source":
            continue
        way, count, _seed = name.split("-")
        assert few.class_names == transfer.VEHICLES
        assert few.splits["train"].class_counts(4).tolist() == [int(count)] * 4
        assert recipe == ("linear" if way == "linear" else "small")
        assert any("training.init" in one for one in overrides) == (way != "scratch")
    same = [trained[f"{way}-3-1"][0].fingerprint() for way in transfer.WAYS]
    assert len(set(same)) == 1
    trained.clear()
    transfer.main()
    assert trained == {}  # everything is in the file of results
    assert capsys.readouterr().out == printed


def test_a_row_has_the_mean_the_range_and_the_median_time() -> None:
    found = {
        transfer.result_name("init", 50, seed): {"accuracy": accuracy, "seconds": seconds}
        for seed, (accuracy, seconds) in enumerate([(0.5, 9), (0.6, 1), (0.75, 2)])
    }
    assert transfer.rows(found, [50], ["init"], 3) == [["50", "61.67 % (50.00 to 75.00), 2 s"]]
