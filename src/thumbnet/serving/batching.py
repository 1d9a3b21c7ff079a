"""Batch concurrent requests so that they share a forward pass."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from thumbnet.classifiers.base import Classifier, Prediction

T = TypeVar("T")


@dataclass(frozen=True)
class _Request:
    """Pictures that wait for their predictions."""

    classifier: Classifier
    pixels: np.ndarray
    future: asyncio.Future[list[Prediction]]


class Batcher:
    """Classifies batches in one thread; the requests that arrive during one batch form the next.

    No request waits for others to arrive: if the thread is idle, a request is classified at once, as its own
    batch. The busier the service, the larger the batches. A batch has only requests for the same classifier.

    Args:
        max_batch: the most pictures in a forward pass. A larger request takes several.
        tta: test-time augmentation, see :meth:`Classifier.logits`.
        on_batch: called with the number of pictures in each forward pass, in the batcher's thread.
    """

    def __init__(self, max_batch: int, tta: str | None, on_batch: Callable[[int], None]) -> None:
        self._max_batch, self._tta, self._on_batch = max_batch, tta, on_batch
        self._waiting: list[_Request] = []
        self._thread = ThreadPoolExecutor(1, "classify")
        self._task: asyncio.Task[None] | None = None

    async def classify(self, classifier: Classifier, pixels: np.ndarray) -> list[Prediction]:
        """Classify pictures that were preprocessed for ``classifier``, uint8 [B, height, width, 3]."""
        future: asyncio.Future[list[Prediction]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Request(classifier, pixels, future))
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        return await future

    async def run(self, function: Callable[[], T]) -> T:
        """Run ``function`` in the same thread, between two batches, so that it may use a network."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def run_parts(self, parts: Iterator[T | None]) -> T:
        """Like :meth:`run`, for work in parts: what waits for the thread has its turn between two of them.

        ``parts`` yields None after each part but the last, and then the result.
        """
        while (found := await self.run(parts.__next__)) is None:
            pass
        return found

    def close(self) -> None:
        """Stop the thread once its current work is done."""
        self._thread.shutdown()

    async def _work(self) -> None:
        try:
            while batch := self._next_batch():
                await self._answer(batch)
        finally:
            self._task = None

    async def _answer(self, batch: list[_Request]) -> None:
        pixels = [one.pixels for one in batch]
        try:
            found = iter(await self.run(partial(self._predict, batch[0].classifier, pixels)))
        except Exception as error:
            for one in batch:
                if not one.future.done():
                    one.future.set_exception(error)
            return
        for one in batch:
            predictions = [next(found) for _ in one.pixels]
            if not one.future.done():  # it is if the client has disconnected
                one.future.set_result(predictions)

    def _predict(self, classifier: Classifier, requests: list[np.ndarray]) -> list[Prediction]:
        pixels = np.concatenate(requests)
        found: list[Prediction] = []
        for start in range(0, len(pixels), self._max_batch):
            part = pixels[start : start + self._max_batch]
            self._on_batch(len(part))
            found += classifier.predict_pixels(part, tta=self._tta)
        return found

    def _next_batch(self) -> list[_Request]:
        self._waiting = [one for one in self._waiting if not one.future.done()]
        pictures = taken = 0
        for one in self._waiting:
            full = pictures + len(one.pixels) > self._max_batch
            if taken and (full or one.classifier is not self._waiting[0].classifier):
                break
            pictures += len(one.pixels)
            taken += 1
        batch, self._waiting = self._waiting[:taken], self._waiting[taken:]
        return batch
