"""Compares how many epochs ``small`` should train few pictures for.

    python benchmarks/epochs.py --epochs 30 60 120 340 --folders photos/ --json build/epochs/results.json
    python benchmarks/epochs.py --cases cifar-500 cifar-2000 --set model.width=0.7

Each network is judged by training pictures that it was not trained on: a third of a folder, or 5,000 other
training pictures of CIFAR-10. Test pictures choose nothing.

Results are written after every training. If the program is interrupted, call it again: it continues.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from pathlib import Path
from typing import Any

from input_sizes import HELD_OUT, trained_and_judged
from label_noise import part_of, spread
from measure import SHARED
from resumable import Results

from thumbnet.cli.console import say, table
from thumbnet.data.splits import Data
from thumbnet.errors import ThumbnetError
from thumbnet.hardware import choose_device
from thumbnet.sources.load import load_data
from tuning import PARTS

EPOCHS = (30, 60, 120, 340)
JUDGES = 5000  # training pictures of CIFAR-10


def judged(options: argparse.Namespace, case: str, epochs: int, seed: int) -> dict[str, Any]:
    """What a network reaches on the pictures that it was trained without, and the seconds of its steps."""
    fraction = HELD_OUT
    data: Data | str = case
    if case in PARTS:
        pictures = PARTS[case] + JUDGES
        fraction, data = JUDGES / pictures, part_of(load_data(options.data), pictures)
    settings = {"data.val_fraction": fraction, "training.epochs": epochs}
    return trained_and_judged(data, settings, seed, options.device, options.set)


def main() -> None:
    """Measure, and print a table."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--data", default=str(SHARED), help="CIFAR-10 (default: %(default)s)")
    made.add_argument("--cases", nargs="*", choices=list(PARTS), default=[], help="parts of CIFAR-10")
    made.add_argument("--folders", nargs="*", default=[], metavar="DIR", help="photographs in folders")
    made.add_argument("--epochs", nargs="+", type=int, default=EPOCHS, help="default: %(default)s")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in thumbnet train")
    made.add_argument("--seeds", type=int, default=3, help="number of seeds (default: %(default)s)")
    made.add_argument("--device", default="auto", help="as in thumbnet train (default: %(default)s)")
    made.add_argument("--json", metavar="FILE", default="build/epochs/results.json")
    options = made.parse_args()
    results = Results(Path(options.json), {"set": options.set}, choose_device(options.device))
    ways = list(itertools.product([*options.cases, *options.folders], options.epochs))
    names = {
        (case, epochs, seed): f"{Path(case).name}, {epochs} epochs, seed {seed}"
        for seed in range(options.seeds)
        for case, epochs in ways
    }
    try:
        for (case, epochs, seed), name in names.items():
            results.once(name, lambda: judged(options, case, epochs, seed))  # noqa: B023
    except ThumbnetError as error:
        raise SystemExit(str(error)) from None
    rows = []
    for case, epochs in ways:
        of = [results.found[names[case, epochs, seed]] for seed in range(options.seeds)]
        loss, seconds = (statistics.fmean(one[key] for one in of) for key in ("loss", "seconds"))
        accuracy = spread([one["accuracy"] for one in of])
        rows.append([Path(case).name, str(epochs), accuracy, f"{loss:.3f}", f"{seconds:.0f}"])
    say(f"accuracy on held-out pictures, %, small, n = {options.seeds}")
    say(table(["data", "epochs", "accuracy", "loss", "seconds of steps"], rows))


if __name__ == "__main__":
    main()
