"""Measures what a trained network is worth for classes that it has never seen.

    python benchmarks/transfer.py --json build/transfer/results.json
    python benchmarks/transfer.py --pictures 50 --seeds 1

It trains a network on the six animals of CIFAR-10. Then it trains on a few pictures of each of the four
vehicles, in three ways: from random weights, from the first network's weights (``--init``), and only a new
last layer on that network's features (the recipe ``linear``). All are measured on the test pictures of the
vehicles. Each seed draws other training pictures.

Results are written after every training. If the program is interrupted, call it again: it continues.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from howtos import part
from measure import SHARED
from resumable import Results, settings_of

from thumbnet.cli.console import say, table
from thumbnet.data.splits import Data
from thumbnet.hardware import choose_device
from thumbnet.runs.folder import Run
from thumbnet.sources.load import load_data
from thumbnet.training.train import train

ANIMALS = ("bird", "cat", "deer", "dog", "frog", "horse")
VEHICLES = ("airplane", "automobile", "ship", "truck")
WAYS = ("scratch", "init", "linear")


def recipe_of(way: str, source: str, width: float) -> tuple[str, list[str]]:
    """The recipe's name and the overrides for one way to train on few pictures.

    Args:
        way: one of ``WAYS``.
        source: the folder of the run to start from.
        width: the factor on the network's width.
    """
    begin = [] if way == "scratch" else [f'training.init="{source}"']
    once = [
        "evaluation.every=0",
        "evaluation.sample=0",
    ]  # measure at the end only: it costs more than to train
    return ("linear" if way == "linear" else "small"), [f"model.width={width:g}", *once, *begin]


class Experiment:
    """All trainings. Each leaves its run in ``options.work``, and an interrupted one is resumed."""

    def __init__(self, options: argparse.Namespace, results: Results, data: Data) -> None:
        self.options, self.results, self.data = options, results, data
        self.work = Path(options.work).resolve()

    def source(self) -> dict[str, Any]:
        """Train the network on the animals."""
        options = self.options
        overrides = [f"training.epochs={options.epochs}", f"model.width={options.width:g}"]
        animals = part(self.data, ANIMALS, dict.fromkeys(ANIMALS, options.source_pictures), 0)
        return self._train(animals, "fast", overrides, self.work / "source")

    def run(self, way: str, pictures: int, seed: int) -> dict[str, Any]:
        """Train on ``pictures`` of each vehicle."""
        few = part(self.data, VEHICLES, dict.fromkeys(VEHICLES, pictures), seed)
        recipe, overrides = recipe_of(way, str(self.work / "source"), self.options.width)
        folder = self.work / f"{way}-{pictures}-{seed}"
        return self._train(few, recipe, [f"seed={seed}", *overrides], folder)

    def _train(self, data: Data, recipe: str, overrides: list[str], folder: Path) -> dict[str, Any]:
        device = self.options.device
        run: Run = train(data, recipe, overrides=overrides, out=folder, device=device, auto_resume=True)
        summary = run.summary
        return {"accuracy": summary["accuracy"], "seconds": summary["seconds_total"]}

    def all(self) -> None:
        """Everything that the results lack."""
        self.results.once("source", self.source)
        for seed in range(self.options.seeds):
            for pictures in self.options.pictures:
                for way in self.options.ways:
                    name = result_name(way, pictures, seed)
                    self.results.once(name, lambda: self.run(way, pictures, seed))  # noqa: B023


def result_name(way: str, pictures: int, seed: int) -> str:
    """The name of one training in the results."""
    return f"{way}, {pictures} pictures per class, seed {seed}"


def rows(found: dict[str, dict[str, Any]], counts: list[int], ways: list[str], seeds: int) -> list[list[str]]:
    """A row per number of pictures: for each way the mean accuracy with its range in percent, and seconds."""
    made = []
    for count in counts:
        row = [f"{count:,}"]
        for way in ways:
            of_way = [found[result_name(way, count, seed)] for seed in range(seeds)]
            shares = [100 * one["accuracy"] for one in of_way]
            seconds = statistics.median(one["seconds"] for one in of_way)
            row.append(
                f"{statistics.fmean(shares):.2f} % ({min(shares):.2f} to {max(shares):.2f}), {seconds:.0f} s"
            )
        made.append(row)
    return made


def arguments() -> argparse.ArgumentParser:
    """The options of this program."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--data", default=str(SHARED), help="CIFAR-10 (default: %(default)s)")
    made.add_argument("--pictures", type=int, nargs="+", default=[50, 200, 1000], help="per class")
    made.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    made.add_argument("--seeds", type=int, default=3, help="number of seeds (default: %(default)s)")
    made.add_argument("--epochs", type=int, default=5, help="of the source (default: %(default)s)")
    made.add_argument(
        "--source-pictures", type=int, default=5000, help="per animal (default: %(default)s, all)"
    )
    made.add_argument("--width", type=float, default=0.5, help="of the network (default: %(default)s)")
    made.add_argument("--device", default="auto", help="as in thumbnet train (default: %(default)s)")
    made.add_argument("--work", default="build/transfer", metavar="DIR", help="folder for the runs")
    made.add_argument("--json", metavar="FILE", help="file for the results (default: DIR/results.json)")
    return made


def main() -> None:
    """Measure, and print a table."""
    options = arguments().parse_args()
    settings = settings_of(options, "data", "epochs", "source_pictures", "width")
    file = Path(options.json or Path(options.work) / "results.json")
    results = Results(file, settings, choose_device(options.device))
    Experiment(options, results, load_data(options.data)).all()
    say(f"test accuracy on {len(VEHICLES)} classes, n = {options.seeds}, mean (least to most), median time")
    found = rows(results.found, options.pictures, options.ways, options.seeds)
    say(table(["training pictures per class", *options.ways], found))


if __name__ == "__main__":
    main()
