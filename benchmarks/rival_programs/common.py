"""What the rivals' programs share: the clock, the plan that fits the time, and the result's file.

Nothing here needs an installed rival, so that ``tests/test_rivals.py`` can import it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from subprocess import PIPE, run
from typing import Any

PROBE_PICTURES = 5_000


@dataclass(frozen=True)
class Task:
    """What a program is asked to do.

    Attributes:
        data: a folder with ``train/CLASS/`` and ``test/CLASS/``.
        archive: the archive that the folder was unpacked from.
        size: the side that pictures are scaled to, in pixels.
        minutes: for how long to train.
        threads: the number of threads, and of processes that load pictures.
        clones: the folder with the repositories and files that the user fetched.
        work: an empty folder for this run.
    """

    data: Path
    archive: Path
    size: int
    minutes: float
    threads: int
    clones: Path
    work: Path

    @property
    def budget(self) -> float:
        """The time to train, in seconds."""
        return 60 * self.minutes

    @property
    def pictures(self) -> int:
        """The number of training pictures."""
        return sum(1 for _ in (self.data / "train").glob("*/*"))


@dataclass(frozen=True)
class Plan:
    """A training that should end in time: ``epochs`` epochs of ``pictures`` pictures each."""

    epochs: int
    pictures: int


class Clock:
    """Measures a training, from its first step's data to the end of its last step."""

    def __init__(self) -> None:
        self.started = self.stopped = 0.0

    def start(self, *_: object, **__: object) -> None:
        """Start unless already started."""
        self.started = self.started or time.perf_counter()

    def stop(self, *_: object, **__: object) -> None:
        """Note the time; the last call counts."""
        self.stopped = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds between start and stop.

        Raises:
            ValueError: no step was trained.
        """
        if not self.stopped:
            raise ValueError("the training ended without a step")
        return self.stopped - self.started


class Probe:
    """Measures the seconds per step in a short training, without its first steps.

    Call ``tick`` after each step; it returns True once enough was measured: 10 seconds, or a sixth of a
    shorter budget. The first six steps do not count: processes start, memory is allocated. With less than a
    minute, which only tries the programs, only the first does not count.
    """

    def __init__(self, budget: float) -> None:
        self.warmup = 6 if budget >= 60 else 1
        self.seconds = min(10.0, budget / 6)
        self.times: list[float] = []

    def tick(self) -> bool:
        """Note the end of a step."""
        self.times.append(time.perf_counter())
        counted = self.times[self.warmup :]
        return len(counted) > 1 and counted[-1] - counted[0] > self.seconds

    @property
    def per_step(self) -> float:
        """Mean seconds per step."""
        return seconds_per_step(self.times, self.warmup)


def seconds_per_step(times: Sequence[float], warmup: int) -> float:
    """Mean seconds per step, from the times at which steps ended; the first ``warmup`` are left out.

    Raises:
        ValueError: fewer than two steps are left.
    """
    counted = times[warmup:]
    if len(counted) < 2:
        raise ValueError(f"the probe ended after {len(times)} steps, but needs {warmup + 2}")
    return (counted[-1] - counted[0]) / (len(counted) - 1)


def plan(seconds_per_picture: float, budget: float, pictures: int, batch: int) -> Plan:
    """The epochs that fill ``budget`` seconds, with all pictures in each epoch if possible.

    Whole epochs of all pictures if they leave at most a tenth of the time unused. Otherwise one epoch more,
    each of as many pictures as there is time for, at least a ``batch``.
    """
    epochs = budget / (seconds_per_picture * pictures)
    whole = math.floor(epochs)
    if whole >= 0.9 * epochs:
        return Plan(whole, pictures)
    return Plan(whole + 1, max(batch, int(pictures * epochs / (whole + 1))))


def link_pictures(data: Path, folder: Path, train: int, test: int | None = None) -> Path:
    """A folder with some of ``data``'s pictures, as links; evenly from all classes. ``test`` None: all."""
    for split, count in (("train", train), ("test", test)):
        files = sorted((data / split).glob("*/*"))
        count = len(files) if count is None else min(count, len(files))
        for number in range(count):
            file = files[number * len(files) // count]
            link = folder / split / file.parent.name / file.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
    return folder


def commit_of(clone: Path) -> str:
    """The commit of a clone, shortened."""
    words = ["git", "-C", str(clone), "rev-parse", "--short", "HEAD"]
    return run(words, check=True, stdout=PIPE, text=True).stdout.strip()


def version_of(*packages: str) -> str:
    """Names and versions of installed packages."""
    return ", ".join(f"{name} {metadata.version(name)}" for name in packages)


def result(
    clock_seconds: float, accuracy: float, planned: Plan, version: str, per_picture: float
) -> dict[str, Any]:
    """What a program writes: the accuracy is a fraction, not a percentage."""
    return {
        "accuracy": accuracy,
        "seconds": clock_seconds,
        "epochs": planned.epochs,
        "pictures_per_epoch": planned.pictures,
        "measured_seconds_per_picture": per_picture,
        "version": version,
    }


def main(train: Callable[[Task], dict[str, Any]]) -> None:
    """Read the task from the command line, train, write the result."""
    parser = argparse.ArgumentParser()
    for name in ("data", "archive", "clones", "work", "json"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = vars(parser.parse_args())
    file = options.pop("json")
    file.write_text(json.dumps(train(Task(**options))))
