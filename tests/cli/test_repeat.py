from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli_helpers import run_cli
from correction_helpers import HEADER
from helpers import TINY, write_class_folders
from thumbnet.cli.repeat import RESULT, finished, folds, seeds
from thumbnet.errors import DivergedError, InterruptedRunError
from thumbnet.evaluation import evaluate_logits
from thumbnet.recipes.recipe import load_recipe
from thumbnet.reports.cross_validation import CrossValidation, Fold
from thumbnet.runs.folder import Run
from thumbnet.training.asked import what_was_asked

SET = [word for setting in TINY if not setting.startswith("training.epochs") for word in ("--set", setting)]
WORDS = ["--recipe", "one-cycle", "--device", "cpu", "--epochs", "1", *SET]
VARY = ["--vary", "optimizer.momentum=0.8,0.9"]
Trained = list[str]


@pytest.fixture
def trained(tiny_run: Run, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """Let copies of a run take the place of trainings; returns the names of their folders."""
    names: Trained = []

    def train(data: Any, recipe: Any, *, overrides: tuple[str, ...], out: Path, **_: Any) -> Run:
        if not (out / "summary.json").exists():
            shutil.copytree(tiny_run.path, out)
            run = Run(out)
            run.write_recipe(load_recipe(recipe, overrides))
            settings = {**run.settings, "asked": what_was_asked(recipe, overrides)}
            (out / "run.json").write_text(json.dumps(settings))
            accuracy = 0.8 + len(names) / 100
            (out / "summary.json").write_text(json.dumps({**run.summary, "accuracy": accuracy}))
            names.append(out.name)
        return Run(out)

    monkeypatch.setattr("thumbnet.training.train.train", train)
    return names


def failing(monkeypatch: pytest.MonkeyPatch, at: str, error: Callable[[Path], BaseException]) -> None:
    """Let the training in the folder ``at`` fail."""
    from thumbnet.training import train as module

    original = module.train

    def train(*given: Any, out: Path, **more: Any) -> Run:
        if out.name == at:
            raise error(out)
        return original(*given, out=out, **more)

    monkeypatch.setattr(module, "train", train)


def test_a_study_trains_all_and_goes_on_where_it_was(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "study"
    status, stdout, stderr = run_cli("repeat", folder, *WORDS, *VARY, "--seeds", "1", "--out", out)
    assert status == 0, stderr
    runs = [out / f"momentum-{momentum}_seed-0" for momentum in (0.8, 0.9)]
    assert sorted(out.iterdir()) == runs
    for run, momentum in zip(runs, (0.8, 0.9), strict=True):
        assert Run(run).is_complete
        assert (Run(run).recipe.optimizer.momentum, Run(run).recipe.seed) == (momentum, 0)
        assert str(run) in stdout
    assert "optimizer.momentum=0.8" in stdout
    assert f"1 of 2  {runs[0]}  test accuracy" in stderr
    lines = [line for line in stderr.splitlines() if " of 2  " in line and "test accuracy" in line]
    assert [line.endswith(" left") for line in lines] == [True, False]
    alone: list[str | Path] = ["--set", "optimizer.momentum=0.9", "--seed", "0", "--out", tmp_path / "alone"]
    assert run_cli("train", folder, *WORDS, *alone)[0] == 0  # no training changes the next one
    assert (tmp_path / "alone" / "model.safetensors").read_bytes() == Run(runs[1]).weights_path.read_bytes()
    before = [(run / "model.safetensors").stat().st_mtime_ns for run in runs]
    shutil.rmtree(runs[1])
    status, stdout, stderr = run_cli("repeat", folder, *WORDS, *VARY, "--seeds", "1", "--out", out)
    assert status == 0, stderr
    assert f"{runs[0]} is complete already" in stderr
    after = [(run / "model.safetensors").stat().st_mtime_ns for run in runs]
    assert (before[0] == after[0], before[1] < after[1]) == (True, True)


def test_further_seeds_keep_the_complete_trainings_and_the_table_is_that_of_compare(
    trained: Trained, tmp_path: Path
) -> None:
    words = ["repeat", "digits", *WORDS, *VARY, "--out", str(tmp_path)]
    assert run_cli(*words, "--seeds", "2")[0] == 0
    first = ["momentum-0.8_seed-0", "momentum-0.9_seed-0", "momentum-0.8_seed-1", "momentum-0.9_seed-1"]
    assert trained == first
    status, stdout, _ = run_cli(*words, "--seeds", "3")
    assert status == 0
    assert trained == [*first, "momentum-0.8_seed-2", "momentum-0.9_seed-2"]
    paths = [tmp_path / name for name in trained]
    assert stdout == run_cli("compare", *paths)[1]
    assert run_cli(*words, "--seeds", "3", "--json")[1] == run_cli("compare", *paths, "--json")[1]
    assert run_cli(*words, "--seeds", "3", "--quiet") == (0, "".join(f"{path}\n" for path in paths), "")


def test_a_study_that_is_compared_by_val_needs_one_before_the_first_step(
    folder: Path, tmp_path: Path
) -> None:
    words: list[str | Path] = ["repeat", folder, *WORDS, "--seeds", "1", "--split", "val"]
    status, _, stderr = run_cli(*words, "--out", tmp_path / "none")
    assert status == 2
    assert "has no val split to compare by. Set a part of train aside: --val-fraction 0.1" in stderr
    assert not (tmp_path / "none").exists()
    status, stdout, stderr = run_cli(*words, "--val-fraction", "0.3", "--out", tmp_path / "study")
    assert status == 0, stderr
    run = Run(tmp_path / "study" / "seed-0")
    assert run.summary["split"] == "test"
    value = f"val accuracy {100 * run.summary['val']['accuracy']:.2f} %"
    assert f"1 of 1  {run.path}  {value}" in stderr
    assert "val accuracy" in stdout
    assert "test accuracy" not in stdout
    again = run_cli("compare", run.path, "--split", "val")[1]
    assert stdout == again


def test_other_settings_than_before_are_refused(trained: Trained, tmp_path: Path) -> None:
    assert run_cli("repeat", "digits", *WORDS, "--out", tmp_path)[0] == 0
    status, stdout, stderr = run_cli(
        "repeat", "digits", *WORDS, "--set", "model.width=0.25", "--out", tmp_path
    )
    assert (status, stdout, len(trained)) == (2, "", 3)
    assert "was begun with other settings" in stderr
    assert "model.width: was 0.5, now 0.25" in stderr


def test_after_ctrl_c_the_message_has_the_command_that_goes_on(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, "seed-1", lambda path: InterruptedRunError(path, 1, 2))
    words = ["repeat", "digits", *WORDS, "--seeds", "3", "--out", str(tmp_path)]
    status, stdout, stderr = run_cli(*words)
    assert (status, stdout, trained) == (130, "", ["seed-0"])
    assert f"thumbnet {' '.join(words)}\n" in stderr
    assert "--finish" not in stderr


def test_ctrl_c_before_there_is_anything_to_save_also_tells_how_to_go_on(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, "seed-1", lambda _: KeyboardInterrupt())
    words = ["repeat", "digits", *WORDS, "--seeds", "3", "--out", str(tmp_path)]
    status, _, stderr = run_cli(*words)
    assert (status, trained) == (130, ["seed-0"])
    assert f"thumbnet {' '.join(words)}\n" in stderr


def test_a_training_that_diverges_does_not_stop_the_others(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, "seed-1", lambda _: DivergedError(3, math.nan, 0.5))
    status, stdout, stderr = run_cli("repeat", "digits", *WORDS, "--seeds", "3", "--out", tmp_path)
    assert (status, trained) == (2, ["seed-0", "seed-2"])
    assert all(str(tmp_path / name) in stdout for name in trained)
    assert f"1 of 3 trainings failed:\n  {tmp_path / 'seed-1'}: " in stderr


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["needs DATA"]),
        (["digits"], ["name a folder for the runs", "repeat digits --out study"]),
        (["digits", "--out", "s", "--seeds", "0"], ["--seeds 0: expected a number such as 5"]),
        (["digits", "--out", "s", "--seeds", "3,3"], ["--seeds 3,3: expected"]),
        (["digits", "--out", "s", "--seeds", ","], ["--seeds ,: expected"]),
        (
            ["digits", "--out", "s", "--seeds", "20261128"],
            [
                "--seeds 20261128: expected at most 1,000 seeds",
                "For the single seed 20261128: --seeds 20261128,",
            ],
        ),
        (["digits", "--out", "s", "--folds", "1"], ["--folds 1: expected a number from 2 to 20"]),
        (
            ["digits", "--out", "s", "--folds", "3", "--test-fraction", "0.1"],
            ["leave out data.test_fraction"],
        ),
        (["digits", "--out", "s", "--folds", "3", "--split", "val"], ["with --folds", "leave out --split"]),
        (["digits", "--out", "s", "--seed", "3"], ["no option --seed", "Did you mean --seeds 3?"]),
        (["digits", "--out", "s", "--set", "seed=3"], ["list the seeds with --seeds"]),
        (["digits", "--out", "s", "--epochs", "0"], ["--epochs is 0"]),
        (["digits", "--out", "s", "--vary", "training.epochs=1,0"], ["'training.epochs' is 0"]),
        (["digits", "--out", "s", "--vary", "training.epochs"], ["expected KEY=VALUE,VALUE"]),
        (["digits", "--out", "s", "--vary", "training.loss=a.b:c"], ["no Python module a"]),
        (["digits", "--out", "s", "--recipe", "fats"], ["'fast'"]),
    ],
)
def test_a_wrong_command_trains_nothing(
    words: list[str], parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, stdout, stderr = run_cli("repeat", *words)
    assert (status, stdout) == (2, "")
    assert "Traceback" not in stderr
    for part in parts:
        assert part in stderr
    assert list(tmp_path.iterdir()) == []


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, _, stderr = run_cli("repeat", "digits", "--out", tmp_path / "study")
    assert status == 2
    assert "start it without torchrun" in stderr


def test_seeds_are_a_number_of_them_or_a_list() -> None:
    assert seeds("3") == (0, 1, 2)
    assert seeds("11,3") == (11, 3)
    for text in ("0", "-1", "x", "1,,", ",", "2,-1", "5,5"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected a number such as 5"):
            seeds(text)


def test_the_line_of_a_finished_training_has_the_time_that_the_others_take(tiny_run: Run) -> None:
    each = tiny_run.summary["seconds_total"]
    value = f"{100 * tiny_run.summary['accuracy']:.2f} %"
    line = finished([tiny_run, tiny_run], 2, 3)
    assert line == f"2 of 3  {tiny_run.path}  test accuracy {value}  about {each:.1f} s left"
    assert finished([tiny_run], 3, 3).endswith(value)


def test_folds_measure_every_picture_once_and_go_on_where_they_were(tmp_path: Path) -> None:
    data = write_class_folders(tmp_path / "data", ["train", "test"], per_class=6)
    out = tmp_path / "study"
    words: list[str | Path] = ["repeat", data, *WORDS, "--folds", "2", "--out", out]
    status, stdout, stderr = run_cli(*words)
    assert status == 0, stderr
    runs = [Run(out / f"seed-0_fold-{fold}-of-2") for fold in (1, 2)]
    assert sorted(out.iterdir()) == sorted([*(run.path for run in runs), out / RESULT])
    assert "2 training(s) in" in stderr
    assert stderr.count("the test split of the data (18 pictures) is not used") == 1
    assert all(str(run.path) in stdout for run in runs)
    assert "all 2 folds: 18 pictures" in stdout
    assert "mean of the folds" in stdout
    (result,) = json.loads((out / RESULT).read_text())["results"]
    assert (result["settings"], result["pictures"]) == (["seed=0"], 18)
    accuracies = [run.summary["accuracy"] for run in runs]
    assert [fold["accuracy"] for fold in result["folds"]] == accuracies
    assert result["accuracy"] == pytest.approx(sum(accuracies) / 2)
    assert [one["pictures"] for one in result["classes"]] == [6, 6, 6]
    before = runs[0].weights_path.stat().st_mtime_ns
    shutil.rmtree(runs[1].path)
    again = run_cli(*words, "--json")
    assert again[0] == 0, again[2]
    assert runs[0].weights_path.stat().st_mtime_ns == before
    assert json.loads(again[1]) == {"results": [result]}  # to the bit
    status, stdout, _ = run_cli(*words, "--quiet")
    assert (status, stdout) == (0, "".join(f"{run.path}\n" for run in runs))
    status, _, stderr = run_cli("compare", *(run.path for run in runs))
    assert status == 2
    assert "different folds" in stderr


def measured(*accuracies: float) -> CrossValidation:
    """A cross-validation with these accuracies of its folds."""
    logits, labels = np.eye(2)[[0, 1, 1, 1]], np.array([0, 1, 1, 0])
    folds = tuple(Fold(n, Run(f"run-{n}"), 2, value) for n, value in enumerate(accuracies, start=1))
    return CrossValidation(
        "pictures", folds, evaluate_logits(logits, labels, ("a", "b")), "none", ("a note",)
    )


def test_several_combinations_have_a_table_and_one_that_lacks_a_fold_has_no_result(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def cross_validate(runs: list[Run], data: Any, **_: Any) -> CrossValidation:
        seen.append([run.path.name for run in runs])
        return measured(0.5, 1.0)

    monkeypatch.setattr("thumbnet.reports.cross_validation.cross_validate", cross_validate)
    study: list[str | Path] = ["--folds", "2", "--seeds", "2", "--out", tmp_path]
    failing(monkeypatch, "momentum-0.9_seed-1_fold-2-of-2", lambda _: DivergedError(3, math.nan, 0.5))
    status, stdout, stderr = run_cli("repeat", "digits", *WORDS, *VARY, *study)
    assert (status, len(trained)) == (2, 7)
    assert seen == [
        [f"momentum-{momentum}_seed-{seed}_fold-{fold}-of-2" for fold in (1, 2)]
        for momentum, seed in ((0.8, 0), (0.9, 0), (0.8, 1))
    ]
    assert "optimizer.momentum=0.9, seed=1 has no result, because a fold is missing" in stderr
    assert "1 of 8 trainings failed" in stderr
    rows = stdout.splitlines()[-3:]
    assert [row.split("  ")[0] for row in rows] == [
        "optimizer.momentum=0.8, seed=0", "optimizer.momentum=0.9, seed=0", "optimizer.momentum=0.8, seed=1"
    ]  # fmt: skip
    assert all("75.00 %" in row and "35.36" in row for row in rows)
    assert stdout.count("a note") == 3
    assert len(json.loads((tmp_path / RESULT).read_text())["results"]) == 3


def test_after_ctrl_c_while_measuring_the_message_has_the_command(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cross_validate(*_: Any, **__: Any) -> CrossValidation:
        raise KeyboardInterrupt

    monkeypatch.setattr("thumbnet.reports.cross_validation.cross_validate", cross_validate)
    words = ["repeat", "digits", *WORDS, "--folds", "2", "--out", str(tmp_path)]
    status, _, stderr = run_cli(*words)
    assert (status, len(trained)) == (130, 2)
    assert f"thumbnet {' '.join(words)}\n" in stderr


def test_folds_are_a_number_from_2_to_20() -> None:
    assert (folds("2"), folds("20")) == (2, 20)
    for text in ("1", "21", "-2", "x", "2.5", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="expected a number from 2 to 20"):
            folds(text)


def test_a_cross_validation_goes_on_only_with_the_same_data_and_corrections(tmp_path: Path) -> None:
    data = write_class_folders(tmp_path / "data", [""], per_class=4)
    out = tmp_path / "study"
    words: list[str | Path] = ["repeat", data, *WORDS, "--folds", "2", "--out", out]
    labels = tmp_path / "labels.csv"
    labels.write_text(HEADER + "red/0.png,blue,train,red,relabel\n")
    corrected: list[str | Path] = [*words, "--labels", labels]
    assert run_cli(*corrected)[0] == 0
    shutil.rmtree(out / "seed-0_fold-2-of-2")
    status, stdout, stderr = run_cli(*words)
    assert (status, stdout) == (2, "")
    assert "was begun with corrected labels: use --labels" in stderr
    (data / "red" / "1.png").rename(data / "red" / "9.png")
    status, stdout, stderr = run_cli(*corrected)
    assert (status, stdout) == (2, "")
    assert "have changed since" in stderr
    assert not (out / "seed-0_fold-2-of-2").exists()


def test_a_setting_that_chooses_the_test_pictures_does_not_vary_without_folds(tmp_path: Path) -> None:
    data = write_class_folders(tmp_path / "data", [""], per_class=6)
    study: list[str | Path] = ["--seeds", "1", "--out", tmp_path / "study"]
    vary = ["--vary", "data.split_seed=0,1"]
    status, _, stderr = run_cli("repeat", data, *WORDS, *vary, *study)
    assert status == 2
    assert "data.split_seed varies, and it changes the pictures" in stderr
    assert not (tmp_path / "study").exists()
    status, stdout, stderr = run_cli("repeat", data, *WORDS, *vary, "--folds", "2", *study)
    assert status == 0, stderr
    assert "data.split_seed=1" in stdout
