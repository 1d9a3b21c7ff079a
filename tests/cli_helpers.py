"""Run the command as a user does."""

from __future__ import annotations

import importlib
import io
import pkgutil
import signal
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import pytest

from helpers import TINY
from thumbnet.cli import main

SETTINGS = [argument for setting in TINY for argument in ("--set", setting)]


def epochs(number: int) -> list[str]:
    return ["--set", f"training.epochs={number}"]


def run_process(*arguments: str | Path) -> tuple[int, str, str]:
    """Run the real command in a process of its own; returns its status, stdout and stderr."""
    command = [sys.executable, "-m", "thumbnet", *map(str, arguments)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=500)
    return done.returncode, done.stdout, done.stderr


def run_cli(*arguments: str | Path, stdin: bytes = b"", cwd: Path | None = None) -> tuple[int, str, str]:
    """Run the command within this process, which saves importing torch; returns status, stdout and stderr."""
    printed, told = io.BytesIO(), io.BytesIO()
    given, out, err = (io.TextIOWrapper(one, "utf-8") for one in (io.BytesIO(stdin), printed, told))
    with (
        redirect_stdout(out),
        redirect_stderr(err),
        chdir(cwd or Path.cwd()),
        mock.patch.multiple(sys, stdin=given, argv=["thumbnet"]),
    ):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:  # how argparse ends --help and --version
            status = int(end.code or 0)
    for stream in (out, err):
        stream.flush()
    return status, printed.getvalue().decode(), told.getvalue().decode()


def forget_modules(monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    """Let modules be imported anew in this test; afterwards, their packages have the old ones again, too."""
    whole = importlib.import_module(prefix)
    for inner in pkgutil.iter_modules(getattr(whole, "__path__", []), f"{prefix}."):
        importlib.import_module(inner.name)  # one that the test imported first would outlast it
    before = dict(sys.modules)
    for name in [name for name in before if name.startswith(prefix)]:
        package, _, attribute = name.rpartition(".")
        monkeypatch.setattr(before[package], attribute, before[name], raising=False)
        monkeypatch.delitem(sys.modules, name)


def interrupt_when(process: subprocess.Popen[str], word: str, number: int = signal.SIGINT) -> str:
    """Send a signal once a line on stderr has ``word`` in it; returns the rest of stderr."""
    assert process.stderr is not None
    for line in process.stderr:
        if word in line:
            process.send_signal(number)
            break
    return process.stderr.read()
