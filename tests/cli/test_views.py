from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from thumbnet.cli.views import (
    show_comparison,
    show_cross_validation,
    show_cross_validations,
    show_evaluation,
    show_summary,
)
from thumbnet.evaluation import evaluate_logits
from thumbnet.multilabel import evaluate_labels
from thumbnet.reports.comparison import group_runs
from thumbnet.reports.cross_validation import CrossValidation, Fold
from thumbnet.runs.folder import Run


def test_an_evaluation_shows_the_accuracy_without_tta_only_if_tta_was_used(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logits = np.eye(3, dtype=np.float32)[[0, 1, 2, 2]] * 5
    result = evaluate_logits(logits, np.array([0, 1, 2, 1]), ("a", "b", "c"))
    show_evaluation(result, "x, test", "mirror", 0.5, ["warning: look"])
    shown = capsys.readouterr().out
    assert "75.00 %" in shown
    assert "test-time augmentation: mirror" in shown
    assert "  without tta      50.00 %" in shown
    assert "warning: look" in shown
    show_evaluation(replace(result), "x, test", "none", 0.75, [])
    shown = capsys.readouterr().out
    assert "test-time augmentation" not in shown
    assert "without tta" not in shown


def test_what_cannot_be_measured_of_a_class_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    logits = np.eye(3, dtype=np.float32)[[0, 0, 0]] * 5  # b is never predicted, c has no pictures either
    result = evaluate_logits(logits, np.array([0, 0, 1]), ("a", "b", "c"))
    show_evaluation(result, "x, test", "none")
    rows = {
        line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.strip()
    }
    assert rows["b"] == ["1", "-", "0.00", "%", "0.00", "%"]
    assert rows["c"] == ["0", "-", "-", "-"]
    assert [(one.precision, one.recall, one.f1) for one in result.classes[1:]] == [(0.0, 0.0, 0.0)] * 2


def test_an_evaluation_names_the_groups_that_its_interval_allows_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logits, labels = np.eye(2, dtype=np.float32)[np.arange(60) % 2], np.arange(60) % 2
    groups = np.array([f"p{number // 2}" for number in range(60)], dtype=object)
    show_evaluation(evaluate_logits(logits, labels, ("a", "b"), groups), "x, test", "none")
    shown = capsys.readouterr().out
    assert "x, test: 60 pictures in 30 groups\n" in shown
    assert "  the interval allows for 60 pictures in 30 groups" in shown
    show_evaluation(evaluate_logits(logits, labels, ("a", "b")), "x, test", "none")
    assert "groups" not in capsys.readouterr().out


def test_a_summary_and_a_comparison_name_the_groups_of_the_measured_pictures(
    tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(Path(shutil.copytree(tiny_run.path, tmp_path / "run")))
    summary = {**run.summary, "measured_pictures": 60, "measured_groups": 30}
    (run.path / "summary.json").write_text(json.dumps(summary))
    told = "the interval allows for 60 pictures in 30 groups"
    show_summary(run)
    assert f"  {told}" in capsys.readouterr().out
    show_comparison(group_runs([run]), None)
    shown = capsys.readouterr().out
    assert f"In the table of runs, {told}" in shown
    assert "how results vary with the seed" in shown
    show_summary(tiny_run)
    show_comparison(group_runs([tiny_run]), None)
    assert "groups" not in capsys.readouterr().out


def test_a_summary_ends_with_the_next_commands(tiny_run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    show_summary(tiny_run)
    shown = capsys.readouterr().out
    assert f"test accuracy {100 * tiny_run.summary['accuracy']:.2f} %" in shown
    for line in ("evaluate {}", "report {} --open", "predict {} PICTURE..."):
        assert f"thumbnet {line.format(tiny_run.path)}\n" in shown


def test_a_comparison_prints_the_accuracy_of_each_run(
    tiny_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    show_comparison(group_runs([tiny_run]), None)
    assert f"{100 * tiny_run.summary['accuracy']:.2f}" in capsys.readouterr().out


def test_a_run_that_continues_another_is_compared_with_the_epochs_of_both(
    tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = Run(Path(shutil.copytree(tiny_run.path, tmp_path / "run")))
    settings = {**more.settings, "continues": {"run": "old", "epochs": 30}}
    (more.path / "run.json").write_text(json.dumps(settings))
    show_comparison(group_runs([more]), None)
    shown = capsys.readouterr().out
    assert " 30+3 " in shown
    assert "the run continues one of 30 epochs" in shown
    show_comparison(group_runs([tiny_run]), None)
    assert "continues" not in capsys.readouterr().out
    show_summary(more)
    assert "for 30 epoch(s) in the run that this one continues" in capsys.readouterr().out


def test_a_group_whose_measure_is_undefined_has_no_mean(
    label_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = []
    for seed in (0, 1):
        run = Run(Path(shutil.copytree(label_run.path, tmp_path / str(seed))))
        run.write_recipe(replace(run.recipe, seed=seed))
        summary = {**run.summary, "map": None, "map_interval": None, "map_plain": None}
        (run.path / "summary.json").write_text(json.dumps(summary))
        runs.append(run)
    show_comparison(group_runs(runs), None)
    assert re.search(r"^one-cycle +2 +- +-$", capsys.readouterr().out, re.MULTILINE)


def test_folds_have_no_mean_if_one_of_them_has_no_picture_with_a_label(
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = evaluate_labels(np.array([[2.0, -1.0], [-1.0, 2.0]]), np.eye(2, dtype=bool), ("a", "b"))
    folds = (Fold(1, Run("one"), 1, math.nan), Fold(2, Run("two"), 1, 0.5))
    found = CrossValidation("pictures", folds, result, "none", ())
    show_cross_validation(found)
    show_cross_validations([(("seed=0",), found)])
    said = capsys.readouterr().out
    assert "the folds have no mean" in said
    assert "nan" not in said
    assert said.splitlines()[-1].split()[-2:] == ["-", "-"]
