"""A training with very many steps and a folder with very many pictures need no more resources than they should."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from helpers import noise

pytestmark = pytest.mark.slow

FULL = os.environ.get("THUMBNET_FAULTS") == "full"
STEPS = 100_000 if FULL else 1_000
PICTURES = 1_000_000 if FULL else 20_000
# A step of the smaller network takes half as long. Metrics are written after each epoch, or such a short training would
# be over before there are many.
SETTINGS = ["model.name=resnet20", "model.width=0.07"] if FULL else [
    "model.name=fastnet", "model.width=0.05", "optimizer.lr=0.02", "checkpoint.min_seconds=0",
]  # fmt: skip
MEGABYTE = 1 << 20


def test_memory_and_open_files_do_not_grow_over_very_many_steps(tmp_path: Path) -> None:
    out, per_epoch = tmp_path / "run", 100
    process = subprocess.Popen(
        [sys.executable, "-m", "thumbnet", "train", "digits", "--recipe", "one-cycle", "--out", str(out),
         "--epochs", str(STEPS // per_epoch), "--batch-size", "2", "--image-size", "16",
         "--set", f"data.subset_size={2 * per_epoch}", *(f"--set={setting}" for setting in SETTINGS),
         "--set", "training.precision=fp32", "--set", "evaluation.every=0"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    watched = psutil.Process(process.pid)
    memory, files, epochs = [], [], []
    while process.poll() is None:
        try:
            lines = (out / "metrics.jsonl").read_text().splitlines()
        except FileNotFoundError:
            lines = []
        for line in lines:
            json.loads(line)  # readable at any moment
        if 0 < len(lines) < STEPS // per_epoch:  # what comes after the last epoch takes more memory
            try:
                memory.append(watched.memory_info().rss)
                files.append(watched.num_fds())
            except psutil.Error:
                break
            epochs.append(len(lines))
        time.sleep(0.2)
    assert process.wait() == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["epochs"] == STEPS // per_epoch
    assert epochs == sorted(epochs)
    early, late = len(memory) // 5, len(memory) * 4 // 5
    grown = np.median(memory[late:]) - np.median(memory[early : early + 5])
    print(
        f"{STEPS} steps: memory {np.median(memory[late:]) / MEGABYTE:.0f} MB, grown by {grown / MEGABYTE:.1f} MB"
    )
    assert grown < 24 * MEGABYTE
    assert max(files[late:]) <= max(files[early : early + 5]) + 2


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PICTURES links to a few files in train/CLASS and test/CLASS, for 100 classes."""
    root = tmp_path_factory.mktemp("large")
    for label in range(100):
        picture = root / f"{label}.jpg"
        Image.fromarray(noise(label, 32, 32)).save(picture, quality=80)
        for split, share in (("train", 95), ("test", 5)):
            folder = root / "data" / split / f"class{label:03}"
            folder.mkdir(parents=True)
            for number in range(PICTURES // 100 * share // 100):
                os.link(picture, folder / f"picture-{number:06}.jpg")
    time.sleep(2.1)  # otherwise the folders' times would be too recent to be trusted
    return root / "data"


INDEXING = """
import json, os, sys, time
import psutil
from thumbnet.sources.load import load_data
listed, scandir = [], os.scandir
os.scandir = lambda path: listed.append(path) or scandir(path)
before = psutil.Process().memory_info().rss
started = time.perf_counter()
data = load_data(sys.argv[1])
seconds = time.perf_counter() - started
data.fingerprint()
print(json.dumps({
    "seconds": seconds, "with_files": time.perf_counter() - started,
    "memory": psutil.Process().memory_info().rss - before, "pictures": sum(map(len, data.splits.values())),
    "listed": len(listed),
}))
"""


def test_a_very_large_folder_is_indexed_quickly_and_listed_only_once(large: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "THUMBNET_CACHE": str(tmp_path)}

    def index() -> dict[str, float]:
        done = subprocess.run(
            [sys.executable, "-c", INDEXING, str(large)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        found: dict[str, float] = json.loads(done.stdout)
        assert found["pictures"] == PICTURES
        return found

    first = index()
    second = index()
    print(first, second)
    assert first["seconds"] < 2 + PICTURES * 2e-5
    assert first["with_files"] < 2 + PICTURES * 5e-5
    assert first["memory"] < 60 * MEGABYTE + PICTURES * 600
    assert second["listed"] <= first["listed"] - 200  # the folders of the classes


def test_a_training_on_a_very_large_folder_starts_soon(large: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "thumbnet", "train", str(large), "--recipe", "fast", "--epochs", "1",
         "--checkpoint-steps", "1", "--out", str(out)],
        env={**os.environ, "THUMBNET_CACHE": str(tmp_path / "cache")},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        while not (out / "checkpoint.pt").exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() - started < 60
            time.sleep(0.1)
        print(f"first step after {time.monotonic() - started:.1f} s")
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in errors
