"""Spoils labels of CIFAR-10 and measures how well ``find_suspects`` finds them, and what a review gains.

    python benchmarks/label_noise.py --pictures 10000 --epochs 8 --json build/label-noise/results.json
    python benchmarks/label_noise.py --noise 0.05 --seeds 1 --folds 0 2 3 4

For each share of noise and each seed, it gives some training pictures a wrong class, chosen at random. It
trains a network, ranks the training pictures, and counts how many of the first ones were spoilt. Then it
restores the true labels of the first 500, as a person would who reviews them, and trains again. The test
pictures keep their labels.

Results are written after every step. If the program is interrupted, call it again: it continues.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from measure import SHARED
from resumable import Results, settings_of

from thumbnet.classifiers.explain import doubts, likely_label_errors
from thumbnet.cli.console import say, table
from thumbnet.data.splits import Data, Split
from thumbnet.hardware import choose_device
from thumbnet.reviewing.scores import FOLDS, score_pictures
from thumbnet.reviewing.suspects import find_suspects
from thumbnet.runs.folder import Run
from thumbnet.sources.load import load_data
from thumbnet.training.train import train

REVIEWED = 500  # pictures that a person looks at
FIRST = (100, REVIEWED)


def part_of(data: Data, pictures: int, seed: int = 0, split: str = "train") -> Data:
    """``data`` with ``pictures`` random pictures of a split; all of them if it is 0."""
    whole = data.splits[split]
    if not pictures or pictures >= len(whole):
        return data
    chosen = np.sort(np.random.default_rng(seed).permutation(len(whole))[:pictures])
    return replace(data, splits={**data.splits, split: whole.subset(chosen)})


def relabelled(data: Data, labels: np.ndarray) -> Data:
    """``data`` with other labels (int64 [N]) of the training pictures."""
    split: Split = data.splits["train"].subset(np.arange(len(labels)))
    split.labels = labels
    return replace(data, splits={**data.splits, "train": split})


def spoil(labels: np.ndarray, share: float, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Give a random share of the pictures another class, each other class equally likely.

    Returns:
        The new labels, int64 [N], and which of them are wrong, bool [N].
    """
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(labels))[: round(share * len(labels))]
    changed = labels.copy()
    changed[chosen] = (labels[chosen] + rng.integers(1, classes, len(chosen))) % classes
    return changed, changed != labels


def how_many_found(order: np.ndarray, spoilt: np.ndarray) -> dict[str, float]:
    """How many of the first pictures are spoilt, as shares, and the area under precision and recall.

    Args:
        order: positions of all pictures, most suspicious first, int [N].
        spoilt: bool [N].
    """
    hits = spoilt[order]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    found = {f"first_{count}": float(hits[:count].mean()) for count in FIRST}
    found["as_many"] = float(hits[: int(spoilt.sum())].mean())
    found["area"] = float(precision[hits].mean())
    return found


