"""Settings that make a search take seconds, a request to stop it, and its table of trials."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from thumbnet.tuning.listener import Progress, TuneListener

if TYPE_CHECKING:
    from thumbnet.tuning.study import Record

TINY_SEARCH = [
    "model.width=0.125",
    "training.epochs=2",
    "training.batch_size=16",
    "training.precision=fp32",
    "evaluation.tta=none",
    "augment.translate=1",
    "augment.cutout=0",
    "augment.contrast=0.1",
    "training.label_smoothing=0.1",
]
"""A small network for small pictures. What is named here is not searched, so the page has few charts."""

SHORTEST = [*TINY_SEARCH, "training.epochs=1", "optimizer.weight_decay=0"]
"""The same with one epoch. Only learning rates are searched."""


class Stop(TuneListener):
    """Asks to stop in a step of trial ``trial``, or (0) in a step of the final training."""

    def __init__(self, trial: int) -> None:
        self.trial, self.now = trial, -1
        self.finished: list[int] = []

    def on_progress(self, progress: Progress) -> None:
        self.now = progress.trial

    def on_trial(self, record: Record, best: Record | None) -> None:
        self.finished.append(record.number)

    def on_final(self, best: Record, minutes: float | None) -> None:
        self.now = 0

    def should_stop(self) -> bool:
        return self.now == self.trial


def rows(path: Path) -> list[dict[str, str]]:
    with (path / "trials.csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    return [{key: text for key, text in row.items() if key not in ("seconds", "elapsed")} for row in found]
