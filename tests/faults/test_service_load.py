"""Good, hostile, slow and disconnecting clients at once; then the service is stopped while they go on."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from thumbnet.runs.folder import Run

pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")

FULL = os.environ.get("THUMBNET_FAULTS") == "full"
PROGRAM = Path(__file__).parents[2] / "benchmarks" / "service_load.py"


@pytest.mark.parametrize(
    ("number", "word"),
    [(errno.ECONNREFUSED, "refused"), (errno.ECONNRESET, "reset"), (errno.ECONNABORTED, "reset")],
)
def test_no_connection_to_a_service_that_stops_is_no_fault_of_a_client(
    monkeypatch: pytest.MonkeyPatch, number: int, word: str
) -> None:
    monkeypatch.setattr("sys.path", [*sys.path, str(PROGRAM.parent)])  # at the end: it has a `faults`, too
    from service_clients import GROUPS, work
    from service_wire import Load

    async def fail(*_: object) -> None:
        raise OSError(number, "Connect call failed")  # the class is that of the number

    load = Load(("127.0.0.1", 1), [], b"", [])
    load.stopping = 0.0

    async def visit() -> None:
        monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", fail)
        await work(load, "slow", "seed", lambda: bool(load.ending), GROUPS["slow"])

    asyncio.run(visit())
    assert load.wrong == []
    assert [seen for _, seen in load.ending] == [word]


def test_under_mixed_load_nothing_fails_and_a_stop_loses_no_accepted_request(tiny_run: Run) -> None:
    minutes, stops = ("3", "6") if FULL else ("0.12", "1")
    # So short a load is over before memory has stopped growing, so the bound is only one for floods.
    limits = ["--growth", "64" if FULL else "300", "--peak", "600"]
    command = [sys.executable, str(PROGRAM), str(tiny_run.path), "--minutes", minutes, "--stops", stops]
    command += [
        "--stop-after",
        "1.5",
        "--clients",
        "24",
        *limits,
        *([] if FULL else ["--quick-stops", "--no-warm-up", "--no-deep"]),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
