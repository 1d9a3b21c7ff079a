"""A full disk, folders that are not writable or disappear, and too little memory."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from faults.fork_server import ForkServer, Job, Outcome, Running
from helpers import write_class_folders
from thumbnet.runs.folder import Run

pytestmark = pytest.mark.slow

SMALL = ["checkpoint.steps=1", "data.subset_size=400", "model.width=0.25"]
SETTINGS = ["--epochs", "4", *(f"--set={setting}" for setting in SMALL)]
CHECKPOINT = 1_000_000  # bytes, rounded up

Hook = tuple[str, dict[str, Any]]
ORDINARY: Hook = ("faults.hooks:respect_permissions", {})  # root can read and write anything


def begin(out: Path, *hooks: Hook) -> Job:
    return Job(("train", "digits", *SETTINGS, "--out", str(out)), hooks=hooks)


def resume(out: Path, *hooks: Hook) -> Job:
    return Job(("train", "--resume", str(out)), hooks=hooks)


@pytest.fixture(scope="module")
def weights(forks: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of an undisturbed training."""
    out = tmp_path_factory.mktemp("reference") / "run"
    done = forks.run(begin(out))
    assert done.status == 0, done.errors
    return (out / "model.safetensors").read_bytes()


def assert_refused(done: Outcome, *words: str) -> None:
    assert done.status == 2, done.errors
    assert "Traceback" not in done.errors
    assert all(word in done.errors for word in ("thumbnet: ", *words)), done.errors


def assert_resumes(forks: ForkServer, out: Path, weights: bytes) -> None:
    done = forks.run(resume(out))
    assert done.status == 0, done.errors
    assert (out / "model.safetensors").read_bytes() == weights
    assert not list(out.glob(".*.tmp"))


def test_a_run_whose_file_cannot_grow_can_be_resumed(
    forks: ForkServer, tmp_path: Path, weights: bytes
) -> None:
    out = tmp_path / "run"
    done = forks.run(begin(out, ("faults.hooks:limit_files", {"most": CHECKPOINT // 2})))
    assert_refused(done, "checkpoint.pt", "kept")
    assert not list(out.glob(".*.tmp"))
    assert not (out / "checkpoint.pt").exists()
    assert_resumes(forks, out, weights)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A separate file system with hardly more space than a run needs."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = f"size={5 * CHECKPOINT}"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "none", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def wait_for_step(out: Path, step: int, running: Running) -> None:
    while True:
        assert running.is_alive
        if (out / "checkpoint.pt").exists():
            checkpoint = Run(out).load_checkpoint()
            if checkpoint is not None and checkpoint["state"]["step"] >= step:
                return
        time.sleep(0.01)


def test_a_full_disk_leaves_the_previous_checkpoint(
    forks: ForkServer, small_disk: Path, weights: bytes
) -> None:
    out = small_disk / "run"
    running = forks.start(begin(out))
    wait_for_step(out, 2, running)
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb") as file:
        while True:
            file.write(bytes(1 << 16))
    assert_refused(running.wait(60), "No space left", "kept")
    checkpoint = Run(out).load_checkpoint()
    assert checkpoint is not None
    assert checkpoint["state"]["step"] >= 2
    done = forks.run(resume(out))  # the disk is still full, but trying must not lose anything
    assert done.status in (0, 2)
    assert Run(out).load_checkpoint() is not None
    filler.unlink()
    if done.status == 2:
        assert_resumes(forks, out, weights)
    else:
        assert (out / "model.safetensors").read_bytes() == weights


def test_a_run_whose_folder_is_deleted_fails_with_an_error(
    forks: ForkServer, tmp_path: Path, weights: bytes
) -> None:
    out = tmp_path / "run"
    running = forks.start(begin(out))
    wait_for_step(out, 2, running)
    out.rename(tmp_path / "deleted")  # at once: the training cannot add files while others are deleted
    assert_refused(running.wait(60), "No such file or directory")
    assert forks.run(begin(out)).status == 0
    assert (out / "model.safetensors").read_bytes() == weights


def test_a_folder_that_is_not_writable_is_an_error(forks: ForkServer, tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        assert_refused(forks.run(begin(tmp_path / "run", ORDINARY)), "is not writable")
    finally:
        tmp_path.chmod(0o755)


def test_a_run_that_becomes_read_only_can_be_resumed_later(
    forks: ForkServer, tmp_path: Path, weights: bytes
) -> None:
    out = tmp_path / "run"
    running = forks.start(begin(out, ORDINARY))
    wait_for_step(out, 2, running)
    out.chmod(0o555)
    try:
        assert_refused(running.wait(60), "Permission denied", "kept")
        assert_refused(forks.run(resume(out, ORDINARY)), "Permission denied")
    finally:
        out.chmod(0o755)
    assert_resumes(forks, out, weights)


def test_pictures_and_folders_without_read_permission_are_named(forks: ForkServer, tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "data", ["train", "test"], per_class=3)
    (root / "train" / "red" / "0.png").chmod(0)
    done = forks.run(Job(("train", str(root), "--out", str(tmp_path / "run")), hooks=(ORDINARY,)))
    assert_refused(done, "cannot read", "0.png: Permission denied")
    (root / "train" / "green").chmod(0)
    try:
        done = forks.run(Job(("data", str(root)), hooks=(ORDINARY,)))
        assert_refused(done, "green", "Permission denied")
    finally:
        (root / "train" / "green").chmod(0o755)


def test_too_little_memory_is_explained_and_micro_batches_help(forks: ForkServer, tmp_path: Path) -> None:
    """Large pictures and few channels take much memory for little work."""
    arguments = (
        "train", "digits", "--recipe", "one-cycle", "--epochs", "1", "--set", "data.subset_size=600",
        "--set", "model.name=resnet20", "--set", "model.width=0.5", "--image-size", "64",
        "--set", "training.precision=fp32", "--batch-size", "600", "--set", "evaluation.batch_size=20",
    )  # fmt: skip
    limit: Hook = ("faults.hooks:limit_memory", {"most": 1_000_000_000})
    done = forks.run(Job((*arguments, "--out", str(tmp_path / "a")), hooks=(limit,)))
    assert_refused(done, "out of memory", "600", "--micro-batch")
    done = forks.run(Job((*arguments, "--micro-batch", "20", "--out", str(tmp_path / "b")), hooks=(limit,)))
    assert done.status == 0, done.errors
    assert Run(tmp_path / "b").summary["epochs"] == 1
