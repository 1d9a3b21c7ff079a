"""Compares input sizes, and ways to fit pictures into them, on folders of photographs.

    python benchmarks/input_sizes.py photos/ pictures/ --json build/input-sizes/results.json

Each network is trained by ``small`` with all of its epochs, without a third of the training pictures, and is
judged by these. Test pictures choose nothing.

Results are written after every training. If the program is interrupted, call it again: it continues.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from label_noise import spread
from resumable import Results

from thumbnet.cli.console import say, table
from thumbnet.data.splits import Data
from thumbnet.errors import ThumbnetError
from thumbnet.hardware import choose_device
from thumbnet.training.train import train
from thumbnet.tuning.space import FITS

SIZES = ("32", "48", "64")
HELD_OUT = 1 / 3


def judged(folder: str, size: str, fit: str, seed: int, device: str) -> dict[str, Any]:
    """What a network reaches on the pictures that it was trained without, and the seconds of its steps."""
    settings = {"data.image_size": size, "data.fit": fit, "data.val_fraction": HELD_OUT}
    return trained_and_judged(folder, settings, seed, device)


def trained_and_judged(
    data: Data | str, settings: dict[str, Any], seed: int, device: str, more: Sequence[str] = ()
) -> dict[str, Any]:
    """What ``small`` with ``settings`` and the overrides in ``more`` reaches on the ``val`` split."""
    last_only = {"training.keep": "last", "evaluation.every": 0, "evaluation.sample": 0}
    overrides = [f"{key}={value}" for key, value in {"seed": seed, **settings, **last_only}.items()]
    with tempfile.TemporaryDirectory() as out:
        run = train(data, "small", overrides=[*overrides, *more], out=Path(out) / "run", device=device)
        epochs = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text("utf-8").splitlines()]
    last = epochs[-1]
    found = {"accuracy": last["val_accuracy"], "loss": last["val_loss"], "pictures": last["val_pictures"]}
    return {**found, "seconds": sum(one["seconds"] for one in epochs)}


def main() -> None:
    """Measure, and print a table."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("folders", nargs="+", metavar="DIR", help="photographs in folders of classes")
    made.add_argument("--sizes", nargs="+", default=SIZES, help="sides in pixels (default: %(default)s)")
    made.add_argument("--fits", nargs="+", default=FITS, choices=FITS, help="default: all")
    made.add_argument("--seeds", type=int, default=3, help="number of seeds (default: %(default)s)")
    made.add_argument("--device", default="auto", help="as in thumbnet train (default: %(default)s)")
    made.add_argument("--json", metavar="FILE", default="build/input-sizes/results.json")
    options = made.parse_args()
    results = Results(Path(options.json), {"held_out": HELD_OUT}, choose_device(options.device))
    ways = list(itertools.product(options.folders, options.sizes, options.fits))
    names = {
        (*way, seed): f"{Path(way[0]).name}, {way[1]}, {way[2]}, seed {seed}"
        for seed in range(options.seeds)
        for way in ways
    }
    try:
        for (folder, size, fit, seed), name in names.items():
            results.once(name, lambda: judged(folder, size, fit, seed, options.device))  # noqa: B023
    except ThumbnetError as error:
        raise SystemExit(str(error)) from None
    rows = []
    for folder, size, fit in ways:
        of = [results.found[names[folder, size, fit, seed]] for seed in range(options.seeds)]
        loss, seconds = (statistics.fmean(one[key] for one in of) for key in ("loss", "seconds"))
        accuracy = spread([one["accuracy"] for one in of])
        rows.append([Path(folder).name, size, fit, accuracy, f"{loss:.3f}", f"{seconds:.0f}"])
    say(f"accuracy on held-out pictures, %, small, n = {options.seeds}")
    say(table(["data", "size", "fit", "accuracy", "loss", "seconds of steps"], rows))


if __name__ == "__main__":
    main()
