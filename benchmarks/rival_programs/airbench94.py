"""airbench94_muon on a CPU, adapted by ``benchmarks/airbench.py``, for as many steps as fit the time.

Its warm-up compiles the network, outside its clock; here it also measures the seconds per step.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from common import Plan, Task, commit_of, main, result

from thumbnet.batches.decoding import decode_split
from thumbnet.sources.load import load_data

sys.path.insert(0, str(Path(__file__).parents[1]))
import airbench

BATCH = 2000
WARMUP, PROBED = 4, 3
STEPS = f"""
_ended = []
def _tick(): _ended.append(_time.perf_counter())
def _steps(run, budget):
    if run == "warmup": return {WARMUP + PROBED}
    per_step = (_ended[-1] - _ended[{WARMUP - 1}]) / {PROBED}
    print("seconds per step:", per_step)
    return max(1, int(budget / per_step))
"""


def adapted(script: str, budget: float) -> str:
    """The script for a CPU, with the number of steps measured in the warm-up."""
    adapted = airbench.adapted(script, 8, "float32")
    total = "ceil(8 * len(train_loader)) if run != 'warmup' else 1"
    changes = (
        (total, f"_steps(run, {budget})"),
        # The script's warm-up is a whole training, which also compiles the steps after the third epoch.
        ("ceil(3 * len(train_loader))", "2 if run == 'warmup' else ceil(3 * len(train_loader))"),
        ("            step += 1\n", "            step += 1; _tick()\n"),
    )
    for old, new in changes:
        if old not in adapted:
            raise SystemExit(
                f"this version of airbench94_muon.py is not supported: it does not contain {old!r}"
            )
        adapted = adapted.replace(old, new)
    return adapted.replace("import time as _time", f"{STEPS}\nimport time as _time")


def write_pictures(archive: str, folder: Path) -> None:
    """The files of pictures that the script reads instead of downloading them."""
    folder.mkdir()
    for name, split in load_data(archive).splits.items():
        images = decode_split(split, (32, 32), "pad").images.permute(0, 2, 3, 1).clone()
        labels = torch.from_numpy(split.labels.copy()).long()
        torch.save({"images": images, "labels": labels, "classes": []}, folder / f"{name}.pt")


def parsed(printed: str) -> tuple[float, float, float]:
    """Accuracy with test-time augmentation, seconds of training, seconds per step, from what was printed."""
    rows = [[field.strip() for field in line.split("|")[1:-1]] for line in printed.splitlines()]
    rows = [row for row in rows if len(row) == 6]
    (accuracy,) = [row[4] for row in rows if row[1] == "eval"][-1:]
    (seconds,) = [row[5] for row in rows if row[1].isdigit()][-1:]
    per_step = re.findall(r"seconds per step: ([\d.e-]+)", printed)[0]
    return float(accuracy), float(seconds), float(per_step)


def train(task: Task) -> dict[str, Any]:
    clone = task.clones / "cifar10-airbench"
    write_pictures(str(task.archive), task.work / "cifar10")
    (task.work / "run.py").write_text(adapted((clone / "airbench94_muon.py").read_text(), task.budget))
    done = subprocess.run(
        [sys.executable, "run.py"], cwd=task.work, check=True, stdout=subprocess.PIPE, text=True
    )
    sys.stderr.write(done.stdout)
    accuracy, seconds, per_step = parsed(done.stdout)
    shown = BATCH * max(1, int(task.budget / per_step))
    epochs = -(-shown // task.pictures)
    version = f"cifar10-airbench {commit_of(clone)}"
    return result(seconds, accuracy, Plan(epochs, shown // epochs), version, per_step / BATCH)


if __name__ == "__main__":
    main(train)
