"""Measures how long the command takes to start: alone, and until a training begins its first step.

```sh
python benchmarks/starting.py --json starting.json
python benchmarks/starting.py --before ../earlier --json starting.json   # in turns with another checkout
```

"CPU" are the seconds of all processes and threads, compilers included. They say more than the clock while
other programs run. Needs CIFAR-10's JPEG copy (``--data``), from which the recipe ``fast`` trains on the CPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from measure import SHARED, median, parser, report, spread, take_turns

# Runs the command itself. The display of the progress hears when the training begins, and after each step.
FIRST_STEP = """
import json, os, resource, sys, time
from thumbnet.cli import progress

started = float(sys.argv.pop(1))

def told():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.time() - started, sum(one.ru_utime + one.ru_stime for one in used)

class Until(progress.TrainingDisplay):
    def on_start(self, *rest):
        self.begun = told()

    def on_step(self, step):
        print(json.dumps([*self.begun, *told()]), flush=True)
        os._exit(0)

progress.TrainingDisplay = Until
from thumbnet.__main__ import main
sys.exit(main())
"""
# What `thumbnet train` imports besides PyTorch.
OTHER_IMPORTS = """
import time
from thumbnet.cli.importing import importing
with importing():
    import torch
    started = time.perf_counter()
    from thumbnet import cli
    import thumbnet.cli.progress, thumbnet.cli.views, thumbnet.training.tracking, thumbnet.training.train
    print(time.perf_counter() - started)
"""


def command(*arguments: str) -> Callable[[], object]:
    """A function that runs Python with these arguments and drops the output."""
    return lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True)


def environment(source: Path | None, cache: Path) -> dict[str, str]:
    """The environment of a command with this cache and, if ``source`` is given, the code of that checkout."""
    chosen = {**os.environ, "THUMBNET_CACHE": str(cache)}
    return chosen if source is None else {**chosen, "PYTHONPATH": str(source / "src")}


def first_step(data: str, source: Path | None, cache: Path) -> list[float]:
    """Clock and CPU seconds of ``thumbnet train`` until its first step begins, and until it ends."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["train", data, "--recipe", "fast", "--device", "cpu", "--out", str(Path(folder) / "run")]
        words = [sys.executable, "-c", FIRST_STEP, str(time.time()), *arguments]
        chosen = environment(source, cache)
        done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=chosen)
    seconds: list[float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def main() -> None:
    """Measure, print tables, and write JSON."""
    arguments = parser(__doc__, rounds=15)
    arguments.add_argument("--data", default=str(SHARED))
    arguments.add_argument("--first-steps", type=int, default=5, help="trainings to their first step")
    arguments.add_argument("--before", type=Path, metavar="DIR", help="another checkout, measured in turns")
    options = arguments.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # installed packages are compiled
    calls = {
        "python": command("-c", "pass"),
        "import thumbnet": command("-c", "import thumbnet"),
        "thumbnet --help": command("-m", "thumbnet", "--help"),
        "import torch": command("-c", "import torch"),
    }
    times = take_turns(calls, options.rounds) if options.rounds else {}
    times["other imports of train"] = [
        float(subprocess.run([sys.executable, "-c", OTHER_IMPORTS], check=True, capture_output=True).stdout)
        for _ in range(options.rounds)
    ]
    rows = [
        [name, f"{median(values):.3f} s", spread(values, ".3f")] for name, values in times.items() if values
    ]
    sources = {"": None} if options.before is None else {"before": options.before, "now": None}
    steps: dict[str, list[list[float]]] = {
        f"{name} {cache}".strip(): [] for cache in ("empty", "warm") for name in sources
    }
    for _ in range(options.first_steps):
        for name, source in sources.items():
            with tempfile.TemporaryDirectory() as cache:
                for state in ("empty", "warm"):
                    steps[f"{name} {state}".strip()].append(first_step(options.data, source, Path(cache)))
    for name, found in steps.items():
        for at, what in enumerate(["to the first step", "CPU", "to its end", "CPU"]):
            values = [seconds[at] for seconds in found]
            if values:
                rows.append([f"{name} cache, {what}", f"{median(values):.2f} s", spread(values, ".2f")])
    report(
        f"starting, n = {options.rounds}, first steps n = {options.first_steps}",
        ["what", "median", "spread"],
        rows,
        options.json,
        {"seconds": times, "first_steps": steps},
    )


if __name__ == "__main__":
    main()
