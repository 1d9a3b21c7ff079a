from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from thumbnet.cli import main
from thumbnet.errors import RunError
from thumbnet.reports import comparison
from thumbnet.reports.comparison import group_runs, read_metrics, welch_test
from thumbnet.runs.folder import Run

Make = Callable[..., Run]


@pytest.fixture
def make(tiny_run: Run, tmp_path: Path) -> Make:
    """Make copies of a complete run with another accuracy, seed, learning rate or fingerprint."""

    def one(
        accuracy: float,
        seed: int = 0,
        lr: float = 0.05,
        fingerprint: str = "same",
        measured: str = "",
        labels: dict[str, object] | None = None,
        split: str | None = "test",
        name: str = "",
    ) -> Run:
        path = tmp_path / (name or f"{lr}-{seed}")
        shutil.copytree(tiny_run.path, path)
        recipe = tiny_run.recipe
        recipe = replace(recipe, seed=seed, optimizer=replace(recipe.optimizer, lr=lr))
        (path / "recipe.toml").write_text(recipe.to_toml())
        (path / "summary.json").write_text(
            json.dumps({**tiny_run.summary, "accuracy": accuracy, "split": split})
        )
        settings = {**tiny_run.settings, "fingerprint": fingerprint}
        settings["measured_fingerprint"] = measured or fingerprint
        if labels:
            settings["labels"] = labels
        (path / "run.json").write_text(json.dumps(settings))
        return Run(path)

    return one


def test_runs_that_differ_only_in_the_seed_form_one_group(make: Make) -> None:
    groups = group_runs([make(0.9, 0), make(0.8, 0, lr=0.1), make(0.92, 1), make(0.94, 2)])
    assert [group.name for group in groups] == ["one-cycle", "one-cycle (2)"]
    assert groups[0].accuracies == (0.9, 0.92, 0.94)
    assert groups[0].mean == pytest.approx(0.92)
    assert groups[0].deviation == pytest.approx(0.02)
    assert groups[1].deviation is None


def timed(run: Run, minutes: float | None, steps: int, **plan: Any) -> Run:
    """Turn a run into one of ``--minutes``, whose clock allowed this many steps."""
    recipe = run.recipe
    training = replace(recipe.training, steps=steps, epochs=2)
    run.write_recipe(replace(recipe, training=training, schedule=replace(recipe.schedule, **plan)))
    settings = run.settings if minutes is None else {**run.settings, "minutes": minutes}
    (run.path / "run.json").write_text(json.dumps(settings))
    return run


def test_repeated_seeds_of_the_same_time_form_one_group_however_many_steps_the_clock_allowed(
    make: Make,
) -> None:
    first = timed(make(0.9, 0), 2, 40)
    second = timed(make(0.92, 1), 2, 30, planned_at=(0, 10), planned_steps=(40, 30))
    longer, counted = timed(make(0.94, 2), 3, 40), timed(make(0.96, 3), None, 40)
    groups = group_runs([first, second, longer, counted])
    assert [group.runs for group in groups] == [(first, second), (longer,), (counted,)]


def test_repeated_seeds_of_the_same_time_form_one_group_if_the_clock_chose_other_batches(make: Make) -> None:
    runs = [timed(make(0.9, seed, lr), 2, 40) for seed, lr in ((0, 0.05), (1, 0.05), (2, 0.1))]
    for run, size, every in zip(runs, (61, 63, 61), (2, 3, 2), strict=True):
        recipe = run.recipe.with_batch_size(size)
        run.write_recipe(replace(recipe, evaluation=replace(recipe.evaluation, every=every)))
    assert [len(group.runs) for group in group_runs(runs)] == [2, 1]


