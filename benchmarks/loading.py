"""Measures loading: pictures per second of both engines, decoding, and the time to a run's first step.

    python benchmarks/loading.py --json loading.json

Needs CIFAR-10's JPEG copy (``--data``). "The tutorial's loader" does what the tutorial does: two
workers open, pad, crop, mirror and normalise each picture by itself. Everything is measured on the CPU.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from measure import SHARED, median, parser, report, spread, take_turns
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from thumbnet.batches.batches import TrainBatches
from thumbnet.batches.decoding import decode_split
from thumbnet.batches.engines import MemoryEngine, WorkerEngine
from thumbnet.batches.statistics import Normalise
from thumbnet.data.rendering import Preprocessing
from thumbnet.data.splits import Data, FileSplit
from thumbnet.recipes.recipe import Recipe, load_recipe
from thumbnet.recipes.settings import AugmentSettings, TrainingSettings
from thumbnet.sources.load import load_data

PREPROCESSING = Preprocessing((32, 32), "pad", (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
NAMES = {"memory": "memory engine", "workers": "worker engine", "tutorial": "the tutorial's loader"}

FIRST_STEP = """
import os, sys, time
import thumbnet
from thumbnet.training.listener import Listener
class Until(Listener):
    def on_step(self, step):
        print(step.step, flush=True)
        os._exit(0)
thumbnet.train(sys.argv[1], "fast", out=sys.argv[2], device="cpu", progress=False, listener=Until())
"""


class TutorialDataset(Dataset[tuple[Tensor, int]]):
    """One picture at a time, as with torchvision's transforms."""

    def __init__(self, split: FileSplit) -> None:
        self.split = split
        self.mean = torch.tensor(PREPROCESSING.mean).view(3, 1, 1)
        self.std = torch.tensor(PREPROCESSING.std).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self.split.file(index)) as opened:
            image = ImageOps.expand(opened.convert("RGB"), 4)
        left, top = random.randint(0, 8), random.randint(0, 8)
        image = image.crop((left, top, left + 32, top + 32))
        if random.random() < 0.5:
            image = ImageOps.mirror(image)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        return (pixels - self.mean) / self.std, int(self.split.labels[index])


def as_files(data: Data, count: int, folder: Path) -> FileSplit:
    """Write ``count`` random training pictures to single files, as the tutorial reads them."""
    train = data.splits["train"]
    some = train.subset(np.random.default_rng(0).permutation(len(train))[:count])
    names = [f"{index}.jpg" for index in range(count)]
    for index, name in enumerate(names):
        (folder / name).write_bytes(some.content(index))
    return FileSplit(folder, names, some.labels)


def epoch(batches: TrainBatches) -> None:
    """Go through all batches of one epoch."""
    for _ in batches.epoch(0):
        pass


def seconds_to_first_step(data: str, cache: Path) -> float:
    """Seconds from the command to the end of ``fast``'s first step."""
    environment = {**os.environ, "THUMBNET_CACHE": str(cache)}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", FIRST_STEP, data, str(Path(folder) / "run")]
        started = time.perf_counter()
        subprocess.run(command, check=True, env=environment, capture_output=True)
        return time.perf_counter() - started


def main() -> None:
    """Measure, print a table, and write JSON."""
    arguments = parser(__doc__, rounds=5)
    arguments.add_argument("--data", default=str(SHARED))
    arguments.add_argument(
        "--pictures", type=int, default=10_000, help="pictures for the comparison of the engines"
    )
    options = arguments.parse_args()

    recipe = load_recipe("fast")
    normalise = Normalise(PREPROCESSING, torch.device("cpu"))

    def batches(engine: MemoryEngine | WorkerEngine, settings: AugmentSettings, size: int) -> TrainBatches:
        training = TrainingSettings(batch_size=size)
        return TrainBatches(engine, normalise, Recipe(augment=settings, training=training), (32, 32))

    with tempfile.TemporaryDirectory() as folder:
        some = as_files(load_data(options.data), options.pictures, Path(folder))
        random_images = torch.randint(256, (50_000, 32, 32, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        memory = MemoryEngine(random_images, torch.zeros(50_000, dtype=torch.int64))
        in_memory = batches(memory, recipe.augment, recipe.training.batch_size)
        tutorial_augment = load_recipe("tutorial").augment
        workers = batches(WorkerEngine(some, (32, 32), "pad", 2), tutorial_augment, 128)
        tutorial = DataLoader(TutorialDataset(some), batch_size=128, shuffle=True, num_workers=2)

        times = take_turns({"memory": lambda: epoch(in_memory)}, options.rounds)
        times |= take_turns(
            {"workers": lambda: epoch(workers), "tutorial": lambda: [None for _ in tutorial]}, options.rounds
        )
    counts = {"memory": 50_000, "workers": len(some), "tutorial": len(some)}
    rates = {name: [counts[name] / seconds for seconds in values] for name, values in times.items()}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["THUMBNET_CACHE"] = folder
        everything = [*load_data(options.data).splits.values()]
        started = time.perf_counter()
        for split in everything:
            decode_split(split, (32, 32), "pad")
        decoding = time.perf_counter() - started
        started = time.perf_counter()
        for split in everything:
            decode_split(split, (32, 32), "pad")
        cached = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        first = seconds_to_first_step(options.data, Path(folder))
        second = [seconds_to_first_step(options.data, Path(folder)) for _ in range(options.rounds)]
    rows = [
        [NAMES[name], f"{median(values):,.0f} pictures/s", spread(values)] for name, values in rates.items()
    ]
    rows += [
        [f"decoding all {sum(map(len, everything)):,}", f"{decoding:.1f} s", ""],
        ["the same from the cache", f"{cached:.2f} s", ""],
        ["first run, to its first step", f"{first:.1f} s", ""],
        ["later runs, to the first step", f"{median(second):.1f} s", spread(second, ".1f")],
    ]
    title = f"loading, n = {options.rounds}, {torch.get_num_threads()} threads"
    results = {"pictures_per_second": rates, "decoding": decoding, "cached": cached}
    results |= {"first_run": first, "later_runs": second}
    report(title, ["what", "median", "spread"], rows, options.json, results)


if __name__ == "__main__":
    main()
