"""Compares ``fast`` with airbench94_muon on the same GPU and the same pictures.

    git clone https://github.com/KellerJordan/cifar10-airbench
    python benchmarks/gpu.py --airbench cifar10-airbench/airbench94_muon.py --rounds 20 --json gpu.json \\
        --variant training.compile=true \\
        --variant "training.compile=true training.compile_mode=reduce-overhead"
    python benchmarks/gpu.py --recipe resnet18 --set training.epochs=20 --rounds 3

Both are timed as airbench times itself: the pictures are on the GPU, everything is compiled and warm, and the
clock counts the first layer's whitening, the training, and the evaluation with test-time augmentation. Each
``--variant`` of the recipe takes turns with it, and compiles before the clock starts. Not yet run on a GPU.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measure import SHARED, matrix_rate, median, parser, report, spread
from torch import Tensor

from thumbnet.batches.prepare import Prepared, prepare
from thumbnet.classifiers.logits import collect_logits
from thumbnet.data.splits import Data
from thumbnet.hardware import choose_device
from thumbnet.recipes.recipe import Recipe
from thumbnet.sources.load import load_data
from thumbnet.training.choose import choose_recipe
from thumbnet.training.fit import fit
from thumbnet.training.listener import Listener
from thumbnet.training.state import build_state


def train_once(recipe: Recipe, data: Data, prepared: Prepared, device: torch.device) -> tuple[float, float]:
    """Train and evaluate once: accuracy with the recipe's test-time augmentation, and seconds."""
    _wait(device)
    started = time.perf_counter()
    state = build_state(recipe, prepared, data.class_names, device)
    for _ in fit(state, prepared.train):
        pass
    logits, labels = collect_logits(
        state.evaluated_model, prepared.evaluation["test"], dtype=state.dtype, tta=recipe.evaluation.tta
    )
    _wait(device)
    return float((logits.argmax(1) == labels).double().mean()), time.perf_counter() - started


def airbench(script: Path, rounds: int, prepared: Prepared) -> list[tuple[float, float]]:
    """Accuracies and seconds of airbench's own script, run in a folder with these pictures."""
    with tempfile.TemporaryDirectory() as folder:
        cifar = Path(folder) / "cifar10"
        cifar.mkdir()
        engines = {"train": prepared.train.engine, "test": prepared.evaluation["test"].engine}
        for name, engine in engines.items():
            images = torch.cat([*engine.fetch(torch.arange(len(engine.labels)).split(1000))])
            content: dict[str, Tensor | list[str]] = {
                "images": images.permute(0, 2, 3, 1).contiguous().cpu(),
                "labels": engine.labels.cpu(),
                "classes": [str(number) for number in range(10)],
            }
            torch.save(content, cifar / f"{name}.pt")
        text = script.read_text().replace("range(200)", f"range({rounds})")
        (Path(folder) / script.name).write_text(text)
        done = subprocess.run(
            [sys.executable, script.name], cwd=folder, check=True, capture_output=True, text=True
        )
    rows = [re.findall(r"[\w.]+", line) for line in done.stdout.splitlines() if "eval" in line]
    finished = [row for row in rows if row and row[-1][0].isdigit() and float(row[-2]) > 0]
    return [(float(row[-2]), float(row[-1])) for row in finished][-rounds:]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Measure, print a table, and write JSON."""
    arguments = parser(__doc__, rounds=20)
    arguments.add_argument("--data", default=str(SHARED))
    arguments.add_argument("--airbench", type=Path, help="path of airbench94_muon.py in a clone")
    arguments.add_argument("--recipe", default="fast")
    arguments.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    arguments.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="SETTINGS",
        help="settings of one more row: KEY=VALUE, separated by spaces",
    )
    arguments.add_argument("--device", default="cuda")
    options = arguments.parse_args()
    device = choose_device(options.device)
    data = load_data(options.data)
    recipes = {
        f"{options.recipe} {settings}".strip(): choose_recipe(
            data, options.recipe, [*options.overrides, *settings.split()], None, Listener()
        )[0]
        for settings in ("", *options.variant)
    }
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in recipes}
    for seed in range(-1, options.rounds):  # -1 warms up
        for name, recipe in recipes.items():
            seeded = replace(recipe, seed=max(seed, 0))
            result = train_once(seeded, data, prepare(data, seeded, device), device)
            if seed >= 0:
                measured[name].append(result)
    if options.airbench:
        prepared = prepare(data, recipes[options.recipe], device)
        measured["airbench94_muon"] = airbench(options.airbench, options.rounds, prepared)
    rows, results = [], {}
    for name, runs in measured.items():
        accuracies: list[float] = [100 * accuracy for accuracy, _ in runs]
        seconds = [taken for _, taken in runs]
        mean = sum(accuracies) / len(runs)
        rows.append([
            name, str(len(runs)), f"{mean:.2f}", spread(accuracies, ".2f"), f"{median(seconds):.2f}",
            spread(seconds, ".2f"),
        ])  # fmt: skip
        results[name] = runs
    what: Any = torch.cuda.get_device_name(device) if device.type == "cuda" else device
    title = f"{what}, product {matrix_rate(device):.0f} TFLOP/s"
    report(
        title, ["what", "n", "mean %", "spread", "seconds", "spread"], rows, options.json, {"runs": results}
    )


if __name__ == "__main__":
    main()
