from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from thumbnet.cli import main
from thumbnet.errors import RunError
from thumbnet.invocation import command
from thumbnet.reports.comparison import (
    Spread,
    comparable_runs,
    group_runs,
    holm,
    reference_group,
    spreads,
    welch_test,
    welch_tests,
)
from thumbnet.runs.folder import Run

Make = Callable[..., Run]


def test_runs_that_differ_only_in_the_seed_form_one_group(make: Make) -> None:
    groups = group_runs([make(0.9, 0), make(0.8, 0, lr=0.1), make(0.92, 1), make(0.94, 2)])
    assert [group.name for group in groups] == ["one-cycle", "one-cycle (2)"]
    assert groups[0].accuracies == (0.9, 0.92, 0.94)
    assert groups[0].mean == pytest.approx(0.92)
    assert groups[0].deviation == pytest.approx(0.02)
    assert groups[1].deviation is None


def test_runs_with_other_code_of_the_users_own_are_no_repetitions(make: Make) -> None:
    runs = [make(0.9 + seed / 100, seed) for seed in range(5)]
    old, new = {"training.loss": "a" * 64}, {"training.loss": "b" * 64}
    records: list[dict[str, object]] = [
        {},  # of an earlier version: with the first that is like it
        {"code": old},
        {"code": new},
        {"code": new},
        {"code": new, "code_before": {"training.loss": ["a" * 64]}},
    ]
    for run, record in zip(runs, records, strict=True):
        run.write_settings({**run.settings, **record})
    groups = group_runs(runs)
    assert [[run.recipe.seed for run in group.runs] for group in groups] == [[0, 1], [2, 3], [4]]
    assert all(set(group.settings) == {"code"} for group in groups)
    assert len({group.settings["code"] for group in groups}) == 3
    assert [len(group.runs) for group in group_runs([runs[0], runs[2]])] == [2]
    different = make(0.5, 0, lr=0.1)
    different.write_settings({**different.settings, "code": new})
    assert set(group_runs([runs[1], different])[0].settings) == {"optimizer.lr"}


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
    expected = [first.summary["balanced_accuracy"]]
    assert json.loads(shown.out)["groups"][0]["balanced_accuracies"] == expected
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
        with pytest.raises(
            RunError, match=f"^{other.path} was not measured, .* with {measured.path}: train it"
        ):
            group_runs(runs)


def test_runs_on_different_data_that_were_not_measured_are_not_called_measured(make: Make) -> None:
    runs = [make(0.9, seed, fingerprint=str(seed), split=None) for seed in (0, 1)]
    with pytest.raises(RunError, match="trained on different data, and neither was measured"):
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
    assert "interval of the mean" in shown.out  # it needs no SciPy
    assert "not tested" not in shown.out


@pytest.mark.parametrize("content", ["{", "[1]\n", '{"loss": 1}\n', "[" * 100_000])
def test_an_error_names_the_damaged_metrics_file(content: str, make: Make) -> None:
    run = make(0.9)
    (run.path / "metrics.jsonl").write_text(content)
    with pytest.raises(RunError, match=r"metrics\.jsonl"):
        _ = run.metrics


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
    metrics = tiny_run.metrics
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    assert [float(row["test_accuracy"]) for row in rows] == [line["test_accuracy"] for line in metrics]


def with_val(run: Run, accuracy: float, pictures: str = "val") -> Run:
    """Let a run say that it was measured on ``val``, too."""
    own = {key: run.summary[key] for key in ("accuracy_interval", "loss")}
    own |= {"accuracy": accuracy, "accuracy_plain": accuracy, "balanced_accuracy": accuracy - 0.1}
    (run.path / "summary.json").write_text(json.dumps({**run.summary, "val": own}))
    (run.path / "run.json").write_text(json.dumps({**run.settings, "val_fingerprint": pictures}))
    return run


