from __future__ import annotations

import csv
import io
import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from thumbnet.cli import main
from thumbnet.reports.comparison import Group, Spread
from thumbnet.reports.comparison_table import as_csv, as_markdown
from thumbnet.runs.folder import Run

MEASURES = [
    {"accuracy": Spread(0.91, 0.01, (0.885, 0.935)), "balanced_accuracy": Spread(0.9, 0.02, (0.85, 0.95))},
    {"accuracy": Spread(0.95, None, None)},
]


@pytest.fixture
def groups(tiny_run: Run) -> list[Group]:
    settings = ({"optimizer.lr": 0.1, "training.loss": "a|b"}, {"optimizer.lr": 0.2, "training.loss": "=1+1"})
    runs = ((tiny_run, tiny_run, tiny_run), (tiny_run,))
    return [
        Group(name, same, (0.9,) * len(same), settings=one)
        for name, same, one in zip(("small", "small (2)"), runs, settings, strict=True)
    ]


def test_the_csv_file_has_a_row_per_group_with_its_settings_and_measures(groups: list[Group]) -> None:
    first, second = csv.DictReader(io.StringIO(as_csv(groups, MEASURES)))
    assert first == {
        "group": "small", "optimizer.lr": "0.1", "training.loss": "a|b", "runs": "3", "split": "test",
        "accuracy_mean": "0.91", "accuracy_sd": "0.01", "accuracy_low": "0.885", "accuracy_high": "0.935",
        "balanced_accuracy_mean": "0.9", "balanced_accuracy_sd": "0.02",
        "balanced_accuracy_low": "0.85", "balanced_accuracy_high": "0.95",
    }  # fmt: skip
    assert second["training.loss"] == "'=1+1"  # a spreadsheet would compute it
    assert (second["accuracy_mean"], second["accuracy_sd"], second["accuracy_low"]) == ("0.95", "", "")
    assert second["balanced_accuracy_mean"] == ""


def test_the_markdown_table_has_percentages_and_says_what_they_are(groups: list[Group]) -> None:
    lines = as_markdown(groups, MEASURES).splitlines()
    assert lines[0] == (
        "| recipe | optimizer.lr | training.loss | runs | test accuracy (%) | test balanced accuracy (%) |"
    )
    assert lines[1] == "| --- | --- | --- | --: | --: | --: |"
    assert lines[2] == (
        "| small | 0.1 | a\\|b | 3 | 91.00 ± 1.00 (88.50 to 93.50) | 90.00 ± 2.00 (85.00 to 95.00) |"
    )
    assert lines[3].endswith("| 1 | 95.00 |  |")
    assert "standard deviation" in lines[-1]


def test_a_markdown_table_of_single_runs_explains_no_intervals(groups: list[Group]) -> None:
    text = as_markdown(groups[1:], MEASURES[1:])
    assert "95.00 |" in text
    assert "interval" not in text
    assert text.endswith("|\n")


def test_the_note_below_the_markdown_table_says_whether_the_results_are_optimistic(
    groups: list[Group], tmp_path: Path
) -> None:
    assert "optimistic" not in as_markdown(groups, MEASURES)
    run = Run(Path(shutil.copytree(groups[0].runs[0].path, tmp_path / "run")))
    (run.path / "summary.json").write_text(
        json.dumps({**run.summary, "split": "val", "kept_by": "best on val"})
    )
    found = as_markdown([replace(group, runs=(run,)) for group in groups], MEASURES).splitlines()
    assert "val accuracy (%)" in found[0]
    assert found[-1].endswith("val accuracy: optimistic, because the same pictures chose the epoch.")


def test_other_values_than_numbers_are_text(groups: list[Group]) -> None:
    settings = ({"a": True, "b": [1, 2], "c": None}, {"a": False, "b": [], "c": "x"})
    changed = [replace(group, settings=one) for group, one in zip(groups, settings, strict=True)]
    first, second = csv.DictReader(io.StringIO(as_csv(changed, [{}, {}])))
    assert [first[key] for key in "abc"] == ["true", "[1, 2]", ""]
    assert [second[key] for key in "abc"] == ["false", "[]", "x"]


def copies(run: Run, folder: Path) -> list[str]:
    """Copies of a run with two learning rates and three seeds each, whose accuracies differ."""
    paths = []
    for lr, seed in itertools.product((0.1, 0.2), range(3)):
        copied = Run(Path(shutil.copytree(run.path, folder / f"{lr}-{seed}")))
        copied.write_recipe(run.recipe.override([f"optimizer.lr={lr}", f"seed={seed}"]))
        summary = {**run.summary, "accuracy": 0.9 + seed / 100}
        (copied.path / "summary.json").write_text(json.dumps(summary))
        paths.append(str(copied.path))
    return paths


def test_the_command_writes_both_tables(
    tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = copies(tiny_run, tmp_path)
    table, markdown = tmp_path / "table.csv", tmp_path / "table.md"
    assert main(["compare", *paths, "--csv", str(table), "--markdown", str(markdown)]) == 0
    assert f"written: {table}\nwritten: {markdown}\n" in capsys.readouterr().out
    rows = list(csv.DictReader(table.open(newline="")))
    assert [(row["runs"], row["accuracy_mean"], row["optimizer.lr"]) for row in rows] == [
        ("3", "0.91", "0.1"),
        ("3", "0.91", "0.2"),
    ]
    assert "| 91.00 ± 1.00" in markdown.read_text("utf-8")
    assert main(["compare", *paths, "--csv", str(tmp_path / "no" / "table.csv")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert main(["compare", *paths, "--json", "--csv", str(table)]) == 0
    json.loads(capsys.readouterr().out)
