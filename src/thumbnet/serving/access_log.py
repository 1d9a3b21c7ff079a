"""Log one line per request. A thread of its own writes the lines, so no answer waits for them.

A line holds the time, the client's address, method, path, status, number of pictures and milliseconds. It
never holds a query, a header, a file name or a picture. The client chooses method and path, and behind a
proxy also the address. Every character in them that could end a line, hide text or control a terminal is
percent-encoded.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, TypeAlias

from starlette.types import ASGIApp, Scope

from thumbnet.serving.observer import Observer

Style: TypeAlias = Literal["plain", "json"]

MOST_WAITING = 10_000  # lines that wait to be written; further ones are counted and dropped
LONGEST = 300  # characters of a path, so that a line is written at once
PICTURES = "thumbnet.pictures"  # where the service notes a request's number of pictures in its ASGI scope


@dataclass(frozen=True)
class Entry:
    """A request that was answered.

    Attributes:
        time: when it arrived, in seconds since 1970.
        client: the client's address.
        method, path: the request's method, and its path without the query.
        status: the HTTP status of the answer.
        pictures: the number of pictures in the request.
        seconds: from the request's arrival to the end of the answer.
    """

    time: float
    client: str
    method: str
    path: str
    status: int
    pictures: int
    seconds: float


def formatted(entry: Entry, style: Style) -> str:
    """Format an entry as one line of printable ASCII, without the line end."""
    when, milliseconds = _utc(entry.time), round(1000 * entry.seconds, 1)
    client, method, path = (_safe(text) for text in (entry.client, entry.method, entry.path))
    if style == "plain":
        return (
            f"{when} {client} {method} {path} {entry.status} pictures={entry.pictures} ms={milliseconds:.1f}"
        )
    return json.dumps(
        {
            "time": when,
            "client": client,
            "method": method,
            "path": path,
            "status": entry.status,
            "pictures": entry.pictures,
            "milliseconds": milliseconds,
        }
    )


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _safe(text: str) -> str:
    r"""Percent-encode everything but visible ASCII, and also quotes and backslashes; shorten long text."""
    kept = "".join(c if "!" <= c <= "~" and c not in "\"'\\" else _encoded(c) for c in text[: LONGEST + 1])
    return (kept if len(kept) <= LONGEST else f"{kept[: LONGEST - 3]}...") or "-"


def _encoded(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))


def _ascii(raw: bytes) -> str:
    return "".join(chr(byte) if byte < 128 else f"%{byte:02X}" for byte in raw)


class AccessLog:
    """Writes entries in a thread of its own.

    If lines arrive faster than they can be written, or if whatever reads them has stopped, up to
    ``MOST_WAITING`` lines wait. Later ones are dropped, and a line says how many.

    Args:
        write: writes one line, given without its end. It may block, and its :class:`OSError` is ignored.
        style: ``plain`` or ``json``.
    """

    def __init__(self, write: Callable[[str], None], style: Style = "plain") -> None:
        self._write, self._style = write, style
        self._waiting: queue.Queue[Entry | None] = queue.Queue(MOST_WAITING)
        self._dropped = self._told = 0
        self._thread = threading.Thread(target=self._work, name="access log", daemon=True)
        self._thread.start()

    def add(self, entry: Entry) -> None:
        """Queue an entry. Returns at once."""
        try:
            self._waiting.put_nowait(entry)
        except queue.Full:
            self._dropped += 1

    def close(self, seconds: float = 1.0) -> None:
        """Write what waits, for at most ``seconds``, and stop the thread."""
        with suppress(queue.Full):
            self._waiting.put_nowait(None)
        self._thread.join(seconds)

    def _work(self) -> None:
        while entry := self._waiting.get():
            self._write_line(formatted(entry, self._style))
            dropped = self._dropped - self._told
            if dropped:
                self._told += dropped
                self._write_line(self._about_dropped(dropped))

    def _write_line(self, line: str) -> None:
        with suppress(OSError, ValueError):  # nobody reads the log any more; the service goes on
            self._write(line)

    def _about_dropped(self, count: int) -> str:
        when = _utc(time.time())
        return (
            json.dumps({"time": when, "dropped": count})
            if self._style == "json"
            else f"{when} dropped={count}"
        )


class Logged(Observer):
    """ASGI middleware that adds an entry to an :class:`AccessLog` for every request."""

    def __init__(self, app: ASGIApp, log: AccessLog) -> None:
        super().__init__(app)
        self._log = log

    def record(self, scope: Scope, status: int, arrived: float, seconds: float) -> None:
        client = scope.get("client")
        raw = scope.get("raw_path")
        self._log.add(
            Entry(
                time=arrived,
                client=str(client[0]) if client else "",
                method=scope["method"],
                path=scope["path"] if raw is None else _ascii(raw),
                status=status,
                pictures=scope.get(PICTURES, 0),
                seconds=seconds,
            )
        )
