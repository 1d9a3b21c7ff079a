"""Training speed of ``fast`` on this computer, as it is and as if it were others: docs/platforms.md.

    python benchmarks/platforms.py --rounds 5 --json platforms.json --markdown

Each condition is a process of its own, made only by environment variables, which a user could set as well.
All processes start first; then they train in turn, a few steps per round, so that other work on the computer
slows them alike. Results are the medians, and the median of each round's ratio to the first condition.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measure import median, parser, report, spread

RECIPE = "fast"
FP32 = ("training.precision=fp32",)
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "THUMBNET_KERNELS": "0"}


@dataclass(frozen=True)
class Condition:
    """A computer to try: this one with ``environment`` added, and with ``settings`` of the recipe."""

    name: str
    environment: dict[str, str] = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    without_gcc: bool = False


# The list of instructions that a processor reports cannot be changed. So the conditions without bf16 set the
# precision that `training.precision = "auto"` would choose there.
CONDITIONS = (
    Condition("as it is"),
    Condition("no gcc", without_gcc=True),
    Condition("one thread", {"OMP_NUM_THREADS": "1"}),
    Condition("AVX-512 without bf16", {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI", "THUMBNET_KERNELS": "0"},
              FP32),
    Condition("AVX2 without bf16", AVX2, FP32),
    Condition("AVX2 without bf16, one thread", {**AVX2, "OMP_NUM_THREADS": "1"}, FP32),
)  # fmt: skip


class Worker:
    """A process that trains some steps on request."""

    def __init__(self, condition: Condition, steps: int, folder: Path) -> None:
        environment = {**os.environ, **condition.environment}
        if condition.without_gcc:
            environment["PATH"] = path_without_gcc(folder)
            environment["THUMBNET_CACHE"] = str(
                folder / "cache"
            )  # or it would find kernels that are already compiled
        command = [sys.executable, __file__, "--worker", "--steps", str(steps)]
        command += [word for setting in condition.settings for word in ("--set", setting)]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.described = self._answer()

    def rate(self) -> float:
        """Pictures per second over one round."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return float(self._answer()["rate"])

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the process ended unexpectedly: {self.process.args!r}")
        return json.loads(line)


def path_without_gcc(folder: Path) -> str:
    """A ``PATH`` in ``folder`` with links to every program of the current one except compilers."""
    place = folder / "bin"
    place.mkdir(parents=True)
    for entry in os.environ.get("PATH", "").split(os.pathsep):
        for program in Path(entry).iterdir() if Path(entry).is_dir() else ():
            if not any(word in program.name for word in ("gcc", "g++", "cc1", "clang", "c++")):
                link = place / program.name
                if not link.is_symlink():
                    link.symlink_to(program)
    return str(place)


def work(options: argparse.Namespace) -> None:
    """Run as a worker: describe what is used here, then answer each input line with a rate."""
    import torch
    from training_speed import RandomBatches, training_rate

    from thumbnet.hardware import choose_device, keep_freed_memory
    from thumbnet.kernels.library import why_off
    from thumbnet.models import build_model
    from thumbnet.recipes.recipe import load_recipe
    from thumbnet.training.state import TrainingState

    device = choose_device("cpu")
    keep_freed_memory()
    recipe = load_recipe(RECIPE, ["training.epochs=1000000", "schedule.small_until=0", *options.overrides])
    batches = RandomBatches(recipe.training.batch_size, options.steps, device)
    state = TrainingState(build_model(recipe.model, 10), recipe, options.steps, device)
    training_rate(state, batches)  # compiles, and warms up
    described = {
        "precision": state.precision,
        "kernels": state.uses_kernels,
        "why_off": why_off(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }
    print(json.dumps(described), flush=True)
    for _ in sys.stdin:
        print(json.dumps({"rate": training_rate(state, batches)}), flush=True)


def main() -> None:
    """Measure, print a table, and write JSON."""
    arguments = parser(__doc__, rounds=5)
    arguments.add_argument("--steps", type=int, default=3, help="steps per round; the first is not timed")
    arguments.add_argument("--only", nargs="+", type=int, help="conditions to try, by number from 0")
    arguments.add_argument("--markdown", action="store_true", help="also print the rows of docs/platforms.md")
    arguments.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments.add_argument("--set", action="append", default=[], dest="overrides", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.worker:
        work(options)
        return
    chosen = [CONDITIONS[number] for number in options.only or range(len(CONDITIONS))]
    with tempfile.TemporaryDirectory() as place:
        workers = [Worker(one, options.steps, Path(place) / str(i)) for i, one in enumerate(chosen)]
        rates: list[list[float]] = [[] for _ in chosen]
        for _ in range(options.rounds):
            for worker, mine in zip(workers, rates, strict=True):
                mine.append(worker.rate())
        for worker in workers:
            worker.close()
    rows, results = [], {}
    for one, worker, mine in zip(chosen, workers, rates, strict=True):
        ratios = [rate / base for rate, base in zip(mine, rates[0], strict=True)]
        used = worker.described
        how = f"{used['instructions']}, {used['precision']}, {'' if used['kernels'] else 'no '}kernels"
        ratio = f"{median(ratios):.2f} ({spread(ratios, '.2f')})"
        rows.append([one.name, how, str(used["threads"]), f"{median(mine):,.0f}", spread(mine), ratio])
        results[one.name] = {**used, "pictures_per_second": mine, "ratio": ratios}
    title = (
        f"training `{RECIPE}` at full size, n = {options.rounds} rounds of {options.steps - 1} timed steps"
    )
    header = ["condition", "what is used", "threads", "pictures/s", "spread", "relative to the first"]
    report(title, header, rows, options.json, {"conditions": results})
    if options.markdown:
        print()
        for row in rows:
            print(f"| {row[0]} | {row[1]} | {row[2]} | {row[3]} | {row[5]} |")


if __name__ == "__main__":
    main()
