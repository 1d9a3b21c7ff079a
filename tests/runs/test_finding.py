"""Finding the runs in a folder, and the errors if a path is not a run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from thumbnet.errors import DataError, RunError
from thumbnet.invocation import command
from thumbnet.runs.finding import (
    are_gone,
    explaining_gone,
    is_finished,
    is_run,
    is_search,
    no_run,
    runs_in,
)


def make_run(folder: Path, *, finished: bool = True, age: int = 0) -> Path:
    folder.mkdir(parents=True)
    names = ["recipe.toml", "run.json", *(["summary.json"] if finished else [])]
    for name in names:
        (folder / name).touch()
    os.utime(folder / "run.json", (1e9 - age, 1e9 - age))
    return folder


def test_a_run_has_a_recipe_and_settings_and_a_finished_run_has_a_summary(tmp_path: Path) -> None:
    begun = make_run(tmp_path / "begun", finished=False)
    done = make_run(tmp_path / "done")
    assert (is_run(begun), is_finished(begun)) == (True, False)
    assert (is_run(done), is_finished(done)) == (True, True)
    (done / "run.json").unlink()
    assert (is_run(done), is_finished(done)) == (False, False)


def test_a_search_is_known_by_its_settings(tmp_path: Path) -> None:
    assert not is_search(tmp_path)
    (tmp_path / "tune.json").touch()
    assert is_search(tmp_path)


def test_only_a_place_that_is_missing_is_gone(tmp_path: Path) -> None:
    assert are_gone(str(tmp_path / "moved"))
    for source in (str(tmp_path), "cifar10", "hf:owner/name", None):
        assert not are_gone(source)


def test_only_an_error_about_data_that_are_gone_says_what_to_do(tmp_path: Path) -> None:
    gone = str(tmp_path / "moved")
    with (
        pytest.raises(DataError, match="^not found\nMove them back$"),
        explaining_gone(gone, lambda: "Move them back"),
    ):
        raise DataError("not found")
    for source in (str(tmp_path), None, [gone]):
        with pytest.raises(DataError, match="^not found$"), explaining_gone(source, lambda: "Move them back"):
            raise DataError("not found")
    with pytest.raises(RunError, match="^damaged$"), explaining_gone(gone, lambda: "Move them back"):
        raise RunError("damaged")


def test_runs_are_listed_newest_first(tmp_path: Path) -> None:
    old = make_run(tmp_path / "a", age=20)
    new = make_run(tmp_path / "b", age=10)
    (tmp_path / "not-a-run").mkdir()
    (tmp_path / "file").touch()
    assert runs_in(tmp_path) == [new, old]
    assert runs_in(tmp_path / "nowhere") == runs_in(tmp_path / "file") == []


def test_the_error_for_an_incomplete_run_says_how_to_resume_it(tmp_path: Path) -> None:
    run = make_run(tmp_path / "begun", finished=False)
    text = str(no_run(run))
    assert "is not complete" in text
    assert f"train --resume {run}" in text
    assert "--finish" not in text, "there is nothing to finish yet"
    (run / "checkpoint.pt").touch()
    assert (
        f"\nOr end it where its newest checkpoint is: {command('train', '--resume', run, '--finish')}"
        in str(no_run(run))
    )
    (run / "recipe.toml").write_text('extends = "linear"\n')
    assert "--finish" not in str(no_run(run)), "its last layer is fitted as a whole"
    (run / "recipe.toml").write_text("[")
    assert f"train --resume {run}" in str(no_run(run)), "a damaged recipe hides no advice"


def test_the_error_for_a_folder_of_runs_lists_them_and_marks_incomplete_ones(tmp_path: Path) -> None:
    make_run(tmp_path / "done", age=2)
    make_run(tmp_path / "begun", finished=False, age=1)
    text = str(no_run(tmp_path))
    assert "is a folder of runs" in text
    assert text.splitlines()[1:] == [f"  {tmp_path}/begun  (not complete)", f"  {tmp_path}/done"]


def test_at_most_eight_runs_are_listed(tmp_path: Path) -> None:
    for number in range(10):
        make_run(tmp_path / f"run-{number}", age=number)
    lines = str(no_run(tmp_path)).splitlines()[1:]
    assert [line.rpartition("/")[2] for line in lines[:8]] == [f"run-{number}" for number in range(8)]
    assert lines[8:] == ["  and 2 more"]


def test_the_error_for_a_misspelt_run_suggests_the_nearest_name_and_lists_the_others(tmp_path: Path) -> None:
    make_run(tmp_path / "cats-fast-1")
    text = str(no_run(tmp_path / "cats-fats-1"))
    assert "there is no run" in text
    assert "Did you mean" in text
    assert text.endswith(f"  {tmp_path}/cats-fast-1")


def test_the_error_lists_the_runs_in_the_usual_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(Path("runs/cats"))
    assert "  runs/cats" in str(no_run(Path("elsewhere/dogs")))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nowhere", ["there is no run", "train DATA --out"]),
        ("cats.onnx", ["there is no file", "export RUN --out"]),
        ("file", ["is a file, not a run's folder"]),
        ("empty", ["is not a run's folder", "recipe.toml"]),
    ],
)
def test_the_error_for_a_path_that_is_not_a_run_says_what_to_do(
    name: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("empty").mkdir()
    text = str(no_run(Path(name)))
    assert [part for part in expected if part not in text] == []


def test_control_characters_in_the_name_of_a_run_are_escaped(tmp_path: Path) -> None:
    make_run(tmp_path / "red\x1b[31m")
    assert "\x1b" not in str(no_run(tmp_path)).split("\n", 1)[1]
