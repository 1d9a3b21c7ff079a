"""Run the command as a user does."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from helpers import TINY

SETTINGS = [argument for setting in TINY for argument in ("--set", setting)]


def epochs(number: int) -> list[str]:
    return ["--set", f"training.epochs={number}"]


def run_cli(
    *arguments: str | Path, stdin: bytes | None = None, cwd: Path | None = None
) -> tuple[int, str, str]:
    """Run the real command in a process of its own; returns its status, stdout and stderr."""
    command = [sys.executable, "-m", "thumbnet", *map(str, arguments)]
    done = subprocess.run(command, input=stdin or b"", capture_output=True, cwd=cwd, timeout=300)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def interrupt_when(process: subprocess.Popen[str], word: str, number: int = signal.SIGINT) -> str:
    """Send a signal once a line on stderr has ``word`` in it; returns the rest of stderr."""
    assert process.stderr is not None
    for line in process.stderr:
        if word in line:
            process.send_signal(number)
            break
    return process.stderr.read()
