from __future__ import annotations

import asyncio
import gc
import hashlib
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image

from helpers import coloured, coloured_data, coloured_labels
from sorting_helpers import unlike_above
from thumbnet.classifiers.base import Classifier
from thumbnet.classifiers.load import load_run
from thumbnet.cli import main
from thumbnet.data.images import Preprocessing
from thumbnet.data.splits import ArraySplit, Data
from thumbnet.errors import RunError, UnreadableImageError
from thumbnet.recipes.settings import ModelSettings
from thumbnet.runs.folder import Run
from thumbnet.runs.weights import read_weights, weights_content
from thumbnet.runs.weights_info import WeightsInfo
from thumbnet.serving.access_log import AccessLog, Entry
from thumbnet.serving.identity import Identity, identify
from thumbnet.serving.network import Network
from thumbnet.serving.service import ServiceSettings, build_service

httpx = pytest.importorskip("httpx")
testclient = pytest.importorskip("starlette.testclient")

LIMITS = ServiceSettings(max_bytes=100_000, max_pixels=10_000, max_pictures=8)


class Slow(Classifier):
    """A classifier of brightness. A test can make it wait."""

    def __init__(self) -> None:
        half = (0.5, 0.5, 0.5)
        pre = Preprocessing((8, 8), "squash", half, half)
        super().__init__(WeightsInfo(ModelSettings(), ("dark", "bright"), pre, "fp32", "", ""))
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.batches: list[int] = []

    def _forward(self, pixels: np.ndarray) -> np.ndarray:
        self.batches.append(len(pixels))
        assert self.may_go_on.wait(60)
        bright = pixels.mean(axis=(1, 2, 3)) / 255
        return np.stack([1 - bright, bright], axis=1).astype(np.float32)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def grey(level: int) -> bytes:
    return encoded(np.full((8, 8, 3), level, dtype=np.uint8))


@contextmanager
def client_of(app: FastAPI) -> Iterator[Any]:
    with testclient.TestClient(app, base_url="http://localhost") as client:
        yield client


@pytest.fixture(scope="module")
def client(tiny_run: Run) -> Iterator[Any]:
    with client_of(build_service(load_run(tiny_run.path), LIMITS, coloured_data)) as client:
        yield client


def test_predictions_equal_those_of_the_library(client: Any, tiny_run: Run) -> None:
    pictures = [coloured(label, 77 + label) for label in (2, 0, 1)]
    files = [("file", (f"{n}.png", encoded(one), "image/png")) for n, one in enumerate(pictures)]
    answer = client.post("/predict", files=files)
    assert answer.status_code == 200, answer.text
    expected = load_run(tiny_run.path).predict(pictures)
    found = answer.json()["predictions"]
    assert [one["name"] for one in found] == ["0.png", "1.png", "2.png"]
    for one, wanted in zip(found, expected, strict=True):
        assert [each["name"] for each in one["classes"]] == list(wanted.labels)
        values = [each["probability"] for each in one["classes"]]
        np.testing.assert_allclose(values, wanted.probabilities, atol=1e-4)


@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream"])
def test_a_body_may_be_a_single_picture(client: Any, kind: str) -> None:
    body = encoded(coloured(1, 5))
    answer = client.post("/predict?top=1", content=body, headers={"Content-Type": kind})
    assert [len(one["classes"]) for one in answer.json()["predictions"]] == [1]


BOMB = encoded(np.zeros((200, 200, 3), np.uint8))
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
        (413, {"files": {"file": PILLOWS_BOMB}}, "its pixels are more than the limit of 10,000"),
        (415, {"content": b"x", "headers": {"Content-Type": "text/plain"}}, "text/plain"),
        (415, {"content": b"x"}, "no Content-Type"),
        (415, {"files": {"file": ("a.exe", b"MZ no picture", "image/png")}}, "a.exe: not a picture"),
        (422, {"files": {"file": grey(9)[:-30]}}, "cannot read"),
        (422, {"files": [("file", grey(9)), ("file", grey(9)[:-30])]}, "cannot read"),
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


def test_an_explanation_has_the_classes_and_two_pictures(client: Any) -> None:
    answer = client.post("/explain", files={"file": encoded(coloured(0, 3))}).json()
    assert answer["classes"][0]["name"] == "red"
    assert all(answer[key].startswith("data:image/webp;base64,") for key in ("picture", "lit"))
    assert client.post("/explain", files=[("file", grey(9))] * 2).status_code == 422


