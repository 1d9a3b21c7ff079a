"""uvicorn on a socket that is open before the service starts."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from thumbnet.errors import ThumbnetError

pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")

from fastapi import FastAPI

from thumbnet.serving import server
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


def with_service(visit: Callable[[int], None], app: FastAPI | None = None) -> None:
    """Start a service, call ``visit`` with its port in another thread, and stop the service."""
    failed: list[BaseException] = []

    def work(address: str) -> None:
        try:
            visit(int(address.rpartition(":")[2]))
        except BaseException as error:
            failed.append(error)
        signal.raise_signal(signal.SIGTERM)

    with listen("127.0.0.1", 0) as listener:
        greet = lambda address: threading.Thread(target=work, args=(address,)).start()  # noqa: E731
        serve(app or app_with([]), listener, greet)
    if failed:
        raise failed[0]


def is_closed(connection: socket.socket) -> bool:
    """Whether the service closes the connection within some seconds."""
    connection.settimeout(20)
    try:
        while connection.recv(4096):
            pass
    except TimeoutError:
        return False
    except ConnectionResetError:
        pass
    return True


GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    "start",
    [b"", GET, GET + b"\r\n" + GET, GET + b"Content-Length: 100\r\n\r\nx"],
    ids=["nothing", "half a head", "a whole request, then half a head", "a body that nobody waits for"],
)
def test_a_head_that_does_not_end_closes_its_connection(
    start: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.5)

    def visit(port: int) -> None:
        slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
        for connection in slow:
            connection.sendall(start)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=30) as answer:
            assert answer.status == 200
        ends = time.monotonic() + 1.0
        while start and time.monotonic() < ends:  # a byte now and then does not keep it open
            for connection in slow:
                with suppress(OSError):
                    connection.sendall(b"x")
            time.sleep(0.1)
        assert all(map(is_closed, slow))

    with_service(visit)


def test_only_so_many_connections_are_open_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 10)

    def visit(port: int) -> None:
        held = [socket.create_connection(("127.0.0.1", port)) for _ in range(10)]
        time.sleep(0.2)  # until all are accepted
        assert is_closed(socket.create_connection(("127.0.0.1", port)))
        for connection in held:
            connection.close()
        time.sleep(0.2)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=30) as answer:
            assert answer.status == 200

    with_service(visit)


def test_a_slow_answer_is_not_taken_for_a_slow_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.1)
    app = app_with([])

    @app.get("/slow")
    async def slow() -> str:
        await asyncio.sleep(0.5)
        return "late"

    def visit(port: int) -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/slow", timeout=30) as answer:
            assert answer.read() == b'"late"'

    with_service(visit, app)
