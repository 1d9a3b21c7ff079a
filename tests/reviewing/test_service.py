"""The review's page can decide; no other page can, and no request reaches the disk by a path."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from review_helpers import item, load, made_review
from thumbnet.data.corrections import read_corrections
from thumbnet.data.rendering import Rendering
from thumbnet.errors import FailedReadError, RunError, UnreadableImageError
from thumbnet.reviewing.service import LARGEST_SIDE, MAX_BODY, Heading, Tokens, as_png, build_review
from thumbnet.reviewing.session import Item, Review

testclient = pytest.importorskip("starlette.testclient")

ORIGIN = {"Origin": "http://localhost"}  # what the page sends with a decision
HEADING = Heading(
    "Review of run",
    "thumbnet train data --labels run/labels.csv",
    ("localhost",),
    "thumbnet review run --first 8",
)


@contextmanager
def started(review: Review, load_picture: Any = load) -> Iterator[tuple[Any, Tokens]]:
    """A client that has not opened the page, and the tokens that open it."""
    tokens = Tokens()
    app = build_review(review, HEADING, load_picture, Rendering(), tokens)
    with testclient.TestClient(app, base_url="http://localhost") as client:
        yield client, tokens


@contextmanager
def opened(review: Review, load_picture: Any = load) -> Iterator[Any]:
    """A client that has opened the page."""
    with started(review, load_picture) as (client, tokens):
        assert client.get(f"/?token={tokens.printed}").status_code == 200
        yield client


def test_the_page_shows_the_pictures_and_their_decisions_and_decides(tmp_path: Path) -> None:
    review = made_review(tmp_path, shown=5, beyond=[("train", "8.png"), ("test", "5.png")])
    with opened(review) as client:
        state = client.get("/state").json()
        more = (state["remaining"], state["beyond"], state["show_more"])
        assert more == (2, review.selection.what, HEADING.show_more)
        assert (state["title"], state["command"], state["shown"]) == (HEADING.title, HEADING.continue_with, 5)
        assert state["classes"] == ["red", "green", "blue"]
        assert state["file"] == str(review.path)
        first = state["pictures"][0]
        assert (first["name"], first["split"], first["given"], first["suggested"]) == ("0.png", "train", 0, 1)
        assert (first["likely"][0], first["reasons"], first["copies"]) == ([1, 0.75], ["label"], [3])
        assert first["decided"] is None

        decision = {"picture": 0, "decision": "relabel", "label": 2}
        answer = client.post("/decide", json=decision, headers=ORIGIN).json()
        assert answer == {
            "picture": 0,
            "decided": {"decision": "relabel", "label": "blue"},
            "done": 1,
            "remaining": 2,
            "undo": True,
            "revision": 1,
        }
        assert [one.label for one in read_corrections(review.path)] == ["blue"]
        assert client.get("/state").json()["pictures"][0]["decided"] == answer["decided"]

        undone = client.post("/undo", json={}, headers=ORIGIN).json()
        assert (undone["picture"], undone["decided"], undone["undo"]) == (0, None, False)
        assert client.post("/undo", json={}, headers=ORIGIN).json()["picture"] is None

        copy = {"picture": 5, "decision": "drop"}  # one of the two that remain
        answer = client.post("/decide", json=copy, headers=ORIGIN).json()
        assert (answer["done"], answer["remaining"]) == (0, 1)


@pytest.mark.parametrize("path", ["/decide", "/undo"])
@pytest.mark.parametrize(
    "changed",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "http://localhost:3000"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_another_page_cannot_decide(path: str, changed: dict[str, Any], tmp_path: Path) -> None:
    review = made_review(tmp_path)
    with opened(review) as client:
        answer = client.post(path, json={"picture": 0, "decision": "drop"}, headers={**ORIGIN, **changed})
        assert answer.status_code == 403
        assert "another page than the review's" in answer.json()["detail"]
        assert not review.path.exists()


REQUESTS = [("GET", "/"), ("GET", "/state"), ("GET", "/picture/0"), ("POST", "/decide"), ("POST", "/undo")]


@pytest.mark.parametrize(("method", "path"), REQUESTS)
@pytest.mark.parametrize("token", [None, "", "guess", "gu\u00e9ss", "0" * 32])
def test_without_the_token_nothing_can_be_seen_or_decided(
    method: str, path: str, token: str | None, tmp_path: Path
) -> None:
    """Other users of the machine reach the page's port, too."""
    review = made_review(tmp_path)
    with started(review) as (client, _):
        name = "thumbnet-review-localhost"
        sent = {"json": {"picture": 0, "decision": "drop"}} if method == "POST" else {}
        cookie = {} if token is None else {"Cookie": f"{name}={token}".encode("latin-1")}
        query = {} if token is None else {"token": token}
        answer = client.request(method, path, params=query, headers={**ORIGIN, **cookie}, **sent)
        assert answer.status_code == 403
        assert "open the address that thumbnet review has printed" in answer.json()["detail"]
        assert "Set-Cookie" not in answer.headers
    assert not review.path.exists()


