"""Pictures arrive whole, as a form or alone, or the request is refused with a reason."""

from __future__ import annotations

import asyncio
import codecs
import errno
import gc
import re
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fastapi import HTTPException
from prometheus_client import CollectorRegistry

from faults.broken import png, scans, texts
from helpers import coloured, noise
from serving_helpers import LIMITS, Slow, client_of, encoded, grey, wait_until
from thumbnet.classifiers.load import load_run
from thumbnet.data import plugins
from thumbnet.data.images import load_picture
from thumbnet.errors import UnreadableImageError
from thumbnet.runs.folder import Run
from thumbnet.serving import uploads
from thumbnet.serving.service import build_service


@pytest.fixture(scope="module")
def client(tiny_run: Run) -> Iterator[Any]:
    with client_of(build_service(load_run(tiny_run.path), LIMITS)) as client:
        yield client


@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream"])
def test_a_body_may_be_a_single_picture(client: Any, kind: str) -> None:
    body = encoded(coloured(1, 5))
    answer = client.post("/predict?top=1", content=body, headers={"Content-Type": kind})
    assert [len(one["classes"]) for one in answer.json()["predictions"]] == [1]


BOMB = encoded(np.zeros((200, 200, 3), np.uint8))
NARROW = encoded(np.zeros((10_000, 1, 3), np.uint8))  # within the limit, but each row costs memory, too
DEEP = png(100, 100, depth=16, body=bytes(1 + 6 * 100) * 100)
# A picture that Pillow itself refuses to open.
PILLOWS_BOMB = b"P6 60000 60000 255\n" + bytes(100)
FORM = {"Content-Type": "multipart/form-data; boundary=x"}


@pytest.mark.parametrize(
    ("status", "options", "says"),
    [
        (413, {"content": b"x" * 100_001, "headers": {"Content-Type": "image/png"}}, "100,000 bytes"),
        (
            413,
            {"content": iter([b"x" * 60_000] * 2), "headers": {"Content-Type": "image/png"}},
            "100,000 bytes",
        ),
        (413, {"files": {"file": BOMB}}, "200x200 pixels are more than the limit of 10,000"),
        (413, {"files": {"file": NARROW}}, "not enough memory to decode it"),
        (413, {"files": {"file": PILLOWS_BOMB}}, "its pixels are more than the limit of 10,000"),
        (415, {"content": b"x", "headers": {"Content-Type": "text/plain"}}, "text/plain"),
        (415, {"content": b"x"}, "no Content-Type"),
        (415, {"files": {"file": ("a.exe", b"MZ no picture", "image/png")}}, "a.exe: not a picture"),
        (422, {"files": {"file": grey(9)[:-30]}}, "cannot read"),
        (422, {"files": [("file", grey(9)), ("file", grey(9)[:-30])]}, "cannot read"),
        (422, {"files": {"file": texts(64)}}, "text chunks"),
        (422, {"files": {"file": texts(64, depth=16)}}, "text chunks"),
        (422, {"files": {"file": scans(501)}}, "more than 500 scans"),
        (422, {"content": b"", "headers": FORM}, "no picture"),
        (422, {"files": [("file", grey(9))] * 9}, "more than 8 pictures"),
        (
            422,
            {"files": {"file": grey(9)}, "data": {str(n): "" for n in range(9)}},
            "more than 8 fields besides pictures",
        ),
        (400, {"content": b"rubbish", "headers": FORM}, ""),
        (422, {"files": {"file": grey(9)}, "params": {"top": 0}}, "top: "),
        (422, {"files": {"file": grey(9)}, "params": {"top": "many"}}, "top: "),
    ],
)
def test_an_error_says_what_is_wrong_with_the_request(
    client: Any, status: int, options: dict[str, Any], says: str
) -> None:
    answer = client.post("/predict", **options)
    assert answer.status_code == status, answer.text
    assert says in answer.json()["detail"]


@pytest.mark.parametrize("depth", [8, 16])
def test_a_png_may_have_some_text(client: Any, depth: int) -> None:
    answer = client.post("/predict", files={"file": texts(2, depth)})
    assert answer.status_code == 200, answer.text


def form_in(charset: str) -> dict[str, Any]:
    """A form with a text and a picture, whose head names the charset."""
    field = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + b"a" * 1000 + b"\r\n"
    file = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n' + grey(9) + b"\r\n"
    kind = f"multipart/form-data; boundary=x; charset={charset}"
    return {"content": field + file + b"--x--\r\n", "headers": {"Content-Type": kind}}


@pytest.mark.parametrize("charset", ["undefined", "punycode", "idna", "rot13", "madebythetest"])
def test_a_form_in_another_charset_is_refused_undecoded(client: Any, charset: str) -> None:
    asked = list[str]()

    def search(name: str) -> codecs.CodecInfo | None:
        asked.append(name)
        return None

    codecs.register(search)
    try:
        answer = client.post("/predict", **form_in(charset))
    finally:
        codecs.unregister(search)
    assert answer.status_code == 415, answer.text
    assert answer.json()["detail"] == f"{charset}: send the form in UTF-8"
    assert "madebythetest" not in asked


