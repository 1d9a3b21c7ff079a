"""A full disk, folders that are not writable or disappear, and too little memory."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from helpers import write_class_folders
from thumbnet.runs.folder import Run

pytestmark = pytest.mark.slow

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SMALL = ["checkpoint.steps=1", "data.subset_size=400", "model.width=0.25"]
SETTINGS = ["--epochs", "4", *(f"--set={setting}" for setting in SMALL)]
CHECKPOINT = 1_000_000  # bytes, rounded up


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "thumbnet", *map(str, arguments)]


def begin(out: Path, *more: str) -> list[str]:
    return command("train", "digits", *SETTINGS, *more, "--out", out)


def run(arguments: list[str], limit: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, preexec_fn=limit
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of an undisturbed training."""
    out = tmp_path_factory.mktemp("reference") / "run"
    assert run(begin(out)).returncode == 0
    return (out / "model.safetensors").read_bytes()


def assert_refused(
    done: subprocess.CompletedProcess[str] | subprocess.Popen[str], errors: str, *words: str
) -> None:
    assert done.returncode == 2, errors
    assert "Traceback" not in errors
    assert all(word in errors for word in ("thumbnet: ", *words)), errors


def assert_resumes(out: Path, weights: bytes) -> None:
    done = run(command("train", "--resume", out))
    assert done.returncode == 0, done.stderr
    assert (out / "model.safetensors").read_bytes() == weights
    assert not list(out.glob(".*.tmp"))


def test_a_run_whose_file_cannot_grow_can_be_resumed(tmp_path: Path, weights: bytes) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (CHECKPOINT // 2, CHECKPOINT // 2))

    out = tmp_path / "run"
    done = run(begin(out), limit)
    assert_refused(done, done.stderr, "checkpoint.pt", "kept")
    assert not list(out.glob(".*.tmp"))
    assert not (out / "checkpoint.pt").exists()
    assert_resumes(out, weights)


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


def wait_for_step(out: Path, step: int, process: subprocess.Popen[str]) -> None:
    while True:
        assert process.poll() is None
        if (out / "checkpoint.pt").exists():
            checkpoint = Run(out).load_checkpoint()
            if checkpoint is not None and checkpoint["state"]["step"] >= step:
                return
        time.sleep(0.01)


def test_a_full_disk_leaves_the_previous_checkpoint(small_disk: Path, weights: bytes) -> None:
    out = small_disk / "run"
    process = subprocess.Popen(begin(out), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    wait_for_step(out, 2, process)
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb") as file:
        while True:
            file.write(bytes(1 << 16))
    _, errors = process.communicate(timeout=60)
    assert_refused(process, errors, "No space left", "kept")
    checkpoint = Run(out).load_checkpoint()
    assert checkpoint is not None
    assert checkpoint["state"]["step"] >= 2
    done = run(command("train", "--resume", out))  # the disk is still full, but trying must not lose anything
    assert done.returncode in (0, 2)
    assert Run(out).load_checkpoint() is not None
    filler.unlink()
    if done.returncode == 2:
        assert_resumes(out, weights)
    else:
        assert (out / "model.safetensors").read_bytes() == weights


def test_a_run_whose_folder_is_deleted_fails_with_an_error(tmp_path: Path, weights: bytes) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(begin(out), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    wait_for_step(out, 2, process)
    out.rename(tmp_path / "deleted")  # at once: the training cannot add files while others are deleted
    _, errors = process.communicate(timeout=60)
    assert_refused(process, errors, "No such file or directory")
    assert run(begin(out)).returncode == 0
    assert (out / "model.safetensors").read_bytes() == weights


@pytest.fixture
def ordinary() -> list[str]:
    """A prefix that makes permissions apply to a command even if root runs it."""
    if os.geteuid() != 0:
        return []
    command = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    if shutil.which("setpriv") is None or subprocess.run([*command, "true"]).returncode:
        pytest.skip("setpriv is missing or not permitted, and root can read and write anything")
    return command


def test_a_folder_that_is_not_writable_is_an_error(tmp_path: Path, ordinary: list[str]) -> None:
    tmp_path.chmod(0o555)
    try:
        done = run([*ordinary, *begin(tmp_path / "run")])
        assert_refused(done, done.stderr, "is not writable")
    finally:
        tmp_path.chmod(0o755)


def test_a_run_that_becomes_read_only_can_be_resumed_later(
    tmp_path: Path, ordinary: list[str], weights: bytes
) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen([*ordinary, *begin(out)], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    wait_for_step(out, 2, process)
    out.chmod(0o555)
    try:
        _, errors = process.communicate(timeout=60)
        assert_refused(process, errors, "Permission denied", "kept")
        done = run([*ordinary, *command("train", "--resume", out)])
        assert_refused(done, done.stderr, "Permission denied")
    finally:
        out.chmod(0o755)
    assert_resumes(out, weights)


def test_pictures_and_folders_without_read_permission_are_named(tmp_path: Path, ordinary: list[str]) -> None:
    root = write_class_folders(tmp_path / "data", ["train", "test"], per_class=3)
    (root / "train" / "red" / "0.png").chmod(0)
    done = run([*ordinary, *command("train", root, "--out", tmp_path / "run")])
    assert_refused(done, done.stderr, "cannot read", "0.png: Permission denied")
    (root / "train" / "green").chmod(0)
    try:
        done = run([*ordinary, *command("data", root)])
        assert_refused(done, done.stderr, "green", "Permission denied")
    finally:
        (root / "train" / "green").chmod(0o755)


# The limit is relative to the memory of the process after importing PyTorch.
LIMITED = """
import resource, sys
import psutil, torch
import thumbnet.training.train
from thumbnet.cli import main
torch.set_num_threads(1)
have = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (have + 900_000_000, have + 900_000_000))
sys.exit(main(sys.argv[1:]))
"""


def test_too_little_memory_is_explained_and_micro_batches_help(tmp_path: Path) -> None:
    arguments = [
        "train", "digits", "--recipe", "one-cycle", "--epochs", "1", "--set", "data.subset_size=600",
        "--set", "model.width=0.5", "--set", "training.precision=fp32", "--batch-size", "600",
        "--set", "evaluation.batch_size=20",
    ]  # fmt: skip
    done = run([sys.executable, "-c", LIMITED, *arguments, "--out", str(tmp_path / "a")])
    assert_refused(done, done.stderr, "out of memory", "600", "--micro-batch")
    done = run(
        [sys.executable, "-c", LIMITED, *arguments, "--micro-batch", "20", "--out", str(tmp_path / "b")]
    )
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "b").summary["epochs"] == 1
