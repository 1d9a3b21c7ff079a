"""Trainings that are killed, interrupted or started twice, with real processes and signals."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers import write_class_folders
from thumbnet.runs.folder import Run

pytestmark = pytest.mark.slow

KILLS = 50 if os.environ.get("THUMBNET_FAULTS") == "full" else 4
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SMALL = ["checkpoint.steps=1", "data.subset_size=400", "model.width=0.25"]
SMALL_NETWORK = ["model.name=fastnet", "model.width=0.1", "data.skip_easy=0"]
SETTINGS = ["--epochs", "2", *(f"--set={setting}" for setting in SMALL)]

# Runs a command whose standard input is its controlling terminal, also if these tests run under nohup.
ON_A_TERMINAL = """
import fcntl, os, signal, sys, termios

signal.signal(signal.SIGHUP, signal.SIG_DFL)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "thumbnet", *map(str, arguments)]


def begin(out: Path, *more: str) -> list[str]:
    return command("train", "digits", *SETTINGS, *more, "--out", out)


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


def checkpoint_state(out: Path) -> int:
    """The number of steps in the checkpoint; -1 if there is no checkpoint."""
    checkpoint = Run(out).load_checkpoint() if (out / "checkpoint.pt").exists() else None
    return -1 if checkpoint is None else int(checkpoint["state"]["step"])


@dataclass(frozen=True)
class Reference:
    weights: bytes
    seconds: float
    steps: int


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    out = tmp_path_factory.mktemp("reference") / "run"
    started = time.perf_counter()
    done = run(begin(out))
    assert done.returncode == 0, done.stderr
    seconds = time.perf_counter() - started
    return Reference((out / "model.safetensors").read_bytes(), seconds, checkpoint_state(out))


def kill_and_resume(out: Path, reference: Reference, after: float, step: int) -> str:
    """Kill a training, resume it and check its weights. Return when the kill happened.

    The kill comes ``after`` seconds after the start, or later: once there is a checkpoint of step ``step``
    or a later one (-1 waits for none).
    """
    process = subprocess.Popen(
        begin(out), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(after)
    while checkpoint_state(out) < step:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    leftovers = list(out.glob(".*.tmp"))
    begun, steps = (out / "run.json").exists(), checkpoint_state(out)
    done = run(command("train", "--resume", out) if begun else begin(out))
    was_complete = "complete already" in done.stderr
    assert was_complete or done.returncode == 0, done.stderr
    assert (out / "model.safetensors").read_bytes() == reference.weights
    assert not list(out.glob(".*.tmp"))
    if was_complete:
        return "after the end"
    if leftovers:
        return "while writing"
    return "before a checkpoint" if steps < 0 else "between"


def test_a_killed_training_resumes_to_exactly_the_same_weights(tmp_path: Path, reference: Reference) -> None:
    draw = random.Random(0)
    moments: list[tuple[float, int]]  # seconds, and steps
    if KILLS == 50:
        moments = [(draw.uniform(0.3, 1.0) * reference.seconds, -1) for _ in range(KILLS)]
    else:  # so few kills by the clock might all miss the steps
        moments = [(0.0, draw.randint(1, reference.steps // 2)) for _ in range(KILLS)]
    with ThreadPoolExecutor(2) as pool:
        found = list(
            pool.map(lambda at: kill_and_resume(tmp_path / str(at[0]), reference, *at[1]), enumerate(moments))
        )
    print({what: found.count(what) for what in found})
    assert len(found) == KILLS
    if KILLS == 50:
        assert set(found) >= {"while writing", "between"}, (
            "the kills did not happen at all the intended moments"
        )
    else:
        assert set(found) <= {"while writing", "between"}, found


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_a_checkpoint_within_the_step(
    tmp_path: Path, reference: Reference, signum: signal.Signals, status: int
) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(begin(out), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    while checkpoint_state(out) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert "--resume" in errors
    assert "Traceback" not in errors
    assert not Run(out).is_complete
    assert run(command("train", "--resume", out)).returncode == 0
    assert (out / "model.safetensors").read_bytes() == reference.weights


def test_closing_the_terminal_saves_a_checkpoint(tmp_path: Path, reference: Reference) -> None:
    import pty

    out = tmp_path / "run"
    terminal, inside = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", ON_A_TERMINAL, *begin(out)],
        env={**ENVIRONMENT, "TERM": "xterm-256color"},  # with a live bar
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
    )
    os.close(inside)
    while checkpoint_state(out) < 3:
        assert process.poll() is None
        if select.select([terminal], [], [], 0.01)[0]:
            os.read(terminal, 65536)
    os.close(terminal)  # the system sends SIGHUP, and each write to the terminal fails
    assert process.wait(60) == 129
    assert checkpoint_state(out) >= 3
    assert not Run(out).is_complete
    assert run(command("train", "--resume", out)).returncode == 0
    assert (out / "model.safetensors").read_bytes() == reference.weights


def test_a_signal_before_the_first_step_ends_the_training_cleanly(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(begin(out), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    time.sleep(0.8)  # while it is importing or decoding
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (143, -signal.SIGTERM)
    assert "Traceback" not in errors


def test_only_one_process_at_a_time_can_train_a_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = subprocess.Popen(begin(out, "--epochs", "1000"), env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    try:
        while checkpoint_state(out) < 1:
            assert first.poll() is None
            time.sleep(0.01)
        second = run(command("train", "--resume", out))
        assert second.returncode == 2
        assert "another process" in second.stderr
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()
    stopped = checkpoint_state(out)
    third = subprocess.Popen(command("train", "--resume", out), env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    try:
        while checkpoint_state(out) <= stopped:  # the lock disappeared with the process that held it
            assert third.poll() is None
            time.sleep(0.05)
    finally:
        third.kill()
        third.wait()


def test_a_signal_to_all_processes_of_a_job_saves_too(tmp_path: Path) -> None:
    """As `timeout`, systemd and Slurm send it; under Slurm, torchrun sends a second one."""
    pictures = write_class_folders(tmp_path / "pictures", ["train", "test"], per_class=30)
    settings = ["data.engine=workers", "checkpoint.steps=1", "training.batch_size=2", *SMALL_NETWORK]
    begin = command("train", pictures, "--epochs", "2", *(f"--set={setting}" for setting in settings))
    assert run([*begin, "--out", str(tmp_path / "calm")]).returncode == 0
    out = tmp_path / "run"
    process = subprocess.Popen(
        [*begin, "--out", str(out)],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while checkpoint_state(out) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGTERM)
        time.sleep(0.05)  # or the system makes one of two
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "--resume" in errors
    assert "Traceback" not in errors
    assert run(command("train", "--resume", out)).returncode == 0
    weights = [(path / "model.safetensors").read_bytes() for path in (tmp_path / "calm", out)]
    assert weights[0] == weights[1]
