"""Measures the numbers of the how-to about classes of unequal size.

    python benchmarks/howtos.py --json howtos.json

It trains on parts of CIFAR-10 with the recipe ``fast``, without skipping easy pictures.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import numpy as np
from measure import SHARED, parser, report, spread

from thumbnet.classifiers.load import load_run
from thumbnet.data.splits import Data
from thumbnet.hardware import choose_device
from thumbnet.sources.load import load_data
from thumbnet.training.train import train

RARE = ("bird", "cat", "deer", "dog", "frog")
RARE_PICTURES = 250


def part(data: Data, classes: tuple[str, ...], per_class: dict[str, int], seed: int) -> Data:
    """The data of ``classes`` only, with at most ``per_class`` training pictures of each class."""
    splits, rng = {}, np.random.default_rng(seed)
    numbers = [data.class_names.index(name) for name in classes]
    for split_name, split in data.splits.items():
        chosen = []
        for number in numbers:
            places = np.flatnonzero(split.labels == number)
            most = (
                per_class.get(data.class_names[number], len(places)) if split_name == "train" else len(places)
            )
            chosen.append(np.sort(rng.permutation(places)[:most]))
        taken = split.subset(np.concatenate(chosen))
        taken.labels = np.searchsorted(np.array(numbers), taken.labels)
        splits[split_name] = taken
    return Data(f"{data.source}, {len(classes)} classes", data.layout, classes, splits)


def main() -> None:
    """Measure, print tables, and write JSON."""
    arguments = parser(__doc__, rounds=3, device="auto")
    arguments.add_argument("--data", default=str(SHARED), help="CIFAR-10 (default: %(default)s)")
    options = arguments.parse_args()
    device = options.device
    data = load_data(options.data)
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)
        print(name, f"{value:.2f}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.rounds):
            unequal = part(data, data.class_names, dict.fromkeys(RARE, RARE_PICTURES), seed)
            for name, more in (
                ("nothing done", []),
                ("data.sampling=balanced", ["data.sampling=balanced"]),
                ("training.class_weights=balanced", ["training.class_weights=balanced"]),
            ):
                out = Path(folder) / f"{seed}-{name}"
                # Balanced sampling skips no pictures, so none of the three does.
                settings = [f"seed={seed}", "training.epochs=8", "data.skip_easy=0", *more]
                run = train(unequal, "fast", overrides=settings, out=out, device=device)
                classes = load_run(run.path, device).evaluate(unequal, "test", tta="mirror-shift").classes
                rare = statistics.mean(one.recall for one in classes if one.name in RARE)
                note(f"unequal, {name}: accuracy", 100 * run.summary["accuracy"])
                note(f"unequal, {name}: recall of the rare", 100 * rare)
    rows = [[name, f"{statistics.mean(values):.2f}", spread(values, ".2f")] for name, values in found.items()]
    report(
        f"how-tos, n = {options.rounds}",
        ["what", "mean, %", "spread"],
        rows,
        options.json,
        {"found": found},
        choose_device(device),
    )


if __name__ == "__main__":
    main()
