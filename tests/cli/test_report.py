from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from helpers import coloured_data, write_class_folders
from thumbnet.cli import main
from thumbnet.errors import RunError
from thumbnet.reports import charts, pictures
from thumbnet.reports.page import write_report
from thumbnet.runs.folder import Run


@pytest.fixture(autouse=True)
def _quick_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few heat maps and no drawings: these tests look at neither."""
    monkeypatch.setattr(pictures, "HEAT_MAPS", 2)
    monkeypatch.setattr(charts, "finished", lambda figure, title: "<svg></svg>")


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


def test_what_cannot_be_written_is_refused_before_the_data_are_loaded(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def loaded(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("thumbnet.cli.report.data_of_run", loaded)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe.html")
    for name, why in (
        ("no/x.html", "there is no folder"),
        ("folder", "it is a folder"),
        ("pipe.html", "it is a device or a pipe"),
    ):
        assert main(["report", str(tiny_run.path), "--out", str(tmp_path / name)]) == 2
        said = capsys.readouterr().err
        assert f"cannot write {tmp_path / name}: {why}" in said
        assert "former file" not in said
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "pipe.html"}


def test_the_device_is_that_of_the_command(
    tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_class_folders(tmp_path / "data", ["train", "test"], per_class=4)
    words = ["report", str(tiny_run.path), str(data), "--out", str(tmp_path / "x.html")]
    assert main([*words, "--device", "toaster"]) == 2
    assert "toaster" in capsys.readouterr().err
    assert main([*words, "--device", "cpu"]) == 0


def test_a_missing_library_is_reported_before_the_data_are_loaded(
    tiny_run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.setattr("thumbnet.cli.report.data_of_run", lambda *_: pytest.fail("loaded"))
    assert main(["report", str(tiny_run.path)]) == 2
    assert "writing a report needs the extra 'report'" in capsys.readouterr().err


def test_no_list_is_written_if_one_of_the_files_cannot_be(tiny_run: Run, tmp_path: Path) -> None:
    (tmp_path / "x-suspects.csv").mkdir()
    with pytest.raises(RunError, match=r"cannot write .*x-suspects\.csv: it is a folder"):
        write_report(tiny_run, coloured_data(), "test", tmp_path / "x.html")
    assert [path.name for path in tmp_path.iterdir()] == ["x-suspects.csv"]


def test_a_report_on_other_pictures_does_not_replace_that_of_the_run(
    trained: tuple[Path, str, str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(trained[0], tmp_path / "run"))
    assert main(["report", str(run), str(folder)]) == 0  # these are the run's own
    before = (run / "report.html").read_bytes()
    other = write_class_folders(tmp_path / "other", ["train", "test"], per_class=4)
    for words in ([str(run), str(other), "--device", "cpu"], [str(run), "--split", "train"]):
        capsys.readouterr()
        assert main(["report", *words]) == 2
        assert f"report {' '.join(words)} --out FILE" in capsys.readouterr().err
        assert main(["report", *words, "--out", str(tmp_path / "x.html")]) == 0
    assert "pictures were in the training split" in (tmp_path / "x.html").read_text("utf-8")
    assert (run / "report.html").read_bytes() == before
