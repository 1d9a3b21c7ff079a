"""Compares ``thumbnet tune`` with ``small`` and ``fast`` that train for the same total time.

    python benchmarks/tuning.py --minutes 10 --json build/tuning/results.json
    python benchmarks/tuning.py --cases cifar-500 --minutes 2 --seeds 1

The cases are parts of CIFAR-10 with 500, 2,000 and 10,000 training pictures, the embedded digits as a folder
of PNG files, and CIFAR-10's cats and dogs, 500 of each, enlarged to 64 pixels. All are measured on test
pictures that choose nothing: 2,000 of CIFAR-10's.

Results are written after every training. If the program is interrupted, call it again: it continues.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from howtos import part
from label_noise import part_of, spread
from measure import SHARED
from PIL import Image
from resumable import Results

from thumbnet.cli.console import say, table
from thumbnet.data.splits import Data
from thumbnet.hardware import choose_device
from thumbnet.sources.load import load_data
from thumbnet.training.train import train
from thumbnet.tuning.tune import resume_tuning, tune

RIVALS = ("small", "fast")
PETS = ("cat", "dog")
PETS_EACH = 500
TESTED = 2000  # test pictures of CIFAR-10


@dataclass(frozen=True)
class Case:
    """A data set, and the settings that all trainings on it share."""

    load: Callable[[argparse.Namespace], Data | Path]
    settings: tuple[str, ...] = ()


def cifar(pictures: int) -> Case:
    """A part of CIFAR-10."""
    return Case(lambda options: with_few_test_pictures(part_of(load_data(options.data), pictures)))


def pets(options: argparse.Namespace) -> Data:
    """CIFAR-10's cats and dogs."""
    return with_few_test_pictures(part(load_data(options.data), PETS, dict.fromkeys(PETS, PETS_EACH), 0))


def with_few_test_pictures(data: Data) -> Data:
    """``data`` with some test pictures only: looking at all of them would take longer than training."""
    test = data.splits["test"]
    chosen = np.sort(np.random.default_rng(0).permutation(len(test))[:TESTED])
    return replace(data, splits={**data.splits, "test": test.subset(chosen)})


def digits_folder(options: argparse.Namespace) -> Path:
    """The embedded digits as ``SPLIT/CLASS/*.png``."""
    data, root = load_data("digits"), Path(options.work) / "digits"
    for name in ("train", "test"):
        split = data.splits[name]
        for index in range(len(split)):
            path = root / name / data.class_names[int(split.labels[index])] / f"{index:04}.png"
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.asarray(split.read(index))).save(path)
    return root


CASES = {
    "cifar-500": cifar(500),
    "cifar-2000": cifar(2000),
    "cifar-10000": cifar(10_000),
    "digits": Case(digits_folder),
    "pets-64": Case(pets, ("data.image_size=64",)),
}


def tuned(options: argparse.Namespace, case: Case, seed: int, folder: Path) -> dict[str, Any]:
    """What a search reaches; an interrupted one goes on."""
    data = case.load(options)
    if (folder / "tune.json").is_file():
        found = resume_tuning(folder, data=data, device=options.device)
    else:
        settings = [f"seed={seed}", *case.settings]
        found = tune(data, minutes=options.minutes, overrides=settings, out=folder, device=options.device)
    summary = found.summary
    kept = ("accuracy", "best", "start", "trials", "complete", "stopped", "shortened", "changed")
    return {key: summary[key] for key in (*kept, "seconds_total")}


def trained(options: argparse.Namespace, case: Case, recipe: str, seed: int, folder: Path) -> dict[str, Any]:
    """What a recipe reaches in the same time; an interrupted training goes on."""
    run = train(
        case.load(options),
        recipe,
        overrides=[f"seed={seed}", *case.settings],
        minutes=options.minutes,
        out=folder,
        device=options.device,
        auto_resume=True,
    )
    return {key: run.summary[key] for key in ("accuracy", "epochs", "seconds_total")}


def measure(options: argparse.Namespace, results: Results) -> None:
    """Measure everything that ``results`` lack."""
    for seed in range(options.seeds):
        for name in options.cases:
            folder, case = Path(options.work) / f"{name}-{seed}", CASES[name]
            results.once(f"{name}, seed {seed}: tune", lambda: tuned(options, case, seed, folder / "tune"))  # noqa: B023
            for recipe in RIVALS:
                results.once(
                    f"{name}, seed {seed}: {recipe}",
                    lambda: trained(options, case, recipe, seed, folder / recipe),  # noqa: B023
                )


def rows(found: dict[str, dict[str, Any]], cases: Sequence[str], seeds: int) -> list[list[str]]:
    """For each case: test accuracies in percent, and the trials and the gain on held-out pictures."""
    table_rows = []
    for name in cases:
        of = {
            way: [found[f"{name}, seed {seed}: {way}"] for seed in range(seeds)] for way in ("tune", *RIVALS)
        }
        accuracies = [spread([one["accuracy"] for one in measured]) for measured in of.values()]
        trials = statistics.fmean(one["trials"] for one in of["tune"])
        gain = statistics.fmean(100 * (one["best"] - one["start"]) for one in of["tune"])
        longest = max(one["seconds_total"] for one in of["tune"])
        table_rows.append([name, *accuracies, f"{trials:.0f}", f"{gain:+.2f}", f"{longest:.0f}"])
    return table_rows


def arguments() -> argparse.ArgumentParser:
    """The options of this program."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--data", default=str(SHARED), help="CIFAR-10 (default: %(default)s)")
    made.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), help="default: all")
    made.add_argument("--minutes", type=float, default=10.0, help="for each training (default: %(default)s)")
    made.add_argument("--seeds", type=int, default=3, help="number of seeds (default: %(default)s)")
    made.add_argument("--device", default="auto", help="as in thumbnet train (default: %(default)s)")
    made.add_argument("--work", default="build/tuning", metavar="DIR", help="folder for the runs")
    made.add_argument("--json", metavar="FILE", help="file for the results (default: DIR/results.json)")
    return made


def main() -> None:
    """Measure, and print a table."""
    options = arguments().parse_args()
    settings = {name: getattr(options, name) for name in ("data", "minutes")}
    file = Path(options.json or Path(options.work) / "results.json")
    results = Results(file, settings, choose_device(options.device))
    measure(options, results)
    say(f"test accuracy, %, {options.minutes:g} minute(s) each, n = {options.seeds}")
    head = ["data", "tune", *RIVALS, "trials", "held-out gain, points", "longest tune, s"]
    say(table(head, rows(results.found, options.cases, options.seeds)))


if __name__ == "__main__":
    main()