@pytest.mark.parametrize("charset", ["UTF-8", '"utf-8"', "utf8", "ISO-8859-1"])
def test_a_form_may_say_that_it_is_in_utf_8(client: Any, charset: str) -> None:
    answer = client.post("/predict", **form_in(charset))
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("installed", [False, True])
def test_a_client_is_not_told_to_install_a_plugin_and_the_operator_is_once(
    installed: bool, tiny_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "installed", lambda kind: installed)
    monkeypatch.setattr(plugins, "load_formats", lambda head: [])
    warned: list[str] = []
    phone = {"file": ("IMG_1.HEIC", b"\0\0\0\x18ftypheic" + bytes(40), "image/heic")}
    with client_of(build_service(load_run(tiny_run.path), LIMITS, warn=warned.append)) as client:
        answers = [client.post("/predict", files=phone) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [415, 415]
    detail = answers[0].json()["detail"]
    assert "IMG_1.HEIC: " in detail
    assert "a HEIC picture" in detail
    assert "pip install" not in detail
    told = [line for line in warned if "pip install pillow-heif" in line]
    assert len(told) == (0 if installed else 1)
    assert ("this service does not read" in detail) is not installed


@pytest.mark.parametrize(("picture", "together"), [(DEEP, 1), (grey(9), uploads.DECODERS)])
def test_pictures_are_decoded_together_only_if_the_memory_suffices(
    picture: bytes, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting, lock, running, most = threading.Barrier(together), threading.Lock(), 0, 0

    def change(by: int) -> None:
        nonlocal running, most
        with lock:
            running += by
            most = max(most, running)

    def watched(*arguments: Any) -> Any:
        found = load_picture(*arguments)  # the memory is claimed from here until this picture is resized
        change(1)
        meeting.wait(30)
        time.sleep(0.02)
        change(-1)
        return found

    monkeypatch.setattr(uploads, "load_picture", watched)
    with client_of(build_service(Slow(), LIMITS)) as client:
        answer = client.post("/predict", files=[("file", picture)] * 4)
    assert answer.status_code == 200, answer.text
    assert most == together


def reader() -> uploads.Uploads:
    """What reads and decodes pictures, without a service around it."""
    return uploads.Uploads(
        max_bytes=100_000,
        max_pixels=10_000,
        max_pictures=8,
        timeout=1.0,
        warn=lambda text: None,
        registry=CollectorRegistry(),
    )


@pytest.mark.parametrize(("size", "claimed"), [(1000, 11_000), (90_000, 400_000)])
def test_memory_for_texts_is_claimed_before_a_file_is_opened_but_no_more_than_there_is(
    size: int, claimed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, held = reader(), list[int]()

    def opened(*_: object) -> None:
        held.append(reading._memory.total - reading._memory._free)
        raise UnreadableImageError("a.png", "damaged")

    monkeypatch.setattr(uploads, "load_picture", opened)
    assert isinstance(reading._decode(Slow(), uploads.Upload("a.png", bytes(size))), UnreadableImageError)
    assert held == [claimed]
    assert reading._memory._free == reading._memory.total
    reading.close()


def test_pictures_of_a_client_that_left_do_not_wait_for_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, may_go_on, started = reader(), threading.Event(), threading.Semaphore(0)

    def slow(*arguments: Any) -> Any:
        started.release()
        assert may_go_on.wait(30)
        return load_picture(*arguments)

    async def leave_and_come_again() -> np.ndarray:
        pictures = [uploads.Upload(str(n), grey(n)) for n in range(10)]
        asking = asyncio.create_task(reading.decode(Slow(), pictures))
        for _ in range(uploads.DECODERS):
            await asyncio.to_thread(started.acquire, timeout=30)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert reading._decoders._work_queue.qsize() == 0
        asking = asyncio.create_task(reading.decode(Slow(), pictures))
        await asyncio.sleep(0.05)
        assert reading._decoders._work_queue.qsize() == 0  # all threads are busy still
        may_go_on.set()
        return await asking

    monkeypatch.setattr(uploads, "load_picture", slow)
    assert len(asyncio.run(leave_and_come_again())) == 10
    reading.close()


def test_the_error_of_a_picture_whose_client_has_left_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, started, may_go_on = reader(), threading.Event(), threading.Event()
    told: list[Any] = []

    def fail(*_: object) -> None:
        started.set()
        assert may_go_on.wait(30)
        raise UnreadableImageError("a.png", "damaged")

    async def leave() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        asking = asyncio.create_task(reading.decode(Slow(), [uploads.Upload("a.png", b"")]))
        assert await asyncio.to_thread(started.wait, 30)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        may_go_on.set()
        await asyncio.to_thread(reading.close)  # waits for the thread
        gc.collect()  # asyncio tells of an error once nobody can ask for it any more

    monkeypatch.setattr(uploads, "load_picture", fail)
    asyncio.run(leave())
    assert told == []


@pytest.mark.parametrize("content", [encoded(noise(0, 90, 90))[:-5000], NARROW])
def test_the_error_of_a_picture_keeps_none_of_its_memory(content: bytes) -> None:
    reading = reader()
    found = reading._decode(Slow(), uploads.Upload("a.png", content))
    assert isinstance(found, UnreadableImageError)
    assert found.__traceback__ is None  # it would lead to the variables of the functions in it
    assert found.__context__ is None
    assert found.__cause__ is None
    reading.close()


@pytest.mark.parametrize("content", [encoded(noise(0, 90, 90))[:-5000], NARROW])
def test_a_picture_that_cannot_be_read_is_freed_without_the_garbage_collector(content: bytes) -> None:
    reading = reader()

    async def ask() -> weakref.ref[uploads.Upload]:
        upload, status = uploads.Upload("a.png", content), 200
        try:
            await reading.decode(Slow(), [upload])
        except HTTPException as error:
            status = error.status_code
        assert status in (413, 422)
        await asyncio.to_thread(reading.close)  # the thread is done with the picture
        return weakref.ref(upload)

    gc.disable()
    try:
        assert asyncio.run(ask())() is None
    finally:
        gc.enable()


def test_a_form_is_never_written_to_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", full)
    picture = encoded(noise(0, 700, 700))
    assert len(picture) > 1 << 20  # from which size on Starlette's own way of reading a form would write it
    settings = replace(LIMITS, max_bytes=4_000_000, max_pixels=1_000_000)
    with client_of(build_service(Slow(), settings)) as client:
        answer = client.post("/predict", files=[("file", picture)] * 2)
    assert answer.status_code == 200, answer.text


def bytes_in_flight(client: Any) -> float:
    """What the service says that all requests hold."""
    found = re.search(r"(?m)^thumbnet_request_bytes_in_flight (\S+)$", client.get("/metrics").text)
    assert found
    return float(found[1])


@pytest.mark.parametrize("form", [True, False])
def test_requests_that_would_hold_too_many_bytes_get_429(form: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "LARGEST_REQUESTS", 2)
    classifier, picture = Slow(), grey(0) + bytes(99_000)  # what follows the end of a PNG is ignored
    sent: dict[str, Any] = {"files": {"file": picture}}
    if not form:
        sent = {"content": picture, "headers": {"Content-Type": "image/png"}}
    with client_of(build_service(classifier, LIMITS)) as client, ThreadPoolExecutor(2) as pool:
        classifier.may_go_on.clear()
        waiting = [pool.submit(client.post, "/predict", **sent) for _ in range(2)]
        wait_until(lambda: bytes_in_flight(client) >= 2 * len(picture))
        refused = client.post("/predict", **sent)
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
        assert "try again" in refused.json()["detail"]
        classifier.may_go_on.set()
        assert [one.result().status_code for one in waiting] == [200, 200]
        assert bytes_in_flight(client) == 0
        assert client.post("/predict", **sent).status_code == 200


def test_requests_that_would_hold_too_many_pictures_get_429(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "LARGEST_REQUESTS", 1)
    classifier = Slow()

    def form(count: int) -> dict[str, Any]:
        return {"files": [("file", grey(0))] * count}

    with client_of(build_service(classifier, LIMITS)) as client, ThreadPoolExecutor(1) as pool:
        warm = len(classifier.batches)
        classifier.may_go_on.clear()
        waiting = pool.submit(client.post, "/predict", **form(8))  # as many as one request may have
        wait_until(lambda: len(classifier.batches) > warm)
        refused = client.post("/predict", **form(1))
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
        assert "as many pictures of requests as it may: try again" in refused.json()["detail"]
        classifier.may_go_on.set()
        assert waiting.result().status_code == 200
        assert client.post("/predict", **form(8)).status_code == 200


def test_pictures_of_a_large_network_do_not_count_as_bytes() -> None:
    classifier = Slow()
    large = replace(classifier.info.preprocessing, size=(200, 200))
    classifier.info = replace(classifier.info, preprocessing=large)
    sent = {"files": [("file", grey(0))] * 8}  # 0.96 MB of pixels, and all bodies together may have 1.6 MB
    with client_of(build_service(classifier, LIMITS)) as client, ThreadPoolExecutor(2) as pool:
        classifier.may_go_on.clear()
        waiting = [pool.submit(client.post, "/predict", **sent) for _ in range(2)]
        read = 'thumbnet_pictures_total{outcome="read"} 16.0'
        wait_until(lambda: any(one.done() for one in waiting) or read in client.get("/metrics").text)
        classifier.may_go_on.set()
        assert [one.result().status_code for one in waiting] == [200, 200]
