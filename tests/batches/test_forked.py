from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import psutil
import pytest

from thumbnet.batches import forked
from thumbnet.batches.forked import do_parts, shared_array

pytestmark = pytest.mark.skipif(not forked.can_fork(), reason="processes are forked on Linux only")
HERE, HELPER = 1, 2


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    """No helper outlives a test, and no pipe stays open."""
    this = psutil.Process()
    before = this.children(), this.num_fds()
    yield
    assert (this.children(), this.num_fds()) == before


class Work:
    """Notes who did which part. The first part that is done here waits until a helper has begun one."""

    def __init__(self, parts: int, in_helper: Callable[[], bool] = lambda: True) -> None:
        self.who, self.begun = shared_array((parts,)), shared_array((1,))
        self.parent, self.in_helper = os.getpid(), in_helper

    def __call__(self, part: int) -> bool:
        if os.getpid() != self.parent:
            self.begun[0] = 1
            well = self.in_helper()
            self.who[part] = HELPER
            return well
        until = time.monotonic() + 30
        while not self.begun[0] and time.monotonic() < until:
            time.sleep(0.001)
        self.who[part] = HERE
        return True


def slow() -> bool:
    time.sleep(0.001)  # so that some parts are left for this process
    return True


@pytest.mark.parametrize("helpers", [1, 3])
def test_all_processes_share_the_parts(helpers: int) -> None:
    work = Work(forked.MOST_PARTS, slow)
    assert sorted(do_parts(work, forked.MOST_PARTS, helpers)) == list(range(forked.MOST_PARTS))
    assert set(work.who) == {HERE, HELPER}


def test_without_helpers_the_parts_are_done_in_order() -> None:
    done: list[int] = []

    def work(part: int) -> bool:
        done.append(part)
        return True

    assert list(do_parts(work, 5, 0)) == done == [0, 1, 2, 3, 4]
    assert list(do_parts(work, 0, 2)) == []


def fail() -> bool:
    raise ValueError("only in a helper")


def die() -> bool:
    os.kill(os.getpid(), signal.SIGKILL)
    return True


def hang() -> bool:
    time.sleep(600)
    return True


@pytest.mark.parametrize(
    "trouble", [lambda: False, fail, die, hang], ids=["not well", "error", "death", "hang"]
)
def test_what_a_helper_does_not_finish_is_done_here(
    trouble: Callable[[], bool], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(forked, "PATIENCE", 0.2)
    work = Work(20, trouble)
    assert sorted(do_parts(work, 20, 2)) == list(range(20))
    assert set(work.who) == {HERE}
    assert capfd.readouterr() == ("", "")


def test_where_no_process_can_be_started_all_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    work = Work(9)
    work.begun[0] = 1
    assert list(do_parts(work, 9, 2)) == list(range(9))


def test_a_helper_starts_no_helpers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    by_helper, parent, really = shared_array((1,)), os.getpid(), os.fork

    def fork() -> int:
        if os.getpid() != parent:
            by_helper[0] = 1
        return really()

    monkeypatch.setattr(os, "fork", fork)
    with contextlib.ExitStack() as stack:
        _, told, processes = forked._start(lambda part: True, 0, 3, stack)
        assert len(processes) == 3
        assert forked._told(told, 30.0) == []  # when all helpers have ended
    assert not by_helper[0]


def hang_up() -> bool:
    for one in (signal.SIGHUP, signal.SIGINT):
        os.kill(os.getpid(), one)
    return True


def test_helpers_ignore_what_a_terminal_sends_to_all_processes() -> None:
    work = Work(20, hang_up)
    assert sorted(do_parts(work, 20, 2)) == list(range(20))
    assert HELPER in work.who


def test_helpers_end_with_the_iteration() -> None:
    assert next(do_parts(Work(100, hang), 100, 2)) in range(100)  # and the iteration is given up


def test_helpers_end_after_an_error_here() -> None:
    def work(part: int) -> bool:
        if os.getpid() == parent:
            raise KeyboardInterrupt
        return hang()

    parent = os.getpid()
    with pytest.raises(KeyboardInterrupt):
        list(do_parts(work, 100, 2))


ORPHANS = """
import os, sys, time
from thumbnet.batches.forked import do_parts
def work(part):
    if os.getpid() == parent:
        time.sleep(600)
    print(os.getpid(), flush=True)
    time.sleep(0.1)
    return True
parent = os.getpid()
list(do_parts(work, 1000, 1))
"""


def runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE  # a container may have nothing that reaps orphans
    except psutil.NoSuchProcess:
        return False


def test_helpers_end_if_their_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        helper = psutil.Process(int(process.stdout.readline()))
        process.kill()
        until = time.monotonic() + 30
        while runs(helper):
            assert time.monotonic() < until
            time.sleep(0.01)


def test_an_array_that_does_not_fit_into_memory_is_refused_as_such() -> None:
    assert np.array_equal(shared_array((0, 3)), np.empty((0, 3)))
    with pytest.raises(MemoryError, match=r"shape \[1099511627776, 1099511\]"):
        shared_array((1 << 40, 1099511))
