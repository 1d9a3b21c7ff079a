"""timm's train.py, in a process of its own, with its output read for the clock and the accuracy."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import PROBE_PICTURES, Probe, Task, commit_of, link_pictures, main, plan, result

BATCH = 128
STEP = re.compile(r"Train: (\d+) \[ *(\d+)/(\d+) .*?Time: ([\d.]+)s")
ACCURACY = re.compile(r"Test: .*Acc@1: +[\d.]+ \( *([\d.]+)\)")


def flags(task: Task, data: Path, epochs: int) -> list[str]:
    return [
        *("--data-dir", str(data), "--val-split", "test", "--model", "resnet18", "--num-classes", "10"),
        *("--img-size", str(task.size), "--epochs", str(epochs), "--sched-on-updates"),
        *("--warmup-epochs", str(round(epochs / 60)), "--val-interval", "1000"),
        *("--amp", "--amp-dtype", "bfloat16", "--channels-last"),
        *("--device", "cpu", "--workers", str(task.threads), "--output", str(task.work / "runs")),
    ]


def start(task: Task, arguments: list[str], see: Callable[[str], bool]) -> None:
    """Run train.py and show its lines to ``see`` until it ends or ``see`` returns True."""
    command = [sys.executable, str(task.clones / "pytorch-image-models" / "train.py"), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout
    for line in process.stdout:
        sys.stderr.write(line)
        if see(line):
            process.terminate()
            break
    stopped = process.wait()
    if stopped > 0:
        raise SystemExit(f"train.py ended with status {stopped}")


def seconds_per_step(task: Task) -> float:
    """Measured on a few pictures; every step is logged."""
    probe = Probe(task.budget)
    few = link_pictures(task.data, task.work / "few", PROBE_PICTURES, 100)
    start(
        task,
        [*flags(task, few, 20), "--log-interval", "1"],
        lambda line: bool(STEP.search(line)) and probe.tick(),
    )
    return probe.per_step


def train(task: Task) -> dict[str, Any]:
    per_picture = seconds_per_step(task) / BATCH
    chosen = plan(per_picture, task.budget, task.pictures, BATCH)
    pictures = link_pictures(task.data, task.work / "pictures", chosen.pictures)
    seen: dict[str, float] = {}

    def see(line: str) -> bool:
        if found := STEP.search(line):
            seen.setdefault("start", time.perf_counter() - float(found[4]))
            seen["stop"] = time.perf_counter()
        if found := ACCURACY.search(line):
            seen["accuracy"] = float(found[1]) / 100
        return False

    start(task, flags(task, pictures, chosen.epochs), see)
    return result(
        seen["stop"] - seen["start"],
        seen["accuracy"],
        chosen,
        f"timm {commit_of(task.clones / 'pytorch-image-models')}",
        per_picture,
    )


if __name__ == "__main__":
    main(train)