def test_the_hardest_pictures_are_mistakes_most_confident_first(tiny_run: Run) -> None:
    data = coloured_data()
    swapped = Data(
        data.source, data.layout, ("green", "red", "blue"), data.splits
    )  # so that predictions are mistakes
    with client_of(build_service(load_run(tiny_run.path), LIMITS, lambda: swapped)) as client:
        while not (answer := client.get("/hardest").json())["ready"]:
            time.sleep(0.05)
        assert answer["pictures"]
        assert {(one["label"], one["predicted"]) for one in answer["pictures"]} == {
            ("red", "green"),
            ("green", "red"),
        }
        confidences = [one["confidence"] for one in answer["pictures"]]
        assert confidences == sorted(confidences, reverse=True)


def test_data_with_unknown_classes_only_cause_a_warning(tiny_run: Run) -> None:
    data = coloured_data()
    other = Data(data.source, data.layout, ("fork", "knife", "spoon"), data.splits)
    warnings: list[str] = []
    app = build_service(load_run(tiny_run.path), LIMITS, lambda: other, warnings.append)
    with client_of(app) as client:
        wait_until(lambda: client.get("/hardest").json()["ready"])
        assert client.get("/hardest").json()["pictures"] == []
        assert client.get("/readyz").status_code == 200
    assert len(warnings) == 1
    assert "classes that the network does not know: fork" in warnings[0]


def test_probes_metrics_and_the_page_answer(client: Any) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ok"}
    assert client.get("/model").json()["classes"] == ["red", "green", "blue"]
    client.get("/a-path-of-a-strangers-own")
    metrics = client.get("/metrics").text
    assert re.search(r'thumbnet_requests_total{method="GET",path="/healthz",status="200"} \d', metrics)
    assert "strangers-own" not in metrics
    page = client.get("/")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert not re.search(r"(?:src|href)=\"(?!data:|/openapi)", page.text)


def test_with_a_key_only_the_page_and_the_probes_are_open(tiny_run: Run) -> None:
    with client_of(build_service(load_run(tiny_run.path), replace(LIMITS, api_key="secret"))) as client:
        for path in ("/", "/healthz", "/readyz"):
            assert client.get(path).status_code == 200
        for path in ("/model", "/metrics", "/hardest"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers={"X-API-Key": "secret"}).status_code == 200
        for key in ({}, {"X-API-Key": "guess"}, {"X-API-Key": "sécret".encode()}):
            assert client.post("/predict", files={"file": grey(0)}, headers=key).status_code == 401
        assert (
            client.post("/predict", files={"file": grey(0)}, headers={"X-API-Key": "secret"}).status_code
            == 200
        )


def test_requests_for_other_host_names_are_refused(tiny_run: Run) -> None:
    with client_of(build_service(load_run(tiny_run.path), replace(LIMITS, hosts=("localhost",)))) as client:
        assert client.get("/model").status_code == 200
        assert client.get("/model", headers={"Host": "rebound.example"}).status_code == 400


def test_pages_of_accepted_origins_may_use_the_service_with_their_key(tiny_run: Run) -> None:
    settings = replace(LIMITS, api_key="secret", origins=("https://shop.example",))
    page = {"Origin": "https://shop.example"}
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    with client_of(build_service(load_run(tiny_run.path), settings)) as client:
        assert client.options("/predict", headers={**page, **asks}).status_code == 200  # without the key
        refused = client.post("/predict", files={"file": grey(0)}, headers=page)
        answer = client.post("/predict", files={"file": grey(0)}, headers={**page, "X-API-Key": "secret"})
        assert (refused.status_code, answer.status_code) == (401, 200)
        for one in (refused, answer):  # a page can read why it was refused
            assert one.headers["Access-Control-Allow-Origin"] == "https://shop.example"


class Decided(Slow):
    """A classifier of brightness with large logits."""

    def _forward(self, pixels: np.ndarray) -> np.ndarray:
        return 10 * super()._forward(pixels)


def test_answers_say_in_words_how_sure_they_are() -> None:
    with client_of(build_service(Decided(), LIMITS)) as client:
        files = [("file", grey(level)) for level in (255, 150, 135)]
        found = client.post("/predict?top=1", files=files).json()["predictions"]
        assert [(one["certainty"], one["words"]) for one in found] == [
            ("sure", "bright"),
            ("probable", "probably bright, or else dark"),
            ("possible", "perhaps bright, or else dark"),
        ]
        explained = client.post("/explain?top=1", files={"file": grey(120)}).json()
        assert (explained["certainty"], explained["words"]) == ("possible", "perhaps dark, or else bright")


def test_the_model_is_described_without_a_run_too(client: Any, tiny_run: Run) -> None:
    found = client.get("/model").json()
    assert (found["run"], found["format"], found["digest"]) == (None, None, None)
    assert found["accuracy"] == {"value": tiny_run.summary["accuracy"], "split": "test", "pictures": 60}
    identity = identify(load_run(tiny_run.path), tiny_run.path)
    with client_of(build_service(load_run(tiny_run.path), LIMITS, identity=identity)) as named:
        assert named.get("/model").json()["run"] == tiny_run.path.name
        assert str(tiny_run.path.parent) not in named.get("/model").text


