"""Pictures that are read ahead."""

from __future__ import annotations

import threading

import numpy as np

from thumbnet.classifiers.reading import read_ahead
from thumbnet.errors import FailedReadError, UnreadableImageError


def test_batches_keep_the_order_and_give_the_reason_for_what_cannot_be_read() -> None:
    def read(name: str) -> np.ndarray:
        if name == "3":
            raise UnreadableImageError(name, "cut short")
        if name == "4":
            raise FailedReadError(name, "Input/output error")
        return np.full((2, 2, 3), int(name), np.uint8)

    batches = list(read_ahead(map(str, range(7)), read, size=3))
    assert [[name for name, _ in batch] for batch in batches] == [["0", "1", "2"], ["3", "4", "5"], ["6"]]
    assert batches[1][:2] == [("3", "cut short"), ("4", "Input/output error")]
    assert [int(found.max()) for _, found in batches[0] if not isinstance(found, str)] == [0, 1, 2]
    assert list(read_ahead([], read)) == []


def test_the_next_batch_is_read_while_the_first_is_used() -> None:
    second = threading.Event()

    def read(name: str) -> np.ndarray:
        if name == "1":
            second.set()
        return np.zeros((1, 1, 3), np.uint8)

    batches = read_ahead(["0", "1"], read, size=1)
    assert next(batches)[0][0] == "0"
    assert second.wait(timeout=20)
