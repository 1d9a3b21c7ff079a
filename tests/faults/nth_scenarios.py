"""The commands whose every call fails once; see nth.py."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from faults.fork_server import Fault, Job
from faults.nth import Bench, Scenario
from helpers import noise, write_class_folders, write_picture

SETTINGS = (
    "--recipe", "resnet18", "--set", "model.name=fastnet", "--set", "model.width=0.125",
    "--set", "training.batch_size=5", "--epochs", "2", "--set", "checkpoint.min_seconds=0",
)  # fmt: skip
STEPS = ("--set", "checkpoint.steps=1")
RUN = "{root}/work/run"


def folders(bench: Bench) -> None:
    """``root/data``: two splits of three classes, three pictures each."""
    write_class_folders(bench.root / "data", ["train", "test"], per_class=3)


def go_on(bench: Bench, data: str, *settings: str) -> Job:
    """Resume the run if it was begun; else the same training once more."""
    if (bench.work / "run" / "run.json").exists():
        return Job(("train", "--resume", RUN))
    return Job(("train", data, *SETTINGS, *settings, "--out", RUN))


def trained(bench: Bench) -> None:
    """A complete run."""
    folders(bench)
    bench.run("train", "{root}/data", *SETTINGS, "--out", RUN)


def begun(bench: Bench) -> None:
    """A run that was killed after its second checkpoint."""
    folders(bench)
    job = bench.filled(Job(("train", "{root}/data", *SETTINGS, *STEPS, "--out", RUN)), ("work/run",))
    kill = Fault(("rename",), 2, "kill-after", contains="checkpoint.pt")
    from dataclasses import replace

    assert bench.server.run(replace(job, faults=(kill,))).status == -9


def packed(bench: Bench) -> None:
    """The same as an archive: ``root/data.zip`` and ``root/data.tar.gz``."""
    folders(bench)
    with zipfile.ZipFile(bench.root / "data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((bench.root / "data").rglob("*.png")):
            archive.write(path, path.relative_to(bench.root / "data"))
    with tarfile.open(bench.root / "data.tar.gz", "w:gz") as tar:
        tar.add(bench.root / "data", "data")
    shutil.rmtree(bench.root / "data")


def tabled(bench: Bench) -> None:
    """A table that names pictures and their classes."""
    lines = ["path,label,split"]
    for number in range(12):
        write_picture(bench.root / "pictures" / f"{number}.png", noise(number))
        lines.append(f"{number}.png,{'abc'[number % 3]},{'train' if number < 9 else 'test'}")
    (bench.root / "pictures" / "table.csv").write_text("\n".join(lines) + "\n")


def unsorted(bench: Bench) -> None:
    """A run, and pictures to sort."""
    trained(bench)
    for number in range(4):
        write_picture(bench.root / "new" / "a" / f"{number}.png", noise(number))


def old_files(bench: Bench) -> None:
    """A run, and files that exports and reports replace."""
    trained(bench)
    (bench.work / "out").mkdir()
    bench.run("report", RUN)
    for name in ("net.onnx", "net.pt2", "net.safetensors"):
        (bench.work / "out" / name).write_bytes(b"the former file")


def same(*arguments: str) -> tuple[Job, object]:
    job = Job(arguments)
    return job, lambda bench: job


def scenario(name: str, prepare: Callable[[Bench], None], *arguments: str, **more: Any) -> Scenario:
    """A command that is simply repeated afterwards."""
    job = Job(arguments)
    return Scenario(name, prepare, job, lambda bench: job, **more)


def training(name: str, prepare: Callable[[Bench], None], data: str, *settings: str, **more: Any) -> Scenario:
    job = Job(("train", data, *SETTINGS, *settings, "--out", RUN))
    return Scenario(name, prepare, job, lambda bench: go_on(bench, data, *settings), **more)


ARCHIVES = ("work/cache", "data.zip", "data.tar.gz")
SCENARIOS = (
    training("train", folders, "{root}/data", *STEPS),
    training("train a .zip", packed, "{root}/data.zip", watch=ARCHIVES),
    training("train a .tar.gz", packed, "{root}/data.tar.gz", watch=ARCHIVES),
    training("train a table", tabled, "{root}/pictures/table.csv", watch=("work/cache", "pictures")),
    scenario("resume", begun, "train", "--resume", RUN),
    scenario("evaluate", trained, "evaluate", RUN, "--json"),
    scenario("report", old_files, "report", RUN),
    scenario("export onnx", old_files, "export", RUN, "--out", "{root}/work/out/net.onnx"),
    scenario(
        "export torch-export", old_files, "export", RUN, "--format", "torch-export", "--out", "{root}/work/out/net.pt2"
    ),
    scenario(
        "export safetensors",
        old_files,
        "export", RUN, "--format", "safetensors", "--out", "{root}/work/out/net.safetensors",
    ),
    scenario("sort", unsorted, "sort", RUN, "{root}/new", "--into", "{root}/work/sorted", "--threshold", "0.2"),
    scenario("data", folders, "data", "{root}/data", "--json"),
)  # fmt: skip


def named(name: str) -> Scenario:
    return next(one for one in SCENARIOS if one.name == name)


def scratch() -> Path:
    """A folder in memory, where there is one: syncing costs nothing there."""
    shared = Path("/dev/shm")
    return shared if shared.is_dir() else Path("/tmp")
