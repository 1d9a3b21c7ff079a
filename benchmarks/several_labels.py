"""Measures trainings on pictures with several labels, made of four smaller pictures each.

    python benchmarks/several_labels.py --json labels.json
    python benchmarks/several_labels.py --source cifar10-jpeg.tar.xz --recipe fast
    python benchmarks/several_labels.py --write quarters/   # files and a table, to train on

Each quarter of a 32x32 picture is empty or shows a picture of the source (the embedded digits by default),
and the picture's labels are the classes that it shows. Pictures of a split are made of the source's pictures
of that split only.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import numpy as np
from measure import parser, report, spread
from PIL import Image

from thumbnet.data.multilabel import MultiLabelSplit
from thumbnet.data.splits import ArraySplit, Data, Split
from thumbnet.hardware import choose_device
from thumbnet.sources.load import load_data
from thumbnet.training.train import train

SIDE = 16  # pixels of a quarter
FILLED = 0.5  # probability that a quarter shows a picture
NOISE = 32  # levels of noise in empty quarters, so that no two pictures are the same


def quarters(split: Split, classes: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Make ``count`` pictures, uint8 [N, 32, 32, 3], and their labels, bool [N, classes]."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, NOISE, (count, 2 * SIDE, 2 * SIDE, 3), dtype=np.uint8)
    targets = np.zeros((count, classes), dtype=bool)
    for image, target in zip(images, targets, strict=True):
        for quarter in np.flatnonzero(generator.random(4) < FILLED):
            index = int(generator.integers(len(split)))
            y, x = SIDE * (quarter // 2), SIDE * (quarter % 2)
            small = split.read(index).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            image[y : y + SIDE, x : x + SIDE] = np.asarray(small)
            target[split.labels[index]] = True
    return images, targets


def made_of(source: str, train_pictures: int, test_pictures: int) -> Data:
    """The data set made of the pictures of ``source``."""
    data = load_data(source)
    splits: dict[str, Split] = {}
    for seed, (name, count) in enumerate((("train", train_pictures), ("test", test_pictures))):
        images, targets = quarters(data.splits[name], len(data.class_names), count, seed)
        splits[name] = MultiLabelSplit(ArraySplit(images, np.zeros(count, dtype=np.int64), name), targets)
    return Data(f"quarters of {data.source}", "made by a benchmark", data.class_names, splits)


def write(data: Data, folder: Path) -> None:
    """Write the pictures as files, and a table of their labels."""
    lines = ["path,labels,split"]
    for name, split in data.splits.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index, target in enumerate(split.targets):
            path = f"{name}/{index:05}.png"
            split.read(index).save(folder / path)
            labels = ";".join(data.class_names[label] for label in np.flatnonzero(target))
            lines.append(f"{path},{labels},{name}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n", "utf-8")


def main() -> None:
    """Train, print a table, and write JSON."""
    options = parser(__doc__, rounds=3, device="auto")
    options.add_argument("--source", default="digits", help="data set of the small pictures")
    options.add_argument("--recipe", default="small", help="recipe (default: small)")
    options.add_argument(
        "--pictures", type=int, nargs=2, default=(4000, 1000), help="numbers in train and test"
    )
    options.add_argument("--set", action="append", default=[], help="settings of the recipe")
    options.add_argument("--write", type=Path, help="write the pictures to this folder instead")
    asked = options.parse_args()
    data = made_of(asked.source, *asked.pictures)
    if asked.write is not None:
        write(data, asked.write)
        return
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(asked.rounds):
            out = Path(folder) / str(seed)
            settings = [f"seed={seed}", *asked.set]
            run = train(data, asked.recipe, overrides=settings, out=out, device=asked.device)
            measures = ("map", "micro_f1_at_half", "micro_f1", "macro_f1_at_half", "macro_f1", "accuracy")
            for name in measures:
                found.setdefault(name, []).append(100 * run.summary[name])
            found.setdefault("seconds_training", []).append(run.summary["seconds_training"])
            print(f"seed {seed}: mAP {found['map'][-1]:.2f} %", flush=True)
    by_chance = 100 * float(data.splits["test"].targets.mean(axis=0).mean())
    rows = [[name, f"{statistics.mean(values):.2f}", spread(values, ".2f")] for name, values in found.items()]
    rows.append(["map by chance", f"{by_chance:.2f}", ""])
    report(
        f"{data.source}, {asked.recipe}, n = {asked.rounds}",
        ["what", "mean", "spread"],
        rows,
        asked.json,
        {"found": found, "map_by_chance": by_chance, "pictures": list(asked.pictures), "set": asked.set},
        choose_device(asked.device),
    )


if __name__ == "__main__":
    main()
