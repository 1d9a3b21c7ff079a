"""Every call that a command makes may fail: a sample of these failures. nth_run.py tries all of them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from faults.fork_server import why_not
from faults.nth import Bench, Failure, Scenario, Trial, table
from faults.nth_scenarios import named, scratch, start_server

pytestmark = pytest.mark.slow

FULL = os.environ.get("THUMBNET_FAULTS") == "full"
# Every how many failures of a scenario one is tried: in full, and otherwise. The latter are primes, or some ways to fail
# would be left out.
STRIDES = {
    "train": (22, 347),
    "resume": (26, 397),
    "export safetensors": (12, 179),
    "sort": (9, 139),
    "data": (13, 199),
    "train in two processes": (42, 421),
}
REPLACED = " is neither what it was nor what it becomes"


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    place = Path(tempfile.mkdtemp(prefix="thumbnet-nth-", dir=scratch()))
    try:
        with start_server(place / "server") as server:
            yield Bench(server, place / "root")
    finally:
        shutil.rmtree(place, ignore_errors=True)


def sample(bench: Bench, scenario: Scenario, stride: int) -> Iterator[Failure]:
    trial = Trial(bench, scenario)
    for number, (failure, fault) in enumerate(trial.failures()):
        if number % stride == stride // 2:
            yield trial.fail(failure, fault)


def test_after_any_single_failure_everything_is_whole_and_goes_on_to_the_same_bits(bench: Bench) -> None:
    found = [
        failure
        for name, (full, otherwise) in STRIDES.items()
        for failure in sample(bench, named(name), full if FULL else otherwise)
    ]
    print(table(found))
    assert {one.ended for one in found} >= {"done", "refused", "killed"}
    assert not [(*one.key, one.path, one.problem) for one in found if one.problem]


@pytest.mark.parametrize(
    ("broken", "name", "operation", "way", "tried", "noticed"),
    [
        ("write_in_place", "export safetensors", "write", "kill-half", slice(None), REPLACED),
        ("swallow_errors", "train", "write", "ENOSPC", slice(8, 11), "it ended well, and these differ"),
        ("believe_short_files", "report", "read", "end", slice(60, None), REPLACED),
    ],
)
def test_it_notices_what_is_broken_on_purpose(
    bench: Bench, broken: str, name: str, operation: str, way: str, tried: slice, noticed: str
) -> None:
    scenario = replace(named(name), operations=(operation,))
    job = replace(scenario.job, hooks=((f"faults.nth_hooks:{broken}", {}),))
    trial = Trial(bench, replace(scenario, job=job))
    these = [one for one in trial.failures() if one[0].way == way]
    problems = [trial.fail(*one).problem for one in these[tried]]
    assert any(noticed in problem for problem in problems), problems
