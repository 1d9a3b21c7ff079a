"""The benchmarks about labels: what they spoil, count, choose and keep."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import coloured_data

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import label_noise  # noqa: E402
import labelling  # noqa: E402
from resumable import Results  # noqa: E402


def test_exactly_the_given_share_of_labels_is_spoilt_and_evenly() -> None:
    labels = np.arange(20_000) % 10
    changed, spoilt = label_noise.spoil(labels, 0.1, 10, seed=3)
    assert spoilt.sum() == 2000
    assert np.array_equal(changed != labels, spoilt)
    steps = np.bincount((changed - labels)[spoilt] % 10, minlength=10)
    assert steps[0] == 0
    assert steps[1:].min() > 170
    again, _ = label_noise.spoil(labels, 0.1, 10, seed=3)
    other, _ = label_noise.spoil(labels, 0.1, 10, seed=4)
    assert np.array_equal(changed, again)
    assert not np.array_equal(changed, other)


def test_the_spoilt_labels_among_the_first_are_counted() -> None:
    spoilt = np.zeros(1000, dtype=bool)
    spoilt[[0, 2, 998]] = True
    found = label_noise.how_many_found(np.arange(1000), spoilt)
    assert found["first_100"] == pytest.approx(0.02)
    assert found["first_500"] == pytest.approx(0.004)
    assert found["as_many"] == pytest.approx(2 / 3)
    assert found["area"] == pytest.approx((1 / 1 + 2 / 3 + 3 / 999) / 3)
    perfect = label_noise.how_many_found(np.argsort(~spoilt, kind="stable"), spoilt)
    assert perfect["as_many"] == perfect["area"] == 1


@pytest.mark.parametrize("name", sorted(set(label_noise.RANKINGS) - {"cleanlab"}))
def test_every_ranking_puts_planted_errors_first(name: str) -> None:
    rng = np.random.default_rng(0)
    true = np.arange(3000) % 5
    logits = rng.normal(size=(3000, 5))
    logits[np.arange(3000), true] += 5
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels, spoilt = label_noise.spoil(true, 0.05, 5, seed=1)
    order = label_noise.RANKINGS[name](probabilities, labels)
    assert sorted(order.tolist()) == list(range(3000))
    assert label_noise.how_many_found(order, spoilt)["as_many"] > 0.85


def test_a_part_of_the_data_has_the_given_number_of_training_pictures_and_all_test_pictures() -> None:
    data = coloured_data()
    part = label_noise.part_of(data, 20)
    assert (len(part.splits["train"]), len(part.splits["test"])) == (20, 60)
    assert label_noise.part_of(data, 0) is data
    labels = np.zeros(60, dtype=np.int64)
    changed = label_noise.relabelled(data, labels)
    assert changed.splits["train"].labels.tolist() == [0] * 60
    assert data.splits["train"].labels.tolist() == [0, 1, 2] * 20


def test_each_measurement_is_taken_once_and_kept(tmp_path: Path) -> None:
    file, calls = tmp_path / "deep" / "results.json", []

    def measure() -> dict[str, Any]:
        calls.append(1)
        return {"accuracy": 0.5}

    first = Results(file, {"epochs": 3})
    assert first.once("a", measure) == first.once("a", measure) == {"accuracy": 0.5}
    assert Results(file, {"epochs": 3}).once("a", measure) == {"accuracy": 0.5}
    assert len(calls) == 1
    assert json.loads(file.read_text())["results"] == {"a": {"accuracy": 0.5}}


def test_results_of_other_settings_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    Results(file, {"epochs": 3}).once("a", lambda: {"accuracy": 0.5})
    with pytest.raises(SystemExit, match=r"has results of other settings .* choose another --json"):
        Results(file, {"epochs": 4})
    file.write_text("[]")
    with pytest.raises(SystemExit, match="cannot read"):
        Results(file, {"epochs": 3})


def test_labelled_pictures_and_the_others_are_all_pictures() -> None:
    labels = np.arange(1000) % 4
    labelled, others = labelling.start(labels, 1000, 50, ratio=1, seed=2)
    assert len(labelled) == 50
    assert sorted([*labelled.tolist(), *others.tolist()]) == list(range(1000))
    assert not np.array_equal(labelled, labelling.start(labels, 1000, 50, ratio=1, seed=3)[0])


def test_the_classes_of_a_long_tail_are_unequally_frequent() -> None:
    labels = np.arange(1000) % 4
    labelled, others = labelling.start(labels, 400, 50, ratio=8, seed=2)
    assert len(set(labelled) | set(others)) == len(labelled) + len(others)
    counts = sorted(np.bincount(labels[np.concatenate([labelled, others])]).tolist())
    assert counts == [26, 53, 106, 213]


def test_the_tables_show_means_and_deviations() -> None:
    found = {
        f"{name}, seed {seed}, training {training}": {"accuracy": base + 0.02 * seed + 0.01 * training}
        for name, base in (("before", 0.4), ("chosen", 0.5), ("random", 0.48))
        for seed in range(2)
        for training in range(2)
    }
    rows = labelling.rows_of(found, seeds=2, trainings=2)
    assert rows[0] == ["0", "40.50", "50.50", "48.50", "2.00"]
    assert rows[-1] == ["mean", "41.50 ± 1.41", "51.50 ± 1.41", "49.50 ± 1.41", "2.00 ± 0.00"]
    shares = {"first_100": 0.5, "area": 0.25}
    measured: dict[str, dict[str, Any]] = {
        "noise 0.05, seed 0: 3 folds": {"found": {"suspects": shares, "margin": shares}},
        "noise 0.05, seed 0: before": {"accuracy": 0.8},
        "noise 0.05, seed 0: after": {"accuracy": 0.82},
        "true labels, seed 0": {"accuracy": 0.83},
    }
    assert label_noise.ranking_rows(measured, 0.05, 3, 1) == [["5 %", "3", "margin", "50.00", "25.00"]]
    assert label_noise.review_row(measured, 0.05, 1) == ["5 %", "80.00", "82.00", "83.00"]


def test_a_review_of_spoilt_labels_is_measured_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole program, on three colours with one seed."""
    monkeypatch.setattr(label_noise, "load_data", lambda name: coloured_data())
    words = ["--noise", "0.1", "--seeds", "1", "--folds", "2", "--recipe", "small", "--epochs", "1"]
    words += [
        "--set",
        "training.batch_size=32",
        "--set",
        "model.width=0.25",
        "--device",
        "cpu",
        "--work",
        str(tmp_path / "work"),
    ]
    monkeypatch.setattr(sys, "argv", ["label_noise.py", *words])
    label_noise.main()
    file = tmp_path / "work" / "results.json"
    results = json.loads(file.read_text())["results"]
    assert set(results) == {
        "noise 0.1, seed 0: before",
        "noise 0.1, seed 0: 2 folds",
        "noise 0.1, seed 0: after",
        "true labels, seed 0",
    }
    assert set(results["noise 0.1, seed 0: 2 folds"]["found"]) == {"suspects", *label_noise.RANKINGS}
    before = file.stat().st_mtime_ns
    label_noise.main()
    assert file.stat().st_mtime_ns == before


def test_chosen_labels_are_compared_with_random_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole program, on three colours with one seed."""
    monkeypatch.setattr(labelling, "load_data", lambda name: coloured_data())
    words = ["--pictures", "60", "--labelled", "12", "--added", "6", "--seeds", "1", "--trainings", "1"]
    words += ["--epochs", "1", "--set", "model.width=0.25", "--device", "cpu"]
    words += ["--json", str(tmp_path / "results.json")]
    monkeypatch.setattr(sys, "argv", ["labelling.py", *words])
    labelling.main()
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert list(results) == [f"{name}, seed 0, training 0" for name in ("before", "chosen", "random")]
    labels = np.asarray(coloured_data().splits["train"].labels)
    labelled, _ = labelling.start(labels, 60, 12, 1, 0)
    chosen = results["before, seed 0, training 0"]["chosen"]
    assert len(set(chosen)) == 6
    assert not set(chosen) & set(labelled.tolist())
    accuracies = [one["accuracy"] for one in results.values()]
    assert all(0 <= accuracy <= 1 for accuracy in accuracies)
