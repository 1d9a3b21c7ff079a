from __future__ import annotations

from pathlib import Path

import pytest

from thumbnet.cli import main
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
