"""Clients of a service over raw sockets: good, hostile, slow, and disconnecting ones. See service_load.py."""

from __future__ import annotations

import asyncio
import io
import json
import random
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "faults")]
# Not `from faults.broken`: next to this file, `faults` is a benchmark.
from broken import FORMATS, SUFFIX, bombs, damages, odd_ones  # type: ignore[import-not-found]  # noqa: E402

PATIENCE = 150.0  # seconds: a service that is silent for so long hangs
SAME = 0.05  # by how much a probability may differ between batches
DECLARED = " (try again)"  # marks statuses by which the service says that it is overloaded
WORDS_OF_NO_ANSWER = ("closed", "reset", "refused", "cut", "hung")


class NoAnswerError(Exception):
    """The service did not answer. The message is one of ``WORDS_OF_NO_ANSWER``."""


@dataclass(frozen=True)
class Answer:
    """A complete answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def closes(self) -> bool:
        """Whether the service says that it closes the connection."""
        return self.headers.get("connection", "").lower() == "close"

    @property
    def word(self) -> str:
        """The status, marked if the service declares that it is overloaded."""
        declared = self.status in (429, 503) and "retry-after" in self.headers
        return f"{self.status}{DECLARED}" if declared else str(self.status)


class Connection:
    """A connection to the service."""

    def __init__(self, link: socket.socket) -> None:
        self._link, self._received = link, b""

    async def send(self, data: bytes) -> None:
        """Hand ``data`` to the operating system, which on loopback is the service's receive buffer."""
        try:
            await asyncio.wait_for(asyncio.get_running_loop().sock_sendall(self._link, data), PATIENCE)
        except TimeoutError:
            raise NoAnswerError("hung") from None
        except OSError:
            raise NoAnswerError("reset") from None

    async def receive(self, most: int = 65536) -> bytes:
        """The next bytes; none if the service has closed the connection."""
        try:
            return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self._link, most), PATIENCE)
        except TimeoutError:
            raise NoAnswerError("hung") from None
        except OSError:
            raise NoAnswerError("reset") from None

    async def answer(self) -> Answer:
        """The next answer.

        Raises:
            NoAnswerError: the service closed the connection before the answer's end, or is silent.
        """
        while True:
            head = (await self._until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            status = int(head[0].split(" ")[1])
            if status >= 200:
                break
        headers = {}
        for line in head[1:-2]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await self._until(b"\r\n"), 16):
                body += await self._exactly(size)
                await self._exactly(2)
            await self._exactly(2)
        else:
            body = await self._exactly(int(headers.get("content-length", 0)))
        return Answer(status, headers, body)

    async def end(self) -> str:
        """Read until the service closes the connection; how it did: ``closed`` or ``reset``."""
        try:
            while await self.receive():
                pass
        except NoAnswerError as error:
            return str(error)
        return "closed"

    def half_close(self) -> None:
        """Say that no more data follow."""
        with suppress(OSError):
            self._link.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close the connection so that the service gets a reset."""
        self._link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._link.close()

    async def _until(self, mark: bytes) -> bytes:
        while mark not in self._received:
            await self._more()
        found, _, self._received = self._received.partition(mark)
        return found + mark

    async def _exactly(self, count: int) -> bytes:
        while len(self._received) < count:
            await self._more()
        found, self._received = self._received[:count], self._received[count:]
        return found

    async def _more(self) -> None:
        data = await self.receive()
        if not data:
            raise NoAnswerError("cut" if self._received else "closed")
        self._received += data


@dataclass
class Ticket:
    """A request whose head was completely sent.

    Attributes:
        kind: which kind of client sent it.
        sent: when, in seconds of :func:`time.monotonic`.
        answered: whether its answer came completely.
        excused: an answer before it on the same connection said that the service closes the connection.
    """

    kind: str
    sent: float
    answered: bool = False
    excused: bool = False


@dataclass(frozen=True)
class Picture:
    """A good picture, and what the service said about it when nothing else was going on."""

    name: str
    kind: str
    content: bytes
    expected: dict[str, float] = field(default_factory=dict)


@dataclass
class Load:
    """What the clients share: where the service is, what they send, and what they saw.

    Attributes:
        place: host and port.
        pictures: good pictures.
        large: a good picture of many pixels.
        broken: broken pictures.
        pause: mean seconds that a client waits between two requests.
        stopping: when the service was told to stop, in seconds of :func:`time.monotonic`.
        seen: by kind and status, how many requests; ``ending``: the same, once the service was told to stop.
        seconds: by kind, how long each good request took.
        tickets: the requests that must be answered. Only kept if ``keep_tickets``.
        wrong: what should not have happened.
    """

    place: tuple[str, int]
    pictures: list[Picture]
    large: bytes
    broken: list[tuple[str, bytes]]
    pause: float = 0.0
    keep_tickets: bool = False
    stopping: float | None = None
    seen: Counter[tuple[str, str]] = field(default_factory=Counter)
    ending: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    tickets: list[Ticket] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def connected(self, receive_buffer: int | None = None) -> AsyncIterator[Connection]:
        link = socket.socket()
        link.setblocking(False)
        if receive_buffer is not None:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            await self._connect(link)
            yield Connection(link)
        finally:
            link.close()

    async def _connect(self, link: socket.socket) -> None:
        try:
            await asyncio.wait_for(asyncio.get_running_loop().sock_connect(link, self.place), PATIENCE)
        except TimeoutError:
            raise NoAnswerError("hung") from None
        except ConnectionRefusedError:
            raise NoAnswerError("refused") from None
        except ConnectionError:  # a service that stops closes its listening socket while it connects
            raise NoAnswerError("reset") from None

    def blame(self, text: str) -> None:
        """Note what should not have happened."""
        if len(self.wrong) < 200:
            self.wrong.append(text)

    async def ask(self, connection: Connection, kind: str, request: bytes) -> Answer:
        """Send a request, and wait for its answer."""
        (answer,) = [one async for one in self.ask_all(connection, kind, [request])]
        return answer

    async def ask_all(
        self, connection: Connection, kind: str, requests: list[bytes]
    ) -> AsyncIterator[Answer]:
        """Send requests at once, and wait for their answers one after the other."""
        started = time.monotonic()
        await connection.send(b"".join(requests))
        tickets = [Ticket(kind, time.monotonic()) for _ in requests]
        if self.keep_tickets:
            self.tickets += tickets
        for number, ticket in enumerate(tickets):
            answer = await connection.answer()
            ticket.answered = True
            self.note(kind, answer.word, time.monotonic() - started if answer.status == 200 else None)
            if answer.closes:
                for later in tickets[number + 1 :]:
                    later.excused = True
            yield answer
            if answer.closes:
                return

    def note(self, kind: str, word: str, seconds: float | None = None) -> None:
        """Count a request, and keep how long it took."""
        if self.stopping is not None:
            self.ending[kind, word] += 1
            return
        self.seen[kind, word] += 1
        if seconds is not None:
            self.seconds.setdefault(kind, []).append(seconds)

    def check(self, kind: str, answer: Answer, pictures: list[Picture]) -> None:
        """Compare an answer with what the service said about the same pictures at first."""
        if answer.status != 200:
            return
        found = json.loads(answer.body)["predictions"]
        if len(found) != len(pictures):
            self.blame(f"{kind}: {len(found)} answers about {len(pictures)} pictures")
        for one, picture in zip(found, pictures, strict=False):
            values = {each["name"]: each["probability"] for each in one["classes"]}
            off = max(
                (abs(values.get(name, 0) - value) for name, value in picture.expected.items()), default=0
            )
            if off > SAME:
                self.blame(f"{kind}: the answer about {picture.name} is off by {off:.2f}")


def head(path: str, length: int | None, *lines: str, method: str = "POST", host: str = "localhost") -> bytes:
    """The head of a request. ``lines`` are further header lines."""
    fields = [f"{method} {path} HTTP/1.1", f"Host: {host}", *lines]
    if length is not None:
        fields.append(f"Content-Length: {length}")
    return ("\r\n".join(fields) + "\r\n\r\n").encode("utf-8", "surrogateescape")


def single(content: bytes, kind: str = "application/octet-stream", path: str = "/predict?top=5") -> bytes:
    """A request with one picture as its body."""
    return head(path, len(content), f"Content-Type: {kind}") + content


def several(pictures: list[tuple[str, bytes]], path: str = "/predict") -> bytes:
    """A request with pictures in a form."""
    parts = []
    for name, content in pictures:
        quoted = "".join(f"%{ord(c):02X}" if c in '"\r\n' else c for c in name)
        disposition = f'Content-Disposition: form-data; name="file"; filename="{quoted}"\r\n\r\n'
        parts.append(b"--limit\r\n" + disposition.encode("utf-8", "surrogatepass") + content + b"\r\n")
    body = b"".join(parts) + b"--limit--\r\n"
    return head(path, len(body), "Content-Type: multipart/form-data; boundary=limit") + body


def get(path: str, *lines: str, host: str = "localhost") -> bytes:
    """A request without a body."""
    return head(path, None, *lines, method="GET", host=host)


# --- good clients -----------------------------------------------------------------------------------------


async def one_picture(load: Load, draw: random.Random) -> None:
    picture = draw.choice(load.pictures)
    request = single(picture.content, draw.choice([picture.kind, "application/octet-stream", "image/png"]))
    async with load.connected() as connection:
        load.check("one picture", await load.ask(connection, "one picture", request), [picture])


async def batch(load: Load, draw: random.Random) -> None:
    pictures = draw.choices(load.pictures, k=draw.randint(2, 64))
    request = several([(one.name, one.content) for one in pictures])
    async with load.connected() as connection:
        load.check("batch", await load.ask(connection, "batch", request), pictures)


async def reused(load: Load, draw: random.Random) -> None:
    """Several requests over one connection."""
    async with load.connected() as connection:
        for _ in range(draw.randint(2, 30)):
            picture = draw.choice(load.pictures)
            answer = await load.ask(connection, "reused connection", single(picture.content, picture.kind))
            load.check("reused connection", answer, [picture])
            if answer.closes:
                return
            await asyncio.sleep(draw.random() * 0.05)


async def pipelined(load: Load, draw: random.Random) -> None:
    """Several requests that are sent before the first answer comes."""
    pictures = draw.choices(load.pictures, k=draw.randint(2, 16))
    requests = [single(one.content, one.kind) for one in pictures]
    async with load.connected() as connection:
        number = 0
        async for answer in load.ask_all(connection, "pipelined", requests):
            load.check("pipelined", answer, [pictures[number]])
            number += 1


async def chunked(load: Load, draw: random.Random) -> None:
    """A body without a length, and a client that waits for permission to send it."""
    picture = draw.choice(load.pictures)
    lines = [f"Content-Type: {picture.kind}", "Transfer-Encoding: chunked"]
    lines += ["Expect: 100-continue"] if draw.random() < 0.5 else []
    size = draw.randint(50, 1000)
    parts = [picture.content[at : at + size] for at in range(0, len(picture.content), size)]
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    async with load.connected() as connection:
        request = head("/predict", None, *lines) + body
        load.check("chunked", await load.ask(connection, "chunked", request), [picture])


async def large(load: Load, draw: random.Random) -> None:
    async with load.connected() as connection:
        await load.ask(connection, "12 megapixels", single(load.large, "image/jpeg"))


async def explained(load: Load, draw: random.Random) -> None:
    picture = draw.choice(load.pictures)
    async with load.connected() as connection:
        await load.ask(connection, "explain", single(picture.content, picture.kind, "/explain"))


async def looked_up(load: Load, draw: random.Random) -> None:
    path = draw.choice(["/", "/healthz", "/readyz", "/metrics", "/model", "/hardest", "/openapi.json"])
    async with load.connected() as connection:
        await load.ask(connection, "page and probes", get(path))


# --- hostile clients --------------------------------------------------------------------------------------


async def broken_picture(load: Load, draw: random.Random) -> None:
    name, content = draw.choice(load.broken)
    path = "/explain" if draw.random() < 0.1 else "/predict"
    form = draw.random() < 0.5
    request = several([(name, content)], path) if form else single(content, "image/png", path)
    async with load.connected() as connection:
        await load.ask(connection, "broken picture", request)


async def wrong_type(load: Load, draw: random.Random) -> None:
    content = draw.choice(load.pictures).content
    kind = draw.choice([
        "text/plain", "application/json", "multipart/form-data", "multipart/form-data; boundary=",
        "multipart/form-data; boundary=other", "image/", "", "x" * 5000, "multipart/form-data; boundary=\x7f",
        "application/x-www-form-urlencoded", "multipart/mixed; boundary=limit",
    ])  # fmt: skip
    request = head("/predict", len(content), f"Content-Type: {kind}") + content
    async with load.connected() as connection:
        await load.ask(connection, "wrong type", request)


async def odd_form(load: Load, draw: random.Random) -> None:
    """Forms with no picture, too many parts, text instead of files, or headers without end."""
    content = draw.choice(load.pictures).content
    part = b'--limit\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx\r\n'
    body = draw.choice([
        b"--limit--\r\n",
        part * 3000 + b"--limit--\r\n",
        b'--limit\r\nContent-Disposition: form-data; name="file"\r\n\r\ntext\r\n' * 50 + b"--limit--\r\n",
        b"--limit\r\n" + b"X-Header: y\r\n" * 20_000 + b"\r\nx\r\n--limit--\r\n",
        b"--limit\r\nContent-Disposition: form-data; name=" + b"n" * 1_000_000 + b"\r\n\r\nx\r\n--limit--",
        b"--limit\r\n" + content,
        part.replace(b"name=", b"\x00\xff="),
    ])  # fmt: skip
    request = head("/predict", len(body), "Content-Type: multipart/form-data; boundary=limit") + body
    async with load.connected() as connection:
        await load.ask(connection, "odd form", request)


async def odd_parameter(load: Load, draw: random.Random) -> None:
    picture = draw.choice(load.pictures)
    top = draw.choice(["0", "-1", "1001", "many", "1e9", "9" * 5000, "%00", "1&top=2", "[]"])
    async with load.connected() as connection:
        request = single(picture.content, picture.kind, f"/predict?top={top}")
        await load.ask(connection, "odd parameter", request)


async def too_large(load: Load, draw: random.Random) -> None:
    """More bytes than the service takes: declared, or in chunks without an end."""
    kind = "Content-Type: image/png"
    async with load.connected() as connection:
        if draw.random() < 0.5:
            request = head("/predict", draw.choice([10_000_001, 10**12, 10**30]), kind)
            await load.ask(connection, "too large", request)
            return
        await connection.send(head("/predict", None, kind, "Transfer-Encoding: chunked"))
        with suppress(NoAnswerError):
            for _ in range(12):
                await connection.send(b"%x\r\n%s\r\n" % (1_000_000, bytes(1_000_000)))
        load.note("too large", await answer_or_end(connection))


async def wrong_length(load: Load, draw: random.Random) -> None:
    """Lengths that are no lengths, contradict each other, or are not those of the body."""
    kind, content = "Content-Type: image/png", draw.choice(load.pictures).content
    line = draw.choice([
        "Content-Length: -1", "Content-Length: x", "Content-Length: 1\r\nContent-Length: 2",
        "Content-Length: 1e3", "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: identity", "Content-Length:",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: x", f"Content-Length: {len(content) - 7}",
        "Content-Length: 18446744073709551617", "Content-Length: +5", f"Content-Length: {len(content) + 9}",
    ])  # fmt: skip
    async with load.connected() as connection:
        await connection.send(head("/predict", None, kind, line) + content)
        connection.half_close()
        load.note("wrong length", await answer_or_end(connection))


async def flood(load: Load, draw: random.Random) -> None:
    """Headers, or what else is no body, without end. The service has to close the connection soon."""
    chunked_head = head("/predict", None, "Content-Type: image/png", "Transfer-Encoding: chunked")
    start, more = draw.choice([
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"X-Header: value\r\n" * 4000),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Header: ", b"x" * 65536),
        (b"GET /", b"x" * 65536),
        (b"GET / HTTP/1.1\r\n", b"x" * 65536),
        (chunked_head + b"1\r\nx\r\n0\r\n", b"X-Trailer: value\r\n" * 4000),
        (chunked_head + b"1\r\nx\r\n0\r\nX: ", b"x" * 65536),
        (chunked_head + b"1;", b"x" * 65536),
    ])  # fmt: skip
    async with load.connected() as connection:
        reading = asyncio.create_task(answer_or_end(connection))
        sent = 0
        with suppress(NoAnswerError):
            await connection.send(start)
            while not reading.done() and sent < 50_000_000:
                await connection.send(more)
                sent += len(more)
        if sent >= 50_000_000:
            load.blame(f"flood: the service took {sent:,} bytes of {start[-30:]!r}")
        connection.half_close()
        load.note("flood", await reading)


async def pipeline_flood(load: Load, draw: random.Random) -> None:
    """Requests without end that nobody waits for."""
    request = draw.choice([get("/healthz"), head("/predict", 0, "Content-Type: image/png"), get("/")])
    async with load.connected() as connection:
        reading = asyncio.create_task(connection.end())
        with suppress(NoAnswerError):
            for _ in range(draw.randint(1, 60)):
                if reading.done():
                    break
                await connection.send(request * 500)
        if draw.random() < 0.5:
            reading.cancel()
            await asyncio.wait([reading])
            connection.reset()
            load.note("pipeline flood", "left")
            return
        connection.half_close()
        load.note("pipeline flood", await reading)


async def wrong_host(load: Load, draw: random.Random) -> None:
    host = draw.choice(["rebound.example", "localhost.evil.example", "", "a" * 5000, "127.0.0.1@evil", "é"])
    async with load.connected() as connection:
        await load.ask(connection, "wrong host", get("/model", host=host))


async def odd_path(load: Load, draw: random.Random) -> None:
    path = draw.choice([
        "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/predict/", "/a%00b", "/%ff", "/%",
        "/a?" + "x=1&" * 5000, "/%0d%0aSet-Cookie:x=1", "/.git/config", "/static/../page.html", "/%1b[2J",
        "/metrics/%2e%2e/model", "/" + "a" * 20_000, "http://localhost/model", "*", "/docs", "/é",
    ])  # fmt: skip
    method = draw.choice(["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "PROPFIND"])
    async with load.connected() as connection:
        await load.ask(connection, "odd path", head(path, 0, method=method))


async def rubbish(load: Load, draw: random.Random) -> None:
    """Bytes that are no HTTP/1.1, and wishes for other protocols."""
    upgrade = ("Connection: Upgrade", "Sec-WebSocket-Key: x", "Sec-WebSocket-Version: 13")
    data = draw.choice([
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + draw.randbytes(500),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET /\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\r\n" * 500,
        draw.randbytes(2000), b"GET / HTTP/1.1\nHost: localhost\n\n", b"QUIT\r\n",
        b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n", b"GET / HTTP/1.1\r\nA\x00: b\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n", b"CONNECT localhost:1 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n folded: x\r\n\r\n", get("/", *upgrade, "Upgrade: websocket"),
        get("/predict", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c"),
    ])  # fmt: skip
    async with load.connected() as connection:
        await connection.send(data)
        connection.half_close()
        load.note("rubbish", await answer_or_end(connection))


async def answer_or_end(connection: Connection) -> str:
    """The status of the next answer, or how the connection ends without one."""
    try:
        return (await connection.answer()).word
    except NoAnswerError as error:
        return str(error)
    except (ValueError, IndexError):  # HTTP/0.9 has no status
        return await connection.end()


# --- slow clients -----------------------------------------------------------------------------------------


async def slow_head(load: Load, draw: random.Random) -> None:
    """A byte now and then, also on a connection that has had a request. The service closes it."""
    started = time.monotonic()
    async with load.connected() as connection:
        if draw.random() < 0.5:
            await load.ask(connection, "page and probes", get("/healthz"))
        reading = asyncio.create_task(connection.end())
        with suppress(NoAnswerError):
            for byte in get("/model", "X-Header: " + "x" * 500):
                await connection.send(bytes([byte]))
                await asyncio.wait([reading], timeout=0.5)
                if reading.done():
                    break
        load.note("slow head", await reading)
    if time.monotonic() - started > 60:
        load.blame(f"slow head: held for {time.monotonic() - started:.0f} s")


async def slow_body(load: Load, draw: random.Random) -> None:
    """A body that comes in parts, in some seconds."""
    picture = draw.choice(load.pictures)
    parts = draw.randint(2, 8)
    size = len(picture.content) // parts + 1
    async with load.connected() as connection:
        await connection.send(head("/predict", len(picture.content), f"Content-Type: {picture.kind}"))
        ticket = Ticket("slow body", time.monotonic())
        if load.keep_tickets:
            load.tickets.append(ticket)
        for at in range(0, len(picture.content), size):
            await asyncio.sleep(draw.random())
            await connection.send(picture.content[at : at + size])
        answer = await connection.answer()
        ticket.answered = True
        load.note("slow body", answer.word)
        load.check("slow body", answer, [picture])


async def endless_body(load: Load, draw: random.Random) -> None:
    """A body that never ends: a byte now and then, or nothing. The service answers 408."""
    async with load.connected() as connection:
        await connection.send(head("/predict", 5000, "Content-Type: image/png"))
        reading = asyncio.create_task(answer_or_end(connection))
        while not reading.done():
            with suppress(NoAnswerError):
                await connection.send(b"x")
            await asyncio.wait([reading], timeout=draw.choice([0.5, 5.0]))
        load.note("endless body", await reading)


async def slow_reader(load: Load, draw: random.Random) -> None:
    """Asks for pages, and takes them a little at a time, with a small receive buffer."""
    async with load.connected(receive_buffer=4096) as connection:
        await connection.send(get("/") * 3 + get("/", "Connection: close"))
        taken, data = 0, b"x"
        while data:
            await asyncio.sleep(draw.random() * 0.02)
            data = await connection.receive(4096)
            taken += len(data)
        load.note("slow reader", "200" if taken > 20_000 else "cut")


async def no_reader(load: Load, draw: random.Random) -> None:
    """Asks for many pages and takes none. The service has to close the connection at last."""
    started = time.monotonic()
    async with load.connected(receive_buffer=4096) as connection:
        with suppress(NoAnswerError):
            await connection.send(get("/") * 90)
            while time.monotonic() - started < PATIENCE:
                await asyncio.sleep(5)
                await connection.send(b"x")  # fails once the service has closed the connection
        load.note("no reader", "closed" if time.monotonic() - started < PATIENCE else "hung")


async def idle(load: Load, draw: random.Random) -> None:
    """Connects, and says nothing."""
    async with load.connected() as connection:
        load.note("idle", await connection.end())


# --- clients that leave -----------------------------------------------------------------------------------


async def left_in_head(load: Load, draw: random.Random) -> None:
    request = get("/model", "X-Header: " + "x" * 200)
    await _left(load, draw, "left in head", request[: draw.randint(1, len(request) - 5)])


async def left_in_body(load: Load, draw: random.Random) -> None:
    content = draw.choice(load.pictures).content
    request = head("/predict", len(content), "Content-Type: image/png") + content
    await _left(load, draw, "left in body", request[: -draw.randint(1, len(content) - 1)])


async def left_waiting(load: Load, draw: random.Random) -> None:
    chosen = draw.choices(load.pictures, k=draw.randint(1, 64))
    request = several([(one.name, one.content) for one in chosen], draw.choice(["/predict", "/explain"]))
    await _left(load, draw, "left while waiting", request)


async def left_reading(load: Load, draw: random.Random) -> None:
    async with load.connected(receive_buffer=4096) as connection:
        await connection.send(get("/") * draw.randint(1, 20))
        await connection.receive(draw.randint(1, 4000))
        if draw.random() < 0.5:
            connection.reset()
        load.note("left while reading", "left")
    await asyncio.sleep(0.5 * draw.random())


async def _left(load: Load, draw: random.Random, kind: str, data: bytes) -> None:
    async with load.connected() as connection:
        await connection.send(data)
        await asyncio.sleep(draw.choice([0, 0.01, 0.1]) * draw.random())
        if draw.random() < 0.5:
            connection.reset()
        load.note(kind, "left")
    await asyncio.sleep(0.5 * draw.random())  # they wait for nothing, so they would come as fast as they can


Run = Callable[[Load, random.Random], Awaitable[None]]


@dataclass(frozen=True)
class Kind:
    """A kind of client.

    Attributes:
        name: its name, as in the table.
        run: one visit.
        weight: how often it is drawn, beside the others of its group.
        statuses: those that it may get, apart from declared overload; "closed" and "reset" are no answer.
    """

    name: str
    run: Run
    weight: float
    statuses: frozenset[str]


def _kind(name: str, run: Run, weight: float, statuses: str) -> Kind:
    return Kind(name, run, weight, frozenset(statuses.split()))


GROUPS: dict[str, list[Kind]] = {
    "good": [
        _kind("one picture", one_picture, 8, "200"),
        _kind("batch", batch, 1, "200"),
        _kind("reused connection", reused, 2, "200"),
        _kind("pipelined", pipelined, 1, "200"),
        _kind("chunked", chunked, 2, "200"),
        _kind("12 megapixels", large, 0.05, "200"),
        _kind("explain", explained, 0.2, "200"),
        _kind("page and probes", looked_up, 2, "200"),
    ],
    "hostile": [
        _kind("broken picture", broken_picture, 8, "200 413 415 422"),
        _kind("wrong type", wrong_type, 2, "200 400 415 422"),
        _kind("odd form", odd_form, 2, "400 415 422"),
        _kind("odd parameter", odd_parameter, 1, "200 422"),
        _kind("too large", too_large, 0.5, "400 413 reset closed"),
        _kind("wrong length", wrong_length, 2, "200 400 413 415 422 501 closed reset"),
        _kind("flood", flood, 0.5, "400 413 431 closed reset cut"),
        _kind("pipeline flood", pipeline_flood, 0.3, "closed reset left"),
        _kind("wrong host", wrong_host, 1, "400"),
        _kind("odd path", odd_path, 2, "200 307 400 404 405 414 431"),
        _kind("rubbish", rubbish, 2, "200 400 403 404 405 426 closed reset"),
    ],
    "slow": [
        _kind("slow head", slow_head, 2, "closed reset"),
        _kind("slow body", slow_body, 2, "200"),
        _kind("endless body", endless_body, 1, "408"),
        _kind("slow reader", slow_reader, 1, "200"),
        _kind("no reader", no_reader, 1, "closed reset"),
        _kind("idle", idle, 1, "closed reset"),
    ],
    "leaving": [
        _kind("left in head", left_in_head, 1, "left"),
        _kind("left in body", left_in_body, 1, "left"),
        _kind("left while waiting", left_waiting, 2, "left"),
        _kind("left while reading", left_reading, 1, "left"),
    ],
}


async def work(load: Load, group: str, seed: str, until: Callable[[], bool], kinds: list[Kind]) -> None:
    """Be one client after another, until ``until`` is true."""
    draw = random.Random(seed)
    weights = [one.weight for one in kinds]
    while not until():
        (kind,) = draw.choices(kinds, weights)
        try:
            await kind.run(load, draw)
        except NoAnswerError as error:
            load.note(kind.name, str(error))
            if load.stopping is not None:
                await asyncio.sleep(0.05)
        except Exception as error:  # a fault of the client, or an answer that is no HTTP
            load.blame(f"{kind.name}: {error!r}")
        if load.pause:
            await asyncio.sleep(2 * load.pause * draw.random())


def good_pictures(arrays: list[Any]) -> list[Picture]:
    """Pictures, one of each format in turn, from pixels (uint8 [height, width, 3])."""
    made = []
    for number, pixels in enumerate(arrays):
        for name in FORMATS[number % len(FORMATS) :]:
            stream = io.BytesIO()
            try:
                Image.fromarray(pixels).save(stream, name)
            except (KeyError, OSError):  # this Pillow cannot write the format
                continue
            made.append(Picture(f"{number}.{SUFFIX.get(name, name)}", f"image/{name}", stream.getvalue()))
            break
    return made


def broken_pictures(pictures: list[Picture]) -> list[tuple[str, bytes]]:
    """Broken pictures: damaged ones of each format, small files that unpack to much, and odd ones."""
    found: list[tuple[str, bytes]] = []
    for name, one in {picture.kind: picture for picture in pictures}.items():
        found += [(f"{damage}.{name[6:]}", content) for damage, content in damages(name[6:], one.content)]
    for name, content in bombs():
        if name.startswith("largest"):  # these take seconds to write
            break
        found.append((name, content))
    return found + list(odd_ones())


def large_picture() -> bytes:
    """A JPEG of 12 megapixels, as phones take them."""
    stream = io.BytesIO()
    Image.effect_noise((400, 300), 60).convert("RGB").resize((4000, 3000)).save(stream, "jpeg", quality=60)
    return stream.getvalue()
