"""uvicorn on a socket that is open before the service starts."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from thumbnet.errors import ThumbnetError

pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")

import uvicorn
from fastapi import FastAPI, Request, Response
from uvicorn.server import ServerState

from thumbnet.serving import server
from thumbnet.serving.protection import protect, read_body
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


def with_service(
    visit: Callable[[int], None],
    app: FastAPI | None = None,
    on_hangup: Callable[[], None] | None = None,
) -> None:
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
        serve(app or app_with([]), listener, greet, on_hangup)
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


def received(connection: socket.socket) -> bytes:
    """Everything until the service closes the connection."""
    connection.settimeout(20)
    found = b""
    with suppress(ConnectionResetError):
        while part := connection.recv(65536):
            found += part
    return found


def with_slow_and_large(events: list[str]) -> FastAPI:
    """An application with ``/slow``, an answer of 200 kB at ``/large``, and ``/body``, which reads a body."""
    app = app_with(events)

    @app.get("/slow")
    async def slow() -> str:
        events.append("slow")
        await asyncio.sleep(0.5)
        return "late"

    @app.get("/large")
    async def large() -> Response:
        return Response(bytes(200_000))

    @app.post("/body")
    async def body(request: Request) -> int:
        return len(await read_body(request, 1_000_000, 20.0, "send less"))

    @app.post("/late")
    async def late(request: Request) -> str:
        await request.body()
        events.append("late")
        await asyncio.sleep(0.5)
        return "late"

    return app


class Recorded(asyncio.Transport):
    """Keeps what is written to a connection."""

    def __init__(self) -> None:
        super().__init__()
        self.written, self.closed = bytearray(), False

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass


CHUNKED = b"POST /body HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (GET, b"X-Header: value\r\n" * 4000), (GET + b"X-Header: ", b"x" * 65_536), (b"GET /", b"x" * 65_536),
        (b"", b"\r\n" * 30_000), (CHUNKED + b"1\r\nx\r\n0\r\n", b"X-Trailer: value\r\n" * 4000),
        (CHUNKED + b"1\r\nx\r\n0\r\nX-Trailer: ", b"x" * 65_536), (CHUNKED + b"1;", b"x" * 65_536),
    ],
    ids=["headers", "a header", "a path", "empty lines", "trailers", "a trailer", "an extension of a chunk"],
)  # fmt: skip
def test_what_is_no_body_cannot_grow_without_end(start: bytes, more: bytes) -> None:
    def visit(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            sent = 0
            with suppress(OSError):
                connection.sendall(start)
                while sent < 50_000_000:
                    connection.sendall(more)
                    sent += len(more)
            assert sent < 20_000_000  # less what lies in the buffers of the operating system
        with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=30) as answer:
            assert answer.status == 200

    with_service(visit, with_slow_and_large([]))


def test_a_head_that_is_too_large_is_refused_with_431_and_one_of_60_kb_is_not() -> None:
    def visit(port: int) -> None:
        for size, status in ((60_000, b"200"), (100_000, b"431")):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(GET + b"Connection: close\r\nX-Header: ")
                with suppress(OSError):
                    for _ in range(size // 1000):
                        connection.sendall(b"x" * 1000)
                        time.sleep(0.0002)
                    connection.sendall(b"\r\n\r\n")
                assert received(connection).startswith(b"HTTP/1.1 " + status)

    with_service(visit)


@pytest.mark.parametrize(
    ("size", "status"),
    [(60_000, b"200"), (66_000, b"431"), (200_000, b"431")],
    ids=["60 kB", "66 kB", "200 kB"],
)
@pytest.mark.parametrize("where", ["path", "header", "headers"])
def test_a_head_that_arrives_at_once_has_the_same_limit(where: str, size: int, status: bytes) -> None:
    heads = {
        "path": b"GET /?" + b"x" * size + b" HTTP/1.1\r\n",
        "header": b"GET / HTTP/1.1\r\nX-Header: " + b"x" * size + b"\r\n",
        "headers": b"GET / HTTP/1.1\r\n" + b"X-Header: value\r\n" * (size // 17),
    }

    async def answer() -> bytes:
        state = ServerState()
        config = uvicorn.Config(app_with([]), lifespan="off", log_level="error", access_log=False)
        config.load()
        protocol, transport = server._Bounded(config, state, {}), Recorded()
        protocol.connection_made(transport)
        protocol.data_received(heads[where] + b"Host: localhost\r\n\r\n")
        await asyncio.gather(*state.tasks)
        protocol.connection_lost(None)
        return bytes(transport.written)

    assert asyncio.run(answer()).startswith(b"HTTP/1.1 " + status)


def test_a_body_of_many_small_chunks_and_an_unread_body_are_no_overhead() -> None:
    def visit(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(CHUNKED + b"1\r\nx\r\n" * 100_000 + b"0\r\n\r\n")
            connection.sendall(b"POST /body HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000000\r\n\r\n")
            connection.sendall(bytes(2_000_000) + GET + b"Connection: close\r\n\r\n")
            answers = received(connection).split(b"HTTP/1.1 ")
            assert [answer[:3] for answer in answers] == [b"", b"200", b"413", b"200"]
            assert answers[1].endswith(b"100000")

    with_service(visit, with_slow_and_large([]))


def test_only_so_many_requests_wait_on_a_connection() -> None:
    def visit(port: int) -> None:
        slow = GET.replace(b"/", b"/slow", 1) + b"\r\n"
        for waiting in (99, 5000):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                last = GET + b"Connection: close\r\n\r\n"
                connection.sendall(slow + (GET + b"\r\n") * (waiting - 1) + last)
                answers = received(connection).count(b"HTTP/1.1 200")
                assert answers == (100 if waiting == 99 else 0)

    with_service(visit, with_slow_and_large([]))


def test_a_client_that_takes_no_answer_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "READ_SECONDS", 1.0)
    large = GET.replace(b"/", b"/large", 1) + b"\r\n"

    def visit(port: int) -> None:
        for reads in (False, True):
            connection = socket.socket()
            if not reads:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", port))
            connection.sendall(large * 79 + large.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            if not reads:
                time.sleep(3)
            assert (len(received(connection)) > 80 * 200_000) == reads
            connection.close()

    with_service(visit, with_slow_and_large([]))


def test_what_is_no_http_is_not_answered_within_another_answer() -> None:
    def visit(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(GET.replace(b"/", b"/slow", 1) + b"\r\n")
            time.sleep(0.2)
            connection.sendall(b"\x16\x03 no HTTP\r\n\r\n")
            assert received(connection) == b""  # the client would take a 400 for the answer to its request
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"\x16\x03 no HTTP\r\n\r\n")
            assert received(connection).startswith(b"HTTP/1.1 400")

    with_service(visit, with_slow_and_large([]))


def test_strange_requests_and_clients_that_leave_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n"
    late = b"POST /late HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    events: list[str] = []

    def visit(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"no HTTP\r\n\r\n")
            received(connection)
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(GET + upgrade)
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")  # and it is no web socket
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(late * 3)
            time.sleep(0.2)
        time.sleep(1.5)

    with_service(visit, with_slow_and_large(events))
    assert events.count("late") == 1  # those after it have nobody to answer to
    assert capfd.readouterr() == ("", "")


def test_a_request_that_arrives_before_the_signal_is_answered_however_busy_the_service_is() -> None:
    """Also if it is still in the operating system's buffers, or its connection is not accepted yet."""
    busy = threading.Event()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async def block() -> None:
            while True:
                busy.set()
                time.sleep(0.05)  # nothing else runs
                await asyncio.sleep(0)

        task = asyncio.create_task(block())
        yield
        task.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    async def root() -> str:
        return "here"

    found: list[bytes] = []

    def visit(port: int) -> None:
        kept = socket.create_connection(("127.0.0.1", port))
        kept.settimeout(20)
        kept.sendall(GET + b"\r\n")
        assert kept.recv(4096).startswith(b"HTTP/1.1 200")
        for _ in range(5):
            busy.clear()
            busy.wait()
        new = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
        for connection in (kept, *new):
            connection.sendall(GET + b"\r\n")
        os.kill(os.getpid(), signal.SIGTERM)
        found.extend(received(connection) for connection in (kept, *new))

    with_service(visit, app)
    assert [answer.startswith(b"HTTP/1.1 200") for answer in found] == [True] * 41