def test_runs_are_compared_by_val_if_asked(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [with_val(make(0.9, seed, lr), 0.5 + lr + seed / 100) for lr in (0.1, 0.2) for seed in (0, 1)]
    first, second = group_runs(runs, "val")
    assert first.accuracies == pytest.approx((0.6, 0.61))
    assert second.accuracies == pytest.approx((0.7, 0.71))
    assert first.balanced_accuracies == pytest.approx([0.5, 0.51])
    assert spreads(second)["accuracy"].mean == pytest.approx(0.705)
    assert [group.accuracies for group in group_runs(runs)] == [(0.9, 0.9)] * 2, "test, if not asked"
    paths = [str(run.path) for run in runs]
    table, markdown = (runs[0].path.parent / name for name in ("table.csv", "table.md"))
    assert main(["compare", *paths, "--split", "val", "--csv", str(table), "--markdown", str(markdown)]) == 0
    out = capsys.readouterr().out
    assert "val accuracy" in out
    assert "mean accuracy" in out
    assert "60.50 %" in out
    assert "90.00 %" not in out
    assert {row["split"] for row in csv.DictReader(table.open(newline=""))} == {"val"}
    assert "| val accuracy (%) | val balanced accuracy (%) |" in markdown.read_text("utf-8")
    assert main(["compare", *paths, "--split", "val", "--json"]) == 0
    assert [group["split"] for group in json.loads(capsys.readouterr().out)["groups"]] == ["val", "val"]


def test_runs_that_were_not_measured_on_the_split_are_left_out_with_the_reason(make: Make) -> None:
    runs = [with_val(make(0.9, 0), 0.8), with_val(make(0.9, 1), 0.8, "other"), with_val(make(0.9, 2), 0.8)]
    old, without, only_val = make(0.9, 3), make(0.9, 4), make(0.9, 5, split="val", measured="val")
    summary = old.summary
    summary.pop("val", None)
    (old.path / "summary.json").write_text(json.dumps(summary))
    (without.path / "summary.json").write_text(json.dumps({**without.summary, "val": None}))
    paths = [run.path for run in (*runs, old, without, only_val)]
    found, left_out = comparable_runs(paths, "val")
    assert [run.path for run in found] == [runs[0].path, runs[2].path, only_val.path]
    reasons = {one.path: one.reason for one in left_out}
    assert list(reasons) == [old.path, without.path, runs[1].path]
    assert f"To measure it: {command('evaluate', old.path, '--split', 'val')}" in reasons[old.path]
    assert "have no val split. Train with one: --val-fraction 0.1" in reasons[without.path]
    assert "measured on different pictures" in reasons[runs[1].path]
    with pytest.raises(RunError, match=r"no complete run to compare by test:\n.*have no test split"):
        comparable_runs([only_val.path], "test")
    with pytest.raises(RunError, match="have no val split"):
        group_runs([without], "val")


def test_what_holds_no_complete_run_is_left_out_with_a_reason(make: Make, tmp_path: Path) -> None:
    run, begun, search = make(0.9), make(0.9, 1), make(0.9, 2, name="search/run")
    (begun.path / "summary.json").unlink()
    (search.path.parent / "tune.json").touch()
    early = tmp_path / "early search"
    early.mkdir()
    (early / "tune.json").touch()
    file = tmp_path / "notes.txt"
    file.touch()
    paths = [file, run.path, begun.path, search.path.parent, early]
    found, left_out = comparable_runs(paths)
    assert [one.path for one in found] == [run.path, search.path]
    reasons = {one.path: one.reason for one in left_out}
    assert list(reasons) == [file, begun.path, early]
    assert reasons[file] == "it is not a run's folder"
    assert f"train --resume {begun.path}" in reasons[begun.path]
    assert f"tune --resume '{early}'" in reasons[early]
    assert [one.path for one in comparable_runs([file, run.path])[0]] == [run.path]


def test_without_a_complete_run_the_error_says_why_for_each_path(make: Make, tmp_path: Path) -> None:
    run = make(0.9)
    (run.path / "summary.json").unlink()
    with pytest.raises(RunError) as caught:
        comparable_runs([run.path, tmp_path])
    assert f"{run.path}: it is not complete" in str(caught.value)
    assert f"{tmp_path}: it is not a run's folder" in str(caught.value)


def test_a_path_that_does_not_exist_is_an_error_even_among_runs(make: Make, tmp_path: Path) -> None:
    run = make(0.9)
    with pytest.raises(RunError, match="there is no run"):
        comparable_runs([run.path, tmp_path / "typo"])


def test_runs_measured_on_other_pictures_than_most_are_left_out(make: Make) -> None:
    odd = make(0.9, 5, fingerprint="other")
    unmeasured = make(0.9, 6, split=None)
    most = [make(0.9, seed) for seed in (0, 1)]
    runs, left_out = comparable_runs([run.path for run in (odd, most[0], unmeasured, most[1])])
    assert [run.path for run in runs] == [run.path for run in most]
    assert [one.path for one in left_out] == [odd.path, unmeasured.path]
    assert "different pictures" in left_out[0].reason
    assert "was not measured" in left_out[1].reason


def test_of_as_many_runs_those_that_were_measured_are_compared(make: Make) -> None:
    plain = [make(0.9, seed, split=None) for seed in (0, 1)]
    measured = [make(0.9, seed) for seed in (2, 3)]
    runs, _ = comparable_runs([run.path for run in (*plain, *measured)])
    assert [run.path for run in runs] == [run.path for run in measured]


def test_runs_of_which_no_two_can_be_compared_are_an_error(make: Make) -> None:
    with pytest.raises(RunError, match="different pictures"):
        comparable_runs([make(0.9).path, make(0.9, 1, fingerprint="other").path])


def test_groups_of_an_older_run_and_of_newer_ones_like_it_are_formed_in_any_order(make: Make) -> None:
    old, like, other = make(0.9), make(0.9, 1, measured="m"), make(0.9, 2, fingerprint="f", measured="m")
    settings = old.settings
    del settings["measured_fingerprint"]
    (old.path / "run.json").write_text(json.dumps(settings))
    runs, _ = comparable_runs([old.path, other.path, like.path])
    assert [run.path for run in runs] == [old.path, other.path, like.path]
    assert sum(len(group.runs) for group in group_runs(runs)) == 3


def test_groups_are_tested_against_the_first_one_of_several_runs(make: Make) -> None:
    pytest.importorskip("scipy")
    single = make(0.5, 0, lr=0.3)
    some = [make(0.9 + seed / 100, seed, lr) for lr in (0.1, 0.2) for seed in (0, 1)]
    groups = group_runs([single, *some])
    assert [(test.first, test.second) for test in welch_tests(groups)] == [("one-cycle (2)", "one-cycle (3)")]
    assert welch_tests(groups[:2]) == []


def test_runs_of_earlier_versions_have_no_balanced_accuracy(make: Make) -> None:
    new, old = make(0.9), make(0.8, 1)
    summary = {key: value for key, value in old.summary.items() if key != "balanced_accuracy"}
    (old.path / "summary.json").write_text(json.dumps(summary))
    (group,) = group_runs([new, old])
    assert group.balanced_accuracies == [new.summary["balanced_accuracy"], None]


def test_the_interval_of_a_mean_is_students(make: Make) -> None:
    values = (0.90, 0.92, 0.94, 0.93)
    (group,) = group_runs([make(value, seed) for seed, value in enumerate(values)])
    found = spreads(group)["accuracy"]
    assert (found.mean, found.deviation) == (group.mean, group.deviation)
    assert found.interval is not None
    # Student's quantile for 3 degrees of freedom, from the printed tables.
    assert found.deviation is not None
    half = 3.182446 * found.deviation / 2
    assert found.interval == pytest.approx((found.mean - half, found.mean + half), rel=1e-6)
    balanced = spreads(group)["balanced_accuracy"]
    assert balanced.deviation == 0
    assert balanced.interval == (balanced.mean, balanced.mean)


def test_a_single_run_has_no_interval_and_a_run_without_balanced_accuracy_leaves_it_out(make: Make) -> None:
    runs = [make(0.9), make(0.91, 1)]
    assert spreads(group_runs(runs[:1])[0])["accuracy"] == Spread(0.9, None, None)
    old = {key: value for key, value in runs[1].summary.items() if key != "balanced_accuracy"}
    (runs[1].path / "summary.json").write_text(json.dumps(old))
    assert list(spreads(group_runs(runs)[0])) == ["accuracy"]
    assert spreads(group_runs(runs)[0])["accuracy"].deviation == pytest.approx(0.005 * 2**0.5)


@pytest.mark.parametrize(
    ("values", "adjusted"),
    [
        ([], []),
        ([0.03], [0.03]),
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # worked by hand from Holm (1979)
        ([0.5, 0.6], [1.0, 1.0]),
    ],
)
def test_several_p_values_are_corrected_by_holms_method(values: list[float], adjusted: list[float]) -> None:
    assert holm(values) == pytest.approx(adjusted)


def test_the_group_to_test_against_can_be_chosen(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("scipy")
    runs = [make(0.9 + seed / 100 + lr / 9, seed, lr) for lr in (0.1, 0.2, 0.4) for seed in (0, 1, 2)]
    single = make(0.5, 0, lr=0.3)
    again = make(0.9 + 0 / 100 + 0.2 / 9, 0, lr=0.2, name="again")  # a repetition, which does not count
    groups = group_runs([*runs, again, single])
    by_name, by_run = (reference_group(groups, name) for name in ("one-cycle (2)", str(runs[4].path)))
    assert by_name is by_run is reference_group(groups, str(again.path)) is groups[1]
    assert groups[1].repeated == (again,)
    tests = welch_tests(groups, by_name)
    assert [(test.first, test.second) for test in tests] == [
        ("one-cycle (2)", "one-cycle"),
        ("one-cycle (2)", "one-cycle (3)"),
    ]
    assert [test.adjusted for test in tests] == holm([test.p for test in tests])
    with pytest.raises(
        RunError, match="--against nothing: expected the name of a group.*'one-cycle \\(3\\)'"
    ):
        reference_group(groups, "nothing")
    with pytest.raises(RunError, match="two or more runs"):
        reference_group(groups, str(single.path))
    paths = [str(run.path) for run in runs]
    assert main(["compare", *paths, "--against", "one-cycle (3)"]) == 0
    out = capsys.readouterr().out
    assert "95 % interval of the mean" in out
    assert out.count("against one-cycle (3): ") == 2
    assert out.count(" corrected, Welch's t-test)") == 2
    assert "The corrected p-values are Holm's for 2 tests." in out
    assert "The first group with two or more runs" not in out
    assert main(["compare", *paths, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    low, high = found["groups"][0]["measures"]["accuracy"]["interval"]
    assert low < found["groups"][0]["mean"] < high
    assert all(test["p"] <= test["adjusted"] <= 2 * test["p"] for test in found["differences"])
    assert main(["compare", *paths[:6]]) == 0
    assert "corrected" not in capsys.readouterr().out  # a single test


def test_runs_of_different_folds_are_told_apart_from_other_data(make: Make) -> None:
    runs = [make(0.9, seed, measured=f"fold {seed}") for seed in (0, 1)]
    for number, run in enumerate(runs, start=1):
        run.write_recipe(run.recipe.override(["data.folds=5", f"data.fold={number}"]))
    with pytest.raises(RunError, match=r"different folds of their data.*repeat DATA --folds 5"):
        group_runs(runs)
    with pytest.raises(RunError, match="different pictures or labels"):
        group_runs([make(0.9, 2, measured="a"), make(0.9, 3, measured="b")])
