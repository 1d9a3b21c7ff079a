"""Runs airbench94_muon, the reference for ``fast``, on a CPU; only the device is changed.

    git clone https://github.com/KellerJordan/cifar10-airbench
    python benchmarks/airbench.py cifar10-airbench/airbench94_muon.py --epochs 8 --json airbench.json

The script runs in a process of its own on the same pictures, with every mention of a GPU replaced: float16 by
bfloat16, CUDA events by the computer's clock, torchvision's ``Normalize`` by its formula.

Weights are float32 and computations bfloat16 (autocast). bfloat16 weights have 3 bits fewer than the script's
float16 weights, so small steps would be lost; ``--weights bfloat16`` shows that.

The script's own clock counts training and evaluation with test-time augmentation, but not compilation, which
its warm-up (one step here) triggers before. "In all" is the whole process, which compiles with an empty cache
but finds the pictures decoded. The script sets no seed. With fewer ``--epochs`` the schedule ends earlier, so
only the time per epoch means something, not the accuracy.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from measure import SHARED, empty_caches, matrix_rate, parser, report

from thumbnet.batches.decoding import decode_split
from thumbnet.data.splits import Data
from thumbnet.sources.load import load_data

STAND_INS = """
import time as _time, types
class _Event:
    def __init__(self, enable_timing=False): self.at = 0.0
    def record(self): self.at = _time.perf_counter()
    def elapsed_time(self, end): return 1e3 * (end.at - self.at)
torch.cuda.Event, torch.cuda.synchronize = _Event, lambda: None
class _Normalize:
    def __init__(self, mean, std): self.mean, self.std = mean.view(-1, 1, 1), std.view(-1, 1, 1)
    def __call__(self, x): return ((x - self.mean) / self.std).to(x.dtype)
T = types.SimpleNamespace(Normalize=_Normalize)
"""
CHANGES = (
    ("import torchvision.transforms as T\n", STAND_INS),
    ("import torchvision\n", ""),
    ('torch.device("cuda")', '"cpu"'),
    (".half()", ".bfloat16()"),
    (".cuda()", ""),
)
FLOAT32_WEIGHTS = (
    ("mod.bfloat16()", "mod.float()"),
    (
        "    def forward(self, x, whiten",
        '    @torch.autocast("cpu", torch.bfloat16)\n    def forward(self, x, whiten',
    ),
)


def write_pictures(data: Data, folder: Path) -> None:
    """Write the pictures of ``data`` where the script looks for CIFAR-10 when it runs in ``folder``."""
    place = folder / "cifar10"
    place.mkdir()
    for name in ("train", "test"):
        split = data.splits[name]
        images = decode_split(split, (32, 32), "pad").images.permute(0, 2, 3, 1).clone()
        labels = torch.from_numpy(split.labels.copy()).long()
        torch.save({"images": images, "labels": labels, "classes": []}, place / f"{name}.pt")


def adapted(script: str, epochs: float, weights: str) -> str:
    """The script, adapted to a CPU: one run after a warm-up of one step."""
    for old, new in CHANGES + (FLOAT32_WEIGHTS if weights == "float32" else ()):
        if old not in script:
            raise SystemExit(
                f"this version of airbench94_muon.py is not supported: it does not contain {old!r}"
            )
        script = script.replace(old, new)
    script = script.replace(
        "ceil(8 * len(train_loader))", f"ceil({epochs} * len(train_loader)) if run != 'warmup' else 1"
    )
    return script.replace("range(200)", "range(1)")


def main() -> None:
    """Run the script, print a table, write JSON."""
    arguments = parser(__doc__, rounds=1)
    arguments.add_argument("script", type=Path, help="path of airbench94_muon.py in a clone")
    arguments.add_argument("--data", default=str(SHARED))
    arguments.add_argument("--epochs", type=float, default=8)
    arguments.add_argument("--weights", choices=("float32", "bfloat16"), default="float32")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(load_data(options.data), Path(folder))
        (Path(folder) / "run.py").write_text(
            adapted(options.script.read_text(), options.epochs, options.weights)
        )
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "run.py"],
            cwd=folder,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env=empty_caches(Path(folder)),
        )
        whole = time.perf_counter() - start
    rows = [re.findall(r"[\w.]+", line) for line in done.stdout.splitlines()]
    (*_, plain, accuracy, seconds) = next(row for row in rows[::-1] if row and row[0] == "eval")
    shown = [f"{100 * float(share):.2f}" for share in (accuracy, plain)]
    rate = matrix_rate()
    report(
        f"airbench94_muon, {options.epochs:g} epochs, {options.weights} weights, product {rate:.2f} TFLOP/s",
        ["test accuracy with TTA, %", "without, %", "seconds", "in all", "TFLOP in all"],
        [[*shown, f"{float(seconds):.0f}", f"{whole:.0f}", f"{whole * rate:.0f}"]],
        options.json,
        {
            "accuracy": float(accuracy),
            "plain_accuracy": float(plain),
            "seconds": float(seconds),
            "seconds_in_all": whole,
            "product_tflops": rate,
            "printed": done.stdout,
        },
    )


if __name__ == "__main__":
    main()
