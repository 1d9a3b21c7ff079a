"""Clients of a service over raw sockets: good, hostile, slow, and disconnecting ones. See service_load.py."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from service_wire import (
    PATIENCE,
    Load,
    NoAnswerError,
    Ticket,
    answer_or_end,
    get,
    head,
    several,
    single,
)

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
        weight: how often it is drawn, relative to the others of its group.
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
