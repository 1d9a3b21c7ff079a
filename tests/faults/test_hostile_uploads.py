"""The corpus of broken pictures, sent to the service. Each is answered with 200 or refused with a reason."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from faults.broken import LARGEST, corpus
from thumbnet.classifiers.load import load_run
from thumbnet.runs.folder import Run
from thumbnet.serving.service import ServiceSettings, build_service

testclient = pytest.importorskip("starlette.testclient")


def test_every_broken_picture_is_answered(tiny_run: Run) -> None:
    # One of the largest: all of them are refused by what their header says.
    pictures = [*corpus(), ("largest-1bit.tif", LARGEST["largest-1bit.tif"]())]
    app = build_service(load_run(tiny_run.path), ServiceSettings(max_bytes=2_000_000, timeout=60))
    with testclient.TestClient(app, base_url="http://localhost") as client, ThreadPoolExecutor(8) as pool:

        def send(one: tuple[str, bytes]) -> int:
            name, content = one
            path = "/explain" if len(name) % 7 == 0 else "/predict"
            answer = client.post(path, files={"file": (name, content)})
            if answer.status_code != 200:
                assert answer.json()["detail"]
            return int(answer.status_code)

        found = Counter(pool.map(send, pictures))
        print(f"{len(pictures)} uploads: {dict(found)}")
        assert set(found) <= {200, 413, 415, 422}
        assert found[422] > 50
        assert found[415] > 20
        # File names are untrusted as well.
        for name in ('"; rm -rf /', "\x1b[2J\x00", "../../etc/passwd", "é" * 5000, "<script>"):
            assert client.post("/predict", files={"file": (name, b"x")}).status_code in (400, 415, 422)
        # The service still works.
        assert client.get("/readyz").status_code == 200
        good = next(content for name, content in pictures if name.startswith("png-doubled"))
        assert client.post("/predict", files={"file": good}).status_code == 200
