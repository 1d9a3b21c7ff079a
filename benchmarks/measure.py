"""Shared by the benchmarks: the matrix-product rate, timing in turns and of the command, statistics, JSON."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from thumbnet.cli.console import say, table
from thumbnet.files import write_file
from thumbnet.hardware import describe
from thumbnet.runs.folder import Run

SIDE = 4096
GPU_SIDE = 8192  # a GPU multiplies 4096x4096 in 0.2 ms, too little to fill it evenly
GPU_PRODUCTS = 20  # between two looks at the clock, so that launching and waiting do not count
SHARED = Path(__file__).parents[2] / "shared" / "data" / "cifar10-jpeg.tar.xz"
CPU = torch.device("cpu")


def wait(device: torch.device) -> None:
    """Wait until ``device`` has finished its queued work. Without this, the clock measures only the calls."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def product_side(device: torch.device = CPU) -> int:
    """The side of the matrices that :func:`matrix_rate` multiplies."""
    return SIDE if device.type == "cpu" else GPU_SIDE


def matrix_rate(device: torch.device = CPU, side: int | None = None) -> float:
    """TFLOP/s of a bf16 matrix product, the best of three: 4096x4096x4096 on a CPU, 8192 on a GPU."""
    side = side or product_side(device)
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    products = 1 if device.type == "cpu" else GPU_PRODUCTS
    if device.type != "cpu":
        a @ b  # the first product also loads the library and chooses its algorithm
    best = float("inf")
    for _ in range(3):
        wait(device)
        started = time.perf_counter()
        for _ in range(products):
            a @ b
        wait(device)
        best = min(best, (time.perf_counter() - started) / products)
    return float(2 * side**3 / best / 1e12)


def take_turns(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call in each round, after a warm-up round.

    The calls take turns, so that noise on the machine affects all of them alike. A call that uses a GPU has
    to :func:`wait` for it at its end.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if number:
                times[name].append(time.perf_counter() - started)
    return times


def empty_caches(folder: Path) -> dict[str, str]:
    """The environment of a process whose caches are in ``folder``: thumbnet's and that of ``torch.compile``.

    By default the latter is shared by all processes of the user, so only the first one would compile.
    """
    caches = {"THUMBNET_CACHE": "cache", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
    return {**os.environ, **{name: str(folder / place) for name, place in caches.items()}}


def timed_training(
    source: str, words: Sequence[str], out: Path, environment: Mapping[str, str] | None = None
) -> tuple[Run, float]:
    """Run ``thumbnet train SOURCE`` with these arguments: the run, and the seconds of the whole command."""
    command = [sys.executable, "-m", "thumbnet", "train", source, *words, "--out", str(out)]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    seconds = time.perf_counter() - started
    return Run(out), seconds


def median(values: Sequence[float]) -> float:
    """The median of floats, as a float."""
    return float(statistics.median(values))


def summary(values: Sequence[float]) -> dict[str, float]:
    """Number, mean, median, standard deviation and standard error of the mean (both 0 for one value)."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {
        "n": len(values), "mean": statistics.fmean(values), "median": median(values),
        "deviation": deviation, "error": deviation / len(values) ** 0.5,
    }  # fmt: skip


def spread(values: Sequence[float], form: str = ",.0f") -> str:
    """The smallest and the largest value, as text; one of them if both read the same."""
    low, high = f"{min(values):{form}}", f"{max(values):{form}}"
    return low if low == high else f"{low} to {high}"


def parser(doc: str | None, rounds: int, device: str | None = None) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have, and ``--device`` if it has a default."""
    made = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    made.add_argument("--rounds", type=int, default=rounds, help="number of rounds; results are medians")
    made.add_argument("--json", metavar="FILE", help="also write the numbers to this file")
    if device is not None:
        made.add_argument("--device", default=device, help="as in thumbnet train (default: %(default)s)")
    return made


def report(
    title: str,
    header: list[str],
    rows: list[list[str]],
    file: str | None,
    results: dict[str, Any],
    device: torch.device = CPU,
) -> None:
    """Print a table; write JSON if ``file`` is given. ``device`` is the one that was measured."""
    say(title)
    say(table(header, rows))
    if file:
        content = {"title": title, "hardware": describe(device), **results}
        write_file(Path(file), json.dumps(content, indent=2) + "\n")
