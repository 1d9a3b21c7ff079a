"""Batch concurrent requests so that they share a forward pass."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np

from thumbnet.classifiers.base import Classifier, Prediction

T = TypeVar("T")


class Batcher:
    """Classifies batches in one thread; the requests that arrive during one batch form the next.

    No request waits for others to arrive: if the thread is idle, a request is classified at once, as its own
    batch. The busier the service, the larger the batches.

    Args:
        classifier: the classifier to call.
        max_batch: the most pictures in a forward pass. A larger request takes several.
        tta: test-time augmentation, see :meth:`Classifier.logits`.
        on_batch: called with the number of pictures in each forward pass, in the batcher's thread.
    """

    def __init__(
        self, classifier: Classifier, max_batch: int, tta: str | None, on_batch: Callable[[int], None]
    ) -> None:
        self._classifier, self._max_batch, self._tta, self._on_batch = classifier, max_batch, tta, on_batch
        self._waiting: list[tuple[np.ndarray, asyncio.Future[list[Prediction]]]] = []
        self._thread = ThreadPoolExecutor(1, "classify")
        self._task: asyncio.Task[None] | None = None

    async def classify(self, pixels: np.ndarray) -> list[Prediction]:
        """Classify preprocessed pictures, uint8 [B, height, width, 3]."""
        future: asyncio.Future[list[Prediction]] = asyncio.get_running_loop().create_future()
        self._waiting.append((pixels, future))
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        return await future

    async def run(self, function: Callable[[], T]) -> T:
        """Run ``function`` in the same thread, between two batches, so that it may use the network."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def close(self) -> None:
        """Stop the thread once its current work is done."""
        self._thread.shutdown()

    async def _work(self) -> None:
        try:
            while batch := self._next_batch():
                await self._answer(batch)
        finally:
            self._task = None

    async def _answer(self, batch: list[tuple[np.ndarray, asyncio.Future[list[Prediction]]]]) -> None:
        try:
            found = iter(await self.run(partial(self._predict, [pixels for pixels, _ in batch])))
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for pixels, future in batch:
            predictions = [next(found) for _ in pixels]
            if not future.done():  # it is if the client has disconnected
                future.set_result(predictions)

    def _predict(self, requests: list[np.ndarray]) -> list[Prediction]:
        pixels = np.concatenate(requests)
        found: list[Prediction] = []
        for start in range(0, len(pixels), self._max_batch):
            part = pixels[start : start + self._max_batch]
            self._on_batch(len(part))
            found += self._classifier.predict_pixels(part, tta=self._tta)
        return found

    def _next_batch(self) -> list[tuple[np.ndarray, asyncio.Future[list[Prediction]]]]:
        self._waiting = [one for one in self._waiting if not one[1].done()]
        pictures = taken = 0
        for pixels, _ in self._waiting:
            if taken and pictures + len(pixels) > self._max_batch:
                break
            pictures += len(pixels)
            taken += 1
        batch, self._waiting = self._waiting[:taken], self._waiting[taken:]
        return batch