def by_own_probability(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Rank by the label's probability, the lowest first ("self-confidence"), as ``find_suspects`` does."""
    return np.argsort(-doubts(probabilities, labels), kind="stable")


def by_margin(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Rank by the label's probability minus the largest probability of another class, the lowest first."""
    values, rows = probabilities.astype(np.float64), np.arange(len(labels))
    own = values[rows, labels]
    values[rows, labels] = -np.inf
    return np.argsort(own - values.max(axis=1), kind="stable")


def by_confident_learning(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Rank the labels that confident learning doubts first, then the others, each by their margin."""
    order = by_margin(probabilities, labels)
    doubted = np.isin(order, likely_label_errors(probabilities, labels))
    return np.concatenate([order[doubted], order[~doubted]])


def by_adjusted_margin(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Rank by the margin, after each class's mean probability on its own pictures is subtracted."""
    own = probabilities[np.arange(len(labels)), labels]
    classes = probabilities.shape[1]
    counts = np.bincount(labels, minlength=classes)
    thresholds = np.bincount(labels, own, minlength=classes) / np.maximum(counts, 1)
    shifted = probabilities - thresholds + thresholds.max()
    return by_margin(shifted / shifted.sum(axis=1, keepdims=True), labels)


def by_cleanlab(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Rank the issues that the library cleanlab finds first, then the others by its score."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    values = probabilities.astype(np.float64)
    values /= values.sum(axis=1, keepdims=True)
    issues = find_label_issues(labels, values, return_indices_ranked_by="self_confidence", n_jobs=1)
    return _first(issues, np.argsort(get_label_quality_scores(labels, values), kind="stable"))


def _first(some: np.ndarray, every: np.ndarray) -> np.ndarray:
    return np.concatenate([some, every[~np.isin(every, some)]])


RANKINGS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "own probability": by_own_probability,
    "margin": by_margin,
    "confident learning": by_confident_learning,
    "adjusted margin": by_adjusted_margin,
}
if importlib.util.find_spec("cleanlab"):
    RANKINGS["cleanlab"] = by_cleanlab


class Experiment:
    """One share of noise with one seed. ``data`` have the true labels."""

    def __init__(self, options: argparse.Namespace, data: Data, noise: float, seed: int) -> None:
        self.options, self.data, self.seed = options, data, seed
        self.name = f"noise {noise:g}, seed {seed}"
        self.true = data.splits["train"].labels
        self.labels, self.spoilt = spoil(self.true, noise, len(data.class_names), seed)
        self.work = Path(options.work) / f"{noise:g}-{seed}"

    def trained(self, labels: np.ndarray, folder: Path) -> Run:
        """A run on these labels; an interrupted training is resumed."""
        options = self.options
        overrides = [f"training.epochs={options.epochs}", f"seed={self.seed}", *options.overrides]
        return train(
            relabelled(self.data, labels),
            options.recipe,
            overrides=overrides,
            out=folder,
            device=options.device,
            auto_resume=True,
        )

    def accuracy(self, labels: np.ndarray, folder: Path) -> dict[str, Any]:
        """The test accuracy of a network that is trained on these labels."""
        summary = self.trained(labels, folder).summary
        return {"accuracy": summary["accuracy"], "seconds": summary["seconds_total"]}

    def ranked(self, folds: int) -> dict[str, Any]:
        """How well each way of ranking finds the spoilt labels, and the first suspects."""
        run = self.trained(self.labels, self.work / "before")
        data = relabelled(self.data, self.labels)
        started = time.perf_counter()
        scores = score_pictures(run, data, folds=folds, device=self.options.device)
        seconds = time.perf_counter() - started
        suspects = np.array([one.index for one in find_suspects(data, scores) if one.split == "train"])
        probabilities = scores.probabilities["train"]
        found = {"suspects": how_many_found(suspects, self.spoilt)}
        for name, rank in RANKINGS.items():
            found[name] = how_many_found(rank(probabilities, self.labels), self.spoilt)
        guesses = probabilities.argmax(axis=1)
        return {
            "seconds": seconds,
            "found": found,
            "first": suspects[:REVIEWED].tolist(),
            "accuracy_train": float((guesses == self.true).mean()),
        }

    def run(self, results: Results) -> None:
        """Measure everything that ``results`` lack."""
        results.once(f"{self.name}: before", lambda: self.accuracy(self.labels, self.work / "before"))
        for folds in self.options.folds:
            ranked = results.once(f"{self.name}: {folds} folds", lambda: self.ranked(folds))  # noqa: B023
        if self.options.review:
            mended = self.labels.copy()
            mended[ranked["first"]] = self.true[ranked["first"]]
            results.once(f"{self.name}: after", lambda: self.accuracy(mended, self.work / "after"))
            true = Path(self.options.work) / f"true-{self.seed}"
            results.once(f"true labels, seed {self.seed}", lambda: self.accuracy(self.true, true))


def spread(values: Sequence[float]) -> str:
    """Mean of shares in percent, with the standard deviation if there are several."""
    mean = 100 * statistics.fmean(values)
    return f"{mean:.2f}" + (f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else "")


def ranking_rows(found: dict[str, dict[str, Any]], noise: float, folds: int, seeds: int) -> list[list[str]]:
    """The rows of the table of rankings: for each, the shares found, in percent."""
    measured = [found[f"noise {noise:g}, seed {seed}: {folds} folds"] for seed in range(seeds)]
    rows = []
    for name in measured[0]["found"]:
        if name == "suspects":
            continue
        shares = [one["found"][name] for one in measured]
        columns = [spread([one[key] for one in shares]) for key in shares[0]]
        rows.append([f"{100 * noise:g} %", str(folds), name, *columns])
    return rows


def review_row(found: dict[str, dict[str, Any]], noise: float, seeds: int) -> list[str]:
    """The row of the table of accuracies: before, after the review, with true labels, in percent."""
    names = [
        f"noise {noise:g}, seed {{}}: before",
        f"noise {noise:g}, seed {{}}: after",
        "true labels, seed {}",
    ]
    columns = [[found[name.format(seed)]["accuracy"] for seed in range(seeds)] for name in names]
    return [f"{100 * noise:g} %", *(spread(column) for column in columns)]


def arguments() -> argparse.ArgumentParser:
    """The options of this program."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--data", default=str(SHARED), help="the data set (default: %(default)s)")
    made.add_argument("--pictures", type=int, default=0, help="training pictures to use (default: all)")
    made.add_argument("--noise", type=float, nargs="+", default=[0.02, 0.05, 0.1], help="shares to spoil")
    made.add_argument("--seeds", type=int, default=3, help="number of seeds (default: %(default)s)")
    made.add_argument(
        "--folds",
        type=int,
        nargs="+",
        default=[0, FOLDS],
        help="networks per scoring; the last one's suspects are reviewed (default: 0 and %(default)s)",
    )
    made.add_argument("--recipe", default="fast")
    made.add_argument("--epochs", type=int, default=15)
    made.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    made.add_argument("--no-review", dest="review", action="store_false", help="only rank")
    made.add_argument("--device", default="auto", help="as in thumbnet train (default: %(default)s)")
    made.add_argument("--work", default="build/label-noise", metavar="DIR", help="folder for the runs")
    made.add_argument("--json", metavar="FILE", help="file for the results (default: DIR/results.json)")
    return made


def main() -> None:
    """Measure, and print two tables."""
    options = arguments().parse_args()
    settings = settings_of(options, "data", "pictures", "recipe", "epochs", "overrides")
    file = Path(options.json or Path(options.work) / "results.json")
    results = Results(file, settings, choose_device(options.device))
    data = part_of(load_data(options.data), options.pictures)
    for seed in range(options.seeds):
        for noise in options.noise:
            Experiment(options, data, noise, seed).run(results)
    first = [f"of the first {count}, %" for count in FIRST]
    rows = [
        row
        for noise in options.noise
        for folds in options.folds
        for row in ranking_rows(results.found, noise, folds, options.seeds)
    ]
    say(f"spoilt labels among the first suspects, n = {options.seeds}")
    say(table(["spoilt", "folds", "ranked by", *first, "of as many as spoilt, %", "area, %"], rows))
    if options.review:
        say(f"test accuracy, %, n = {options.seeds}")
        header = ["spoilt", "before", f"after reviewing {REVIEWED}", "true labels"]
        say(table(header, [review_row(results.found, noise, options.seeds) for noise in options.noise]))


if __name__ == "__main__":
    main()
