"""Training speed of the recipes, relative to the rate of a bf16 matrix product.

    python benchmarks/training_speed.py --recipes fast resnet18 --rounds 5 --json speed.json

The pictures are random and always 32x32: speed does not depend on what they show. Each round measures the
product of two bf16 matrices (4096x4096; 8192x8192 on a GPU), then some training steps of each recipe. Results
are medians.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from measure import matrix_rate, median, parser, product_side, report, spread, wait
from torch.utils.flop_counter import FlopCounterMode

from thumbnet.batches.batches import Batch
from thumbnet.hardware import choose_device, keep_freed_memory
from thumbnet.models import build_model
from thumbnet.recipes.recipe import load_recipe
from thumbnet.training.fit import StepResult, fit
from thumbnet.training.state import TrainingState


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
        """The same batch once per step."""
        for _ in range(start, self.steps):
            yield self.batch


def flops_per_picture(state: TrainingState, batch: Batch) -> float:
    """FLOPs of the convolutions and matrix products, forwards and backwards, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        state.model(batch.images[:8]).sum().backward()
    state.optimizer.zero_grad()
    return float(counter.get_total_flops()) / 8


def training_rate(state: TrainingState, batches: RandomBatches) -> float:
    """Pictures per second over one epoch of ``batches``, without its first step.

    A GPU still works on a step when ``on_step`` is called. So the clock starts when the first step's work is
    done, and stops when the last one's is.
    """
    times = []

    def on_step(step: StepResult) -> None:
        if step.step_in_epoch in (1, len(batches)):
            wait(state.device)
            times.append(time.perf_counter())

    next(iter(fit(state, batches, on_step=on_step)))
    return len(batches.batch.labels) * (len(batches) - 1) / (times[-1] - times[0])


def main() -> None:
    """Measure, print a table, and write JSON."""
    arguments = parser(__doc__, rounds=5, device="auto")
    arguments.add_argument("--recipes", nargs="+", default=["fast", "resnet18"])
    arguments.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    arguments.add_argument("--steps", type=int, default=5, help="steps per round; the first is not timed")
    options = arguments.parse_args()

    device = choose_device(options.device)
    keep_freed_memory()
    prepared = []
    for name in options.recipes:
        always = [f"training.epochs={options.rounds + 1}", "schedule.small_until=0"]
        recipe = load_recipe(name, [*options.overrides, *always])
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

    rows, results = [], {}
    for name, _, batches, flops in prepared:
        used = [rate * flops / 1e12 / product for rate, product in zip(rates[name], products, strict=True)]
        results[name] = {
            "pictures_per_second": rates[name], "flops_per_picture": flops, "fraction_of_product": used,
        }  # fmt: skip
        middle = median(rates[name])
        rows.append([
            name, str(len(batches.batch.labels)), f"{middle:,.0f}", spread(rates[name]),
            f"{middle * flops / 1e12:.2f}", f"{median(used):.0%}",
        ])  # fmt: skip
    title = (
        f"bf16 product {product_side(device)}^3: {median(products):.2f} TFLOP/s ({spread(products, '.2f')}), "
        f"n = {options.rounds}, {torch.get_num_threads()} threads, {device}"
    )
    header = ["recipe", "batch", "pictures/s", "spread", "TFLOP/s", "of the product"]
    report(title, header, rows, options.json, {"product_tflops": products, "recipes": results}, device)


if __name__ == "__main__":
    main()