def test_the_printed_token_opens_the_page_for_browsers_and_the_page_opens_the_rest(tmp_path: Path) -> None:
    with started(made_review(tmp_path)) as (client, tokens):
        for _ in range(2):
            client.cookies.clear()
            answer = client.get(f"/?token={tokens.printed}")
            assert answer.status_code == 200
            assert tokens.printed not in answer.text
            cookie = answer.headers["Set-Cookie"].lower()
            assert {"httponly", "samesite=strict"} <= set(cookie.split("; "))
            assert not [one for one in (tokens.printed, tokens.once) if one in cookie]
            for path in ("/", "/state", "/picture/0"):  # now by the cookie
                assert client.get(path).status_code == 200
        client.cookies.clear()
        assert client.get("/state").status_code == 403


def test_the_token_that_a_browser_is_started_with_works_once(tmp_path: Path) -> None:
    """Other users see it among the arguments of the browser's process."""
    with started(made_review(tmp_path)) as (client, tokens):
        assert client.get(f"/?token={tokens.once}").status_code == 200
        assert client.get(f"/?token={tokens.once}").status_code == 200  # reloaded: by the cookie
        client.cookies.clear()
        assert client.get(f"/?token={tokens.once}").status_code == 403
        assert client.get(f"/?token={tokens.printed}").status_code == 200


@pytest.mark.parametrize("host", ["localhost:8001", "127.0.0.1:99999", "[::1]", "LOCALHOST"])
def test_each_address_of_the_page_has_a_cookie_of_its_own(host: str, tmp_path: Path) -> None:
    app_hosts = Heading("", "", ("localhost", "127.0.0.1", "[::1]"))
    tokens = Tokens()
    app = build_review(made_review(tmp_path), app_hosts, load, Rendering(), tokens)
    with testclient.TestClient(app, base_url="http://localhost") as client:
        answer = client.get(f"/?token={tokens.printed}", headers={"Host": host})
        assert answer.status_code == 200
        cookie = answer.headers["Set-Cookie"].partition(";")[0]
        client.cookies.clear()
        for other, status in ((host, 200), ("localhost:1", 403)):
            assert client.get("/state", headers={"Host": other, "Cookie": cookie}).status_code == status


def test_a_decision_is_a_post_and_the_answers_allow_no_other_origin(tmp_path: Path) -> None:
    with opened(made_review(tmp_path)) as client:
        assert client.get("/decide", headers=ORIGIN).status_code == 405
        preflight = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
        answer = client.options("/decide", headers=preflight)
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]