class Kept(AccessLog):
    """An access log that a test can read."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.closed = False

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)

    def close(self, seconds: float = 1.0) -> None:
        self.closed = True


def test_every_request_is_logged_with_its_pictures_also_one_that_is_refused() -> None:
    log = Kept()
    settings = replace(LIMITS, hosts=("localhost",), api_key="secret")
    with client_of(build_service(Slow(), settings, access_log=log)) as client:
        key = {"X-API-Key": "secret"}
        client.post("/predict?top=1", files=[("file", grey(0))] * 3, headers=key)
        client.post("/predict", files={"file": ("a.png", b"no picture")}, headers=key)
        client.post("/predict", files={"file": grey(0)})
        client.get("/nowhere%0A1%20x")
        client.get("/model", headers={"Host": "rebound.example"})
        closed = log.closed
    assert (closed, log.closed) == (False, True)
    assert [(one.method, one.path, one.status, one.pictures) for one in log.entries] == [
        ("POST", "/predict", 200, 3),
        ("POST", "/predict", 415, 1),
        ("POST", "/predict", 401, 0),
        ("GET", "/nowhere%0A1%20x", 404, 0),
        ("GET", "/model", 400, 0),
    ]


def test_a_search_for_hard_pictures_that_fails_ends_and_is_reported(tiny_run: Run) -> None:
    def broken() -> Data:
        raise ZeroDivisionError("broken data")

    warnings: list[str] = []
    app = build_service(load_run(tiny_run.path), LIMITS, broken, warnings.append)
    with client_of(app) as client:
        wait_until(lambda: client.get("/hardest").json()["ready"])
        assert client.get("/hardest").json()["pictures"] == []
    assert warnings == ["the page offers no test pictures: ZeroDivisionError('broken data')"]


def test_a_service_that_stops_does_not_wait_for_data_that_are_still_loading() -> None:
    may_end = threading.Event()

    def slow() -> Data:
        may_end.wait(60)
        return coloured_data()

    with client_of(build_service(Slow(), LIMITS, slow)) as client:
        assert client.get("/hardest").json() == {"ready": False, "pictures": []}
        start = time.monotonic()
    assert time.monotonic() - start < 20
    may_end.set()


class Read(ArraySplit):
    """Bright pictures with the label dark, which a test's function reads."""

    def __init__(self, count: int, read: Callable[[int], None]) -> None:
        super().__init__(np.full((count, 8, 8, 3), 255, np.uint8), np.zeros(count, np.int64), "test")
        self._read = read

    def load(self, index: int) -> np.ndarray:
        self._read(index)
        return super().load(index)

    def subset(self, indices: np.ndarray) -> ArraySplit:
        return self


def data_to_read(count: int, read: Callable[[int], None]) -> Data:
    split = Read(count, read)
    return Data("made", "made by the test", ("dark", "bright"), {"train": split, "test": split})


def test_requests_are_answered_while_the_search_for_hard_pictures_reads_them() -> None:
    reading, may_go_on = threading.Event(), threading.Event()

    def read(index: int) -> None:
        reading.set()
        may_go_on.wait(60)

    data = data_to_read(3, read)
    with client_of(build_service(Slow(), replace(LIMITS, timeout=10.0), lambda: data)) as client:
        assert reading.wait(20)
        assert client.post("/predict", files={"file": grey(0)}).status_code == 200
        assert client.get("/hardest").json() == {"ready": False, "pictures": []}
        start = time.monotonic()
    assert time.monotonic() - start < 20
    may_go_on.set()


def test_pictures_that_cannot_be_read_are_not_among_the_hardest() -> None:
    def read(index: int) -> None:
        if index != 2:
            raise UnreadableImageError(f"{index}.png", "damaged")

    warnings: list[str] = []
    app = build_service(Slow(), replace(LIMITS, max_batch=2), lambda: data_to_read(5, read), warnings.append)
    with client_of(app) as client:
        wait_until(lambda: client.get("/hardest").json()["ready"])
        (found,) = client.get("/hardest").json()["pictures"]
    assert (found["label"], found["predicted"], warnings) == ("dark", "bright", [])


def test_an_explanation_takes_no_more_pictures_at_a_time_than_a_prediction() -> None:
    classifier = Slow()
    with client_of(build_service(classifier, replace(LIMITS, max_batch=4))) as client:
        assert client.post("/explain", files={"file": grey(0)}).status_code == 200
    assert max(classifier.batches) == 4


