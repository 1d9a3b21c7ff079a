"""A disk that is full, a folder that may not be written or is gone, memory that does not suffice."""

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
SETTINGS = ["--epochs", "4", "--set", "checkpoint.steps=1", "--set", "data.subset_size=400"]
CHECKPOINT = 14_000_000  # bytes, and a little more


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
    """Of the training undisturbed."""
    out = tmp_path_factory.mktemp("reference") / "run"
    assert run(begin(out)).returncode == 0
    return (out / "model.safetensors").read_bytes()


def refuses(done: subprocess.CompletedProcess[str] | subprocess.Popen[str], errors: str, *words: str) -> None:
    assert done.returncode == 2, errors
    assert "Traceback" not in errors
    assert all(word in errors for word in ("thumbnet: ", *words)), errors


def goes_on(out: Path, weights: bytes) -> None:
    done = run(command("train", "--resume", out))
    assert done.returncode == 0, done.stderr
    assert (out / "model.safetensors").read_bytes() == weights
    assert not list(out.glob(".*.tmp"))


def test_a_file_that_cannot_grow_leaves_the_run_to_be_resumed(tmp_path: Path, weights: bytes) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (CHECKPOINT // 2, CHECKPOINT // 2))

    out = tmp_path / "run"
    done = run(begin(out), limit)
    refuses(done, done.stderr, "checkpoint.pt", "kept")
    assert not list(out.glob(".*.tmp"))
    assert not (out / "checkpoint.pt").exists()
    goes_on(out, weights)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, with room for a run and hardly more."""
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


def test_a_disk_that_fills_up_leaves_the_former_checkpoint(small_disk: Path, weights: bytes) -> None:
    out = small_disk / "run"
    process = subprocess.Popen(begin(out), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    wait_for_step(out, 2, process)
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb") as file:
        while True:
            file.write(bytes(1 << 20))
    _, errors = process.communicate(timeout=60)
    refuses(process, errors, "No space left", "kept")
    checkpoint = Run(out).load_checkpoint()
    assert checkpoint is not None
    assert checkpoint["state"]["step"] >= 2
    done = run(command("train", "--resume", out))  # still full: nothing is lost by trying
    assert done.returncode in (0, 2)
    assert Run(out).load_checkpoint() is not None
    filler.unlink()
    if done.returncode == 2:
        goes_on(out, weights)


def test_a_folder_deleted_under_the_run(tmp_path: Path, weights: bytes) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(begin(out), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    wait_for_step(out, 2, process)
    shutil.rmtree(out, ignore_errors=True)
    _, errors = process.communicate(timeout=60)
    refuses(process, errors, "No such file or directory")
    shutil.rmtree(out, ignore_errors=True)
    assert run(begin(out)).returncode == 0
    assert (out / "model.safetensors").read_bytes() == weights


@pytest.fixture
def ordinary() -> list[str]:
    """What a command is led by so that permissions count: to root they do not."""
    if os.geteuid() != 0:
        return []
    command = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    if shutil.which("setpriv") is None or subprocess.run([*command, "true"]).returncode:
        pytest.skip("setpriv is not there or may not: root may write and read anything")
    return command


def test_a_folder_that_may_not_be_written(tmp_path: Path, ordinary: list[str]) -> None:
    tmp_path.chmod(0o555)
    try:
        done = run([*ordinary, *begin(tmp_path / "run")])
        refuses(done, done.stderr, "Permission denied")
    finally:
        tmp_path.chmod(0o755)


def test_a_run_that_may_not_be_written_any_more(tmp_path: Path, ordinary: list[str], weights: bytes) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen([*ordinary, *begin(out)], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    wait_for_step(out, 2, process)
    out.chmod(0o555)
    try:
        _, errors = process.communicate(timeout=60)
        refuses(process, errors, "Permission denied", "kept")
        done = run([*ordinary, *command("train", "--resume", out)])
        refuses(done, done.stderr, "Permission denied")
    finally:
        out.chmod(0o755)
    goes_on(out, weights)


def test_pictures_and_folders_that_may_not_be_read(tmp_path: Path, ordinary: list[str]) -> None:
    root = write_class_folders(tmp_path / "data", ["train", "test"], per_class=3)
    (root / "train" / "red" / "0.png").chmod(0)
    done = run([*ordinary, *command("train", root, "--out", tmp_path / "run")])
    refuses(done, done.stderr, "0.png: Permission denied", "1 picture(s)")
    (root / "train" / "green").chmod(0)
    try:
        done = run([*ordinary, *command("data", root)])
        refuses(done, done.stderr, "green", "Permission denied")
    finally:
        (root / "train" / "green").chmod(0o755)


# The limit counts from what the process has once PyTorch is loaded.
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


def test_memory_that_does_not_suffice_is_explained_and_micro_batches_do(tmp_path: Path) -> None:
    arguments = [
        "train", "digits", "--recipe", "resnet18", "--epochs", "1", "--set", "data.subset_size=600",
        "--set", "model.width=0.5", "--set", "training.precision=fp32", "--batch-size", "600",
        "--set", "evaluation.batch_size=20",
    ]  # fmt: skip
    done = run([sys.executable, "-c", LIMITED, *arguments, "--out", str(tmp_path / "a")])
    refuses(done, done.stderr, "out of memory", "600", "--micro-batch")
    done = run(
        [sys.executable, "-c", LIMITED, *arguments, "--micro-batch", "20", "--out", str(tmp_path / "b")]
    )
    assert done.returncode == 0, done.stderr
    assert Run(tmp_path / "b").summary["epochs"] == 1
