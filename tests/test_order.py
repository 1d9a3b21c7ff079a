"""The order of the tests: each worker begins with its share of the long ones."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from order import HERE, LONG, dealt


def collected(files: dict[str, int]) -> list[Any]:
    """So many tests of each file, as pytest sorts them."""
    return [
        SimpleNamespace(path=HERE / file, name=f"{file}::{number}")
        for file in sorted(files)
        for number in range(files[file])
    ]


def first_parts(items: list[Any], workers: int) -> list[list[Any]]:
    """The tests that xdist's own scheduler sends to each worker at the start."""
    scheduler = pytest.importorskip("xdist.scheduler.worksteal")

    class Worker:
        shutting_down = False

        def __init__(self, number: int) -> None:
            self.gateway = SimpleNamespace(id=f"gw{number}")
            self.sent: list[int] = []

        def send_runtest_some(self, indices: list[int]) -> None:
            self.sent += indices

    config: Any = SimpleNamespace(getvalue=lambda name: [f"{workers}*popen"])
    schedule = scheduler.WorkStealingScheduling(config, log=SimpleNamespace(workstealsched=print))
    nodes = [Worker(number) for number in range(workers)]
    for node in nodes:
        schedule.add_node(node)
        schedule.add_node_collection(node, [item.name for item in items])
    schedule.schedule()
    return [[items[index] for index in node.sent] for node in nodes]


FILES = {**dict.fromkeys(LONG, 7), "cli/test_train.py": 800, "sources/test_tar.py": 301, "test_api.py": 50}


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_every_worker_begins_with_long_tests_that_take_about_as_long(workers: int) -> None:
    items = collected(FILES)
    parts = first_parts(dealt(items, workers), workers)
    begins = []
    for part in parts:
        names = [item.path.relative_to(HERE).as_posix() for item in part]
        is_long = [name in LONG for name in names]
        assert is_long == sorted(is_long, reverse=True)
        assert any(is_long)
        begins.append(sum(LONG[name] for name in set(names) & set(LONG)))
    assert sum(begins) == sum(LONG.values())  # no file is in two parts
    assert max(begins) - min(begins) <= max(LONG.values())


@pytest.mark.parametrize("files", [FILES, dict.fromkeys(LONG, 7), {"test_api.py": 50}, {}])
@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_every_test_is_kept_and_files_stay_in_their_order(files: dict[str, int], workers: int) -> None:
    items = collected(files)
    ordered = dealt(items, workers)
    assert Counter(item.name for item in ordered) == Counter(item.name for item in items)
    for file in files:
        numbers = [int(item.name.partition("::")[2]) for item in ordered if item.path == HERE / file]
        assert numbers == sorted(numbers)


def test_tests_from_elsewhere_are_short_ones() -> None:
    items: list[Any] = [SimpleNamespace(path=Path("/elsewhere/test_guide.py"), name="a"), *collected(FILES)]
    random.Random(0).shuffle(items)
    assert Counter(item.name for item in dealt(items, 3)) == Counter(item.name for item in items)


def test_every_file_that_takes_long_exists() -> None:
    assert [file for file in LONG if not (HERE / file).is_file()] == []
