"""``thumbnet train ARCHIVE --minutes M`` with an empty cache.

Its time is the whole command's: start, decoding, compiling and the evaluation on the test pictures included.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

from common import Plan, Task, main, result

from thumbnet.version import __version__


def train(task: Task) -> dict[str, Any]:
    run = task.work / "run"
    command = [sys.executable, "-m", "thumbnet", "train", str(task.archive), "--minutes", str(task.minutes)]
    environment = {**os.environ, "THUMBNET_CACHE": str(task.work / "cache")}
    started = time.perf_counter()
    subprocess.run([*command, "--out", str(run)], check=True, env=environment)
    seconds = time.perf_counter() - started
    summary = json.loads((run / "summary.json").read_text("utf-8"))
    rate = summary["pictures_per_second"]
    shown = round(rate * summary["seconds_training"])
    planned = Plan(summary["epochs"], shown // summary["epochs"])
    found = result(seconds, summary["accuracy"], planned, f"thumbnet {__version__}", 1 / rate)
    return {**found, "accuracy_plain": summary["accuracy_plain"]}  # without test-time augmentation


if __name__ == "__main__":
    main(train)
