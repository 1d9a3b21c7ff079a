"""Threads share a budget of memory: a claim waits until it fits, and no thread waits for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from thumbnet.serving.budget import Budget

MOMENT = 0.1  # seconds in which what must wait could go wrong


class Claiming:
    """A thread that claims some bytes and holds them until it is told to end."""

    def __init__(self, budget: Budget, *amounts: int) -> None:
        self._budget, self._amounts = budget, amounts
        self.holds, self._may_end = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with self._budget.share() as claim:
            for amount in self._amounts:
                claim(amount)
            self.holds.set()
            self._may_end.wait(30)

    def end(self) -> None:
        """Give back what it holds."""
        self._may_end.set()
        self._thread.join(30)
        assert not self._thread.is_alive()


def test_a_claim_waits_until_it_fits() -> None:
    budget = Budget(100)
    first, second = Claiming(budget, 60), Claiming(budget, 40)
    assert first.holds.wait(30)
    assert second.holds.wait(30)
    third = Claiming(budget, 50)
    assert not third.holds.wait(MOMENT)
    second.end()
    assert not third.holds.wait(MOMENT)
    first.end()
    assert third.holds.wait(30)
    third.end()


def test_a_small_claim_does_not_overtake_a_large_one_that_waits() -> None:
    budget = Budget(100)
    first = Claiming(budget, 60)
    assert first.holds.wait(30)
    large = Claiming(budget, 90)
    while not budget._turn.locked():  # it waits
        time.sleep(0.001)
    small = Claiming(budget, 10)
    assert not small.holds.wait(MOMENT)
    first.end()
    assert large.holds.wait(30)
    assert small.holds.wait(30)
    large.end()
    small.end()


def test_only_the_largest_claim_of_a_block_counts_and_two_that_grow_do_not_wait_for_each_other() -> None:
    budget = Budget(100)
    started = threading.Barrier(2)

    def grow() -> None:
        with budget.share() as claim:
            claim(50)
            started.wait(30)  # both hold half
            claim(20)
            claim(90)

    with ThreadPoolExecutor(2) as pool:
        for one in [pool.submit(grow) for _ in range(2)]:
            one.result(30)
    whole = Claiming(budget, 100)
    assert whole.holds.wait(30)
    whole.end()


def test_a_claim_above_the_total_is_an_error_and_gives_nothing_away() -> None:
    budget = Budget(100)
    with budget.share() as claim:
        claim(70)
        with pytest.raises(MemoryError, match="101 bytes are more than the 100"):
            claim(101)
    with budget.share() as claim:
        claim(100)


def test_many_threads_never_hold_more_than_the_total() -> None:
    budget, lock, held, most = Budget(100), threading.Lock(), 0, 0

    def work(amount: int) -> None:
        with budget.share() as claim:
            claim(amount)
            change(amount)
            change(-amount)

    def change(amount: int) -> None:
        nonlocal held, most
        with lock:
            held += amount
            most = max(most, held)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [100, 30, 70, 1, 55, 45, 20, 80] * 20))
    assert held == 0
    assert most <= 100


def test_a_share_without_a_claim_holds_nothing() -> None:
    budget = Budget(100)
    with budget.share(), budget.share() as claim:
        claim(100)


def test_what_an_error_interrupts_is_given_back() -> None:
    budget = Budget(100)

    def fail(claim: Callable[[int], None]) -> None:
        claim(100)
        raise ValueError

    for _ in range(2):
        with pytest.raises(ValueError), budget.share() as claim:
            fail(claim)