def test_concurrent_requests_are_classified_together() -> None:
    classifier = Slow()
    with (
        client_of(build_service(classifier, replace(LIMITS, max_batch=4))) as client,
        ThreadPoolExecutor(12) as pool,
    ):
        classifier.may_go_on.clear()
        classifier.batches.clear()
        first = pool.submit(client.post, "/predict", files={"file": grey(0)})
        wait_until(lambda: classifier.batches == [1])
        others = [pool.submit(client.post, "/predict", files={"file": grey(20 * n)}) for n in range(1, 10)]
        wait_until(lambda: "thumbnet_requests_in_flight 10.0" in client.get("/metrics").text)
        time.sleep(0.3)  # until the last picture is decoded
        classifier.may_go_on.set()
        answers = [one.result().json()["predictions"][0] for one in (first, *others)]
        assert classifier.batches == [1, 4, 4, 1]
    # Each request got its own answer.
    bright = [next(c["probability"] for c in one["classes"] if c["name"] == "bright") for one in answers]
    expected = [1 / (1 + np.exp(1 - 2 * (20 * n / 255))) for n in range(10)]
    np.testing.assert_allclose(bright, expected, atol=1e-5)


def test_a_full_queue_gives_429_and_a_late_answer_gives_503() -> None:
    classifier = Slow()
    settings = replace(LIMITS, max_queue=2, timeout=1.0)
    with client_of(build_service(classifier, settings)) as client, ThreadPoolExecutor(4) as pool:
        classifier.may_go_on.clear()
        waiting = [pool.submit(client.post, "/predict", files={"file": grey(0)}) for _ in range(2)]
        wait_until(lambda: client.get("/readyz").status_code == 503)
        refused = client.post("/predict", files={"file": grey(0)})
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
        assert [one.result().status_code for one in waiting] == [503, 503]
        assert client.get("/readyz").status_code == 200
        time.sleep(0.2)  # the network is still busy with the first request; both clients have given up
        classifier.may_go_on.set()
        assert client.post("/predict", files={"file": grey(0)}).status_code == 200


def test_a_client_that_leaves_costs_no_forward_pass() -> None:
    classifier = Slow()
    app = build_service(classifier, LIMITS)
    length = str(len(grey(0))).encode()
    headers = [(b"host", b"localhost"), (b"content-type", b"image/png"), (b"content-length", length)]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": "/predict", "raw_path": b"/predict", "query_string": b"", "headers": headers,
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
    }  # fmt: skip

    async def ask(left: asyncio.Event) -> int:
        """The status of the answer to a client that leaves when ``left`` is set."""
        messages = [{"type": "http.request", "body": grey(0), "more_body": False}]
        statuses = []

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            statuses.extend([message["status"]] if "status" in message else [])

        await app(dict(scope), receive, send)
        return int(statuses[0])

    async def visits() -> None:
        async with app.router.lifespan_context(app):
            classifier.batches.clear()
            classifier.may_go_on.clear()
            stays, leaves = asyncio.Event(), asyncio.Event()
            first = asyncio.create_task(ask(stays))
            while not classifier.batches:
                await asyncio.sleep(0.01)
            second, third = asyncio.create_task(ask(leaves)), asyncio.create_task(ask(stays))
            await asyncio.sleep(0.3)  # until both wait for the network
            leaves.set()
            assert await second == 400  # nobody reads it, but it is in the log
            classifier.may_go_on.set()
            assert (await first, await third) == (200, 200)

    asyncio.run(visits())
    assert classifier.batches == [1, 1]


def test_the_service_survives_a_failure_of_the_network() -> None:
    classifier = Slow()
    app = build_service(classifier, LIMITS)
    with testclient.TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        good, classifier.logits = classifier.logits, None  # type: ignore[assignment,method-assign]
        assert client.post("/predict", files={"file": grey(0)}).status_code == 500
        classifier.logits = lambda pixels, tta: np.full((len(pixels), 2), np.nan)  # type: ignore[method-assign,misc,assignment]
        assert client.post("/predict", files={"file": grey(0)}).status_code == 500  # not "100 %"
        classifier.logits = good  # type: ignore[method-assign]
        assert client.post("/predict", files={"file": grey(0)}).status_code == 200


# --- replacing the network ---------------------------------------------------------------------------------


class Sized(Slow):
    """A classifier of brightness that takes only pictures of its own size."""

    def __init__(self, side: int, sign: int = 1) -> None:
        super().__init__()
        half = (0.5, 0.5, 0.5)
        self.info = replace(self.info, preprocessing=Preprocessing((side, side), "squash", half, half))
        self._sign = sign

    def _forward(self, pixels: np.ndarray) -> np.ndarray:
        assert pixels.shape[1:] == (*self.info.preprocessing.size, 3)
        return self._sign * super()._forward(pixels)


