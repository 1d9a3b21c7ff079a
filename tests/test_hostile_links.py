"""A link in a stranger's run or search leads no command to write outside that folder.

Each link below has the name of a file that a command writes without being told where.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from helpers import write_class_folders
from thumbnet.cli import main
from thumbnet.errors import RunError
from thumbnet.files import check_output
from thumbnet.runs.finding import SEARCH
from thumbnet.runs.folder import Run
from thumbnet.tuning.study import JOURNAL

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege on Windows")
OWN = "the user's own\n"
REVIEW = ["--folds", "0", "--port", "0", "--no-browser"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_class_folders(tmp_path / "data", ["train", "test"], per_class=4)


@pytest.fixture
def run(tiny_run: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run.path, tmp_path / "stranger" / "run"))


def hostile(link: Path) -> Path:
    """Put a link in place of ``link`` that leads to a file of the user's; return that file."""
    stranger = next(folder for folder in link.parents if folder.name == "stranger")
    target = stranger.parent / "home" / "own"
    target.parent.mkdir()
    target.write_text(OWN)
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(target, link.parent))
    return target


def check_refused(words: list[str], target: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Check that a command ends with an error of ours and leaves the user's file alone; return the error."""
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert target.read_text() == OWN
    assert os.listdir(target.parent) == [target.name]
    return error


@pytest.mark.parametrize(
    ("name", "command"),
    [
        *((name, "report") for name in ("report.html", "mistakes.csv", "suspects.csv")),
        *((name, "review") for name in ("labels.csv", ".labels.csv.lock", "scores/network.npz")),
        ("model.onnx", "export"),
        *((name, "resume") for name in (".lock", "metrics.csv", "metrics.jsonl", "model.safetensors")),
    ],
)
def test_a_link_in_place_of_a_file_that_a_command_writes_in_a_run_is_refused(
    name: str, command: str, run: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if command == "review":
        pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
    words = {
        "report": ["report", str(run), str(data)],
        "review": ["review", str(run), "--data", str(data), *REVIEW],
        "export": ["export", str(run)],
        "resume": ["train", "--resume", str(run)],
    }
    if command == "resume":
        (run / "summary.json").unlink()
    error = check_refused(words[command], hostile(run / name), capsys)
    assert (run / name).name in error or name == ".labels.csv.lock"  # filelock follows no link


@pytest.mark.parametrize(("name", "command"), [("scores", "review"), ("tensorboard", "train")])
def test_a_link_in_place_of_a_folder_in_a_run_is_refused(
    name: str, command: str, run: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = hostile(run / name)
    (run / name).unlink()
    (run / name).symlink_to(target.parent, target_is_directory=True)
    if command == "train":
        (run / "summary.json").unlink()
        words = ["train", "--resume", str(run)]
    else:
        pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
        words = ["review", str(run), "--data", str(data), *REVIEW]
    assert f"cannot write {run / name}: it is a link" in check_refused(words, target, capsys)


@pytest.mark.parametrize("name", [JOURNAL, "recipe.toml", ".lock", "run"])
def test_a_link_in_a_search_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna", reason="the extra 'tune' is not installed")
    search = tmp_path / "stranger" / "search"
    search.mkdir(parents=True)
    (search / SEARCH).write_text(json.dumps({"data": "digits", "data_dir": None}))
    error = check_refused(["tune", "--resume", str(search)], hostile(search / name), capsys)
    assert f"cannot write {search / name}: it is a link" in error


def test_a_link_in_a_study_is_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tmp_path / "stranger" / "study"
    study.mkdir(parents=True)
    target = hostile(study / "folds.json")
    words = ["repeat", str(data), "--epochs", "1", "--out", str(study)]
    check_refused([*words, "--folds", "2"], target, capsys)
    empty = tmp_path / "empty"  # an empty folder of the user's, in which a run could begin
    empty.mkdir()
    (study / "folds.json").unlink()
    (study / "seed-1").symlink_to(empty, target_is_directory=True)
    assert f"cannot write {study / 'seed-1'}" in check_refused([*words, "--seeds", "2"], target, capsys)
    assert list(empty.iterdir()) == []


def test_a_link_next_to_weights_or_to_pictures_is_refused(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = hostile(run / "model.onnx")
    check_refused(["export", str(run / "model.safetensors")], target, capsys)
    pytest.importorskip("fastapi", reason="the extra 'serve' is not installed")
    pictures = run.parent / "pictures"
    shutil.copytree(data / "test", pictures)
    (run.parent / "pictures-labels.csv").symlink_to(target)
    check_refused(["review", str(pictures), "--run", str(run), *REVIEW[2:]], target, capsys)


def test_a_link_that_the_user_names_and_one_within_the_folder_are_followed(run: Path) -> None:
    hostile(run / "out.html")
    (run / "within.html").symlink_to("page.html")
    (run.parent / "linked").symlink_to(run, target_is_directory=True)
    for folder in (run, run.parent / "linked"):
        check_output(folder / "out.html")
        check_output(folder / "within.html", named=False)
        check_output(folder / "new.html", named=False)
        with pytest.raises(RunError, match="it is a link that leads out of its folder, to .*own"):
            check_output(folder / "out.html", named=False)
