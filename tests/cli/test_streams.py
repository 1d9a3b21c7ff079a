"""A closed stdout is quiet, and a full disk behind it is one message; the work itself is done either way."""

from __future__ import annotations

import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli_helpers import SETTINGS, epochs
from helpers import coloured, write_picture
from thumbnet.cli import main
from thumbnet.runs.folder import Run

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


@pytest.fixture
def unread() -> Iterator[int]:
    """The end of a pipe to write to, whose reader has ended."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


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
    commands = [["--help"], ["--version"], ["recipes", "show", "--help"]]
    for arguments in commands:
        with open("/dev/full", "w", encoding="utf-8") as full:
            done = subprocess.run(
                [sys.executable, *([] if buffered else ["-u"]), "-m", "thumbnet", *arguments],
                env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
                stdout=full, stderr=subprocess.PIPE, text=True, timeout=60,
            )  # fmt: skip
        told = "thumbnet: cannot write the results to stdout: No space left on device\n"
        assert (arguments, done.returncode, done.stderr) == (arguments, 2, told)


def test_the_version_for_a_reader_that_has_ended_is_no_traceback(unread: int) -> None:
    command = [sys.executable, "-m", "thumbnet", "--version"]
    done = subprocess.run(command, stdout=unread, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_message_that_cannot_be_printed_does_not_change_the_exit_status(unread: int) -> None:
    with open("/dev/full", "wb") as full:
        for place in (full.fileno(), unread):
            done = subprocess.run([sys.executable, "-m", "thumbnet", "nonsense"], stderr=place, timeout=60)
            assert done.returncode == 2


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_training_whose_output_nobody_reads_goes_on_and_is_saved_when_it_is_stopped(
    signum: signal.Signals, status: int, unread: int, folder: Path, tmp_path: Path
) -> None:
    """A terminal sends Ctrl-C to the ``tee`` of ``thumbnet train ... 2>&1 | tee log``, too."""
    out = tmp_path / "run"

    def steps() -> int:
        state = Run(out).load_checkpoint() if (out / "checkpoint.pt").exists() else None
        return -1 if state is None else int(state["state"]["step"])

    words = [*SETTINGS, *epochs(100_000), "--set", "checkpoint.min_seconds=0.1", "--out", str(out)]
    command = [sys.executable, "-m", "thumbnet", "train", str(folder), "--recipe", "one-cycle", *words]
    process = subprocess.Popen(command, stdout=unread, stderr=unread)
    try:
        while (before := steps()) < 0:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signum)
        assert process.wait(60) == status
    finally:
        process.kill()
    assert steps() > before


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
