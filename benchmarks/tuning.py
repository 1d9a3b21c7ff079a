"""Compares ``thumbnet tune`` with ``small`` and ``fast`` that train for the same total time.

    python benchmarks/tuning.py --minutes 60 --folders pictures/ photos/
    python benchmarks/tuning.py --cases cifar-500 --minutes 6 --seeds 1

The cases are parts of CIFAR-10 with 500, 2,000 and 10,000 training pictures, measured on 2,000 of its test
pictures, and any folders of yours. Test pictures choose nothing.

Results are written after every training. If the program is interrupted, call it again: it continues.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from label_noise import part_of, spread
from measure import SHARED
from resumable import Results, settings_of

from thumbnet.cli.console import say, table
from thumbnet.data.splits import Data
from thumbnet.errors import ThumbnetError
from thumbnet.hardware import choose_device
from thumbnet.sources.load import load_data
from thumbnet.training.train import train
from thumbnet.tuning.tune import resume_tuning, tune

RIVALS = ("small", "fast")
PARTS = {"cifar-500": 500, "cifar-2000": 2000, "cifar-10000": 10_000}  # training pictures of CIFAR-10
TESTED = 2000  # test pictures of CIFAR-10: looking at all of them would take longer than training
# What is kept of a search and of a training.
# Of a search's final training as well, except what the search has itself.
TUNED = (
    *("accuracy", "best", "start", "best_loss", "start_loss", "gain", "gain_error"),
    *("trials", "complete", "stopped", "changed", "seconds_search", "seconds_total"),
)
TRAINED = ("accuracy", "epochs", "parameters", "seconds_total")


def load_case(options: argparse.Namespace, name: str) -> Data | Path:
    """A part of CIFAR-10 by its name, or a folder by its path."""
    if name not in PARTS:
        return Path(name)
    return part_of(part_of(load_data(options.data), PARTS[name]), TESTED, split="test")


def cases(options: argparse.Namespace) -> list[str]:
    """The names of the parts of CIFAR-10, then the paths of the folders."""
    return [*options.cases, *options.folders]


def tuned(options: argparse.Namespace, case: str, seed: int, folder: Path) -> dict[str, Any]:
    """What a search reaches; an interrupted one goes on."""
    if not (folder / "summary.json").is_file():  # the last file of a search
        data = load_case(options, case)
        if (folder / "tune.json").is_file():
            resume_tuning(folder, data=data, device=options.device)
        else:
            overrides = [f"seed={seed}"]
            tune(data, minutes=options.minutes, overrides=overrides, out=folder, device=options.device)
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    final = json.loads((folder / summary["run"] / "summary.json").read_text("utf-8"))
    return {key: summary[key] for key in TUNED} | {key: final[key] for key in TRAINED if key not in TUNED}


def trained(options: argparse.Namespace, case: str, recipe: str, seed: int, folder: Path) -> dict[str, Any]:
    """What a recipe reaches in the same time; an interrupted training goes on."""
    run = train(
        load_case(options, case),
        recipe,
        overrides=[f"seed={seed}"],
        minutes=options.minutes,
        out=folder,
        device=options.device,
        auto_resume=True,
    )
    return {key: run.summary[key] for key in TRAINED}


def measure(options: argparse.Namespace, results: Results) -> None:
    """Measure everything that ``results`` lack."""
    for seed in range(options.seeds):
        for case in cases(options):
            name = Path(case).name
            folder = Path(options.work) / f"{name}-{seed}"
            results.once(f"{name}, seed {seed}: tune", lambda: tuned(options, case, seed, folder / "tune"))  # noqa: B023
            for recipe in RIVALS:
                results.once(
                    f"{name}, seed {seed}: {recipe}",
                    lambda: trained(options, case, recipe, seed, folder / recipe),  # noqa: B023
                )


def rows(found: dict[str, dict[str, Any]], names: Sequence[str], seeds: int) -> list[list[str]]:
    """For each case: test accuracies in percent, and the trials and the gain on held-out pictures."""
    table_rows = []
    for name in names:
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
    made.add_argument("--cases", nargs="*", choices=list(PARTS), default=list(PARTS), help="default: all")
    made.add_argument(
        "--folders", nargs="*", default=[], metavar="DIR", help="pictures in folders of classes"
    )
    made.add_argument("--minutes", type=float, default=10.0, help="for each training (default: %(default)s)")
    made.add_argument("--seeds", type=int, default=3, help="number of seeds (default: %(default)s)")
    made.add_argument("--device", default="auto", help="as in thumbnet train (default: %(default)s)")
    made.add_argument("--work", default="build/tuning", metavar="DIR", help="folder for the runs")
    made.add_argument("--json", metavar="FILE", help="file for the results (default: DIR/results.json)")
    return made


def main() -> None:
    """Measure, and print a table."""
    options = arguments().parse_args()
    settings = settings_of(options, "data", "minutes")
    file = Path(options.json or Path(options.work) / "results.json")
    results = Results(file, settings, choose_device(options.device))
    try:
        measure(options, results)
    except ThumbnetError as error:
        raise SystemExit(str(error)) from None
    say(f"test accuracy, %, {options.minutes:g} minute(s) each, n = {options.seeds}")
    head = ["data", "tune", *RIVALS, "trials", "held-out gain, points", "longest tune, s"]
    say(table(head, rows(results.found, [Path(case).name for case in cases(options)], options.seeds)))


if __name__ == "__main__":
    main()
