"""Trainings that are killed, interrupted or started twice, with real processes and signals.

Processes that handle a signal, and what they do at their end, are started as a user starts them. References, what is
killed, and what goes on afterwards run in forks of a process that has imported torch.
"""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from faults.fork_server import Fault, ForkServer, Job
from helpers import write_class_folders
from thumbnet.runs.folder import Run
from tuning_helpers import SHORTEST, rows

pytestmark = pytest.mark.slow

KILLS = 50 if os.environ.get("THUMBNET_FAULTS") == "full" else 4
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SMALL = ["checkpoint.steps=1", "data.subset_size=400", "model.width=0.25"]
SMALL_NETWORK = ["model.name=fastnet", "model.width=0.1", "data.skip_easy=0"]
SETTINGS = ["--epochs", "2", *(f"--set={setting}" for setting in SMALL)]
IMPATIENT = (("faults.hooks:wait_for_locks", {"seconds": 0.5}),)

# Runs a command whose standard input is its controlling terminal, also if these tests run under nohup.
ON_A_TERMINAL = """
import fcntl, os, signal, sys, termios

signal.signal(signal.SIGHUP, signal.SIG_DFL)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def begin(out: Path, *more: str) -> tuple[str, ...]:
    """The arguments of a training."""
    return ("train", "digits", *SETTINGS, *more, "--out", str(out))


def resume(out: Path) -> tuple[str, ...]:
    return ("train", "--resume", str(out))


def command(arguments: tuple[str, ...]) -> list[str]:
    """The command as a process of its own."""
    return [sys.executable, "-m", "thumbnet", *arguments]


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
def reference(forks: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    out = tmp_path_factory.mktemp("reference") / "run"
    done = forks.run(Job(begin(out)))
    assert done.status == 0, done.errors
    return Reference((out / "model.safetensors").read_bytes(), done.seconds, checkpoint_state(out))


def assert_resumes(forks: ForkServer, out: Path, reference: Reference) -> None:
    """Check that the run goes on to the weights of the undisturbed training."""
    done = forks.run(Job(resume(out)))
    assert done.status == 0, done.errors
    assert (out / "model.safetensors").read_bytes() == reference.weights


def kill_and_resume(forks: ForkServer, out: Path, reference: Reference, after: float, step: int) -> str:
    """Kill a training, resume it and check its weights. Return when the kill happened.

    The kill comes ``after`` seconds after the start, or later: once there is a checkpoint of step ``step``
    or a later one (-1 waits for none).
    """
    running = forks.start(Job(begin(out)))
    time.sleep(after)
    while checkpoint_state(out) < step:
        assert running.is_alive
        time.sleep(0.01)
    running.send(signal.SIGKILL)
    running.wait()
    leftovers = list(out.glob(".*.tmp"))
    begun, steps = (out / "run.json").exists(), checkpoint_state(out)
    done = forks.run(Job(resume(out) if begun else begin(out)))
    was_complete = "complete already" in done.errors
    assert was_complete or done.status == 0, done.errors
    assert (out / "model.safetensors").read_bytes() == reference.weights
    assert not list(out.glob(".*.tmp"))
    if was_complete:
        return "after the end"
    if leftovers:
        return "while writing"
    return "before a checkpoint" if steps < 0 else "between"


def test_a_killed_training_resumes_to_exactly_the_same_weights(
    forks: ForkServer, tmp_path: Path, reference: Reference
) -> None:
    draw = random.Random(0)
    moments: list[tuple[float, int]]  # seconds, and steps
    if KILLS == 50:
        moments = [(draw.uniform(0.3, 1.0) * reference.seconds, -1) for _ in range(KILLS)]
    else:  # so few kills by the clock might all miss the steps
        moments = [(0.0, draw.randint(1, reference.steps // 2)) for _ in range(KILLS)]
    found = [
        kill_and_resume(forks, tmp_path / str(number), reference, *moment)
        for number, moment in enumerate(moments)
    ]
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
    forks: ForkServer, tmp_path: Path, reference: Reference, signum: signal.Signals, status: int
) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(command(begin(out)), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    while checkpoint_state(out) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert "--resume" in errors
    assert "Traceback" not in errors
    assert not Run(out).is_complete
    assert_resumes(forks, out, reference)


def test_closing_the_terminal_saves_a_checkpoint(
    forks: ForkServer, tmp_path: Path, reference: Reference
) -> None:
    import pty

    out = tmp_path / "run"
    terminal, inside = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", ON_A_TERMINAL, *command(begin(out))],
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
    assert_resumes(forks, out, reference)


def test_a_signal_before_the_first_step_ends_the_training_cleanly(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(command(begin(out)), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    time.sleep(0.8)  # while it is importing or decoding
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (143, -signal.SIGTERM)
    assert "Traceback" not in errors


def test_only_one_process_at_a_time_can_train_a_run(forks: ForkServer, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = forks.start(Job(begin(out, "--epochs", "1000")))
    try:
        while checkpoint_state(out) < 1:
            assert first.is_alive
            time.sleep(0.01)
        second = forks.run(Job(resume(out), hooks=IMPATIENT))
        assert second.status == 2
        assert "another process" in second.errors
        assert first.is_alive
    finally:
        first.send(signal.SIGKILL)
        first.wait()
    stopped = checkpoint_state(out)
    third = forks.start(Job(resume(out)))
    try:
        while checkpoint_state(out) <= stopped:  # the lock disappeared with the process that held it
            assert third.is_alive
            time.sleep(0.05)
    finally:
        third.send(signal.SIGKILL)
        third.wait()


def test_a_signal_to_all_processes_of_a_job_saves_too(forks: ForkServer, tmp_path: Path) -> None:
    """As `timeout`, systemd and Slurm send it; under Slurm, torchrun sends a second one."""
    pictures = write_class_folders(tmp_path / "pictures", ["train", "test"], per_class=8)
    settings = ["data.engine=workers", "checkpoint.steps=1", "training.batch_size=2", *SMALL_NETWORK]
    begin = ("train", str(pictures), "--epochs", "2", *(f"--set={setting}" for setting in settings))
    calm = forks.run(Job((*begin, "--out", str(tmp_path / "calm"))))
    assert calm.status == 0, calm.errors
    out = tmp_path / "run"
    process = subprocess.Popen(
        command((*begin, "--out", str(out))),
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
    again = forks.run(Job(resume(out)))
    assert again.status == 0, again.errors
    weights = [(path / "model.safetensors").read_bytes() for path in (tmp_path / "calm", out)]
    assert weights[0] == weights[1]


def test_a_killed_search_goes_on_to_the_same_trials_and_weights(forks: ForkServer, tmp_path: Path) -> None:
    """Killed before each of a sample of the calls that change its folder, from the first to the last."""
    pytest.importorskip("optuna", reason="the extra 'tune' is not installed")
    pytest.importorskip("jinja2", reason="the extra 'tune' is not installed")
    data = write_class_folders(tmp_path / "data", ["train", "test"], per_class=8)
    settings = ["--recipe", "small", "--trials", "2", *(f"--set={one}" for one in SHORTEST)]

    def search(name: str, *faults: Fault) -> Job:
        place = tmp_path / name
        place.mkdir(exist_ok=True)
        return Job(("tune", str(data), *settings, "--out", str(place / "search")), (str(place),), faults)

    done = forks.warm(search("whole"))
    assert done.status == 0, done.errors
    whole, changes = tmp_path / "whole" / "search", ("write", "rename")
    weights = (whole / "run" / "model.safetensors").read_bytes()
    last = sum(done.counts[one] for one in changes)
    assert last > 20
    kills = 40 if KILLS == 50 else 3
    for at in [1 + number * (last - 1) // (kills - 1) for number in range(kills)]:
        killed = forks.run(search(str(at), Fault(changes, at, "kill-before")))
        assert killed.status == -signal.SIGKILL, (at, last, killed.errors)
        out = tmp_path / str(at) / "search"
        begun = (out / "tune.json").exists()
        done = forks.run(Job(("tune", "--resume", str(out))) if begun else search(str(at)))
        assert done.status == 0, (at, last, done.errors)
        assert rows(out) == rows(whole), (at, last)
        assert (out / "run" / "model.safetensors").read_bytes() == weights, (at, last)
        assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}, (at, last)
