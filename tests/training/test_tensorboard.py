from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cli_helpers import SETTINGS, epochs, interrupt_when, run_cli
from helpers import write_class_folders


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("data"), ["train", "test"], per_class=20)


def test_tensorboard_events_go_on_after_a_resume(folder: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "run"
    arguments = ["train", str(folder), "--recipe", "tutorial", *SETTINGS, *epochs(4), "--tensorboard"]
    process = subprocess.Popen(
        [sys.executable, "-m", "thumbnet", *arguments, "--out", str(out)], stderr=subprocess.PIPE, text=True
    )
    interrupt_when(process, "epoch 2/4")
    assert process.wait(60) == 130
    assert run_cli("train", "--resume", out, "--tensorboard")[0] == 0
    events = accumulator.EventAccumulator(str(out / "tensorboard")).Reload()
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for tag, key in (("Accuracy/test", "test_accuracy"), ("Loss/test", "test_loss"), ("Learning rate", "lr")):
        found = [(one.step, one.value) for one in events.Scalars(tag)]
        assert found == [(line["step"], pytest.approx(line[key])) for line in metrics]
    assert len(events.Scalars("Loss/train")) >= 2
