from __future__ import annotations

from pathlib import Path

import pytest

from helpers import write_class_folders
from thumbnet.cli import main
from thumbnet.runs.folder import Run


def test_a_report_is_written_to_out(
    tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_class_folders(tmp_path / "data", ["train", "test"], per_class=4)
    out = tmp_path / "page.html"
    assert main(["report", str(tiny_run.path), str(data), "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    assert out.read_text("utf-8").startswith("<!doctype html>")


def test_a_missing_folder_for_the_report_is_an_error(
    tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_class_folders(tmp_path / "data", ["train", "test"], per_class=4)
    assert main(["report", str(tiny_run.path), str(data), "--out", str(tmp_path / "no" / "x.html")]) == 2
    assert "cannot write" in capsys.readouterr().err
