"""Good, hostile, slow and disconnecting clients at once; then the service is stopped while they go on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from thumbnet.runs.folder import Run

pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")

FULL = os.environ.get("THUMBNET_FAULTS") == "full"
PROGRAM = Path(__file__).parents[2] / "benchmarks" / "service_load.py"


def test_under_mixed_load_nothing_fails_and_a_stop_loses_no_accepted_request(tiny_run: Run) -> None:
    minutes, stops = ("3", "6") if FULL else ("0.12", "2")
    # So short a load is over before memory has stopped growing, so the bound is only one for floods.
    limits = ["--growth", "64" if FULL else "300", "--peak", "600"]
    command = [sys.executable, str(PROGRAM), str(tiny_run.path), "--minutes", minutes, "--stops", stops]
    command += [
        "--stop-after",
        "1.5",
        "--clients",
        "24",
        *limits,
        *([] if FULL else ["--quick-stops", "--no-warm-up"]),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
