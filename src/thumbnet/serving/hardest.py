"""The hardest test pictures, which the page offers: searched in the background, between requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import numpy as np

from thumbnet.classifiers.base import Classifier
from thumbnet.classifiers.labels import check_fits, targets_for
from thumbnet.data.images import as_data_address
from thumbnet.data.splits import Data, Split
from thumbnet.errors import UnreadableImageError
from thumbnet.evaluation import log_softmax
from thumbnet.serving.background import described, end, in_daemon_thread
from thumbnet.serving.batching import Batcher
from thumbnet.serving.network import Network
from thumbnet.serving.schemas import HardPicture

HARDEST = 24  # test pictures that the page offers
SEARCHED = 10_000  # the most test pictures that the search classifies
SEARCHED_AT_ONCE = 200  # small, so that requests do not wait long for the search


class HardestSearch:
    """Searches for a network's hardest test pictures in the background.

    The network classifies between the batches of requests, because only one thread may use it. Another thread
    reads the pictures: that may take seconds, for which no request should have to wait.

    Args:
        network: the network, and its data.
        batcher: runs the network.
        max_batch: the most pictures in a forward pass.
        tta: test-time augmentation, see :meth:`Classifier.logits`.
        warn: called with one line if the search fails.

    Attributes:
        found: the pictures; None until the search has ended.
    """

    def __init__(
        self,
        network: Network,
        batcher: Batcher,
        max_batch: int,
        tta: str | None,
        warn: Callable[[str], None],
    ) -> None:
        self._network, self._batcher, self._warn = network, batcher, warn
        self._max_batch, self._tta = max_batch, tta
        self._task: asyncio.Task[None] | None = None
        self.found: list[HardPicture] | None = None

    def start(self) -> None:
        """Begin. Call this in the event loop."""
        self._task = asyncio.create_task(self._search())

    async def stop(self) -> None:
        """End the search if it is still going on."""
        if self._task is not None:
            await end(self._task)

    async def _search(self) -> None:
        try:
            data = await in_daemon_thread(self._network.load_data)
            self.found = [] if data is None else await self._find(self._network.classifier, data)
        except Exception as error:  # whatever fails, the page must not wait for the search for ever
            self._warn(f"the page offers no test pictures: {described(error)}")
            self.found = []

    async def _find(self, classifier: Classifier, data: Data) -> list[HardPicture]:
        """Find the mistakes on the split test, or else val or all; the most confident first."""
        name = next((name for name in ("test", "val", "all") if name in data.splits), None)
        if name is None or classifier.info.multilabel:  # a mistake is in one of several labels
            return []
        split, mistakes = data.splits[name], list[tuple[float, int, int]]()
        check_fits(split, data.class_names, classifier.info)
        labels = targets_for(split, data.class_names, classifier.info)
        chosen = np.random.default_rng(0).permutation(len(split))[:SEARCHED]
        size = min(SEARCHED_AT_ONCE, self._max_batch)
        for start in range(0, len(chosen), size):
            part = np.sort(chosen[start : start + size])
            pictures = await in_daemon_thread(partial(_readable, classifier, split, part))
            if not pictures:
                continue
            pixels = np.stack(list(pictures.values()))
            logits = await self._batcher.run(partial(classifier.logits, pixels, tta=self._tta))
            for index, probabilities in zip(pictures, np.exp(log_softmax(logits)), strict=True):
                predicted = int(probabilities.argmax())
                if predicted != labels[index]:
                    mistakes.append((float(probabilities[predicted]), index, predicted))
        mistakes.sort(key=lambda mistake: -mistake[0])
        return await in_daemon_thread(partial(_hard_pictures, classifier, split, labels, mistakes[:HARDEST]))


def _readable(classifier: Classifier, split: Split, indices: np.ndarray) -> dict[int, np.ndarray]:
    """The pixels of the pictures at ``indices`` that can be read, by their indices."""
    found: dict[int, np.ndarray] = {}
    for index in indices.tolist():
        with suppress(UnreadableImageError):
            found[index] = classifier.info.preprocessing.pixels(split.load(index))
    return found


def _hard_pictures(
    classifier: Classifier, split: Split, labels: np.ndarray, mistakes: list[tuple[float, int, int]]
) -> list[HardPicture]:
    names, pixels = classifier.class_names, classifier.info.preprocessing.pixels
    return [
        HardPicture(
            # Lossless, so that the page gets the same answer when the user tries it.
            picture=as_data_address(pixels(split.load(index)), lossless=True),
            label=names[labels[index]],
            predicted=names[predicted],
            confidence=confidence,
        )
        for confidence, index, predicted in mistakes
    ]
