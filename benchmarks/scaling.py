"""Training speed of one and of two processes on one machine, and what more of them would give, on paper.

    python benchmarks/scaling.py --recipes fast resnet18 --rounds 5 --json scaling.json
    python benchmarks/scaling.py --paper

Threads are fixed: one process of one thread, two of one thread each, one of two threads take turns. A batch
is the recipe's in all cases, shared out among the processes; pictures are random, and 32x32 all the time.

The model on paper: a step of a batch B on N GPUs takes ``launch + B / N / rate`` to compute, of which the
backward pass (two thirds) hides the exchange of gradients; what it does not hide is added, and so are the
statistics of BatchNorm, which nothing hides. An exchange of V bytes takes ``2 (N - 1) / N V / bandwidth`` (a
ring; its slowest link counts) and ``2 log2(N) latency`` (a tree).
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from typing import Any

import torch
from measure import matrix_rate, median, parser, report, spread
from torch import nn
from training_speed import RandomBatches

from thumbnet.batches.batches import Batch
from thumbnet.distributed import joined
from thumbnet.hardware import keep_freed_memory
from thumbnet.models import build_model
from thumbnet.recipes.recipe import Recipe, load_recipe
from thumbnet.training.fit import StepResult, fit
from thumbnet.training.state import TrainingState

# What the model on paper takes for granted. NVIDIA's data sheet of the A100: 312e12 operations a second in
# bf16, of which training reaches about a third; NVLink 300e9 bytes a second each way. Links: bytes a second,
# and seconds that a message takes.
RATE = 100e12
LAUNCH = 1e-3  # seconds that a step takes however small it is: some hundred kernels
NVLINK = 300e9, 5e-6
NETWORKS = {
    "InfiniBand, 8 x 200 Gbit/s a machine": (200e9, 1e-5),
    "Ethernet, 25 Gbit/s a machine": (25e9 / 8, 5e-5),
}
GPUS = 8  # of a machine
FLOPS = {"fast": 0.52e9, "resnet18": 3.33e9, "tutorial": 3.33e9}  # a picture, both ways: training_speed.py


def worker(recipe: Recipe, steps: int) -> None:
    """In each process: train, and let the first one print pictures per second."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    keep_freed_memory()
    with joined() as world:
        state = TrainingState(build_model(recipe.model, 10), recipe, steps, torch.device("cpu"), world)
        batches = RandomBatches(recipe.training.batch_size // world.size, steps, state.device)
        batches.batch = Batch(batches.batch.images, batches.batch.labels, recipe.training.batch_size)
        times = []

        def on_step(step: StepResult) -> None:
            times.append(time.perf_counter())

        next(iter(fit(state, batches, on_step=on_step)))
        del state  # see distributed.joined
        rate = recipe.training.batch_size * (steps - 1) / (times[-1] - times[0])
        world.any(False)
        if world.is_first:
            print(json.dumps({"rate": rate}))


def measured(name: str, processes: int, threads: int, steps: int) -> float:
    """Pictures per second of a recipe."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [*command, __file__, "--worker", name, "--steps", str(steps)],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(json.loads(done.stdout)["rate"])


def volumes(recipe: Recipe) -> dict[str, Any]:
    """What the processes of a training tell each other in a step."""
    model = build_model(recipe.model, 10)
    norms = [m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    return {
        "gradients": 4 * sum(p.numel() for p in model.parameters() if p.requires_grad),
        "norms": len(norms),
        "statistics": 4 * sum(2 * (2 * width + 1) for width in norms),  # forwards and backwards
    }


def exchange(size: float, gpus: int, network: tuple[float, float]) -> float:
    """Seconds that the sum of ``size`` bytes over ``gpus`` takes."""
    if gpus == 1:
        return 0.0
    bandwidth, latency = NVLINK if gpus <= GPUS else network
    return 2 * (gpus - 1) / gpus * size / bandwidth + 2 * math.log2(gpus) * latency


def step_seconds(recipe: Recipe, flops: float, gpus: int, network: tuple[float, float], batch: int) -> float:
    """Of the model on paper."""
    talk = volumes(recipe)
    compute = LAUNCH + batch / gpus * flops / RATE
    gradients = exchange(talk["gradients"], gpus, network)
    statistics = 2 * talk["norms"] * exchange(talk["statistics"] / (2 * talk["norms"]), gpus, network)
    return float(compute + max(0.0, gradients - compute * 2 / 3) + statistics)


def paper(names: list[str]) -> None:
    """Print the model's tables."""
    for name in names:
        recipe = load_recipe(name)
        talk = volumes(recipe)
        print(
            f"\n{name}: {talk['gradients'] / 1e6:.1f} MB of gradients a step, "
            f"{talk['statistics'] / 1e3:.0f} kB of statistics in {2 * talk['norms']} messages; "
            f"batch {recipe.training.batch_size}"
        )
        for network, speed in NETWORKS.items():
            for kind, factor in (("the recipe's batch", 0), ("the batch grows with the GPUs", 1)):
                cells = []
                for gpus in (1, 8, 64, 512):
                    batch = recipe.training.batch_size * (gpus if factor else 1)
                    if batch < gpus:
                        cells.append(f"{gpus}: no picture for each")
                        continue
                    seconds = step_seconds(recipe, FLOPS[name], gpus, speed, batch)
                    gain = batch / seconds / (recipe.training.batch_size / step_seconds(
                        recipe, FLOPS[name], 1, speed, recipe.training.batch_size))  # fmt: skip
                    cells.append(f"{gpus}: {1e3 * seconds:.1f} ms, x{gain:.1f}")
                print(f"  {network}, {kind}: " + "; ".join(cells))


def main() -> None:
    """Measure, print a table, and write JSON; or print the model."""
    arguments = parser(__doc__, rounds=5)
    arguments.add_argument("--recipes", nargs="+", default=["fast", "resnet18"])
    arguments.add_argument("--steps", type=int, default=6, help="steps a round, the first one not timed")
    arguments.add_argument("--paper", action="store_true", help="print the model on paper")
    arguments.add_argument("--worker", help="for this program itself: train this recipe")
    options = arguments.parse_args()
    if options.worker:
        worker(load_recipe(options.worker, ["schedule.small_until=0"]), options.steps)
        return
    if options.paper:
        paper(options.recipes)
        return
    shapes = [(1, 1), (2, 1), (1, 2)]
    rates: dict[tuple[str, int, int], list[float]] = {}
    products: list[float] = []
    for _ in range(options.rounds):
        products.append(matrix_rate())
        for name in options.recipes:
            for processes, threads in shapes:
                rate = measured(name, processes, threads, options.steps)
                rates.setdefault((name, processes, threads), []).append(rate)
    rows = []
    for (name, processes, threads), values in rates.items():
        of_one = [a / b for a, b in zip(values, rates[name, 1, 1], strict=True)]
        used = [v * FLOPS[name] / 1e12 / product for v, product in zip(values, products, strict=True)]
        rows.append([
            name, f"{processes} x {threads}", f"{median(values):,.0f}", spread(values),
            f"{median(of_one):.2f}", spread(of_one, ".2f"), f"{median(used):.0%}",
        ])  # fmt: skip
    title = f"bf16 product on two threads: {median(products):.2f} TFLOP/s, n = {options.rounds}"
    header = [
        "recipe",
        "processes x threads",
        "pictures/s",
        "spread",
        "times 1 x 1",
        "spread",
        "of the product",
    ]
    results = {f"{name} {processes}x{threads}": v for (name, processes, threads), v in rates.items()}
    report(title, header, rows, options.json, {"product_tflops": products, "pictures_per_second": results})


if __name__ == "__main__":
    main()
