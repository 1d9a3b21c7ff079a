"""Run uvicorn on our own socket so that the port is known before the service starts."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from thumbnet.errors import ThumbnetError

GRACE = 20  # seconds for running requests to finish at shutdown
BACKLOG = 1024
MOST_CONNECTIONS = 500  # at a time; more are closed at once, so that they cannot use up the open files
HEAD_SECONDS = 10.0  # for the head of a request to arrive, also on a connection that had one before


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket.

    Raises:
        ThumbnetError: the address is in use, or does not belong to this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ThumbnetError(f"cannot listen on {host} port {port}: {reason}. Try another --port") from None


def serve(app: FastAPI, listener: socket.socket, greet: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM, then let running requests finish.

    Args:
        app: from :func:`thumbnet.serving.service.build_service`.
        listener: from :func:`listen`.
        greet: called with the service's address once it accepts requests.

    Raises:
        ThumbnetError: the application did not start.
    """
    host, port = listener.getsockname()[:2]
    server = _Server(
        uvicorn.Config(
            app,
            http=_Bounded,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=GRACE,
            backlog=BACKLOG,
        ),
        lambda: greet(f"http://{f'[{host}]' if ':' in host else host}:{port}"),
    )
    # After a clean shutdown, uvicorn sends the signal again, which would end this process. Ignore it.
    before = {one: signal.signal(one, lambda *_: None) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        with suppress(SystemExit):  # uvicorn raises it if the application does not start
            server.run(sockets=[listener])
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    if not server.started:
        raise ThumbnetError("the service did not start")


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, when_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._when_started = when_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._when_started()


_Protocol: Any = AutoHTTPProtocol  # uvicorn's, with httptools or without


class _Bounded(_Protocol):  # type: ignore[misc]
    """Limits the number of connections, and the time that the head of a request may take.

    uvicorn limits neither: a client that sends one header per minute would keep its connection for ever.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._deadline: asyncio.TimerHandle | None = None
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.close()
        else:
            self._expect_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._has_request():
            self._cancel()
        else:
            self._expect_head()

    def connection_lost(self, error: Exception | None) -> None:
        self._cancel()
        super().connection_lost(error)

    def _has_request(self) -> bool:
        """Whether the head of a request has arrived that is not answered yet."""
        return self.cycle is not None and not self.cycle.response_complete

    def _expect_head(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_SECONDS, self._close_if_idle)

    def _cancel(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _close_if_idle(self) -> None:
        self._deadline = None
        if not self._has_request():
            self.transport.close()
