"""One line per request, whatever the client sends, and no answer waits for it."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra 'serve' is not installed")

from starlette.types import Message, Receive, Scope, Send

from thumbnet.serving import access_log
from thumbnet.serving.access_log import LONGEST, PICTURES, AccessLog, Entry, Logged, Style, formatted

ENTRY = Entry(1_764_244_800.25, "127.0.0.1", "POST", "/predict", 200, 3, 0.01234)
HOSTILE = [
    "/a\nb", "/a\r\nb", "/\x1b[31mred", "/a b 200", "/\u202eevil", "/\u2028line", "/\x9b31m", "/caf\u00e9",
    "/\udce9", "/\x00", '/"quoted"', "/back\\slash", "/\U0001f438",
]  # fmt: skip


def test_a_plain_line_has_its_fields_in_a_fixed_order() -> None:
    expected = "2025-11-27T12:00:00.250Z 127.0.0.1 POST /predict 200 pictures=3 ms=12.3"
    assert formatted(ENTRY, "plain") == expected


def test_a_json_line_has_the_same_fields() -> None:
    assert json.loads(formatted(ENTRY, "json")) == {
        "time": "2025-11-27T12:00:00.250Z",
        "client": "127.0.0.1",
        "method": "POST",
        "path": "/predict",
        "status": 200,
        "pictures": 3,
        "milliseconds": 12.3,
    }


@pytest.mark.parametrize("style", ["plain", "json"])
@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_client_sends_cannot_end_a_line_or_add_a_field(text: str, style: Style) -> None:
    line = formatted(Entry(0.0, text, text, text, 404, 0, 0.0), style)
    assert re.fullmatch("[ -~]+", line)
    assert "\\" not in line
    if style == "plain":
        assert len(line.split(" ")) == 7
    else:
        assert json.loads(line)["path"].startswith("/")


def test_a_long_path_is_shortened_and_an_empty_client_is_a_dash() -> None:
    line = formatted(Entry(0.0, "", "GET", "/" + "a" * 9999, 404, 0, 0.0), "plain")
    _, client, _, path, *_ = line.split(" ")
    assert client == "-"
    assert len(path) == LONGEST
    assert path.endswith("...")
    encoded = formatted(Entry(0.0, "", "GET", "/" + "\u202e" * 9999, 404, 0, 0.0), "plain")
    assert len(encoded) < 2 * LONGEST


class Lines:
    """Collects lines; a test can make it block, as a full pipe does."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.may_go_on, self.blocked = threading.Event(), threading.Event()
        self.may_go_on.set()

    def __call__(self, line: str) -> None:
        self.blocked.set()
        assert self.may_go_on.wait(30)
        self.lines.append(line)


@pytest.mark.parametrize(("style", "told"), [("plain", r"\S+Z dropped=7"), ("json", r'.*"dropped": 7}')])
def test_a_log_that_nobody_reads_blocks_no_request_and_says_what_it_dropped(
    style: Style, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_log, "MOST_WAITING", 5)
    lines = Lines()
    lines.may_go_on.clear()
    log = AccessLog(lines, style)
    log.add(ENTRY)
    assert lines.blocked.wait(30)
    start = time.monotonic()
    for _ in range(12):
        log.add(ENTRY)
    log.close(0.01)
    assert time.monotonic() - start < 5
    lines.may_go_on.set()
    end = time.monotonic() + 30
    while len(lines.lines) < 7 and time.monotonic() < end:
        time.sleep(0.01)
    line = formatted(ENTRY, style)
    assert [one for one in lines.lines if one == line] == [line] * 6
    assert re.fullmatch(told, lines.lines[1])


def test_closing_writes_what_waits() -> None:
    lines = Lines()
    log = AccessLog(lines)
    for _ in range(100):
        log.add(ENTRY)
    log.close(30)
    assert lines.lines == [formatted(ENTRY, "plain")] * 100


def test_a_log_whose_reader_is_gone_does_not_end_the_service() -> None:
    written = Lines()

    def broken(line: str) -> None:
        written(line)
        raise BrokenPipeError

    log = AccessLog(broken)
    log.add(ENTRY)
    log.add(ENTRY)
    log.close(30)
    assert len(written.lines) == 2


class Kept(AccessLog):
    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)


def ask(app: Any, **scope: Any) -> list[Entry]:
    log = Kept()

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        pass

    asyncio.run(Logged(app, log)({"type": "http", "method": "GET", "path": "/x", **scope}, receive, send))
    return log.entries


async def answering(scope: Scope, receive: Receive, send: Send) -> None:
    scope[PICTURES] = 2
    await send({"type": "http.response.start", "status": 201, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def test_a_request_is_logged_with_its_client_path_status_and_pictures() -> None:
    (entry,) = ask(answering, client=("10.0.0.1", 5), raw_path=b"/a%0Ab\xe9", query_string=b"secret=1")
    assert (entry.client, entry.method, entry.path) == ("10.0.0.1", "GET", "/a%0Ab%E9")
    assert (entry.status, entry.pictures) == (201, 2)
    assert abs(entry.time - time.time()) < 60
    assert 0 <= entry.seconds < 60


def test_a_request_without_client_and_raw_path_is_logged_too() -> None:
    (entry,) = ask(answering, client=None)
    assert (entry.client, entry.path) == ("", "/x")


def test_a_request_that_fails_is_logged_as_500() -> None:
    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("broken")

    log = Kept()
    with pytest.raises(ValueError, match="broken"):
        asyncio.run(Logged(failing, log)({"type": "http", "method": "GET", "path": "/x"}, None, None))  # type: ignore[arg-type]
    assert [one.status for one in log.entries] == [500]


def test_events_other_than_requests_are_not_logged() -> None:
    assert ask(answering, type="lifespan") == []
