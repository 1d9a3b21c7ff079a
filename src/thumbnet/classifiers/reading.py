"""Read pictures ahead: threads decode the next batch while the network classifies this one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np

from thumbnet.errors import FailedReadError, UnreadableImageError

READ_BATCH = 256  # pictures


def read_ahead(
    names: Iterable[str], read: Callable[[str], np.ndarray], size: int = READ_BATCH
) -> Iterator[list[tuple[str, np.ndarray | str]]]:
    """Yield batches of names, each with its pixels or the reason why it cannot be read.

    Args:
        names: the names of the pictures.
        read: returns a picture's pixels, uint8 [height, width, 3], or raises an ``UnreadableImageError`` or a
            ``FailedReadError``. Threads call it.
        size: pictures per batch.
    """

    def pixels_of(name: str) -> np.ndarray | str:
        try:
            return read(name)
        except (UnreadableImageError, FailedReadError) as error:
            return error.reason

    remaining = iter(names)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        chunk = list(islice(remaining, size))
        work = [pool.submit(pixels_of, name) for name in chunk]
        while chunk:
            next_chunk = list(islice(remaining, size))
            next_work = [pool.submit(pixels_of, name) for name in next_chunk]
            yield [(name, task.result()) for name, task in zip(chunk, work, strict=True)]
            chunk, work = next_chunk, next_work
