from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cli_helpers import run_cli
from helpers import coloured, write_picture
from thumbnet.cli import main
from thumbnet.errors import ThumbnetError


def test_predict_takes_files_folders_globs_and_stdin(trained: tuple[Path, str, str], tmp_path: Path) -> None:
    out, _, _ = trained
    red = write_picture(tmp_path / "in" / "red.png", coloured(0, 1))
    write_picture(tmp_path / "in" / "deep" / "blue.png", coloured(2, 2))
    status, stdout, _ = run_cli("predict", out, red)
    assert status == 0
    assert stdout.splitlines()[0].split() == ["picture", "answer", *["class", "probability"] * 3]
    shown = re.split("  +", stdout.splitlines()[2])
    assert (shown[0], "red" in shown[1], shown[2]) == (str(red), True, "red")
    status, stdout, _ = run_cli("predict", out, tmp_path / "in", "--json")
    lines = [json.loads(line) for line in stdout.splitlines()]
    assert [line["predictions"][0]["class"] for line in lines] == ["blue", "red"]
    assert sum(p["probability"] for p in lines[0]["predictions"]) == pytest.approx(1, abs=1e-4)
    status, stdout, _ = run_cli("predict", out, tmp_path / "in" / "**" / "*.png", "--top", "1", "--json")
    assert len(stdout.splitlines()) == 2
    assert len(json.loads(stdout.splitlines()[0])["predictions"]) == 1
    status, stdout, _ = run_cli("predict", out, "-", stdin=red.read_bytes())
    shown = re.split("  +", stdout.splitlines()[2])
    assert (shown[0], "red" in shown[1], shown[2]) == ("-", True, "red")


def test_standard_input_is_read_in_the_thread_that_ctrl_c_interrupts(
    trained: tuple[Path, str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    readers: list[threading.Thread] = []

    class Recorded(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            readers.append(threading.current_thread())
            return super().read(size)

    red = write_picture(tmp_path / "red.png", coloured(0, 1))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Recorded(red.read_bytes())))
    assert main(["predict", str(trained[0]), "-", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["predictions"][0]["class"] == "red"
    assert readers == [threading.current_thread()]


def test_an_unreadable_file_is_reported_in_its_place_and_the_others_are_classified(
    trained: tuple[Path, str, str], tmp_path: Path
) -> None:
    out, _, _ = trained
    good = write_picture(tmp_path / "good.png", coloured(1, 1))
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"rubbish")
    status, stdout, stderr = run_cli("predict", out, bad, tmp_path / "gone.png", good)
    assert status == 1
    lines = stdout.splitlines()
    shown = [re.split("  +", line) for line in lines[2:]]
    assert [row[:2] for row in shown[:2]] == [
        [str(bad), "cannot be read: not a picture in a format that thumbnet reads"],
        [str(tmp_path / "gone.png"), "cannot be read: there is no such file"],
    ]
    assert [shown[2][0], shown[2][2]] == [str(good), "green"]
    assert "2 picture(s) could not be read" in stderr
    status, stdout, _ = run_cli("predict", out, bad, good, "--csv", "--top", "2")
    rows = list(csv.DictReader(io.StringIO(stdout)))
    assert status == 1
    assert rows[0]["error"]
    assert rows[0]["class_1"] == ""
    assert rows[1]["class_1"] == "green"
    assert float(rows[1]["probability_1"]) > float(rows[1]["probability_2"])


def test_a_glob_or_folder_without_pictures_is_an_error(
    trained: tuple[Path, str, str], tmp_path: Path
) -> None:
    out, _, _ = trained
    for path in (tmp_path, tmp_path / "*.png"):
        status, _, stderr = run_cli("predict", out, path)
        assert status == 2
        assert str(tmp_path) in stderr


def test_what_cannot_be_classified_is_reported_before_the_network_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("thumbnet.classifiers.load.load_classifier", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.chdir(tmp_path)
    write_picture(tmp_path / "red.png", coloured(0, 1))
    (tmp_path / "empty").mkdir()
    for words, message in (
        (["red.png", "empty"], "no pictures in the folder"),
        (["red.png", "*.jpg"], "no file matches *.jpg"),
        (["red.png", "--csv", "answers.csv"], "predict RUN red.png --csv > answers.csv\n"),
        (["--csv", "my answers.csv"], "predict RUN --csv PATH > 'my answers.csv'\n"),
    ):
        assert main(["predict", "RUN", *words]) == 2
        assert message in capsys.readouterr().err


def test_a_reader_that_closes_the_pipe_causes_no_traceback(onnx_file: Path, folder: Path) -> None:
    """With an exported model, the process need not import torch."""
    pytest.importorskip("onnxruntime")
    command = f"{sys.executable} -m thumbnet predict {onnx_file} {folder}/train/* {folder}/test/* | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_a_device_that_an_exported_model_cannot_use_is_refused(onnx_file: Path, tmp_path: Path) -> None:
    picture = write_picture(tmp_path / "red.png", coloured(0, 1))
    for command in ("predict", "evaluate", "serve"):
        status, stdout, stderr = run_cli(
            command, onnx_file, *([picture] * (command != "serve")), "--device=cuda"
        )
        assert (status, stdout) == (2, "")
        assert "an exported model runs only on the CPU" in stderr
    status, stdout, stderr = run_cli(
        "predict", onnx_file, picture, "--device", "cpu", "--threads", "1", "--json"
    )
    assert status == 0, stderr
    assert json.loads(stdout)["predictions"][0]["class"] == "red"


def test_a_number_of_threads_is_1_or_more(trained: tuple[Path, str, str]) -> None:
    status, _, stderr = run_cli("predict", trained[0], "x.png", "--threads", "0")
    assert status == 2
    assert "expected 1 or more" in stderr


@pytest.mark.parametrize("command", ["predict", "evaluate", "serve", "sort"])
@pytest.mark.parametrize(("words", "threads"), [([], 0), (["--threads", "3"], 3)])
def test_the_number_of_threads_reaches_the_network(
    command: str,
    words: list[str],
    threads: int,
    trained: tuple[Path, str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(path: str, device: str, *, threads: int) -> None:
        raise ThumbnetError(f"{threads} threads")

    monkeypatch.setattr("thumbnet.classifiers.load.load_classifier", refuse)
    monkeypatch.setattr("thumbnet.serving.network.load_classifier", refuse)
    more = {"serve": [], "sort": ["x", "--into", "out"]}.get(command, ["x"])
    status, _, stderr = run_cli(command, trained[0], *more, *words)
    assert status == 2
    assert f"{threads} threads" in stderr
