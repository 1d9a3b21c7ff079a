"""A budget of memory that threads share: each claims what its work may take, and waits until that is free."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Budget:
    """A number of bytes that threads claim and give back.

    The system kills a container that exceeds its memory, without an error that could be caught. So work waits
    before it takes memory. Claims are met in turn, or small ones would overtake a large one for ever.

    Args:
        total: the bytes that may be claimed at a time.
    """

    def __init__(self, total: int) -> None:
        self.total = self._free = total
        self._turn = threading.Lock()  # held by the one thread that waits for memory
        self._changed = threading.Condition()

    @contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """Yield a function that claims so many bytes. It waits until they are free.

        At the end of the block they are given back. Only the largest claim in a block counts. The function
        raises MemoryError for a claim above the total.
        """
        held = 0

        def claim(amount: int) -> None:
            nonlocal held
            if amount > self.total:
                raise MemoryError(f"{amount:,} bytes are more than the {self.total:,} of the budget")
            if amount > held:
                self._give_back(held)  # two blocks that both wait for more would wait for each other
                held = 0
                self._take(amount)
                held = amount

        try:
            yield claim
        finally:
            self._give_back(held)

    def _take(self, amount: int) -> None:
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._free >= amount)
            self._free -= amount

    def _give_back(self, amount: int) -> None:
        with self._changed:
            self._free += amount
            self._changed.notify_all()
