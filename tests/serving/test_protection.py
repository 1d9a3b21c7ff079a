"""What keeps other sites away from a page on loopback."""

from __future__ import annotations

import base64
import hashlib
import re
import socket
from importlib import resources
from typing import Any

import pytest
from fastapi import FastAPI, Request

from thumbnet.serving.protection import accepted_hosts, page_policy, protect, read_body

testclient = pytest.importorskip("starlette.testclient")

PAGES = [("serving", "page.html"), ("reviewing", "page.html")]


def client_of(hosts: tuple[str, ...] | None, option: str = "") -> Any:
    app = FastAPI()
    protect(app, hosts, option)

    @app.post("/")
    async def size(request: Request) -> int:
        return len(await read_body(request, 100, 5.0, "send less"))

    return testclient.TestClient(app, base_url="http://localhost")


def test_other_host_names_are_refused_and_every_answer_has_the_headers() -> None:
    client = client_of(("localhost",))
    good, bad = client.post("/"), client.post("/", headers={"Host": "rebound.example"})
    assert (good.status_code, bad.status_code) == (200, 400)
    for answer in (good, bad):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert client_of(None).post("/", headers={"Host": "any.example"}).status_code == 200


def test_a_refusal_names_the_host_and_the_option_that_accepts_it() -> None:
    client = client_of(("localhost",), "--accept-host")

    def detail(host: str) -> str:
        answer = client.post("/", headers={"Host": host})
        assert answer.status_code == 400
        return str(answer.json()["detail"])

    refused = "this service does not accept requests for the host"
    assert detail("cats.example.org:8443") == (
        f"{refused} 'cats.example.org:8443'. To accept it, start the service with "
        "--accept-host cats.example.org"
    )
    assert detail("<b>") == f"{refused} '<b>'"
    assert len(detail("a" * 5000)) < 400
    client = client_of(("localhost",))
    assert detail("cats.example.org") == f"{refused} 'cats.example.org'"


def test_host_names_are_compared_without_their_port_in_upper_and_lower_case() -> None:
    client = client_of(("localhost", "[::1]", "Cats.example.org"))
    for host in ("localhost", "LOCALHOST:8000", "[::1]:8000", "cats.Example.org:443"):
        assert client.post("/", headers={"Host": host}).status_code == 200, host
    for host in (
        "cats.example.org.evil.example", "dogs.cats.example.org", "localhost.", "localhost:x", "localhost:80:80",
        "evil@localhost", "localhost/", "[::1", "localhost evil.example",
    ):  # fmt: skip
        assert client.post("/", headers={"Host": host}).status_code == 400, host


def test_a_socket_on_loopback_accepts_only_this_machines_own_names() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        hosts = accepted_hosts(listener, "my-computer")
        assert hosts is not None
        assert {"localhost", "127.0.0.1", "my-computer"} <= set(hosts)
        more = accepted_hosts(listener, "my-computer", ["cats.example.org"])
        assert more == (*hosts, "cats.example.org")
    with socket.create_server(("0.0.0.0", 0)) as listener:
        assert accepted_hosts(listener, "0.0.0.0") is None


@pytest.mark.parametrize("content", [b"x" * 101, iter([b"x" * 60] * 2)])
def test_a_body_that_is_too_large_is_refused(content: Any) -> None:
    client = client_of(None)
    assert client.post("/", content=b"x" * 100).json() == 100
    answer = client.post("/", content=content)
    assert answer.status_code == 413
    assert answer.json()["detail"] == "more than 100 bytes: send less"


def test_the_policy_of_a_page_allows_its_own_script_and_no_other() -> None:
    policy = page_policy("<style>p {}</style><script>run()</script>")
    digest = base64.b64encode(hashlib.sha256(b"run()").digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    assert "style-src 'none'" in page_policy("<p>no style</p>")


@pytest.mark.parametrize("place", PAGES, ids="/".join)
def test_the_policy_covers_everything_in_the_pages(place: tuple[str, str]) -> None:
    page = (resources.files(f"thumbnet.{place[0]}") / place[1]).read_text("utf-8")
    assert re.search(r"<(script|style)\s", page) is None, "page_policy finds only tags without attributes"
    markup = re.sub(r"<(script|style)>.*?</\1>", "", page, flags=re.DOTALL)
    assert re.search(r"<[^>]+\s(style|on\w+)=", markup) is None, "the policy blocks inline attributes"
    assert re.search(r'(?:src|href)="(?!data:|/|#)', markup) is None, "the page loads nothing from elsewhere"