def network_of(classifier: Classifier, digest: str, data: Data | None = None) -> Network:
    return Network(classifier, Identity(classifier.info, "onnx", digest), lambda: data)


class Offers:
    """Stands for a source: each time, it has what the test gave next. A test can make it wait."""

    path = "cats.onnx"

    def __init__(self, *offers: Network | Exception | None) -> None:
        self._offers, self.digests = list(offers), list[str | None]()
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def load_unless(self, digest: str | None) -> Network | None:
        self.digests.append(digest)
        assert self.may_go_on.wait(60)
        offer = self._offers.pop(0)
        if isinstance(offer, Exception):
            raise offer
        return offer


class Replaceable:
    """A service of a network with the digest ``old`` whose source has ``offers``."""

    def __init__(self, classifier: Classifier, *offers: Network | Exception | None, **named: Any) -> None:
        self.source, self.warned, self.told = Offers(*offers), list[str](), list[str]()
        source: Any = self.source
        self.app = build_service(
            classifier, replace(LIMITS, max_batch=4), warn=self.warned.append, tell=self.told.append,
            identity=Identity(classifier.info, "onnx", "old"), source=source, **named,
        )  # fmt: skip

    def reload(self, client: Any, outcome: str) -> None:
        """Ask for a reload, and wait until the metrics count this outcome."""
        before = reloads(client, outcome)
        self.app.state.reload()
        wait_until(lambda: reloads(client, outcome) == before + 1)


def reloads(client: Any, outcome: str) -> float:
    found = re.search(rf'thumbnet_reloads_total{{outcome="{outcome}"}} (\S+)', client.get("/metrics").text)
    assert found
    return float(found[1])


def brightness(client: Any, *levels: int) -> list[str]:
    """The likeliest class of each of several pictures in one request."""
    answer = client.post("/predict", files=[("file", grey(level)) for level in levels])
    assert answer.status_code == 200, answer.text
    return [one["classes"][0]["name"] for one in answer.json()["predictions"]]


def test_a_network_is_replaced_while_requests_wait_and_each_answer_is_from_one_network() -> None:
    old, new = Sized(8), Sized(16, sign=-1)
    service = Replaceable(old, network_of(new, "new"))
    with client_of(service.app) as client, ThreadPoolExecutor(4) as pool:
        assert brightness(client, 0, 255) == ["dark", "bright"]
        before = client.get("/model").json()
        assert (before["digest"], before["height"]) == ("sha256:old", 8)
        old.batches.clear()
        old.may_go_on.clear()
        waiting = [pool.submit(brightness, client, 0, 255)]
        wait_until(lambda: old.batches == [2])
        service.app.state.reload()
        wait_until(lambda: service.source.digests == ["old"])
        waiting += [pool.submit(brightness, client, 0, 255) for _ in range(2)]
        wait_until(lambda: "thumbnet_requests_in_flight 3.0" in client.get("/metrics").text)
        read = 'thumbnet_pictures_total{outcome="read"} 8.0'  # by then, a request has chosen its network
        wait_until(lambda: read in client.get("/metrics").text)
        old.may_go_on.set()
        assert [one.result() for one in waiting] == [["dark", "bright"]] * 3
        wait_until(lambda: reloads(client, "replaced") == 1)
        assert brightness(client, 0, 255) == ["bright", "dark"]
        shown = client.post("/explain", files={"file": grey(0)}).json()
        assert shown["classes"][0]["name"] == "bright"
        after = client.get("/model").json()
        assert (after["digest"], after["height"]) == ("sha256:new", 16)
        assert after["started"] == before["started"]
    (told,) = service.told
    assert re.fullmatch(r"now serving cats\.onnx \(sha256:new\), loaded in \d+\.\d s", told)
    assert service.warned == []


def test_no_request_fails_and_no_answer_is_mixed_while_networks_are_replaced() -> None:
    offers = [network_of(Sized(side, sign), str(side)) for side, sign in ((16, -1), (8, 1), (24, -1))]
    service = Replaceable(Sized(8), *offers)
    found: list[list[str]] = []
    stop = threading.Event()

    def ask(client: Any) -> None:
        while not stop.is_set():
            found.append(brightness(client, 0, 255, 0))

    with client_of(service.app) as client, ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, client) for _ in range(4)]
        try:
            for _ in offers:
                service.reload(client, "replaced")
        finally:
            stop.set()
        for one in asking:
            one.result()
        assert brightness(client, 0) == ["bright"]
    assert found
    assert {tuple(one) for one in found} <= {("dark", "bright", "dark"), ("bright", "dark", "bright")}


