"""Training speed of the recipes against the bf16 matrix-product rate, alternating in one process.

    python benchmarks/training_speed.py --recipes fast resnet18 --rounds 5 --json speed.json

Pictures are random: speed does not depend on what they show. A round measures the product of two
4096x4096 bf16 matrices, then some training steps of each recipe: the medians over rounds are quoted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from thumbnet.console import say, table
from thumbnet.data.batches import Batch
from thumbnet.files import write_file
from thumbnet.hardware import choose_device, describe, keep_freed_memory
from thumbnet.models import build_model
from thumbnet.recipe import load_recipe
from thumbnet.training.fit import StepResult, TrainingState, fit

SIDE = 4096


class RandomBatches:
    """The same random batch again and again."""

    def __init__(self, size: int, steps: int, device: torch.device) -> None:
        images = torch.randn(size, 3, 32, 32, device=device)
        self.batch = Batch(images, torch.randint(10, (size,), device=device))
        self.steps = steps

    def __len__(self) -> int:
        """Steps in an epoch."""
        return self.steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batch, so often."""
        for _ in range(start, self.steps):
            yield self.batch


def matrix_rate(device: torch.device) -> float:
    """TFLOP/s of a 4096x4096x4096 bf16 product: the best of three."""
    a, b = (torch.randn(SIDE, SIDE, device=device).bfloat16() for _ in range(2))
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        (a @ b)[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return float(2 * SIDE**3 / best / 1e12)


def flops_per_picture(state: TrainingState, batch: Batch) -> float:
    """Of forward and backward: the convolutions and products, counted by torch."""
    with FlopCounterMode(display=False) as counter:
        state.model(batch.images[:8]).sum().backward()
    state.optimizer.zero_grad()
    return float(counter.get_total_flops()) / 8


def training_rate(state: TrainingState, batches: RandomBatches) -> float:
    """Pictures a second over one epoch of ``batches``, its first step left out."""
    times = []

    def on_step(step: StepResult) -> None:
        times.append(time.perf_counter())

    next(iter(fit(state, batches, on_step=on_step)))
    return len(batches.batch.labels) * (len(times) - 1) / (times[-1] - times[0])


def main() -> None:
    """Measure, print a table, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--recipes", nargs="+", default=["fast", "resnet18"])
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="steps a round, the first one not timed")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()

    device = choose_device(options.device)
    keep_freed_memory()
    prepared = []
    for name in options.recipes:
        recipe = load_recipe(name, [*options.overrides, f"training.epochs={options.rounds + 1}"])
        batches = RandomBatches(recipe.training.batch_size, options.steps, device)
        state = TrainingState(build_model(recipe.model, 10), recipe, options.steps, device)
        flops = flops_per_picture(state, batches.batch)
        training_rate(state, batches)  # warm-up
        prepared.append((name, state, batches, flops))
    products: list[float] = []
    rates: dict[str, list[float]] = {name: [] for name in options.recipes}
    for _ in range(options.rounds):
        products.append(matrix_rate(device))
        for name, state, batches, _flops in prepared:
            rates[name].append(training_rate(state, batches))

    product = statistics.median(products)
    rows, results = [], {}
    for name, _, batches, flops in prepared:
        median = statistics.median(rates[name])
        used = statistics.median(
            rate * flops / 1e12 / p for rate, p in zip(rates[name], products, strict=True)
        )
        results[name] = {
            "pictures_per_second": rates[name], "flops_per_picture": flops, "fraction_of_product": used,
        }  # fmt: skip
        spread = f"{min(rates[name]):,.0f} to {max(rates[name]):,.0f}"
        size = len(batches.batch.labels)
        rows.append(
            [name, str(size), f"{median:,.0f}", spread, f"{median * flops / 1e12:.2f}", f"{used:.0%}"]
        )
    say(f"bf16 product {SIDE}^3: {product:.2f} TFLOP/s ({min(products):.2f} to {max(products):.2f}), "
        f"n = {options.rounds}, {torch.get_num_threads()} threads, {device}")  # fmt: skip
    say(table(["recipe", "batch", "pictures/s", "spread", "TFLOP/s", "of the product"], rows))
    if options.json:
        described = {"hardware": describe(device), "product_tflops": products, "recipes": results}
        write_file(Path(options.json), json.dumps(described, indent=2) + "\n")


if __name__ == "__main__":
    main()
