"""Work in the background ends with the service, and its failures are told."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

import pytest

from thumbnet.errors import RunError
from thumbnet.serving.background import described, end, in_daemon_thread


def test_a_threads_result_or_error_is_that_of_its_function() -> None:
    def fail() -> None:
        raise ZeroDivisionError("no luck")

    async def work() -> str:
        with pytest.raises(ZeroDivisionError, match="no luck"):
            await in_daemon_thread(fail)
        return await in_daemon_thread(lambda: threading.current_thread().name)

    assert asyncio.run(work()) == "load"


def test_a_loop_that_ends_does_not_wait_for_the_thread() -> None:
    may_end, ended = threading.Event(), threading.Event()

    def slow() -> None:
        may_end.wait(60)
        ended.set()

    async def work() -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(in_daemon_thread(slow), 0.05)

    asyncio.run(work())
    assert not ended.is_set()
    may_end.set()  # the result finds no loop, and nothing is raised
    assert ended.wait(30)


def test_a_task_has_ended_once_its_end_was_awaited() -> None:
    seen: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            seen.append("cleaned up")

    async def work() -> None:
        task = asyncio.create_task(forever())
        await asyncio.sleep(0)
        await end(task)
        assert task.cancelled()
        await end(task)  # again is no error

    asyncio.run(work())
    assert seen == ["cleaned up"]


def test_errors_of_others_are_told_with_their_type() -> None:
    assert described(RunError("cannot read x")) == "cannot read x"
    assert described(KeyError("x")) == "KeyError('x')"
