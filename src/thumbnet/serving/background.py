"""Work in the background: threads that a stopped process does not wait for, and tasks that are ended."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar, cast

from thumbnet.errors import ThumbnetError

T = TypeVar("T")


async def in_daemon_thread(function: Callable[[], T]) -> T:
    """Run ``function`` in a thread that does not keep a stopped process alive.

    asyncio.to_thread would: a service that is stopped while it loads much must not wait for it.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: Exception | None) -> None:
        if future.done():  # the service is stopping
            return
        if error is None:
            future.set_result(cast(T, result))
        else:
            future.set_exception(error)

    def work() -> None:
        result: T | None = None
        problem: Exception | None = None
        try:
            result = function()
        except Exception as error:
            problem = error
        with suppress(RuntimeError):  # the loop has closed
            loop.call_soon_threadsafe(settle, result, problem)

    threading.Thread(target=work, name="load", daemon=True).start()
    return await future


async def end(task: asyncio.Task[None]) -> None:
    """Cancel a task, and wait until it has ended."""
    task.cancel()
    await asyncio.wait({task})


def described(error: Exception) -> str:
    """What a line about a failure says: thumbnet's own errors in their words, all others with their type."""
    return str(error) if isinstance(error, ThumbnetError) else repr(error)
