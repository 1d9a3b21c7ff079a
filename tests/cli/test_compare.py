from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from thumbnet.cli import main
from thumbnet.cli.views import SETTINGS_SHOWN
from thumbnet.runs.folder import Run


def test_comparing_prints_accuracies_and_draws_learning_curves(
    tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "curves.png"
    assert main(["compare", str(tiny_run.path), "--plot", str(plot)]) == 0
    assert f"{100 * tiny_run.summary['accuracy']:.2f}" in capsys.readouterr().out
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_folder_that_is_not_a_run_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def other_run(run: Run, path: Path, *settings: str, fingerprint: str = "") -> Run:
    """A copy of a run, with other settings in its recipe or another fingerprint."""
    copied = Run(Path(shutil.copytree(run.path, path)))
    copied.write_recipe(run.recipe.override(settings))
    if fingerprint:
        changed = {**run.settings, "fingerprint": fingerprint, "measured_fingerprint": fingerprint}
        (path / "run.json").write_text(json.dumps(changed))
    return copied


def test_the_runs_among_everything_in_a_folder_are_compared(
    tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = other_run(tiny_run, tmp_path / "1", "optimizer.lr=0.125")
    second = other_run(tiny_run, tmp_path / "2", "optimizer.lr=0.25")
    odd = other_run(tiny_run, tmp_path / "3", fingerprint="other")
    (tmp_path / "empty").mkdir()
    paths = sorted(map(str, tmp_path.iterdir()))
    assert main(["compare", *paths]) == 0
    shown = capsys.readouterr()
    assert re.search(r"one-cycle +optimizer.lr=0.125\n", shown.out)
    assert re.search(r"one-cycle \(2\) +optimizer.lr=0.25\n", shown.out)
    assert str(odd.path) not in shown.out
    assert f"{tmp_path / 'empty'} is left out: it is not a run's folder" in shown.err
    assert f"{odd.path} is left out: " in shown.err
    assert main(["compare", *paths, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [group["runs"] for group in found["groups"]] == [[str(first.path)], [str(second.path)]]
    assert [group["settings"] for group in found["groups"]] == [
        {"optimizer.lr": 0.125},
        {"optimizer.lr": 0.25},
    ]
    assert {one["path"] for one in found["left_out"]} == {str(odd.path), str(tmp_path / "empty")}


def test_of_many_settings_that_differ_only_some_are_shown(
    tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"augment.{key}=0.1" for key in ("brightness", "contrast", "hue", "saturation", "erase")]
    other = other_run(tiny_run, tmp_path / "1", *settings)
    assert main(["compare", str(tiny_run.path), str(other.path)]) == 0
    out = capsys.readouterr().out
    assert out.count("=0.1,") == SETTINGS_SHOWN
    assert out.count(f"and {len(settings) - SETTINGS_SHOWN} more") == 2
