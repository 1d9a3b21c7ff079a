"""What keeps other sites away from a page on loopback."""

from __future__ import annotations

import base64
import hashlib
import re
import socket
from collections.abc import Sequence
from importlib import resources
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException, Request

from thumbnet.serving.protection import accepted_hosts, page_policy, protect, read_body, refuse_other_sites

testclient = pytest.importorskip("starlette.testclient")

PAGES = [("serving", "page.html"), ("reviewing", "page.html")]


def client_of(hosts: tuple[str, ...] | None, option: str = "", origins: Sequence[str] | None = None) -> Any:
    app = FastAPI()
    if origins is not None:
        refuse_other_sites(app, origins, "--allow-origin")
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


def test_each_part_of_a_body_is_held_before_it_is_kept() -> None:
    app, held = FastAPI(), list[int]()

    def hold(size: int) -> None:
        if sum(held) + size > 80:
            raise HTTPException(429, "full")
        held.append(size)

    @app.post("/")
    async def size(request: Request) -> int:
        return len(await read_body(request, 100, 5.0, "send less", hold))

    client = testclient.TestClient(app)
    assert client.post("/", content=b"x" * 70).json() == sum(held) == 70
    assert client.post("/", content=b"x" * 11).status_code == 429
    assert sum(held) == 70


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


SHOP, OTHER = "https://shop.example", "https://other.example"
ALLOWED = "Access-Control-Allow-Origin"


def preflight(client: Any, origin: str, method: str = "POST", **more: str) -> Any:
    asked = {"Origin": origin, "Access-Control-Request-Method": method, **more}
    return client.options("/", headers=asked)


def test_without_accepted_origins_no_page_of_another_site_may_read_an_answer() -> None:
    client = client_of(("localhost",), origins=[])
    answer = client.post("/", headers={"Origin": SHOP})
    assert answer.status_code == 200
    assert preflight(client, SHOP).status_code == 405
    for one in (answer, preflight(client, SHOP)):
        assert not [name for name in one.headers if name.startswith("access-control")]


def test_pages_of_accepted_origins_may_read_answers_and_others_may_not() -> None:
    client = client_of(("localhost",), origins=[SHOP, "http://localhost:3000"])
    for origin in (SHOP, "http://localhost:3000"):
        answer = client.post("/", headers={"Origin": origin})
        assert (answer.status_code, answer.headers[ALLOWED]) == (200, origin)
        assert "Origin" in answer.headers["Vary"]  # so that no cache gives it to another origin
        assert answer.headers["Access-Control-Expose-Headers"] == "Retry-After"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    for origin in (OTHER, "http://shop.example", f"{SHOP}:8443", f"{SHOP}.evil.example", "null", ""):
        assert ALLOWED not in client.post("/", headers={"Origin": origin}).headers, origin
    assert ALLOWED not in client.post("/").headers


def test_preflights_of_accepted_origins_are_answered() -> None:
    client = client_of(("localhost",), origins=[SHOP])
    answer = preflight(client, SHOP, **{"Access-Control-Request-Headers": "content-type, x-api-key"})
    assert (answer.status_code, answer.headers[ALLOWED]) == (200, SHOP)
    assert answer.headers["Access-Control-Allow-Methods"] == "GET, POST"
    assert "X-API-Key" in answer.headers["Access-Control-Allow-Headers"]
    assert "Access-Control-Allow-Credentials" not in answer.headers
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    private = preflight(client, SHOP, **{"Access-Control-Request-Private-Network": "true"})
    assert private.headers["Access-Control-Allow-Private-Network"] == "true"
    refused = [
        preflight(client, OTHER),
        preflight(client, SHOP, "DELETE"),
        preflight(client, SHOP, **{"Access-Control-Request-Headers": "x-other"}),
    ]
    assert [one.status_code for one in refused] == [400] * 3
    assert ALLOWED not in refused[0].headers


@pytest.mark.parametrize("site", ["cross-site", "same-site", "unknown"])
def test_a_page_of_another_site_may_not_post_unless_its_origin_is_accepted(site: str) -> None:
    client = client_of(("localhost",), origins=[SHOP])
    page = {"Sec-Fetch-Site": site}
    for headers in ({**page, "Origin": OTHER}, {**page, "Origin": "null"}, page):
        refused = client.post("/", headers=headers)
        assert refused.status_code == 403
        assert "comes from a page of another site" in refused.json()["detail"]
        assert "start the service with --allow-origin" in refused.json()["detail"]
        assert ALLOWED not in refused.headers
        assert refused.headers["X-Content-Type-Options"] == "nosniff"
    accepted = client.post("/", headers={**page, "Origin": SHOP})
    assert (accepted.status_code, accepted.headers[ALLOWED]) == (200, SHOP)
    assert client_of(None, origins=["*"]).post("/", headers={**page, "Origin": OTHER}).status_code == 200
    assert client_of(None, origins=[]).post("/", headers={**page, "Origin": SHOP}).status_code == 403


def test_the_services_own_page_and_programs_may_post() -> None:
    client = client_of(("localhost",), origins=[])
    for headers in ({"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}, {}):
        assert client.post("/", headers=headers).status_code == 200


def test_a_link_on_a_page_of_another_site_leads_to_the_page() -> None:
    client = client_of(("localhost",), origins=[])

    async def page() -> str:
        return "page"

    client.app.get("/page")(page)

    assert client.get("/page", headers={"Sec-Fetch-Site": "cross-site"}).json() == "page"


def test_all_origins_can_be_accepted_and_host_names_are_checked_all_the_same() -> None:
    client = client_of(("localhost",), origins=["*"])
    assert client.post("/", headers={"Origin": OTHER}).headers[ALLOWED] == "*"
    assert preflight(client, OTHER).headers[ALLOWED] == "*"
    rebound = client.post("/", headers={"Origin": OTHER, "Host": "rebound.example"})
    assert rebound.status_code == 400
    assert ALLOWED not in rebound.headers
    assert preflight(client, OTHER, Host="rebound.example").status_code == 400