def test_pages_elsewhere_cannot_read_the_pictures(tmp_path: Path) -> None:
    with opened(made_review(tmp_path)) as client:
        for path in ("/state", "/picture/0"):
            assert client.get(path, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
            assert client.get(path, headers={"Host": "rebound.example"}).status_code == 400
            answer = client.get(path)
            assert answer.status_code == 200
            assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
            assert answer.headers["Cache-Control"] == "no-store"


def test_the_policy_of_the_page_allows_only_its_own_script(tmp_path: Path) -> None:
    with opened(made_review(tmp_path)) as client:
        page = client.get("/")
        policy = page.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert page.headers["X-Frame-Options"] == "DENY"
        assert '<html lang="en">' in page.text
        assert "{{" not in page.text


def test_a_page_of_an_earlier_review_cannot_decide(tmp_path: Path) -> None:
    review = made_review(tmp_path)
    with opened(review) as old, started(review) as (client, tokens):
        client.cookies = old.cookies
        answer = client.post("/decide", json={"picture": 0, "decision": "drop"}, headers=ORIGIN)
        assert (answer.status_code, "printed" in answer.json()["detail"]) == (403, True)
        client.get(f"/?token={tokens.printed}")
        answer = client.post("/decide", json={"picture": 0, "decision": "drop"}, headers=ORIGIN)
        assert answer.status_code == 200


@pytest.mark.parametrize(
    ("status", "options", "says"),
    [
        (422, {"json": {"picture": 9, "decision": "drop"}}, "there is no picture 9"),
        (422, {"json": {"picture": 0, "decision": "burn"}}, "there is no decision 'burn'"),
        (422, {"json": {"picture": 0, "decision": "relabel", "label": 7}}, "there is no class 7"),
        (422, {"json": {"picture": True, "decision": "drop"}}, "picture: "),
        (422, {"json": {"picture": "0", "decision": "drop"}}, "picture: "),
        (422, {"json": {"picture": 0}}, "decision: "),
        (422, {"json": {"picture": 0, "decision": "drop", "path": "/etc"}}, "path: "),
        (422, {"content": b"{"}, "body: "),
        (422, {"content": b"\xff"}, "body: "),
        (413, {"content": b"x" * (MAX_BODY + 1)}, "bytes"),
    ],
)
def test_a_wrong_decision_is_refused_with_a_reason(
    status: int, options: dict[str, Any], says: str, tmp_path: Path
) -> None:
    review = made_review(tmp_path)
    with opened(review) as client:
        answer = client.post("/decide", headers=ORIGIN, **options)
        assert answer.status_code == status, answer.text
        assert says in answer.json()["detail"]
    assert not review.path.exists()


def test_a_full_disk_is_reported_and_the_decision_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    review = made_review(tmp_path)

    def fail(*_: object) -> None:
        raise RunError("cannot write labels.csv: No space left on device")

    monkeypatch.setattr("thumbnet.reviewing.session.write_corrections", fail)
    with opened(review) as client:
        answer = client.post("/decide", json={"picture": 0, "decision": "drop"}, headers=ORIGIN)
        assert (answer.status_code, answer.json()["detail"]) == (
            507,
            "cannot write labels.csv: No space left on device",
        )
        assert client.get("/state").json()["done"] == 0


def picture_of(answer: Any) -> np.ndarray:
    assert answer.headers["Content-Type"] == "image/png"
    return np.asarray(Image.open(io.BytesIO(answer.content)))


def test_a_small_picture_arrives_with_exactly_its_pixels(tmp_path: Path) -> None:
    with opened(made_review(tmp_path)) as client:
        for position in (0, 5):
            expected = load(item(position))
            np.testing.assert_array_equal(picture_of(client.get(f"/picture/{position}")), expected)


@pytest.mark.parametrize(
    "path",
    ["/picture/6", "/picture/-1", "/picture/..%2f..%2fetc%2fpasswd", f"/picture/{'9' * 40}", "/picture/"],
)
def test_only_positions_of_this_review_lead_to_a_picture(path: str, tmp_path: Path) -> None:
    with opened(made_review(tmp_path)) as client:
        assert client.get(path).status_code in (404, 422)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UnreadableImageError, "cannot read the picture 0.png: the file is gone"),
        (FailedReadError, "cannot read 0.png: the file is gone"),
    ],
)
def test_a_picture_that_cannot_be_read_is_reported(
    error: type[UnreadableImageError | FailedReadError], message: str, tmp_path: Path
) -> None:
    def broken(one: Item) -> Any:
        raise error(one.name, "the file is gone")

    with opened(made_review(tmp_path), broken) as client:
        answer = client.get("/picture/0")
        assert answer.status_code == 404
        assert answer.json()["detail"].startswith(message)


def test_a_large_picture_is_reduced_and_loses_its_metadata() -> None:
    large = Image.new("RGB", (2 * LARGEST_SIDE, LARGEST_SIDE), "red")
    large.info.update(exif=b"Exif\0\0secret place", comment=b"secret")
    sent = as_png(large, Rendering())
    assert b"secret" not in sent
    assert Image.open(io.BytesIO(sent)).size == (LARGEST_SIDE, LARGEST_SIDE // 2)
    assert large.size == (2 * LARGEST_SIDE, LARGEST_SIDE)


def test_pictures_of_more_than_8_bits_are_rendered_as_the_network_sees_them() -> None:
    deep = np.array([[100, 200], [150, 300]], dtype=np.uint16)
    shown = np.asarray(Image.open(io.BytesIO(as_png(deep, Rendering(range=(100, 200))))))
    assert shown.shape == (2, 2, 3)
    assert shown[..., 0].tolist() == [[0, 255], [127, 255]]


def test_names_that_are_not_text_reach_the_page_escaped(tmp_path: Path) -> None:
    odd = item(0)
    odd = Item(odd.split, 0, "caf\udce9\x1b[2J.png", 0, 1, odd.likely)
    with opened(made_review(tmp_path, [odd])) as client:
        assert client.get("/state").json()["pictures"][0]["name"] == "caf\\udce9\\x1b[2J.png"