def test_a_seed_counts_once_unless_its_results_differ(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again, other = make(0.9), make(0.9, name="again"), make(0.8, name="other device")
    further = make(0.9, 1)
    here = Run(first.path.parent / "again" / ".." / first.path.name)
    (group,) = group_runs([first, first, here, again, other, further])
    assert group.runs == (first, other, further)
    assert group.accuracies == (0.9, 0.8, 0.9)
    assert group.repeated == (first, here, again)
    assert main(["compare", str(first.path), str(again.path), "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["groups"][0]["deviation"] is None
    assert f"{again.path} does not count" in shown.err


def test_the_difference_is_tested_by_welchs_formulas(make: Make) -> None:
    a, b = (0.90, 0.92, 0.94, 0.93), (0.95, 0.97, 0.96)
    runs = [make(x, seed) for seed, x in enumerate(a)] + [make(x, seed, lr=0.1) for seed, x in enumerate(b)]
    first, second = group_runs(runs)
    found = welch_test(first, second)
    assert found is not None
    # Welch's formulas (1947), with Satterthwaite's degrees of freedom.
    va, vb = (sum((x - sum(s) / len(s)) ** 2 for x in s) / (len(s) - 1) / len(s) for s in (a, b))
    freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    t = (sum(b) / len(b) - sum(a) / len(a)) / math.sqrt(va + vb)
    from scipy.stats import t as student

    assert found.difference == pytest.approx(sum(b) / len(b) - sum(a) / len(a))
    assert found.p == pytest.approx(2 * student.sf(t, freedom))
    half = student.ppf(0.975, freedom) * math.sqrt(va + vb)
    assert found.interval == pytest.approx((found.difference - half, found.difference + half))


def test_single_runs_and_equal_accuracies_are_not_tested(make: Make) -> None:
    first, second = group_runs([make(0.9), make(0.95, lr=0.1)])
    assert welch_test(first, second) is None
    first, second = group_runs([make(0.9, 5), make(0.9, 6), make(0.9, 5, lr=0.2), make(0.9, 6, lr=0.2)])
    assert welch_test(first, second) is None


def test_runs_measured_on_different_pictures_cannot_be_compared(make: Make) -> None:
    with pytest.raises(RunError, match="different pictures"):
        group_runs([make(0.9), make(0.9, 1, fingerprint="other")])


def test_a_run_that_was_not_measured_is_not_compared_with_one_that_was(make: Make) -> None:
    measured, other = make(0.9), make(0.9, 1, measured="other", split=None)
    for runs in ([measured, other], [other, measured]):
        with pytest.raises(RunError, match=f"^{other.path} was not measured, .* with {measured.path}: leave"):
            group_runs(runs)


def test_runs_of_an_older_version_are_compared_by_all_their_data(make: Make) -> None:
    new, old = make(0.9), make(0.9, 1)
    settings = old.settings
    del settings["measured_fingerprint"]
    (old.path / "run.json").write_text(json.dumps(settings))
    assert len(group_runs([new, old])) == 1
    (old.path / "run.json").write_text(json.dumps({**settings, "fingerprint": "other"}))
    with pytest.raises(RunError, match="different pictures"):
        group_runs([new, old])


def test_a_run_with_corrected_training_labels_is_a_group_of_its_own(make: Make) -> None:
    runs = [make(0.9, measured="m"), make(0.91, 1, measured="m")]
    runs += [make(0.93, seed, fingerprint="f", measured="m", labels={"relabelled": 1}) for seed in (2, 3)]
    assert [(group.name, len(group.runs)) for group in group_runs(runs)] == [
        ("one-cycle", 2),
        ("one-cycle, corrected labels", 2),
    ]


def test_if_test_labels_were_corrected_the_error_says_how_to_measure_both(make: Make) -> None:
    plain, changed = make(0.9), make(0.9, 1, fingerprint="f", labels={"relabelled": 1})
    for runs in ([plain, changed], [changed, plain]):
        with pytest.raises(RunError, match=f"evaluate {plain.path} --labels {changed.path}/corrections.csv"):
            group_runs(runs)


def test_the_command_shows_tables_a_test_and_curves(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [make(0.90 + seed / 100, seed) for seed in range(3)] + [
        make(0.95 + seed / 100, seed, lr=0.1) for seed in range(3)
    ]
    paths = [str(run.path) for run in runs]
    assert main(["compare", *paths, "--plot", str(tmp_path / "curves.png")]) == 0
    out = capsys.readouterr().out
    assert all(path in out for path in paths)
    assert "91.00 %" in out
    assert "one-cycle (2) against one-cycle: +5.00 points" in out
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert main(["compare", *paths, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["groups"][0]["mean"] == pytest.approx(0.91)
    assert found["differences"][0]["p"] < 0.01


def test_without_scipy_the_tables_are_still_shown(
    make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    paths = [str(make(0.9 + seed / 100, seed, lr).path) for seed in range(2) for lr in (0.1, 0.2)]
    assert main(["compare", *paths]) == 0
    shown = capsys.readouterr()
    assert "[report]" in shown.err
    assert "standard deviation" in shown.out
    assert "not tested" not in shown.out


@pytest.mark.parametrize("content", ["{", "[1]\n", '{"loss": 1}\n', "[" * 100_000])
def test_an_error_names_the_damaged_metrics_file(content: str, make: Make) -> None:
    run = make(0.9)
    (run.path / "metrics.jsonl").write_text(content)
    with pytest.raises(RunError, match=r"metrics\.jsonl"):
        read_metrics(run)


def test_an_incomplete_run_is_an_error_that_suggests_resume(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make(0.9)
    (run.path / "summary.json").unlink()
    assert main(["compare", str(run.path)]) == 2
    assert "--resume" in capsys.readouterr().err


def test_the_csv_file_has_the_same_metrics(tiny_run: Run) -> None:
    with (tiny_run.path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    metrics = comparison.read_metrics(tiny_run)
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    assert [float(row["test_accuracy"]) for row in rows] == [line["test_accuracy"] for line in metrics]
