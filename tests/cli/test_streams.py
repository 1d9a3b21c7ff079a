"""A closed stdout is quiet, and a full disk behind it is one message; the work itself is done either way."""

from __future__ import annotations

import errno
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import coloured, write_picture
from thumbnet.cli import main
from thumbnet.runs.folder import Run

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


def on_a_full_disk(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """Run a command whose stdout is on a full disk."""
    with open("/dev/full", "w", encoding="utf-8") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        return main([str(argument) for argument in arguments])


def test_every_command_reports_a_full_disk_behind_stdout_in_one_line(
    tiny_run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run.path, run)
    write_picture(tmp_path / "pictures" / "a.png", coloured(0, 1))
    pictures = tmp_path / "pictures"
    commands: list[list[str | Path]] = [
        ["recipes"],
        ["recipes", "show", "fast"],
        ["completion", "bash"],
        ["compare", run, run],
        ["data", folder],
        ["data", folder, "--json"],
        ["predict", run, pictures],
        ["predict", run, pictures, "--json"],
        ["predict", run, pictures, "--csv"],
        ["sort", run, pictures, "--into", tmp_path / "sorted", "--threshold", "0.1"],
        ["sort", run, pictures, "--csv", tmp_path / "sorted.csv", "--threshold", "0.1", "--json"],
        ["evaluate", run, folder],
        ["export", run, "--format", "safetensors", "--out", tmp_path / "copy.safetensors"],
    ]
    for arguments in commands:
        status = on_a_full_disk(monkeypatch, *arguments)
        told = capsys.readouterr().err.splitlines()
        assert (status, arguments) == (2, arguments)
        assert told[-1] == "thumbnet: cannot write the results to stdout: No space left on device", arguments
        assert not any("Traceback" in line for line in told)
    assert (tmp_path / "sorted.csv").is_file()  # the work was done


@pytest.mark.parametrize("buffered", [True, False])
def test_help_and_version_report_a_full_disk_too(buffered: bool) -> None:
    """argparse ignores what it cannot write; without a buffer, no later flush notices."""
    commands = [["--help"], ["--version"], ["train", "--help"], ["recipes", "show", "--help"]]
    for arguments in commands:
        with open("/dev/full", "w", encoding="utf-8") as full:
            done = subprocess.run(
                [sys.executable, *([] if buffered else ["-u"]), "-m", "thumbnet", *arguments],
                env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
                stdout=full, stderr=subprocess.PIPE, text=True, timeout=60,
            )  # fmt: skip
        told = "thumbnet: cannot write the results to stdout: No space left on device\n"
        assert (arguments, done.returncode, done.stderr) == (arguments, 2, told)


def test_a_training_whose_results_cannot_be_printed_ends_as_always(
    tiny_run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("thumbnet.training.train.train", lambda *_, **__: tiny_run)
    for how in ([], ["--json"], ["--quiet"]):
        assert on_a_full_disk(monkeypatch, "train", "digits", *how) == 2
        assert capsys.readouterr().err.count("cannot write the results") == 1


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_without_stdout_a_command_is_quiet_and_its_status_is_that_of_its_work(
    closed: str,
) -> None:
    shell = f'"{sys.executable}" -m thumbnet recipes {closed}; echo $?'
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_a_note_that_cannot_be_written_costs_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    from thumbnet.cli.console import note

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            tried.append(text)
            raise OSError(errno.ENOSPC, "No space left on device")

    tried: list[str] = []
    monkeypatch.setattr(sys, "stderr", Full())
    note("epoch 1")
    monkeypatch.undo()
    assert tried == ["epoch 1"]


def test_a_service_that_cannot_print_its_address_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from thumbnet.cli.console import announce, say

    with open("/dev/full", "w", encoding="utf-8") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        announce("serving at http://127.0.0.1:8000")
        say("stopped")
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "thumbnet: cannot write the results to stdout: No space left on device"
    assert told[1:] == ["serving at http://127.0.0.1:8000"]
