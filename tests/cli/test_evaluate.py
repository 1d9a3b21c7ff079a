from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from cli_helpers import SETTINGS, epochs, run_cli
from thumbnet.runs.folder import Run


def test_evaluating_a_run_gives_the_accuracy_that_training_reported(
    trained: tuple[Path, str, str], tmp_path: Path
) -> None:
    out, _, _ = trained
    accuracy = Run(out).summary["accuracy"]
    plot = tmp_path / "confusion.png"
    status, stdout, _ = run_cli("evaluate", out, "--plot", plot)
    assert status == 0
    assert f"accuracy           {100 * accuracy:.2f} %" in stdout
    for word in (
        "95 % interval",
        "loss",
        "calibration error",
        "precision",
        "recall",
        "F1",
        "confusion",
        "green",
    ):
        assert word in stdout
    assert plot.read_bytes().startswith(b"\x89PNG")
    status, stdout, _ = run_cli("evaluate", out, "--json")
    values = json.loads(stdout)
    assert values["accuracy"] == accuracy
    assert sum(map(sum, values["confusion"])) == values["pictures"] == 60
    assert {"interval", "loss", "calibration_error", "classes", "top5"} <= set(values)


def test_other_data_another_split_and_test_time_augmentation_can_be_chosen(
    trained: tuple[Path, str, str], folder: Path
) -> None:
    out, _, _ = trained
    status, stdout, _ = run_cli(
        "evaluate", out / "model.safetensors", folder, "--split", "train", "--tta", "mirror"
    )
    assert status == 0
    assert "train: 60 pictures (test-time augmentation: mirror)" in stdout
    status, _, stderr = run_cli("evaluate", out / "model.safetensors")
    assert status == 2
    assert "name the data (DATA)" in stderr
    status, _, stderr = run_cli("evaluate", out, "--split", "val")
    assert status == 2
    assert "no split 'val'" in stderr


def test_a_run_is_evaluated_in_batches_of_its_own_size(
    small_batches: Run, folder: Path, batch_sizes: list[int]
) -> None:
    for place in (small_batches.path, small_batches.weights_path):
        status, _, stderr = run_cli("evaluate", place, folder, "--device", "cpu")
        assert status == 0, stderr
    assert batch_sizes == [7, 7]


def test_the_answers_for_all_pictures_are_written_as_csv(
    trained: tuple[Path, str, str], tmp_path: Path
) -> None:
    out, _, _ = trained
    table = tmp_path / "answers.csv"
    status, stdout, stderr = run_cli("evaluate", out, "--csv", table)
    assert status == 0, stderr
    assert stdout.splitlines()[-1] == f"written: {table}"
    with table.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    classes = ["blue", "green", "red"]
    assert list(rows[0]) == [
        *("path", "split", "true_class", "class_1", "probability_1"),
        *(f"p({name})" for name in classes),
    ]
    assert len(rows) == 60
    assert {row["split"] for row in rows} == {"test"}
    assert all(row["true_class"] in Path(row["path"]).parts for row in rows)
    right = sum(row["true_class"] == row["class_1"] for row in rows)
    assert right / 60 == pytest.approx(Run(out).summary["accuracy"])
    for row in rows:
        values = [float(row[f"p({name})"]) for name in classes]
        assert sum(values) == pytest.approx(1, abs=1e-5)
        assert row["class_1"] == classes[values.index(max(values))]
        assert float(row["probability_1"]) == max(values)


def test_groups_reach_the_interval_the_summary_and_the_table_of_answers(folder: Path, tmp_path: Path) -> None:
    root = folder / "train"
    names = sorted(
        (path.relative_to(root).as_posix() for path in root.rglob("*.png")), key=lambda one: one[::-1]
    )
    patients = {name: f"p{at // 6}" for at, name in enumerate(names)}  # each has pictures of all classes
    rows = [f"{name},{name.partition('/')[0]},{patient}" for name, patient in patients.items()]
    table, out, answers = tmp_path / "all.csv", tmp_path / "run", tmp_path / "answers.csv"
    table.write_text("path,label,patient\n" + "\n".join(rows))
    words: list[str | Path] = ["train", table, "--images", root, "--recipe", "one-cycle", "--out", out]
    words += [*SETTINGS, *epochs(1)]
    status, stdout, stderr = run_cli(*words, "--group-by", "patient")
    assert status == 0, stderr
    summary = Run(out).summary
    pictures, groups = summary["measured_pictures"], summary["measured_groups"]
    assert pictures == 6 * groups < 60
    assert f"the interval allows for {pictures} pictures in {groups} groups" in stdout
    status, stdout, stderr = run_cli("evaluate", out, "--csv", answers)
    assert status == 0, stderr
    assert f"test: {pictures} pictures in {groups} groups" in stdout
    with answers.open(encoding="utf-8", newline="") as lines:
        found = {row["path"]: row["group"] for row in csv.DictReader(lines)}
    assert len(found) == pictures
    assert all(patients[name] == patient for name, patient in found.items())
    status, stdout, _ = run_cli("evaluate", out, "--json")
    values = json.loads(stdout)
    assert (values["pictures"], values["groups"]) == (pictures, groups)
    assert values["interval"] == summary["accuracy_interval"]


def test_pictures_that_were_named_relative_to_the_training_are_found_from_another_folder(
    folder: Path, tmp_path: Path
) -> None:
    work, out = tmp_path / "work", tmp_path / "run"
    shutil.copytree(folder / "train", work / "photos")
    names = sorted(path.relative_to(work / "photos").as_posix() for path in work.rglob("*.png"))
    rows = [f"{name},{name.partition('/')[0]}" for name in names]
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "all.csv").write_text("path,label\n" + "\n".join(rows))
    words: list[str | Path] = ["train", "../tables/all.csv", "--images", "photos", "--recipe", "one-cycle"]
    status, _, stderr = run_cli(*words, *SETTINGS, *epochs(1), "--out", out, cwd=work)
    assert status == 0, stderr
    weights = Run(out).weights_path.read_bytes()
    commands: list[list[str | Path]] = [["evaluate", out], ["train", "--resume", out]]
    for command in commands:
        status, _, stderr = run_cli(*command, cwd=tmp_path)
        assert status == 0, stderr
        (out / "summary.json").unlink()  # so that the training goes on
        assert Run(out).weights_path.read_bytes() == weights


def test_the_table_of_answers_is_checked_before_the_data_are_read(
    trained: tuple[Path, str, str], tmp_path: Path
) -> None:
    out, _, _ = trained
    (tmp_path / "labels.csv").write_text("kept")
    for name, words in (("labels.csv", "already exists"), ("nowhere/a.csv", "there is no folder")):
        status, _, stderr = run_cli("evaluate", out, "no-such-data", "--csv", tmp_path / name)
        assert status == 2
        assert words in stderr
    assert (tmp_path / "labels.csv").read_text() == "kept"
