"""The order in which several workers run the tests: the long ones first, and each worker gets its share of them.

With ``--dist worksteal``, xdist cuts the list of tests into as many equal parts as there are workers. A worker that has
done its part takes tests from the end of another's. So the long tests come first in every part. At the end of the
list, one worker would run a test of a minute while the others wait.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# About how many seconds one of three workers on two cores needs for a file. A file stays with one worker, because its
# tests share trainings. Files with many short tests need no entry: others can take a part of them.
LONG = {
    "end_to_end/test_cifar10.py": 90,
    "faults/test_disk_and_memory.py": 35,
    "faults/test_kills.py": 35,
    "faults/test_long_and_large.py": 30,
    "faults/test_many_processes.py": 105,
    "faults/test_nth_failure.py": 50,
    "faults/test_service_load.py": 25,
    "faults/test_simulation.py": 50,
    "models/test_fastnet.py": 15,
    "test_examples.py": 50,
    "test_gpu_benchmark.py": 30,
    "test_guide.py": 55,
    "training/test_fit.py": 20,
}


def dealt(items: Sequence[pytest.Item], workers: int) -> list[pytest.Item]:
    """The same tests, so that each of ``workers`` equal parts of the list begins with long ones.

    Apart from that, the tests of a file stay together and in their order.
    """
    files: dict[str, list[pytest.Item]] = defaultdict(list)
    short: list[pytest.Item] = []
    for item in items:
        file = item.path.relative_to(HERE).as_posix() if item.path.is_relative_to(HERE) else ""
        (files[file] if file in LONG else short).append(item)
    parts: list[list[pytest.Item]] = [[] for _ in range(workers)]
    seconds = [0] * workers
    for file in sorted(files, key=lambda file: (-LONG[file], file)):
        least = seconds.index(min(seconds))
        parts[least] += files[file]
        seconds[least] += LONG[file]
    rest, ordered = iter(short), list[pytest.Item]()
    for number, part in enumerate(parts):
        size = (len(items) - len(ordered)) // (workers - number)  # as xdist computes it
        ordered += [*part, *islice(rest, max(0, size - len(part)))]
    return ordered
