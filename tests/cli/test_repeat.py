from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli_helpers import run_cli
from helpers import TINY
from thumbnet.cli.repeat import finished, seeds
from thumbnet.errors import DivergedError, InterruptedRunError
from thumbnet.recipes.recipe import load_recipe
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
    for text in ("0", "-1", "x", "1,", "2,-1", "5,5"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected a number such as 5"):
            seeds(text)


def test_the_line_of_a_finished_training_has_the_time_that_the_others_take(tiny_run: Run) -> None:
    each = tiny_run.summary["seconds_total"]
    value = f"{100 * tiny_run.summary['accuracy']:.2f} %"
    line = finished([tiny_run, tiny_run], 2, 3)
    assert line == f"2 of 3  {tiny_run.path}  test accuracy {value}  about {each:.1f} s left"
    assert finished([tiny_run], 3, 3).endswith(value)
