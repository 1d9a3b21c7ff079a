"""What clients of a service share: connections, requests, answers, and a record of what they saw."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

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


async def answer_or_end(connection: Connection) -> str:
    """The status of the next answer, or how the connection ends without one."""
    try:
        return (await connection.answer()).word
    except NoAnswerError as error:
        return str(error)
    except (ValueError, IndexError):  # HTTP/0.9 has no status
        return await connection.end()
