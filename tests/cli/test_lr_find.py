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
