"""The commands on pictures with several labels, from a table to predictions."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest

import thumbnet
from cli_helpers import SETTINGS, epochs
from helpers import coloured_labels, write_label_table, write_picture
from thumbnet.cli import build_parser, main
from thumbnet.cli.serve import _data_to_try
from thumbnet.cli.views import show_summary
from thumbnet.runs.folder import Run
from thumbnet.runs.weights import read_weights
from thumbnet.sources.load import load_data


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_label_table(tmp_path_factory.mktemp("pictures"), coloured_labels(60))


@pytest.fixture(scope="module")
def training(table: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A run's folder, and what the command printed to stdout and stderr."""
    out = tmp_path_factory.mktemp("run") / "run"
    command = ["train", str(table), "--recipe", "one-cycle", "--out", str(out), "--device", "cpu"]
    with redirect_stdout(io.StringIO()) as stdout, redirect_stderr(io.StringIO()) as stderr:
        assert main([*command, *SETTINGS, *epochs(3)]) == 0
    return out, stdout.getvalue(), stderr.getvalue()


@pytest.fixture(scope="module")
def trained(training: tuple[Path, str, str]) -> Path:
    return training[0]


def test_training_says_map_per_epoch_and_at_the_end(training: tuple[Path, str, str]) -> None:
    _, stdout, stderr = training
    assert "3 labels, several per picture" in stderr
    lines = [line for line in stderr.splitlines() if re.match(r"epoch +\d+/3  loss", line)]
    assert len(lines) == 3
    assert all("val mAP " in line and len(line) <= 80 for line in lines)
    assert "test mAP " in stdout
    assert "micro F1" in stdout


def test_what_was_chosen_on_the_measured_pictures_is_said_with_each_result(
    label_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = {"split": "val", "kept_by": "last"}
    run = Run(Path(shutil.copytree(label_run.path, tmp_path / "run")))
    (run.path / "summary.json").write_text(json.dumps({**run.summary, **chosen}))
    show_summary(run)
    said = capsys.readouterr().out
    assert "labels\n  these are optimistic, because the same pictures chose the thresholds" in said
    assert "(on the same pictures, so it is optimistic)" in said
    assert "chose the epoch" not in said
    show_summary(label_run)
    assert "optimistic" not in capsys.readouterr().out


def test_data_says_that_there_are_several_labels(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", str(table)]) == 0
    said = capsys.readouterr().out
    mean = np.mean([one.targets.sum(axis=1).mean() for one in load_data(table).splits.values()])
    assert f"several per picture (multi-label): {mean:.2f} on average, up to 3" in said
    assert "conflicts" not in said
    assert main(["data", str(table), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["multilabel"] is True
    counts = load_data(table).splits["train"].class_counts(3).tolist()
    assert list(described["counts"]["train"].values()) == counts


def test_evaluate_prints_text_and_json_and_draws(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(trained), "--plot", str(tmp_path / "labels.svg")]) == 0
    said = capsys.readouterr().out
    for word in ("mAP", "micro F1", "macro F1", "0.5 for all labels", "threshold", "most often together"):
        assert word in said
    assert main(["evaluate", str(trained), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["map"] == pytest.approx(Run.open(trained).summary["map"])
    assert found["split"] == "test"
    assert [one["name"] for one in found["labels"]] == ["blue", "green", "red"]
    assert "<svg" in (tmp_path / "labels.svg").read_text()
    table = tmp_path / "answers.csv"
    assert main(["evaluate", str(trained), "--json", "--csv", str(table)]) == 0
    assert json.loads(capsys.readouterr().out) == found
    rows = list(csv.DictReader(io.StringIO(table.read_text("utf-8"))))
    assert len(rows) == found["pictures"]
    assert {"path", "split", "true_labels", "labels", "p(blue)", "p(green)", "p(red)"} == set(rows[0])
    exact = [set(row["true_labels"].split(";")) == set(row["labels"].split(";")) for row in rows]
    assert sum(exact) / len(rows) == pytest.approx(found["at_thresholds"]["exact_match"])


@pytest.fixture
def one_each(tmp_path: Path) -> Path:
    """A table of six pictures with one label in each row."""
    rows = []
    for number in range(6):
        image = np.full((16, 16, 3), 40, dtype=np.uint8)
        image[..., number % 2] += 120
        write_picture(tmp_path / f"{number}.png", image)
        rows.append(f"{number}.png,{('red', 'green')[number % 2]}")
    (tmp_path / "l.csv").write_text("path,label\n" + "\n".join(rows) + "\n")
    return tmp_path / "l.csv"


def test_evaluate_reads_a_table_with_one_label_in_each_row(
    trained: Path, one_each: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(trained), str(one_each), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["pictures"] for one in found["labels"]] == [0, 3, 3]
    assert found["labels"][0]["average_precision"] is None


def test_export_and_serve_read_it_too_for_a_network_without_its_run(
    trained: Path, one_each: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(shutil.copy(Run(trained).weights_path, tmp_path / "alone.safetensors"))
    out = tmp_path / "out.safetensors"
    words = ["export", str(file), "--format", "safetensors", "--out", str(out), "--data", str(one_each)]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["measure"], found["pictures"]) == ("mAP", 6)
    check = thumbnet.export(file, "safetensors", out, data=one_each, progress=False).check
    assert (check.measure, check.pictures) == ("mAP", 6)
    options = build_parser().parse_args(["serve", "--data", str(one_each), str(file)])
    data = _data_to_try(options, read_weights(file)[1])
    assert data is not None
    assert data.multilabel


def test_predict_prints_all_labels_above_their_thresholds(
    trained: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = [str(path) for path in sorted(table.parent.glob("test-*.png"))[:8]]
    assert main(["predict", str(trained), *pictures, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["path"] for line in lines] == pictures
    given = [[one["label"] for one in line["labels"]] for line in lines]
    assert any(len(labels) > 1 for labels in given)
    assert main(["predict", str(trained), *pictures, "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["labels"].split(";") if row["labels"] else [] for row in rows] == given


def test_compare_compares_map(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    recipe = Run.open(other).recipe.override(["seed=1"])
    (other / "recipe.toml").write_text(recipe.to_toml())
    Run.open(other).save_summary({**Run.open(other).summary, "map": 0.5})
    assert main(["compare", str(trained), str(other), "--plot", str(tmp_path / "c.svg")]) == 0
    said = capsys.readouterr().out
    assert "test mAP" in said
    assert "mean mAP" in said
    assert "50.00 %" in said
    assert (tmp_path / "c.svg").stat().st_size > 0
