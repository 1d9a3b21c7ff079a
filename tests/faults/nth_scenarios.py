"""The commands whose every call fails once; see nth.py."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from faults.fork_server import Fault, ForkServer, Job
from faults.nth import Bench, Scenario
from helpers import coloured, write_picture

CLASSES = ("green", "red")
SETTINGS = (
    "--recipe", "one-cycle", "--set", "model.name=fastnet", "--set", "model.width=0.05", "--set", "data.image_size=16",
    "--set", "training.batch_size=2", "--epochs", "1", "--set", "checkpoint.min_seconds=0",
)  # fmt: skip
STEPS = ("--set", "checkpoint.steps=1")
RUN = "{root}/work/run"


def folders(bench: Bench) -> None:
    """``root/data``: two classes; two pictures each to train, and one to test."""
    for split, count in (("train", 2), ("test", 1)):
        for label, name in enumerate(CLASSES):
            for number in range(count):
                picture = coloured(label, 100 * count + 10 * label + number)
                write_picture(bench.root / "data" / split / name / f"{number}.png", picture)


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
    """A run that was killed after its first checkpoint, between its two steps."""
    folders(bench)
    job = bench.filled(Job(("train", "{root}/data", *SETTINGS, *STEPS, "--out", RUN)), ("work/run",))
    kill = Fault(("rename",), 1, "kill-after", contains="checkpoint.pt")
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
    for number in range(6):
        write_picture(bench.root / "pictures" / f"{number}.png", coloured(number % 2, number))
        lines.append(f"{number}.png,{CLASSES[number % 2]},{'train' if number < 4 else 'test'}")
    (bench.root / "pictures" / "table.csv").write_text("\n".join(lines) + "\n")


def unsorted(bench: Bench) -> None:
    """A run, and pictures to sort."""
    trained(bench)
    for number in range(3):
        write_picture(bench.root / "new" / "a" / f"{number}.png", coloured(number % 2, number))


def old_files(bench: Bench) -> None:
    """A run, and files that exports and reports replace."""
    trained(bench)
    (bench.work / "out").mkdir()
    bench.run("report", RUN)
    for name in ("net.onnx", "net.pt2", "net.safetensors"):
        (bench.work / "out" / name).write_bytes(b"the former file")


def scenario(name: str, prepare: Callable[[Bench], None], *arguments: str, **more: Any) -> Scenario:
    """A command that is simply repeated afterwards."""
    job = Job(arguments)
    return Scenario(name, prepare, job, lambda bench: job, **more)


def training(name: str, prepare: Callable[[Bench], None], data: str, *settings: str, **more: Any) -> Scenario:
    job = Job(("train", data, *SETTINGS, *settings, "--out", RUN))
    return Scenario(name, prepare, job, lambda bench: go_on(bench, data, *settings), **more)


# In these trainings, only what reads the data and fills the cache differs from the first.
ARCHIVES = ("work/cache", "data.zip", "data.tar.gz")
TABLE = ("work/cache", "pictures")
OUT = "{root}/work/out/net"
SCENARIOS = (
    training("train", folders, "{root}/data", *STEPS, tidies=True),
    training("train a .zip", packed, "{root}/data.zip", watch=ARCHIVES),
    training("train a .tar.gz", packed, "{root}/data.tar.gz", watch=ARCHIVES),
    training("train a table", tabled, "{root}/pictures/table.csv", watch=TABLE),
    scenario("resume", begun, "train", "--resume", RUN, tidies=True),
    scenario("evaluate", trained, "evaluate", RUN, "--json"),
    scenario("report", old_files, "report", RUN),
    scenario("export onnx", old_files, "export", RUN, "--out", f"{OUT}.onnx"),
    scenario("export torch-export", old_files, "export", RUN, "--format", "torch-export", "--out", f"{OUT}.pt2"),
    scenario("export safetensors", old_files, "export", RUN, "--format", "safetensors", "--out", f"{OUT}.safetensors"),
    scenario("sort", unsorted, "sort", RUN, "{root}/new", "--into", "{root}/work/sorted", "--threshold", "0.2"),
    scenario("data", folders, "data", "{root}/data", "--json"),
    training(
        "train in two processes", folders, "{root}/data", *STEPS,
        operations=("collective",), ranks=2, tidies=True,
    ),
)  # fmt: skip


def named(name: str) -> Scenario:
    return next(one for one in SCENARIOS if one.name == name)


def start_server(place: Path) -> ForkServer:
    """A server that has prepared what nth_warm.py prepares; ``place`` is for what it writes."""
    environment = {"THUMBNET_TIMEOUT": "5", "NTH_GRAPHS": str(place / "graphs"), "COLUMNS": "100"}
    return ForkServer(place, ("faults.nth_warm",), environment)


def scratch() -> Path:
    """A folder in memory, where there is one: syncing costs nothing there."""
    shared = Path("/dev/shm")
    return shared if shared.is_dir() else Path("/tmp")
