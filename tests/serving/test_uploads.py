"""Pictures arrive whole, as a form or alone, or the request is refused with a reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from helpers import coloured
from serving_helpers import LIMITS, client_of, encoded, grey
from thumbnet.classifiers.load import load_run
from thumbnet.data import plugins
from thumbnet.runs.folder import Run
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
