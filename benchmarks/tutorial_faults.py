"""What the tutorial's faults cost in accuracy: one training without faults, and one per fault.

    python benchmarks/tutorial_faults.py --json faults.json

ResNet-20 trains on a part of CIFAR-10 with the tutorial's SGD and learning rates. Its twenty epochs stand for
the tutorial's two hundred. All 10,000 test pictures are used. Faults 5, 6, 7, 9, 11 and 12 stop the program
or are in the text, so they have no accuracy to measure. Fault 10 costs time on a GPU.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from measure import SHARED, parser, report
from torch import Tensor

from thumbnet.batches.batches import Batch
from thumbnet.batches.dataset import random_subset
from thumbnet.batches.decoding import decode_split
from thumbnet.classifiers.logits import collect_logits
from thumbnet.hardware import choose_device, keep_freed_memory
from thumbnet.models import build_model
from thumbnet.recipes.recipe import load_recipe
from thumbnet.reports.figures import INK, new_figure, save
from thumbnet.seeds import derive_seed
from thumbnet.sources.load import load_data
from thumbnet.training.fit import fit
from thumbnet.training.state import TrainingState

MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)))
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Fault:
    """How a faulty training differs from the correct one.

    Attributes:
        flip: axis of the random flip: 3 is left-right, 2 is upside down, None is no flip.
        scale: divisor of the pixels.
        swap: exchange height and width in training pictures.
        swap_test: exchange height and width in test pictures.
        flip_test: flip test pictures at random, too.
        settings: settings of the recipe.
    """

    flip: int | None = 3
    scale: float = 255.0
    swap: bool = False
    swap_test: bool = False
    flip_test: bool = False
    settings: tuple[str, ...] = ()


FAULTS = {
    "right": Fault(),
    "no flip at all": Fault(flip=None),
    "1: flipped top to bottom": Fault(flip=2),
    "2: not divided by 255": Fault(scale=1.0),
    "3: height and width swapped": Fault(swap=True, swap_test=True),
    "3: swapped in training, upright in use": Fault(swap=True),
    "4: test pictures flipped, too": Fault(flip_test=True),
    "8: milestone an epoch early": Fault(settings=("schedule.milestones=[0.7]",)),
    "8: had a second milestone come (0.9)": Fault(settings=("schedule.milestones=[0.75, 0.9]",)),
    "13: 10 of the 200 epochs": Fault(settings=("training.epochs=1", "schedule.name=constant")),
}


class FaultyBatches:
    """Batches as the tutorial's loader makes them."""

    def __init__(self, images: Tensor, labels: Tensor, fault: Fault, seed: int, training: bool) -> None:
        self.images, self.labels, self.fault, self.seed, self.training = images, labels, fault, seed, training
        self.size = 128 if training else 500

    def __len__(self) -> int:
        return -(-len(self.labels) // self.size)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Batches with every picture once."""
        fault = self.fault
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "faults", epoch))
        count = len(self.labels)
        order = torch.randperm(count, generator=generator) if self.training else torch.arange(count)
        flipped = torch.rand(count, generator=generator) < 0.5
        axis = fault.flip if self.training or fault.flip_test else None
        for chosen in list(order.split(self.size))[start:]:
            images = self.images[chosen].float()
            if axis is not None:
                images = torch.where(flipped[chosen].view(-1, 1, 1, 1), images.flip(axis), images)
            if fault.swap if self.training else fault.swap_test:
                images = images.transpose(2, 3)
            images = (images / fault.scale - MEAN) / STD
            yield Batch(images.contiguous(memory_format=torch.channels_last), self.labels[chosen])


def accuracy(state: TrainingState, batches: FaultyBatches) -> float:
    """Accuracy in percent."""
    logits, labels = collect_logits(state.evaluated_model, batches, dtype=state.dtype, tta="none")
    return 100 * float((logits.argmax(1) == labels).double().mean())


def draw(found: dict[str, list[list[float]]], file: str) -> None:
    """Plot each fault's accuracies, one dot per seed, with a line at the correct training's mean."""
    figure = new_figure(7.5, 4.2)
    axes = figure.add_subplot()
    right = statistics.mean(statistics.mean(one) for one in found["right"])
    axes.axvline(right, color=INK, linestyle=":", linewidth=1)
    for row, (name, runs) in enumerate(found.items()):
        means = [statistics.mean(one) for one in runs]
        axes.plot(means, [row] * len(means), "o", color="#d97706" if name[0].isdigit() else "#3b82c4")
    axes.set_yticks(range(len(found)), list(found))
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("test accuracy, %")
    save(figure, Path(file))


def main() -> None:
    """Measure, print a table, and write JSON."""
    arguments = parser(__doc__, rounds=3)
    arguments.add_argument("--data", default=str(SHARED), help="CIFAR-10 (default: %(default)s)")
    arguments.add_argument("--pictures", type=int, default=5_000, help="training pictures")
    arguments.add_argument("--epochs", type=int, default=20)
    arguments.add_argument("--network", default="resnet20")
    arguments.add_argument("--plot", metavar="FILE", help="plot the accuracies")
    options = arguments.parse_args()
    keep_freed_memory()
    data = load_data(options.data)
    splits = {"train": random_subset(data.splits["train"], options.pictures, 0), "test": data.splits["test"]}
    images = {name: decode_split(one, (32, 32), "pad").images for name, one in splits.items()}
    labels = {name: torch.from_numpy(one.labels) for name, one in splits.items()}
    changes = [f"model.name={options.network}", f"training.epochs={options.epochs}"]

    def run(fault: Fault, seed: int) -> list[float]:
        recipe = load_recipe("tutorial", [*changes, f"seed={seed}", *fault.settings])
        torch.manual_seed(seed)
        model = build_model(recipe.model, 10)
        batches = FaultyBatches(images["train"], labels["train"], fault, seed, training=True)
        state = TrainingState(model, recipe, len(batches), choose_device("cpu"))
        for _ in fit(state, batches):
            pass
        tests = [FaultyBatches(images["test"], labels["test"], fault, s, False) for s in range(5)]
        return [accuracy(state, one) for one in (tests if fault.flip_test else tests[:1])]

    found: dict[str, list[list[float]]] = {name: [] for name in FAULTS}
    for seed in range(options.rounds):
        for name, fault in FAULTS.items():
            found[name].append(run(fault, seed))
            print(seed, name, found[name][-1], flush=True)
    if options.plot:
        draw(found, options.plot)
    rows = []
    right = [statistics.mean(one) for one in found["right"]]
    for name, runs in found.items():
        means = [statistics.mean(one) for one in runs]
        differences = [a - b for a, b in zip(means, right, strict=True)]
        within = max(statistics.pstdev(one) for one in runs) if FAULTS[name].flip_test else 0.0
        rows.append([
            name, f"{statistics.mean(means):.2f}", f"{min(means):.2f} to {max(means):.2f}",
            f"{statistics.mean(differences):+.2f}", f"{within:.2f}" if within else "",
        ])  # fmt: skip
    title = (
        f"the tutorial's faults: {options.network}, {options.pictures:,} pictures, {options.epochs} epochs, "
        f"n = {options.rounds}"
    )
    header = ["fault", "test accuracy, %", "spread", "difference", "same weights tested again, sd"]
    report(title, header, rows, options.json, {"accuracy": found})


if __name__ == "__main__":
    main()
