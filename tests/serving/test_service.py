from __future__ import annotations

import asyncio
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import coloured, coloured_data
from serving_helpers import LIMITS, Slow, client_of, encoded, grey, served, wait_until
from thumbnet.classifiers.load import load_run
from thumbnet.cli import main
from thumbnet.data.images import load_picture
from thumbnet.runs.folder import Run
from thumbnet.serving import uploads
from thumbnet.serving.access_log import AccessLog, Entry
from thumbnet.serving.identity import identify
from thumbnet.serving.keeping import Keeper
from thumbnet.serving.service import build_service

httpx = pytest.importorskip("httpx")
testclient = pytest.importorskip("starlette.testclient")


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
        counted = 'thumbnet_requests_total{method="GET",path="other",status="400"} 1.0'
        assert counted in client.get("/metrics").text


def test_pages_of_accepted_origins_may_use_the_service_with_their_key(tiny_run: Run) -> None:
    settings = replace(LIMITS, api_key="secret", origins=("https://shop.example",))
    page = {"Origin": "https://shop.example", "Sec-Fetch-Site": "cross-site"}
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    with client_of(build_service(load_run(tiny_run.path), settings)) as client:
        assert client.options("/predict", headers={**page, **asks}).status_code == 200  # without the key
        refused = client.post("/predict", files={"file": grey(0)}, headers=page)
        answer = client.post("/predict", files={"file": grey(0)}, headers={**page, "X-API-Key": "secret"})
        assert (refused.status_code, answer.status_code) == (401, 200)
        for one in (refused, answer):  # a page can read why it was refused
            assert one.headers["Access-Control-Allow-Origin"] == "https://shop.example"


def test_a_form_of_a_page_of_another_site_is_refused_before_it_is_read(client: Any) -> None:
    page = {"Origin": "https://shop.example", "Sec-Fetch-Site": "cross-site"}
    for path in ("/predict", "/explain"):
        refused = client.post(path, files={"file": b"not even a picture"}, headers=page)
        assert refused.status_code == 403
        assert "--allow-origin" in refused.json()["detail"]
    own = {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}
    assert client.post("/predict", files={"file": grey(0)}, headers=own).status_code == 200


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


def test_a_stopping_service_closes_its_files_before_it_waits_for_a_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, closed, seen = Kept(), threading.Event(), list[bool]()

    class Told(Keeper):
        def close(self, seconds: float = 2.0) -> None:
            super().close(seconds)
            closed.set()

    def slow(*arguments: Any) -> Any:
        seen.append(closed.wait(30))
        wait_until(lambda: log.closed)
        return load_picture(*arguments)

    monkeypatch.setattr(uploads, "load_picture", slow)
    settings = replace(LIMITS, timeout=0.5)
    service = build_service(Slow(), settings, access_log=log, keeper=Told(tmp_path / "unsure"))
    with client_of(service) as client:
        assert client.post("/predict", files={"file": grey(0)}).status_code == 503
    assert seen == [True]


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


# --- the command -----------------------------------------------------------------------------------------


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


# With a key, requests go the same way once it was checked, so few are enough, and no sequences of them.
@pytest.mark.parametrize(
    ("key", "examples", "phases"),
    [(None, 20, "examples,coverage,fuzzing,stateful"), ("secret", 5, "examples,fuzzing")],
)
def test_it_does_what_its_openapi_description_says(
    tiny_run: Run, tmp_path: Path, key: str | None, examples: int, phases: str
) -> None:
    """Requests that schemathesis makes up never get a 5xx, nor a response that OpenAPI does not describe."""
    pytest.importorskip("schemathesis")
    with served(tiny_run, key=key) as (address, _):
        command = [str(Path(sys.executable).with_name("schemathesis")), "run", address + "/openapi.json"]
        # OpenAPI cannot say which bytes are a picture, so a request that it allows may be refused.
        command += ["--exclude-checks", "positive_data_acceptance", "--seed", "1"]
        command += ["--max-examples", str(examples), "--phases", phases]
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


def test_an_exported_model_is_served_without_torch() -> None:
    code = (
        "import sys; sys.modules.update(torch=None, safetensors=None, psutil=None, filelock=None)\n"
        "import thumbnet.classifiers.onnx_classifier, thumbnet.serving.server, thumbnet.serving.service"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


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
