"""Count requests and measure their latency, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.types import ASGIApp, Scope

from thumbnet.serving.observer import Observer

LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
KNOWN_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def count_outcomes(
    name: str, description: str, outcomes: Iterable[str], registry: CollectorRegistry | None
) -> Counter:
    """A counter with the label ``outcome`` that shows every outcome from the start, as 0."""
    counter = Counter(name, description, ["outcome"], registry=registry)
    for outcome in outcomes:
        counter.labels(outcome)
    return counter


class Measured(Observer):
    """ASGI middleware that counts requests by method, path and status, and measures how long they take."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry) -> None:
        super().__init__(app)
        self._requests = Counter(
            "thumbnet_requests", "Requests.", ["method", "path", "status"], registry=registry
        )
        self._seconds = Histogram(
            "thumbnet_request_seconds",
            "Seconds until the response was sent.",
            ["path"],
            registry=registry,
            buckets=LATENCIES,
        )

    def record(self, scope: Scope, status: int, arrived: float, seconds: float) -> None:
        # Not the raw path: every path that a client invents would add a label.
        route: Any = scope.get("route")
        path = getattr(route, "path", "other")
        method = scope["method"] if scope["method"] in KNOWN_METHODS else "other"
        self._requests.labels(method, path, status).inc()
        self._seconds.labels(path).observe(seconds)
