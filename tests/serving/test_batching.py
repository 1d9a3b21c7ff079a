"""Concurrent requests share a forward pass."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from thumbnet.classifiers.base import Prediction
from thumbnet.serving.batching import Batcher


class Recording:
    """A fake classifier that predicts a picture's first pixel. A test can make it wait."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.tta: str | None = "never asked"
        self.thread_names: set[str] = set()
        self.started, self.may_go_on = threading.Event(), threading.Event()
        self.may_go_on.set()

    def predict_pixels(self, pixels: np.ndarray, *, tta: str | None = None) -> list[Prediction]:
        self.batches.append(len(pixels))
        self.tta = tta
        self.thread_names.add(threading.current_thread().name)
        self.started.set()
        assert self.may_go_on.wait(30)
        if (pixels == 255).any():
            raise ValueError("white")
        return [Prediction((str(one[0, 0, 0]),), (1.0,)) for one in pixels]


def pictures(*values: int) -> np.ndarray:
    return np.stack([np.full((2, 2, 3), value, dtype=np.uint8) for value in values])


def labels(predictions: list[Prediction]) -> list[int]:
    return [int(one.label) for one in predictions]


def batcher_of(
    most: int = 4, tta: str | None = None, on_batch: Callable[[int], None] = lambda n: None
) -> Batcher:
    return Batcher(most, tta, on_batch)


async def held_up(classifier: Any, batcher: Batcher) -> asyncio.Task[list[Prediction]]:
    """Send a request that keeps the thread busy until the classifier may go on."""
    classifier.may_go_on.clear()
    first = asyncio.create_task(batcher.classify(classifier, pictures(0)))
    await asyncio.to_thread(classifier.started.wait, 30)
    return first


def test_requests_that_arrive_during_a_batch_form_the_next_ones() -> None:
    classifier: Any = Recording()
    sizes: list[int] = []
    batcher = batcher_of(most=4, tta="mirror", on_batch=sizes.append)

    async def scene() -> list[list[Prediction]]:
        first = await held_up(classifier, batcher)
        others = [
            asyncio.create_task(batcher.classify(classifier, pictures(n, n + 100))) for n in range(1, 4)
        ]
        await asyncio.sleep(0)
        classifier.may_go_on.set()
        return list(await asyncio.gather(first, *others))

    found = asyncio.run(scene())
    batcher.close()
    assert [labels(one) for one in found] == [[0], [1, 101], [2, 102], [3, 103]]
    assert classifier.batches == sizes == [1, 4, 2]
    assert classifier.tta == "mirror"
    assert len(classifier.thread_names) == 1


def test_a_request_larger_than_max_batch_takes_several_forward_passes() -> None:
    classifier: Any = Recording()
    sizes: list[int] = []
    batcher = batcher_of(most=2, on_batch=sizes.append)
    assert labels(asyncio.run(batcher.classify(classifier, pictures(1, 2, 3, 4, 5)))) == [1, 2, 3, 4, 5]
    assert classifier.batches == sizes == [2, 2, 1]
    batcher.close()


def test_an_idle_thread_starts_at_once_also_after_a_pause() -> None:
    classifier: Any = Recording()
    batcher = batcher_of()

    async def scene() -> None:
        for value in (1, 2, 3):
            assert labels(await batcher.classify(classifier, pictures(value))) == [value]
            await asyncio.sleep(0.01)

    asyncio.run(scene())
    batcher.close()
    assert classifier.batches == [1, 1, 1]


def test_a_cancelled_request_is_not_classified() -> None:
    classifier: Any = Recording()
    batcher = batcher_of()

    async def scene() -> list[Prediction]:
        first = await held_up(classifier, batcher)
        gone = asyncio.create_task(batcher.classify(classifier, pictures(7, 8)))
        stays = asyncio.create_task(batcher.classify(classifier, pictures(9)))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        classifier.may_go_on.set()
        await first
        return await stays

    assert labels(asyncio.run(scene())) == [9]
    batcher.close()
    assert classifier.batches == [1, 1]


def test_a_request_cancelled_during_the_forward_pass_does_not_affect_others() -> None:
    classifier: Any = Recording()
    batcher = batcher_of()

    async def scene() -> list[Prediction]:
        first = await held_up(classifier, batcher)
        first.cancel()
        after = asyncio.create_task(batcher.classify(classifier, pictures(4)))
        await asyncio.sleep(0)
        classifier.may_go_on.set()
        return await after

    assert labels(asyncio.run(scene())) == [4]
    batcher.close()


def test_an_error_reaches_every_request_of_its_batch_and_no_other() -> None:
    classifier: Any = Recording()
    batcher = batcher_of(most=2)

    async def scene() -> list[list[Prediction] | BaseException]:
        first = await held_up(classifier, batcher)
        others = [asyncio.create_task(batcher.classify(classifier, pictures(value))) for value in (1, 255, 3)]
        await asyncio.sleep(0)
        classifier.may_go_on.set()
        return list(await asyncio.gather(first, *others, return_exceptions=True))

    found = asyncio.run(scene())
    batcher.close()
    assert [type(one) for one in found] == [list, ValueError, ValueError, list]
    assert isinstance(found[3], list)
    assert labels(found[3]) == [3]


def test_other_work_runs_in_the_same_thread() -> None:
    classifier: Any = Recording()
    batcher = batcher_of()

    async def scene() -> str:
        await batcher.classify(classifier, pictures(1))
        return await batcher.run(lambda: threading.current_thread().name)

    assert {asyncio.run(scene())} == classifier.thread_names
    batcher.close()
    with pytest.raises(RuntimeError):
        asyncio.run(batcher.run(lambda: None))


def test_a_batch_that_cannot_be_put_together_fails_and_the_next_one_is_classified() -> None:
    classifier: Any = Recording()
    batcher = batcher_of()
    other_size = np.zeros((1, 3, 3, 3), np.uint8)

    async def scene() -> list[list[Prediction] | BaseException]:
        first = await held_up(classifier, batcher)
        together = [
            asyncio.create_task(batcher.classify(classifier, one)) for one in (pictures(1), other_size)
        ]
        await asyncio.sleep(0)
        classifier.may_go_on.set()
        found = await asyncio.gather(first, *together, return_exceptions=True)
        return [*found, await asyncio.wait_for(batcher.classify(classifier, pictures(5)), 30)]

    found = asyncio.run(scene())
    batcher.close()
    assert [type(one) for one in found] == [list, ValueError, ValueError, list]
    assert isinstance(found[3], list)
    assert labels(found[3]) == [5]


def test_a_batch_has_requests_for_one_classifier_only() -> None:
    """While a network is being replaced, requests for the old and for the new one wait at the same time."""
    old: Any = Recording()
    new: Any = Recording()
    batcher, other_size = batcher_of(most=4), np.full((1, 3, 3, 3), 9, np.uint8)

    async def scene() -> list[list[Prediction]]:
        first = await held_up(old, batcher)
        asked = (
            (old, pictures(1)),
            (old, pictures(2)),
            (new, other_size),
            (new, other_size),
            (old, pictures(3)),
        )
        others = [asyncio.create_task(batcher.classify(which, pixels)) for which, pixels in asked]
        await asyncio.sleep(0)
        old.may_go_on.set()
        return list(await asyncio.gather(first, *others))

    found = asyncio.run(scene())
    batcher.close()
    assert [labels(one) for one in found] == [[0], [1], [2], [9], [9], [3]]
    assert (old.batches, new.batches) == ([1, 2, 1], [2])
    assert old.thread_names == new.thread_names
