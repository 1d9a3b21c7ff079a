from __future__ import annotations

from pathlib import Path

import pytest

from cli_helpers import SETTINGS
from thumbnet.cli import main


def test_lr_find_prints_a_suggestion_and_draws_the_losses(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "lr.png"
    arguments = ["lr-find", str(folder), "--recipe", "one-cycle", *SETTINGS, "--steps", "60", "--to", "10"]
    assert main([*arguments, "--plot", str(plot)]) == 0
    assert "suggestion: --set optimizer.lr=" in capsys.readouterr().out
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--steps 1", "--steps 1: expected 10 or more"),
        ("--steps 9", "--steps 9: expected 10 or more"),
        ("--to inf", "--from 0.0001 and --to inf: expected 1e-30 <= FROM < TO <= 1e+30"),
        ("--to 1e300", "--to 1e+300: expected"),
        ("--to nan", "--to nan: expected"),
        ("--from 0", "--from 0 and --to 100: expected"),
        ("--from 1 --to 1", "--from 1 and --to 1: expected"),
    ],
)
def test_a_range_that_can_suggest_nothing_is_refused_before_the_data_are_read(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lr-find", "nowhere", *words.split()]) == 2
    assert message in capsys.readouterr().err
