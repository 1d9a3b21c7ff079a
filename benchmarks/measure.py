"""Shared by the benchmarks: the matrix-product rate, timing in turns, and writing results."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from thumbnet.cli.console import say, table
from thumbnet.files import write_file
from thumbnet.hardware import describe

SIDE = 4096
SHARED = Path(__file__).parents[2] / "shared" / "data" / "cifar10-jpeg.tar.xz"


def matrix_rate(device: torch.device | None = None) -> float:
    """TFLOP/s of a 4096x4096x4096 bf16 product, the best of three."""
    device = device or torch.device("cpu")
    a, b = (torch.randn(SIDE, SIDE, device=device).bfloat16() for _ in range(2))
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        (a @ b)[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return float(2 * SIDE**3 / best / 1e12)


def take_turns(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call in each round, after a warm-up round.

    The calls take turns, so that noise on the machine affects all of them alike.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if number:
                times[name].append(time.perf_counter() - started)
    return times


def median(values: Sequence[float]) -> float:
    """The median of floats, as a float."""
    return float(statistics.median(values))


def spread(values: Sequence[float], form: str = ",.0f") -> str:
    """The smallest and the largest value, as text."""
    return f"{min(values):{form}} to {max(values):{form}}"


def parser(doc: str | None, rounds: int) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have."""
    made = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    made.add_argument("--rounds", type=int, default=rounds, help="number of rounds; results are medians")
    made.add_argument("--json", metavar="FILE", help="also write the numbers to this file")
    return made


def report(
    title: str, header: list[str], rows: list[list[str]], file: str | None, results: dict[str, Any]
) -> None:
    """Print a table; write JSON if ``file`` is given."""
    say(title)
    say(table(header, rows))
    if file:
        content = {"title": title, "hardware": describe(torch.device("cpu")), **results}
        write_file(Path(file), json.dumps(content, indent=2) + "\n")
