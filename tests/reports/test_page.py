from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers import TINY, coloured_data, write_class_folders
from thumbnet.cli import main
from thumbnet.data.splits import Data
from thumbnet.reports.page import write_report
from thumbnet.runs.folder import Run
from thumbnet.training.train import train


def test_a_report_loads_nothing_from_elsewhere(tiny_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report(tiny_run, coloured_data(), "test", out)
    page = out.read_text("utf-8")
    assert not re.search(r"(?:src|href|action)=\"(?!#|data:)|@import|url\((?!#)", page)
    assert "://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert out.stat().st_size < 1_000_000
    names = re.findall(r'id="([^"]+)"', page)
    assert len(names) == len(set(names))
    for target in re.findall(r'(?:href="#|url\(#|xlink:href="#)([^")]+)', page):
        assert target in names
    assert page.count("<img") == page.count('<img src="data:image/webp;base64,')
    assert len(re.findall(r"<img(?![^>]*alt=)", page)) == 0


def test_class_names_are_escaped(tmp_path: Path) -> None:
    """Class names come from folder names, which may come from a stranger."""
    evil = "</script><img src=x onerror=alert(1)>"
    plain = coloured_data()
    data = Data(evil, evil, (evil, "green", "blue"), plain.splits)
    run = train(data, "resnet18", overrides=[*TINY, "training.epochs=1"], out=tmp_path / "run", device="cpu")
    write_report(run, data, "test", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "&lt;/script&gt;&lt;img src=x" in page
    assert evil not in page
    assert page.count("</script>") == 2


def test_the_command_writes_a_report_into_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_class_folders(tmp_path / "data", ("train", "test"))
    run = tmp_path / "run"
    assert main(["train", str(tmp_path / "data"), "--out", str(run), "--epochs", "1"]) == 0
    assert main(["report", str(run)]) == 0
    assert "report.html" in capsys.readouterr().out
    assert (run / "report.html").is_file()
    assert main(["report", str(run), "--split", "val"]) == 2
    assert main(["report", str(tmp_path / "nothing")]) == 2
