"""Measures how much more 200 labels are worth if ``order_unlabelled`` chooses the pictures, not chance.

    python benchmarks/labelling.py --pictures 10000 --labelled 500 --added 200 --json build/labelling.json
    python benchmarks/labelling.py --long-tail 100 --pictures 12000 --labelled 1000 --json build/tail.json

For each seed, it labels some pictures at random, trains a network on them, and lets the network order the
others. It then trains on the first pictures of that order and on as many random ones, each in addition to the
pictures that were labelled before, and compares the test accuracies. Each accuracy is the mean of several
trainings with different seeds, because small trainings differ much.

With ``--long-tail 100``, the most frequent class has about a hundred times as many pictures as the rarest
one, as in many collections. Which class is how frequent depends on the seed. The test pictures stay as they
are.

Results are written after every training. If the program is interrupted, call it again: it continues.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from label_noise import spread
from measure import SHARED
from resumable import Results, settings_of

from thumbnet.classifiers.torch_classifier import Predictor
from thumbnet.cli.console import say, table
from thumbnet.data.splits import Data
from thumbnet.evaluation import log_softmax
from thumbnet.hardware import choose_device
from thumbnet.reviewing.unlabelled import order_unlabelled
from thumbnet.runs.folder import Run
from thumbnet.sources.load import load_data
from thumbnet.training.train import train


def start(
    labels: np.ndarray, pictures: int, labelled: int, ratio: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Random positions of the pictures that have labels, and of the others in random order: int64 arrays.

    Args:
        labels: of all pictures, int64 [N].
        pictures: how many to choose from.
        labelled: how many have labels at the start.
        ratio: between the frequencies of the first and the last class; those between fall geometrically.
        seed: decides which pictures these are, and which class is how frequent.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    names = rng.permutation(np.unique(labels))
    shares = ratio ** -np.linspace(0, 1, len(names))
    counts = (shares / shares.sum() * pictures).astype(int)
    if ratio == 1:
        chosen = order[:pictures]
    else:
        parts = [order[labels[order] == name][:count] for name, count in zip(names, counts, strict=True)]
        chosen = rng.permutation(np.concatenate(parts))
    return np.sort(chosen[:labelled]), chosen[labelled:]


class Experiment:
    """One seed. ``data`` have the labels of all pictures; most of them are hidden."""

    def __init__(self, options: argparse.Namespace, data: Data, seed: int) -> None:
        self.options, self.data, self.seed = options, data, seed
        labels = np.asarray(data.splits["train"].labels)
        self.labelled, self.others = start(
            labels, options.pictures, options.labelled, options.long_tail, seed
        )

    def trained(self, positions: np.ndarray, training: int, out: Path) -> Run:
        """A run on the training pictures at these positions."""
        options = self.options
        part = self.data.splits["train"].subset(np.sort(positions))
        return train(
            replace(self.data, splits={**self.data.splits, "train": part}),
            options.recipe,
            overrides=[
                f"training.epochs={options.epochs}",
                f"seed={100 * self.seed + training}",
                *options.overrides,
            ],
            out=out,
            device=options.device,
        )

    def accuracy(self, positions: np.ndarray, training: int) -> dict[str, Any]:
        """The test accuracy after training on the pictures at these positions."""
        with tempfile.TemporaryDirectory() as folder:
            return {"accuracy": self.trained(positions, training, Path(folder) / "run").summary["accuracy"]}

    def ordered(self) -> dict[str, Any]:
        """Train on the labelled pictures; the accuracy, and the positions of the most useful others."""
        with tempfile.TemporaryDirectory() as folder:
            run = self.trained(self.labelled, 0, Path(folder) / "run")
            network = Predictor.load(run.path, self.options.device)
            pool = self.data.splits["train"].subset(self.others)
            found = network.classify_split(pool, self.data.class_names)
            order = order_unlabelled(np.exp(log_softmax(found.logits)), network.features(pool))
            chosen = self.others[order[: self.options.added]]
            return {"accuracy": run.summary["accuracy"], "chosen": chosen.tolist()}

    def run(self, results: Results) -> None:
        """Measure everything that ``results`` lack."""
        first = results.once(f"before, seed {self.seed}, training 0", self.ordered)
        added = {"chosen": np.array(first["chosen"]), "random": self.others[: self.options.added]}
        for training in range(self.options.trainings):
            for name, more in {"before": np.array([], dtype=np.int64), **added}.items():
                positions = np.concatenate([self.labelled, more])
                results.once(
                    f"{name}, seed {self.seed}, training {training}",
                    lambda: self.accuracy(positions, training),  # noqa: B023
                )


def rows_of(found: dict[str, dict[str, Any]], seeds: int, trainings: int) -> list[list[str]]:
    """A row per seed and one of means: before, with chosen pictures, with random ones, the difference."""

    def mean(name: str, seed: int) -> float:
        names = [f"{name}, seed {seed}, training {training}" for training in range(trainings)]
        return statistics.fmean(found[one]["accuracy"] for one in names)

    columns = {name: [mean(name, seed) for seed in range(seeds)] for name in ("before", "chosen", "random")}
    columns["gain"] = [a - b for a, b in zip(columns["chosen"], columns["random"], strict=True)]
    rows = [
        [str(seed), *(f"{100 * values[seed]:.2f}" for values in columns.values())] for seed in range(seeds)
    ]
    return [*rows, ["mean", *(spread(values) for values in columns.values())]]


def arguments() -> argparse.ArgumentParser:
    """The options of this program."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--data", default=str(SHARED), help="the data set (default: %(default)s)")
    made.add_argument(
        "--pictures", type=int, default=10_000, help="training pictures to choose from (default: %(default)s)"
    )
    made.add_argument("--labelled", type=int, default=500, help="labels at the start (default: %(default)s)")
    made.add_argument("--added", type=int, default=200, help="labels to add (default: %(default)s)")
    made.add_argument(
        "--long-tail",
        type=float,
        default=1,
        metavar="RATIO",
        help="how many times as frequent the first class is as the last (default: 1, all the same)",
    )
    made.add_argument("--seeds", type=int, default=3, help="number of seeds (default: %(default)s)")
    made.add_argument("--trainings", type=int, default=3, help="trainings per accuracy")
    made.add_argument("--recipe", default="small")
    made.add_argument("--epochs", type=int, default=60)
    made.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    made.add_argument("--device", default="auto", help="as in thumbnet train (default: %(default)s)")
    made.add_argument("--json", default="build/labelling.json", metavar="FILE", help="file for the results")
    return made


def main() -> None:
    """Measure, and print a table."""
    options = arguments().parse_args()
    settings = settings_of(
        options, "data", "pictures", "labelled", "added", "long_tail", "recipe", "epochs", "overrides"
    )
    results = Results(Path(options.json), settings, choose_device(options.device))
    data = load_data(options.data)
    for seed in range(options.seeds):
        Experiment(options, data, seed).run(results)
    say(f"test accuracy, %, with {options.labelled} labels and with {options.added} more")
    header = ["seed", "before", "chosen", "random", "chosen - random"]
    say(table(header, rows_of(results.found, options.seeds, options.trainings)))


if __name__ == "__main__":
    main()