@pytest.mark.parametrize(
    ("offer", "says"),
    [
        (RunError("cannot read cats.onnx"), "cannot read cats.onnx"),
        (ZeroDivisionError("no luck"), "ZeroDivisionError('no luck')"),
        ("other classes", "new classes: kite; missing classes: dark. To serve it nevertheless, restart"),
        ("too large", "Use smaller batches: --max-batch 2"),
    ],
)
def test_a_network_that_cannot_replace_the_old_one_leaves_it_in_place(
    offer: Exception | str, says: str
) -> None:
    new = Slow()
    if offer == "other classes":
        new.info = replace(new.info, class_names=("kite", "bright"))
    elif offer == "too large":

        def refuse(pixels: np.ndarray, *, tta: str | None = None) -> np.ndarray:
            if len(pixels) > 1:
                raise MemoryError
            return np.zeros((len(pixels), 2), np.float32)

        new.logits = refuse  # type: ignore[method-assign]
    first = network_of(new, "new") if isinstance(offer, str) else offer
    service = Replaceable(Sized(8), first, network_of(Sized(16, sign=-1), "newer"))
    with client_of(service.app) as client:
        service.reload(client, "failed")
        assert client.get("/model").json()["digest"] == "sha256:old"
        assert brightness(client, 0) == ["dark"]
        (warned,) = service.warned
        assert warned.startswith("cannot replace the network, and still serving the old one: ")
        assert says in warned
        service.reload(client, "replaced")  # a failure is not the end
        assert brightness(client, 0) == ["bright"]
        assert service.source.digests == ["old", "old"]


def test_an_unchanged_file_replaces_nothing() -> None:
    service = Replaceable(Slow(), None)
    with client_of(service.app) as client:
        service.reload(client, "unchanged")
        assert client.get("/model").json()["digest"] == "sha256:old"
        assert (reloads(client, "replaced"), reloads(client, "failed")) == (0, 0)
    assert service.told == ["cats.onnx has not changed; still serving sha256:old"]


def test_reloads_that_are_asked_for_during_one_lead_to_one_more() -> None:
    service = Replaceable(Slow(), network_of(Sized(16), "new"), None)
    service.source.may_go_on.clear()
    with client_of(service.app) as client:
        service.app.state.reload()
        wait_until(lambda: service.source.digests == ["old"])
        for _ in range(3):
            service.app.state.reload()
        assert brightness(client, 0) == ["dark"]  # the service answers meanwhile
        service.source.may_go_on.set()
        wait_until(lambda: reloads(client, "unchanged") == 1)
        time.sleep(0.2)
        assert service.source.digests == ["old", "new"]


def test_a_reload_that_is_asked_for_before_the_service_starts_is_not_forgotten() -> None:
    service = Replaceable(Slow(), None)
    service.app.state.reload()
    with client_of(service.app) as client:
        wait_until(lambda: reloads(client, "unchanged") == 1)
    service.app.state.reload()  # nor does one fail after its end
    assert service.source.digests == ["old"]


def test_a_service_without_a_source_keeps_its_network() -> None:
    app = build_service(Slow(), LIMITS)
    with client_of(app) as client:
        app.state.reload()
        assert brightness(client, 0) == ["dark"]
        assert [reloads(client, one) for one in ("replaced", "unchanged", "failed")] == [0, 0, 0]


def test_the_old_network_is_freed() -> None:
    old = Slow()
    gone = weakref.ref(old)
    service = Replaceable(old, network_of(Sized(16), "new"))
    del old
    with client_of(service.app) as client:
        assert brightness(client, 0) == ["dark"]
        service.reload(client, "replaced")

        def is_freed() -> bool:
            gc.collect()
            return gone() is None

        wait_until(is_freed)


def test_the_hardest_pictures_are_those_of_the_new_network() -> None:
    data = data_to_read(3, lambda index: None)  # bright pictures that the data call dark
    service = Replaceable(
        Sized(8),
        network_of(Sized(16, sign=-1), "new", data),
        load_data=lambda: data_to_read(3, lambda _: None),
    )
    with client_of(service.app) as client:
        wait_until(lambda: client.get("/hardest").json()["ready"])
        assert len(client.get("/hardest").json()["pictures"]) == 3
        service.reload(client, "replaced")
        wait_until(lambda: client.get("/hardest").json()["ready"])
        assert client.get("/hardest").json()["pictures"] == []


def test_a_search_for_hard_pictures_ends_when_the_network_is_replaced() -> None:
    may_go_on = threading.Event()

    def slow() -> Data:
        may_go_on.wait(60)
        return data_to_read(3, lambda _: None)

    service = Replaceable(Sized(8), network_of(Sized(16, sign=-1), "new"), load_data=slow)
    with client_of(service.app) as client:
        service.reload(client, "replaced")
        may_go_on.set()
        wait_until(lambda: client.get("/hardest").json()["ready"])
        time.sleep(0.2)
        assert client.get("/hardest").json()["pictures"] == []
    assert service.warned == []


