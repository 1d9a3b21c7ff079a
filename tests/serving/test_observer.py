from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra 'serve' is not installed")

from starlette.types import Message, Scope

from thumbnet.serving.observer import Observer


class Kept(Observer):
    """Keeps what it is told."""

    def __init__(self, app: Any) -> None:
        super().__init__(app)
        self.requests: list[tuple[str, int, float, float]] = []

    def record(self, scope: Scope, status: int, arrived: float, seconds: float) -> None:
        self.requests.append((scope["path"], status, arrived, seconds))


async def answering(scope: Scope, receive: Any, send: Any) -> None:
    if scope.get("path") == "/broken":
        raise ValueError("broken")
    await asyncio.sleep(0.01)
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b"x"})


def ask(observer: Observer, path: str, kind: str = "http") -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(observer({"type": kind, "path": path}, None, send))  # type: ignore[arg-type]
    return sent


def test_a_request_is_recorded_once_it_is_answered_and_the_answer_is_passed_on() -> None:
    observer, before = Kept(answering), time.time()
    assert [one["type"] for one in ask(observer, "/x")] == ["http.response.start", "http.response.body"]
    ((path, status, arrived, seconds),) = observer.requests
    assert (path, status) == ("/x", 404)
    assert before <= arrived <= time.time()
    assert 0.01 <= seconds < 5


def test_an_error_counts_as_500_and_is_raised_again() -> None:
    observer = Kept(answering)
    with pytest.raises(ValueError, match="broken"):
        ask(observer, "/broken")
    assert [one[:2] for one in observer.requests] == [("/broken", 500)]


def test_what_is_no_request_is_passed_on_and_not_recorded() -> None:
    observer = Kept(answering)
    ask(observer, "/x", kind="websocket")
    assert observer.requests == []
