"""Accuracy against time: whole trainings, from the start of the command to its end.

    python benchmarks/accuracy.py --epochs 8 --seeds 5 --json accuracy.json
    python benchmarks/accuracy.py --epochs 1 2 4 --seeds 1 --earlier accuracy.json --plot pareto.svg

Each training is the command ``thumbnet train``, with an empty cache if ``--cold`` is given. The clock runs
from the start of its process to the end, so it includes importing, unpacking, decoding and compiling. Data
that are given by name, such as cifar10, are downloaded before. Right after the training, this program
measures the rate of a bf16 matrix product. Seconds times that rate is the *machine work*, which compares
between machines better than seconds do.
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from measure import SHARED, empty_caches, matrix_rate, median, parser, report, timed_training

from thumbnet.files import cache_folder
from thumbnet.hardware import choose_device, describe
from thumbnet.reports.figures import new_figure, save
from thumbnet.sources.load import load_data


@functools.cache
def download_folder(data: str) -> Path | None:
    """The folder with the download of data that are given by name, such as cifar10; None for a path.

    What is missing is downloaded now, so that it is in no training's time.
    """
    if Path(data).exists():
        return None
    folder = cache_folder()
    load_data(data, data_dir=folder)
    return folder


def train_by_command(options: Any, epochs: int, seed: int) -> dict[str, Any]:
    """Train with the command and an empty cache or the user's, and multiply matrices on the same device."""
    device = getattr(options, "device", "auto")
    words = ["--recipe", options.recipe, "--epochs", str(epochs), "--seed", str(seed), "--device", device]
    for setting in options.overrides:
        words += ["--set", setting]
    if (downloads := download_folder(options.data)) is not None:
        words += ["--data-dir", str(downloads)]
    with tempfile.TemporaryDirectory() as folder:
        environment = empty_caches(Path(folder)) if options.cold else None
        run, seconds = timed_training(options.data, words, Path(folder) / "run", environment)
        summary, plain = run.summary, run.metrics[-1]["test_accuracy"]
    return {
        "epochs": epochs, "seed": seed, "cold": options.cold,
        "accuracy": summary["accuracy"], "plain_accuracy": plain, "tta": summary["tta"],
        "seconds": seconds, "seconds_training": summary["seconds_training"],
        "product_tflops": matrix_rate(choose_device(device)),
    }  # fmt: skip


def plot(
    points: dict[int, list[dict[str, Any]]], reference: list[float] | None, file: str, where: str
) -> None:
    """Plot mean accuracy against median seconds on the machine ``where``, one point per number of epochs."""
    figure = new_figure(7, 4.2)
    axes = figure.add_subplot()
    seconds = [median([run["seconds"] for run in runs]) for runs in points.values()]
    means = [100 * sum(run["accuracy"] for run in runs) / len(runs) for runs in points.values()]
    axes.plot(seconds, means, "o-", color="#3b82c4", label="thumbnet, fast, by epochs (TTA)")
    for x, y, epochs in zip(seconds, means, points, strict=True):
        axes.annotate(str(epochs), (x, y), textcoords="offset points", xytext=(5, -10), fontsize=8)
    if reference:
        label = "airbench94_muon, 8 epochs (TTA)"
        axes.plot(*([value] for value in reference), "s", color="#d97706", label=label)
    axes.set(xscale="log", xlabel=f"seconds from the command to the accuracy, {where}")
    axes.set(ylabel="test accuracy, %")
    ticks = [30, 60, 120, 300, 600, 1200]
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.set_xticks([], minor=True)
    axes.margins(y=0.08)
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="lower right", frameon=False)
    save(figure, Path(file))


def machine_name(device: torch.device) -> str:
    """What was measured on, for the plot: the GPU's name, or the number of CPU cores."""
    described = describe(device)
    return str(described.get("gpu") or f"{described['cores']} CPU cores")


def main() -> None:
    """Train, print a table, write JSON and the plot."""
    arguments = parser(__doc__, rounds=1, device="auto")
    arguments.add_argument("--data", default=str(SHARED))
    arguments.add_argument("--recipe", default="fast")
    arguments.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    arguments.add_argument("--epochs", type=int, nargs="+", default=[8])
    arguments.add_argument("--seeds", type=int, default=5)
    arguments.add_argument("--cold", action="store_true", help="start every training with an empty cache")
    arguments.add_argument("--plot", metavar="FILE", help="plot the accuracies (.png, .svg, .pdf)")
    arguments.add_argument(
        "--earlier", nargs="+", default=[], metavar="JSON", help="include the runs of these files"
    )
    arguments.add_argument(
        "--reference",
        nargs=2,
        type=float,
        metavar=("SECONDS", "PERCENT"),
        help="result of airbench.py, for the plot",
    )
    options = arguments.parse_args()
    done = [run for file in options.earlier for run in json.loads(Path(file).read_text())["runs"]]
    for seed in range(options.seeds):
        for epochs in options.epochs:
            done.append(train_by_command(options, epochs, seed))
            sys.stderr.write(json.dumps(done[-1]) + "\n")
    points: dict[int, list[dict[str, Any]]] = {}
    for run in sorted(done, key=lambda run: int(run["epochs"])):
        points.setdefault(run["epochs"], []).append(run)
    rows = []
    for epochs, runs in points.items():
        accuracies = [100 * run["accuracy"] for run in runs]
        mean = sum(accuracies) / len(runs)
        deviation = (sum((a - mean) ** 2 for a in accuracies) / max(len(runs) - 1, 1)) ** 0.5
        plain = 100 * sum(run["plain_accuracy"] for run in runs) / len(runs)
        work = [run["seconds"] * run["product_tflops"] for run in runs]
        rows.append([
            str(epochs), str(len(runs)), f"{mean:.2f}", f"{deviation:.2f}", f"{plain:.2f}",
            f"{median([run['seconds'] for run in runs]):.0f}", f"{median(work):.0f}",
            f"{median([run['product_tflops'] for run in runs]):.2f}",
        ])  # fmt: skip
    title = f"{options.recipe} on {options.data}{', cold cache' if options.cold else ''}"
    header = ["epochs", "n", "mean %", "deviation", "without TTA", "seconds", "TFLOP", "product TFLOP/s"]
    report(title, header, rows, options.json, {"runs": done}, choose_device(options.device))
    if options.plot:
        plot(points, options.reference, options.plot, machine_name(choose_device(options.device)))


if __name__ == "__main__":
    main()
