"""uvicorn on a socket that is open before the service starts."""

from __future__ import annotations

import signal
import socket
import threading
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from thumbnet.errors import ThumbnetError

pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")

from fastapi import FastAPI

from thumbnet.serving.server import listen, serve


def test_port_0_gives_a_free_port_that_is_open_at_once() -> None:
    with listen("127.0.0.1", 0) as listener:
        host, port = listener.getsockname()
        assert port > 0
        socket.create_connection((host, port), timeout=5).close()


def test_it_listens_on_an_ipv6_address() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    with listen("::1", 0) as listener:
        assert listener.family == socket.AF_INET6


@pytest.mark.parametrize(("host", "port"), [("203.0.113.1", 0), ("127.0.0.1", 99_999), ("no such host", 0)])
def test_the_error_names_an_address_that_cannot_be_used(host: str, port: int) -> None:
    with pytest.raises(ThumbnetError, match=f"cannot listen on {host} port {port}: .* --port"):
        listen(host, port)


def test_the_error_names_a_port_that_is_in_use() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ThumbnetError, match=f"port {port}: Address already in use"):
            listen("127.0.0.1", port)


def app_with(events: list[str]) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        events.append("start")
        yield
        events.append("end")

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    async def root() -> str:
        return "here"

    return app


def test_it_greets_once_it_is_ready_stops_on_a_signal_and_prints_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    events: list[str] = []
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]

    def visit(address: str) -> None:
        with urllib.request.urlopen(address, timeout=30) as answer:
            events.append(answer.read().decode())
        signal.raise_signal(signal.SIGTERM)

    def greet(address: str) -> None:
        events.append("greet")
        threading.Thread(target=visit, args=(address,)).start()

    with listen("127.0.0.1", 0) as listener:
        serve(app_with(events), listener, greet)
    assert events == ["start", "greet", '"here"', "end"]
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before
    assert capfd.readouterr() == ("", "")


def test_an_application_that_does_not_start_raises_an_error_and_does_not_greet() -> None:
    greeted: list[str] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if not greeted:
            raise ValueError("no warm-up")
        yield

    with listen("127.0.0.1", 0) as listener, pytest.raises(ThumbnetError, match="did not start"):
        serve(FastAPI(lifespan=lifespan), listener, greeted.append)
    assert greeted == []
