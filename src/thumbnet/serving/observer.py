"""Watches the requests that pass through the service, for its metrics and its access log."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Observer(ABC):
    """ASGI middleware that passes requests on, and records each of them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    @abstractmethod
    def record(self, scope: Scope, status: int, arrived: float, seconds: float) -> None:
        """Record a request.

        Args:
            scope: what ASGI and the application say about it.
            status: the status of the response; 500 if there was none.
            arrived: when it arrived, in seconds since 1970.
            seconds: from the arrival until the response was sent.
        """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on to the application, and record it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        arrived, start, status = time.time(), time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            self.record(scope, status, arrived, time.perf_counter() - start)
