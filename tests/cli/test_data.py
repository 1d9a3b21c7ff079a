from __future__ import annotations

import json
from pathlib import Path

import pytest

from thumbnet.cli import main


def test_data_prints_layout_sizes_and_counts_and_draws_pictures(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "grid.png"
    assert main(["data", str(folder), "--plot", str(plot)]) == 0
    out = capsys.readouterr().out
    for word in (
        "train/CLASS/* + test/CLASS/*",
        "16x16 (120)",
        "RGB (120)",
        "mean, std",
        "unreadable 0",
        "blue",
    ):
        assert word in out
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert main(["data", str(folder), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["counts"]["train"] == {"blue": 20, "green": 20, "red": 20}


def test_data_shows_what_corrections_change(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("picture,label,split,was,decision\ntrain/red/0.png,blue,train,red,relabel\n")
    assert main(["data", str(folder), "--labels", str(labels), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["counts"]["train"] == {"blue": 21, "green": 20, "red": 19}
    assert "corrected labels: 1 relabelled" in values["notes"]