def test_a_service_that_stops_does_not_wait_for_a_network_that_is_still_loading() -> None:
    service = Replaceable(Slow(), None)
    service.source.may_go_on.clear()
    with client_of(service.app):
        service.app.state.reload()
        wait_until(lambda: service.source.digests == ["old"])
        start = time.monotonic()
    assert time.monotonic() - start < 20
    service.source.may_go_on.set()


# --- the command -----------------------------------------------------------------------------------------


@contextmanager
def served(
    run: Run, *options: str, key: str | None = None, log: str = "off"
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run ``thumbnet serve`` on a free port; yield its address and its process."""
    command = [
        sys.executable,
        "-m",
        "thumbnet",
        "serve",
        str(run.path),
        "--data",
        "none",
        "--port",
        "0",
        "--access-log",
        log,
        *options,
    ]
    environment = {**os.environ, "THUMBNET_API_KEY": key or ""}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, line + (process.stderr.read() if process.stderr else "")
        yield found.group(), process
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP here")
def test_on_sighup_the_command_serves_the_file_that_is_there_now(tiny_run: Run, tmp_path: Path) -> None:
    run = Run(Path(shutil.copytree(tiny_run.path, tmp_path / "cats")))
    weights, info = read_weights(run.weights_path)
    new = weights_content(weights, replace(info, temperature=2 * info.temperature))
    body = {"content": encoded(coloured(1, 5)), "headers": {"Content-Type": "image/png"}}
    with served(run) as (address, process):
        assert process.stdout
        assert process.stderr
        before = httpx.post(address + "/predict", **body).json()
        (tmp_path / "new").write_bytes(new)
        os.replace(tmp_path / "new", run.weights_path)
        process.send_signal(signal.SIGHUP)
        digest = f"sha256:{hashlib.sha256(new).hexdigest()}"
        assert process.stdout.readline().startswith(f"now serving {run} ({digest}), loaded in ")
        assert httpx.get(address + "/model").json()["digest"] == digest
        after = httpx.post(address + "/predict", **body).json()
        assert after != before  # less sure
        process.send_signal(signal.SIGHUP)
        assert process.stdout.readline() == f"{run} has not changed; still serving {digest}\n"
        run.weights_path.write_bytes(new[:-100])
        process.send_signal(signal.SIGHUP)
        line = process.stderr.readline()
        assert line.startswith("thumbnet: cannot replace the network, and still serving the old one: ")
        assert httpx.post(address + "/predict", **body).json() == after
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_on_a_signal_it_finishes_the_running_request_and_exits(tiny_run: Run, number: int) -> None:
    with served(tiny_run, log="plain") as (address, process):
        body = encoded(coloured(1, 5))
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST /predict HTTP/1.1\r\nHost: {host}\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body[:20])
            time.sleep(0.5)
            process.send_signal(number)
            time.sleep(0.5)
            with pytest.raises(httpx.ConnectError):
                httpx.get(address + "/healthz")
            connection.sendall(body[20:])
            assert b'"green"' in read_all(connection)
        assert process.wait(20) == 0
        assert process.stderr
        line = r"\S+Z 127\.0\.0\.1 POST /predict 200 pictures=1 ms=\S+\n"
        assert re.fullmatch(line, process.stderr.read())


def test_a_body_that_does_not_arrive_gives_408(tiny_run: Run) -> None:
    with served(tiny_run, "--timeout", "1", key="k") as (address, _):
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST /predict HTTP/1.1\r\nHost: {host}\r\nX-API-Key: k\r\nContent-Type: image/png\r\nContent-Length: 99\r\n\r\n"
            connection.sendall(head.encode() + b"x")
            assert read_all(connection).startswith(b"HTTP/1.1 408")
        assert httpx.get(address + "/model").status_code == 401  # the key came from the environment


@pytest.mark.parametrize("key", [None, "secret"])
def test_it_does_what_its_openapi_description_says(tiny_run: Run, tmp_path: Path, key: str | None) -> None:
    """Requests that schemathesis makes up never get a 5xx, nor a response that OpenAPI does not describe."""
    pytest.importorskip("schemathesis")
    with served(tiny_run, key=key) as (address, _):
        command = [str(Path(sys.executable).with_name("schemathesis")), "run", address + "/openapi.json"]
        # OpenAPI cannot say which bytes are a picture, so a request that it allows may be refused.
        command += ["--exclude-checks", "positive_data_acceptance", "--max-examples", "40", "--seed", "1"]
        command += ["-H", f"X-API-Key: {key}"] if key else []
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout
        assert "Tested: 7" in done.stdout
        metrics = httpx.get(address + "/metrics", headers={"X-API-Key": key or ""}).text
        assert re.search(r'path="/predict",status="4', metrics)
        assert not re.search(r'status="5', metrics)


def read_all(connection: socket.socket) -> bytes:
    connection.settimeout(20)
    found = b""
    while not (b"\r\n\r\n" in found and found.endswith(b"}")):
        part = connection.recv(4096)
        if not part:
            break
        found += part
    return found


def test_bad_options_exit_with_status_2(
    tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tiny_run.path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", run, "--port", port]) == 2
        assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in capsys.readouterr().err
    for options in (["--host", "203.0.113.1"], ["--port", "99999"], ["--max-megabytes", "0"]):
        assert main(["serve", run, *options]) == 2
    (tmp_path / "empty").write_text("\n")
    assert main(["serve", run, "--api-key-file", str(tmp_path / "empty")]) == 2
    assert main(["serve", run, "--api-key-file", str(tmp_path / "none")]) == 2
    assert main(["serve", str(tmp_path / "none")]) == 2


def wait_until(condition: Any) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_an_exported_model_is_served_without_torch() -> None:
    code = (
        "import sys; sys.modules.update(torch=None, safetensors=None, psutil=None, filelock=None)\n"
        "import thumbnet.classifiers.onnx_classifier, thumbnet.serving.server, thumbnet.serving.service"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_answers_say_whether_a_picture_is_unlike_the_training_pictures() -> None:
    classifier = Slow()
    # The energy of a grey picture is -log(2 e^0.5) = -1.19, that of a black one -log(e + 1) = -1.31.
    classifier.info = replace(classifier.info, unlike=unlike_above(-1.25))
    with client_of(build_service(classifier, LIMITS)) as client:
        for level, unlike in ((0, False), (128, True)):
            headers = {"Content-Type": "image/png"}
            (found,) = client.post("/predict", content=grey(level), headers=headers).json()["predictions"]
            shown = client.post("/explain", content=grey(level), headers=headers).json()
            assert found["unlike"] is shown["unlike"] is unlike
            assert (
                found["unlikeness"]
                == shown["unlikeness"]
                == pytest.approx(2.25 + (-1.31 if level == 0 else -1.19), abs=0.01)
            )


def test_answers_of_a_network_without_a_score_say_nothing_about_unlike_pictures() -> None:
    with client_of(build_service(Slow(), LIMITS)) as client:
        headers = {"Content-Type": "image/png"}
        (found,) = client.post("/predict", content=grey(0), headers=headers).json()["predictions"]
        shown = client.post("/explain", content=grey(0), headers=headers).json()
        for answer in (found, shown):
            assert (answer["unlike"], answer["unlikeness"]) == (None, None)


def test_a_network_of_several_labels_answers_with_a_list(label_run: Run) -> None:
    classifier, split = load_run(label_run.path), coloured_labels().splits["test"]
    pictures = [np.asarray(split.load(index)) for index in range(8)]
    expected = [list(one.found or ()) for one in classifier.predict(pictures)]
    assert any(len(labels) > 1 for labels in expected)
    with client_of(build_service(classifier, LIMITS, coloured_labels)) as client:
        files = [("file", encoded(picture)) for picture in pictures]
        answer = client.post("/predict", files=files).json()["predictions"]
        assert [one["labels"] for one in answer] == expected
        picture, found = pictures[0], answer[0]
        shown = client.post("/explain", files={"file": encoded(picture)}).json()
        assert shown["labels"] == found["labels"]
        assert client.get("/model").json()["multilabel"] is True
        assert "any number of 3 labels" in client.get("/openapi.json").json()["info"]["description"]
        while not (hard := client.get("/hardest").json())["ready"]:
            time.sleep(0.05)
        assert hard["pictures"] == []


def test_a_network_of_one_class_answers_without_a_list(client: Any) -> None:
    (found,) = client.post("/predict", files={"file": grey(9)}).json()["predictions"]
    assert found["labels"] is None
    assert client.get("/model").json()["multilabel"] is False


DECODE = """
import io, sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np, psutil
from PIL import Image
from thumbnet.classifiers.load import load_run
from thumbnet.serving.service import ServiceSettings, build_service

app = build_service(load_run(sys.argv[1], "cpu"), ServiceSettings())
stream = io.BytesIO()
Image.effect_noise((400, 300), 60).convert("RGB").resize((4000, 3000)).save(stream, "jpeg", quality=60)

def decode(_):
    return int(np.asarray(Image.open(io.BytesIO(stream.getvalue()))).sum())

process = psutil.Process()
before = process.memory_info().rss
list(ThreadPoolExecutor(4).map(decode, range(8)))
print((process.memory_info().rss - before) // 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is told what to keep")
def test_threads_that_decoded_large_pictures_keep_no_memory(tiny_run: Run) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DECODE, tiny_run.path], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100  # 350 where all freed memory is kept