def test_a_request_that_outlasts_the_stop_is_told_to_try_again(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server, "GRACE", 1)
    app = with_slow_and_large([])
    protect(app, None)
    found: list[bytes] = []

    def visit(port: int) -> None:
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(CHUNKED + b"1\r\nx\r\n")
        time.sleep(0.3)
        threading.Thread(target=lambda: found.append(received(connection))).start()

    with_service(visit, app)
    while not found:
        time.sleep(0.01)
    assert found[0].startswith(b"HTTP/1.1 503")
    assert b"retry-after: 1" in found[0].lower()
    assert found[0].endswith(b'{"detail":"the service is stopping: try again"}')
    assert "Traceback" not in capfd.readouterr().err


HANGUP = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP here")


def hung_up(port: int, found: list[str]) -> None:
    """Send SIGHUP to this process, and expect that the service goes on."""
    for count in (1, 2):
        os.kill(os.getpid(), signal.SIGHUP)
        ends = time.monotonic() + 20
        while len(found) < count:
            assert time.monotonic() < ends
            time.sleep(0.01)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=30) as answer:
            assert answer.status == 200


@HANGUP
@pytest.mark.parametrize("in_terminal", [True, False])
def test_sighup_calls_the_function_for_it_and_the_service_goes_on(
    in_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_has_terminal", lambda: in_terminal)
    before = signal.getsignal(signal.SIGHUP)
    found: list[str] = []
    with_service(lambda port: hung_up(port, found), on_hangup=lambda: found.append("hangup"))
    assert found == ["hangup", "hangup"]
    assert signal.getsignal(signal.SIGHUP) == before


@HANGUP
def test_a_service_under_nohup_goes_on_when_its_terminal_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    terminals = iter([True])
    monkeypatch.setattr(server, "_has_terminal", lambda: next(terminals, False))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    found: list[str] = []
    try:
        with_service(lambda port: hung_up(port, found), on_hangup=lambda: found.append("hangup"))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert found == ["hangup", "hangup"]


IN_TERMINAL = """
from fastapi import FastAPI
from thumbnet.serving.server import listen, serve

with listen("127.0.0.1", 0) as listener:
    serve(FastAPI(), listener, lambda _: print("ready", flush=True), lambda: print("hangup", flush=True))
print("stopped")
"""


@HANGUP
def test_a_service_stops_when_its_terminal_is_closed() -> None:
    fcntl, pty, termios = (pytest.importorskip(name) for name in ("fcntl", "pty", "termios"))
    ours, theirs = pty.openpty()

    def begin() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # this terminal controls it

    process = subprocess.Popen(
        [sys.executable, "-c", IN_TERMINAL],
        stdin=theirs,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=begin,
    )
    try:
        os.close(theirs)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGHUP)
        assert process.stdout.readline() == "hangup\n"  # the terminal is still there
        os.close(ours)
        assert process.communicate(timeout=20)[0] == "stopped\n"
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
