"""Requests are counted and timed for Prometheus."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("prometheus_client", reason="the extra 'serve' is not installed")

from prometheus_client import CollectorRegistry
from starlette.types import Message, Receive, Scope, Send

from thumbnet.serving.metrics import Measured


async def receive() -> Message:
    return {"type": "http.request"}


ROUTE = SimpleNamespace(path="/predict")


def answering(status: int | None, route: Any = ROUTE) -> Any:
    """An application that answers with ``status``, or raises an error if it is None."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if route is not None:
            scope["route"] = route
        if status is None:
            raise ValueError("broken")
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"x"})

    return app


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def ask(app: Any, registry: CollectorRegistry, method: str = "GET", kind: str = "http") -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(Measured(app, registry)({"type": kind, "method": method}, receive, send))
    return sent


def requests(registry: CollectorRegistry) -> dict[tuple[str, str, str], float]:
    """The number of requests by method, path and status."""
    return {
        (one.labels["method"], one.labels["path"], one.labels["status"]): one.value
        for family in registry.collect()
        for one in family.samples
        if one.name == "thumbnet_requests_total"
    }


def test_a_request_is_counted_by_method_route_and_status(registry: CollectorRegistry) -> None:
    sent = ask(answering(201), registry, "POST")
    assert [one["type"] for one in sent] == ["http.response.start", "http.response.body"]
    assert requests(registry) == {("POST", "/predict", "201"): 1}
    assert registry.get_sample_value("thumbnet_request_seconds_count", {"path": "/predict"}) == 1
    seconds = registry.get_sample_value("thumbnet_request_seconds_sum", {"path": "/predict"})
    assert seconds is not None
    assert 0 < seconds < 10


def test_unknown_paths_and_methods_add_no_labels(registry: CollectorRegistry) -> None:
    ask(answering(404, route=None), registry, "BREW")
    assert requests(registry) == {("other", "other", "404"): 1}


def test_an_error_of_the_application_counts_as_500_and_is_raised_again(registry: CollectorRegistry) -> None:
    with pytest.raises(ValueError, match="broken"):
        ask(answering(None), registry)
    assert requests(registry) == {("GET", "/predict", "500"): 1}


def test_events_other_than_http_requests_are_not_counted(registry: CollectorRegistry) -> None:
    ask(answering(200), registry, kind="lifespan")
    assert requests(registry) == {}
