from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from cli_helpers import run_cli
from thumbnet.errors import InterruptedTuneError
from thumbnet.recipes.recipe import load_recipe
from tuning_helpers import TINY_SEARCH

WORDS = [word for setting in TINY_SEARCH for word in ("--set", setting)]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["name the data", "tune DATA --minutes 20", "tune --resume DIR"]),
        (["digits"], ["say how long to search", "tune digits --minutes 20", "or --trials 30"]),
        (["digits", "--resume", "x"], ["either DATA or --resume DIR"]),
        (["--resume", "x", "--minutes", "5", "--epochs", "2"], ["leave out --minutes, --epochs"]),
        (["--resume", "x", "--set", "seed=1"], ["leave out --set"]),
    ],
)
def test_a_command_that_cannot_be_meant_says_what_to_write(words: list[str], parts: list[str]) -> None:
    status, stdout, stderr = run_cli("tune", *words)
    assert (status, stdout) == (2, "")
    for part in parts:
        assert part in stderr


def test_a_stopped_search_says_how_to_go_on_with_the_same_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise InterruptedTuneError(Path("search"), 3)

    monkeypatch.setattr("thumbnet.tuning.tune.tune", stopped)
    status, _, stderr = run_cli("tune", "digits", "--trials", "5", "--device", "cpu", "--quiet")
    assert status == 130
    assert stderr.endswith("tune --resume search --device cpu\n")
    given: list[object] = []

    def resumed(*_: object, data_dir: object, **__: object) -> None:
        given.append(data_dir)
        raise InterruptedTuneError(Path("search"), 3)

    monkeypatch.setattr("thumbnet.tuning.tune.resume_tuning", resumed)
    status, _, stderr = run_cli("tune", "--resume", "search", "--data-dir", "elsewhere", "--quiet")
    assert (status, given) == (130, ["elsewhere"])
    assert stderr.endswith("tune --resume search --data-dir elsewhere\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--recipe", "linear", "--init", "runs/x", "--set", "seed=3"],
            "train no-data --recipe linear --set seed=3 --init runs/x\n",
        ),
        (["--recipe", "mine.toml"], "train no-data --recipe mine.toml --init RUN\n"),
        (["--set", "training.steps=5"], "training.steps is 5: a search counts in epochs"),
    ],
)
def test_a_recipe_that_leaves_nothing_to_search_is_refused_before_the_data_are_loaded(
    words: list[str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").write_text(load_recipe("linear").to_toml())
    status, _, stderr = run_cli("tune", "no-data", "--trials", "2", *words, cwd=tmp_path)
    assert status == 2
    assert message in stderr


def test_weights_that_do_not_exist_are_an_error_before_the_data_are_loaded(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="the extra 'tune' is not installed")
    status, _, stderr = run_cli("tune", "no-data", "--trials", "2", "--init", "gone.pt", cwd=tmp_path)
    assert status == 2
    assert "there is no file gone.pt" in stderr


def test_a_folder_without_a_search_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="the extra 'tune' is not installed")
    status, _, stderr = run_cli("tune", "--resume", tmp_path)
    assert status == 2
    assert f"there is no search in {tmp_path}: tune.json is missing" in stderr


def test_without_optuna_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    status, _, stderr = run_cli("tune", "digits", "--trials", "2")
    assert status == 2
    assert "thumbnet tune needs the extra 'tune'" in stderr


def test_a_search_ends_with_what_it_found_and_where_it_is(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="the extra 'tune' is not installed")
    out = tmp_path / "search"
    words: list[str | Path] = [
        folder,
        *WORDS,
        "--set",
        "optimizer.weight_decay=0",
        "--device",
        "cpu",
        "--trials",
        "2",
    ]
    status, stdout, stderr = run_cli("tune", *words, "--recipe", "small", "--epochs", "1", "--out", out)
    assert status == 0, stderr
    summary = json.loads((out / "summary.json").read_text())
    best = f"held-out loss {summary['best_loss']:.3f} (accuracy {100 * summary['best']:.2f} %)"
    assert f"best of 2 trials: {best}" in stdout
    assert f"recipe  {out / 'recipe.toml'}" in stdout
    assert f"page    {out / 'tune.html'}" in stdout
    assert f"run: {out / 'run'}" in stdout
    assert "judged by 3 folds of the 60 training pictures; the test split chooses nothing" in stderr
    assert stderr.count("trial   ") == 2
    assert "the recipe as it is" in stderr
    assert stderr.count("data    ") == 1  # the final training loads them again
    assert "final   trains with the settings of trial" in stderr
    status, stdout, stderr = run_cli("tune", "--resume", out)
    assert status == 2
    assert "is finished" in stderr
