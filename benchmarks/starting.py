"""Measures how long the command takes to start.

```sh
python benchmarks/starting.py --json starting.json
```
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from measure import median, parser, report, spread, take_turns


def command(*arguments: str) -> Callable[[], object]:
    """A function that runs Python with these arguments and drops the output."""
    return lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True)


def main() -> None:
    """Measure, print a table, and write JSON."""
    options = parser(__doc__, rounds=15).parse_args()
    calls = {
        "python": command("-c", "pass"),
        "import thumbnet": command("-c", "import thumbnet"),
        "thumbnet --help": command("-m", "thumbnet", "--help"),
        "import torch": command("-c", "import torch"),
    }
    times = take_turns(calls, options.rounds)
    rows = [[name, f"{median(values):.3f} s", spread(values, ".3f")] for name, values in times.items()]
    report(
        f"starting, n = {options.rounds}",
        ["what", "median", "spread"],
        rows,
        options.json,
        {"seconds": times},
    )


if __name__ == "__main__":
    main()
