"""Trains for given times: what each of them reaches, and how well the command keeps to it.

    python benchmarks/minutes.py cifar10-jpeg.tar.xz --minutes 0.5 1 2 5 10 --seeds 3
    python benchmarks/minutes.py pictures/ --minutes 1
    python benchmarks/minutes.py cifar10-jpeg.tar.xz --minutes 2 --other-training begins ends stays

Each training is the command ``thumbnet train DATA --minutes M``, with an empty cache. The clock starts with
the process, so everything counts. A matrix product is timed right after it. With ``--other-training``, a
training of ``fast`` runs on the same computer: from two fifths of the time on (``begins``), until then
(``ends``), or all the time (``stays``).

Results are written after every training. If the program is interrupted, call it again: it continues.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from label_noise import spread
from measure import SHARED, empty_caches, matrix_rate, median, timed_training
from measure import spread as span
from resumable import Results

from thumbnet.cli.console import say, table
from thumbnet.hardware import choose_device

ALONE = "nothing"
STARTED = 10.0  # seconds after which another training computes
CHANGE = 0.4  # of the time: when another training begins or ends


class Another:
    """A training of ``fast`` on ``source``, in a process of its own, which goes on until it is stopped."""

    def __init__(self, source: str, device: str, folder: Path) -> None:
        words = ["--recipe", "fast", "--epochs", "10000", "--device", device]
        words += ["--out", str(folder / "another")]
        self._command = [sys.executable, "-m", "thumbnet", "train", source, *words]
        self._process: subprocess.Popen[bytes] | None = None
        self._over = False
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the training, unless it was stopped already."""
        with self._lock:
            if not self._over:
                self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)

    def stop(self) -> None:
        """End its process."""
        with self._lock:
            self._over = True
            if self._process is not None:
                self._process.kill()
                self._process.wait()


@contextmanager
def other_work(moment: str, another: Another, minutes: float) -> Iterator[None]:
    """In this block, which starts a training for ``minutes``, run ``another`` as ``moment`` says."""
    if moment in ("ends", "stays"):
        another.start()
        time.sleep(STARTED)
    act = {"begins": another.start, "ends": another.stop}.get(moment)
    change = threading.Timer(CHANGE * 60 * minutes, act) if act else None
    if change:
        change.start()
    try:
        yield
    finally:
        if change:
            change.cancel()
        another.stop()


def trained(source: str, minutes: float, seed: int, device: str, other: str) -> dict[str, Any]:
    """What the command reaches, and the seconds that it takes."""
    with tempfile.TemporaryDirectory() as folder:
        another = Another(source, device, Path(folder))
        words = ["--minutes", f"{minutes:g}", "--seed", str(seed), "--device", device]
        with other_work(other, another, minutes):
            run, seconds = timed_training(source, words, Path(folder) / "run", empty_caches(Path(folder)))
        summary, width = run.summary, run.recipe.model.width
    kept = ("accuracy", "accuracy_plain", "epochs", "seconds_training")
    found = {**{key: summary[key] for key in kept}, "width": width}
    return {**found, "seconds": seconds, "product_tflops": matrix_rate(choose_device(device))}


def rows(
    found: dict[str, dict[str, Any]], sources: Sequence[str], options: argparse.Namespace, other: str = ALONE
) -> list[list[str]]:
    """For each data set and time: accuracy in percent, seconds, epochs and widths."""
    table_rows = []
    for source in sources:
        for minutes in options.minutes:
            of = [found[name_of(source, minutes, seed, other)] for seed in range(options.seeds)]
            seconds = [one["seconds"] for one in of]
            table_rows.append(
                [
                    Path(source).name,
                    f"{minutes:g}",
                    spread([one["accuracy"] for one in of]),
                    f"{median(seconds):.1f}" + (f" ({span(seconds, '.1f')})" if len(seconds) > 1 else ""),
                    f"{100 * median(seconds) / 60 / minutes:.0f} %",
                    f"{max(seconds) - 60 * minutes:+.1f}",
                    span([one["epochs"] for one in of]),
                    span([one["width"] for one in of], "g"),
                    f"{statistics.median(one['product_tflops'] for one in of):.2f}",
                ]
            )
    return table_rows


def name_of(source: str, minutes: float, seed: int, other: str = ALONE) -> str:
    """The name of a training among the results."""
    more = "" if other == ALONE else f", another training {other}"
    return f"{Path(source).name}, {minutes:g} minute(s), seed {seed}{more}"


def arguments() -> argparse.ArgumentParser:
    """The options of this program."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument(
        "sources", nargs="*", metavar="DATA", default=[str(SHARED)], help="default: %(default)s"
    )
    made.add_argument(
        "--minutes", nargs="+", type=float, default=[0.5, 1, 2, 5, 10], help="default: %(default)s"
    )
    made.add_argument("--seeds", type=int, default=3, help="number of seeds (default: %(default)s)")
    made.add_argument(
        "--other-training", nargs="+", choices=[ALONE, "begins", "ends", "stays"], default=[ALONE],
        help="what another training does meanwhile (default: %(default)s)",
    )  # fmt: skip
    made.add_argument("--device", default="auto", help="as in thumbnet train (default: %(default)s)")
    made.add_argument("--json", metavar="FILE", default="build/minutes/results.json")
    return made


def main() -> None:
    """Measure, and print a table."""
    options = arguments().parse_args()
    results = Results(Path(options.json), {}, choose_device(options.device))
    for seed in range(options.seeds):
        for source in options.sources:
            for minutes in options.minutes:
                for other in options.other_training:
                    results.once(
                        name_of(source, minutes, seed, other),
                        lambda: trained(source, minutes, seed, options.device, other),  # noqa: B023
                    )
    head = ["data", "minutes", "accuracy, %", "seconds", "of the time", "most over, s", "epochs", "width"]
    for other in options.other_training:
        say(f"thumbnet train --minutes, n = {options.seeds}, another training: {other}")
        say(table([*head, "product, TFLOP/s"], rows(results.found, options.sources, options, other)))


if __name__ == "__main__":
    main()
