"""Run uvicorn on our own socket so that the port is known before the service starts."""

from __future__ import annotations

import asyncio
import logging
import os
import selectors
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from thumbnet.errors import ThumbnetError
from thumbnet.serving.addresses import address_here

GRACE = 20  # seconds for running requests to finish at shutdown
BACKLOG = 1024
MOST_CONNECTIONS = 500  # at a time; more are closed at once, so that they cannot use up the open files
HEAD_SECONDS = 10.0  # for the head of a request to arrive, also on a connection that had one before
MOST_OVERHEAD = 65_536  # bytes of a head, or of a body's trailers: the parser would keep any number of them
MOST_PIPELINED = 100  # requests that wait on one connection for the answers to those before them
READ_SECONDS = 30.0  # for a client to take an answer
PASSES = 10  # of the event loop: more than it takes to read a request from an accepted connection

TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-type: application/json\r\n"
    b'content-length: 49\r\n\r\n{"detail":"the head of the request is too large"}'
)


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


def serve(
    app: FastAPI,
    listener: socket.socket,
    greet: Callable[[str], None],
    on_hangup: Callable[[], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, then let running requests finish.

    A service that was started in a terminal also stops when that terminal is closed, unless nohup started it.

    Args:
        app: from :func:`thumbnet.serving.service.build_service`.
        listener: from :func:`listen`.
        greet: called once it accepts requests, with its address on this computer.
        on_hangup: called on SIGHUP, in a signal handler; None if SIGHUP is to do what it did before. Windows
            has no SIGHUP.

    Raises:
        ThumbnetError: the application did not start.
    """
    # The parser of forms warns of every malformed one. Without a handler, Python would print that.
    logging.getLogger("python_multipart").addHandler(logging.NullHandler())
    server = _Server(
        uvicorn.Config(
            app,
            http=_Bounded,
            ws="none",  # a connection that becomes a web socket would escape the limits
            log_level="error",  # a warning for each malformed request would let any client write to the log
            access_log=False,
            timeout_graceful_shutdown=GRACE,
            backlog=BACKLOG,
        ),
        lambda: greet(address_here(listener)),
    )
    # After a clean shutdown, uvicorn sends the signal again, which would end this process. Ignore it.
    before = {one: signal.signal(one, lambda *_: None) for one in (signal.SIGINT, signal.SIGTERM)}
    if on_hangup is not None and hasattr(signal, "SIGHUP"):
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, _hangup_handler(server, on_hangup))
    try:
        with suppress(SystemExit):  # uvicorn raises it if the application does not start
            server.run(sockets=[listener])
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    if not server.started:
        raise ThumbnetError("the service did not start")


def _hangup_handler(server: uvicorn.Server, on_hangup: Callable[[], None]) -> Callable[..., None]:
    """A handler of SIGHUP that calls ``on_hangup``, or stops the server if its terminal has been closed."""
    by_nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    in_terminal = _has_terminal() and not by_nohup

    def handle(*_: object) -> None:
        if in_terminal and not _has_terminal():
            server.should_exit = True
        else:
            on_hangup()

    return handle


def _has_terminal() -> bool:
    """Whether a terminal controls this process. Its end sends SIGHUP, like a user who wants a reload."""
    try:
        os.close(os.open(os.ctermid(), os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


class _Server(uvicorn.Server):
    """Says when it has started, and loses no request when it stops."""

    def __init__(self, config: uvicorn.Config, when_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._when_started = when_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._when_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the requests that have arrived, then accept no more, and let the running ones finish.

        uvicorn closes its socket and all idle connections at once. That loses the requests that the operating
        system has received for it, of which a busy service has many.
        """
        self.server_state.stopping = True  # type: ignore[attr-defined]
        for _ in range(BACKLOG):  # uvloop accepts one connection in each pass of the event loop
            if not _has_waiting(sockets or []):
                break
            await asyncio.sleep(0)
        for _ in range(PASSES):
            await asyncio.sleep(0)
        await super().shutdown(sockets)


def _has_waiting(listeners: Sequence[socket.socket]) -> bool:
    """Whether connections wait to be accepted."""
    with selectors.DefaultSelector() as selector:
        for one in listeners:
            selector.register(one, selectors.EVENT_READ)
        return bool(selector.select(0))


_Protocol: Any = AutoHTTPProtocol  # uvicorn's, with httptools or without
_IS_BOUNDED = not hasattr(_Protocol, "on_body")  # h11, without httptools, limits heads and pipelines itself


class _Deadline:
    """Calls ``action`` ``seconds`` after :meth:`start`, unless :meth:`cancel` comes first."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, action: Callable[[], None]) -> None:
        self._loop, self._seconds, self._action = loop, seconds, action
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Let the time begin, if it has not."""
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._end)

    def cancel(self) -> None:
        """Forget that the time has begun."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        self._timer = None
        self._action()


class _RefusedError(Exception):
    """What arrives is more than a client may send: requests that wait, or bytes that are no body."""


class _Bounded(_Protocol):  # type: ignore[misc]
    """Limits what a client can make the service keep: connections, time, heads, and waiting requests.

    uvicorn limits none of them. A client that sends one header per minute, or takes no answer, would keep its
    connection for ever; one that sends a head without end, or requests faster than they are answered, would
    fill the memory.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._head = _Deadline(self.loop, HEAD_SECONDS, self._close_if_idle)
        self._taking = _Deadline(self.loop, READ_SECONDS, transport.abort)
        self._overhead, self._progressed = 0, False
        self._fields = 0  # bytes of the head, or of the trailers, that the parser has found
        self._running: Any = None  # the request that is being answered; not the last one of a pipeline
        transport.set_write_buffer_limits(high=0)  # so that `pause_writing` hears of every answer that waits
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.close()
        else:
            self._head.start()

    def data_received(self, data: bytes) -> None:
        self._progressed = _IS_BOUNDED
        super().data_received(data)
        self._overhead = 0 if self._progressed else self._overhead + len(data)
        if self._overhead > MOST_OVERHEAD:
            self._refuse_overhead()
        elif self._has_request():
            self._head.cancel()
            if getattr(self.server_state, "stopping", False):
                self.cycle.keep_alive = False
        else:
            self._head.start()

    def on_message_begin(self) -> None:
        self._fields = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + len(": \r\n"))
        super().on_header(name, value)

    def _count(self, size: int) -> None:
        """Count bytes of a head or of trailers, which may have arrived at once and with their end."""
        self._fields += size
        if self._fields > MOST_OVERHEAD:
            raise _RefusedError  # the parser stops, and uvicorn calls `send_400_response`

    def on_headers_complete(self) -> None:
        self._progressed = True
        self._fields = 0
        super().on_headers_complete()
        if len(self.pipeline) > MOST_PIPELINED:
            raise _RefusedError

    def on_body(self, body: bytes) -> None:
        self._progressed = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._progressed = True
        super().on_message_complete()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, or too large. While a request is being answered, only close."""
        if self._fields > MOST_OVERHEAD:
            self._refuse_overhead()
        elif self._has_request():
            self.transport.close()
        else:
            super().send_400_response(msg)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._taking.start()

    def resume_writing(self) -> None:
        self._taking.cancel()
        super().resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        self._head.cancel()
        self._taking.cancel()
        super().connection_lost(error)
        if self._running is not None:  # uvicorn tells only the last request of a pipeline
            self._running.disconnected = True
            self._running.message_event.set()

    def _has_request(self) -> bool:
        """Whether the head of a request has arrived that is not answered yet."""
        return self.cycle is not None and not self.cycle.response_complete

    def _close_if_idle(self) -> None:
        if not self._has_request():
            self.transport.close()

    def _refuse_overhead(self) -> None:
        if not (self._has_request() or self.transport.is_closing()):
            self.transport.write(TOO_LARGE)
        self.transport.close()
