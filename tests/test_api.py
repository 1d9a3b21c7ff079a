"""thumbnet.train and thumbnet.resume show progress, and can be told not to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import thumbnet
from helpers import TINY, coloured_data
from thumbnet.training.listener import Listener
from thumbnet.training.state import EpochResult

ONE = [*TINY, "training.epochs=1"]


def test_training_in_python_shows_one_line_per_epoch_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = thumbnet.train(coloured_data(), "one-cycle", overrides=ONE, out=tmp_path / "run")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "epoch 1/1  loss" in captured.err
    assert f"run     {run.path}" in captured.err


def test_without_progress_nothing_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = thumbnet.train(coloured_data(), "one-cycle", overrides=ONE, out=tmp_path / "run", progress=False)
    assert run.is_complete
    assert capsys.readouterr() == ("", "")


def test_with_a_listener_nothing_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Keep(Listener):
        def __init__(self) -> None:
            self.epochs: list[int] = []

        def on_epoch(self, result: EpochResult) -> None:
            self.epochs.append(result.epoch)

    keep = Keep()
    thumbnet.train(coloured_data(), "one-cycle", overrides=TINY, out=tmp_path / "run", listener=keep)
    assert keep.epochs == [1, 2, 3]
    assert capsys.readouterr() == ("", "")


def test_only_the_first_process_shows_anything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from thumbnet.api import shown
    from thumbnet.cli.progress import TrainingDisplay

    with shown(progress=True) as listener:
        assert isinstance(listener, TrainingDisplay)
    monkeypatch.setenv("RANK", "1")
    with shown(progress=True) as listener:
        assert type(listener) is Listener


def test_resuming_in_python_shows_progress_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = thumbnet.train("digits", "digits", out=tmp_path / "run", progress=False,
                         overrides=["training.epochs=1", "data.subset_size=200", "model.width=0.25"])  # fmt: skip
    assert capsys.readouterr() == ("", "")
    again = thumbnet.resume(run.path, more_epochs=1, out=tmp_path / "more")
    assert "epoch 1/1  loss" in capsys.readouterr().err
    thumbnet.resume(run.path, more_epochs=1, out=tmp_path / "silent", progress=False)
    assert capsys.readouterr() == ("", "")
    assert again.settings["continues"]["epochs"] == 1


def test_a_terminal_shows_a_progress_bar(tmp_path: Path) -> None:
    """Run it in a pseudo-terminal, as from Python's prompt."""
    import os
    import pty

    code = (
        "import thumbnet; thumbnet.train('digits', 'digits', out='run', "
        "overrides=['training.epochs=1', 'data.subset_size=600', 'model.width=0.25'])"
    )
    pid, descriptor = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.environ.update(TERM="xterm-256color", COLUMNS="100")
        os.execv(sys.executable, [sys.executable, "-c", code])
    seen = b""
    while True:
        try:
            block = os.read(descriptor, 65536)
        except OSError:
            break
        if not block:
            break
        seen += block
    assert os.waitpid(pid, 0)[1] == 0, seen.decode(errors="replace")
    assert b"\x1b[" in seen  # control sequences that redraw the line
    assert b"epoch 1/1" in seen


def test_importing_thumbnet_still_imports_no_torch_and_no_console() -> None:
    code = "import sys, thumbnet; print(sorted(m for m in ('torch', 'rich', 'thumbnet.api') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
