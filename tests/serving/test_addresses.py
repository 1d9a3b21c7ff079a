"""The addresses at which a service is reached, here and from other devices."""

from __future__ import annotations

import signal
import socket
import threading
import urllib.request
from types import SimpleNamespace
from typing import Any

import pytest

from thumbnet.serving import addresses
from thumbnet.serving.addresses import address_elsewhere, address_here, own_address


class Listener:
    """A socket that listens on ``host`` and port 8000."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.family = socket.AF_INET6 if ":" in host else socket.AF_INET

    def getsockname(self) -> tuple[Any, ...]:
        return (self.host, 8000, 0, 0) if ":" in self.host else (self.host, 8000)


def sending_from(monkeypatch: pytest.MonkeyPatch, own: str | OSError) -> None:
    """Let this computer send from the address ``own``, or to nowhere."""

    class Probe:
        def __init__(self, *_: object) -> None: ...

        def __enter__(self) -> Probe:
            return self

        def __exit__(self, *_: object) -> None: ...

        def connect(self, _: object) -> None:
            if isinstance(own, OSError):
                raise own

        def getsockname(self) -> tuple[Any, ...]:
            return own, 50_000

    monkeypatch.setattr(addresses, "socket", SimpleNamespace(socket=Probe, SOCK_DGRAM=socket.SOCK_DGRAM))


@pytest.mark.parametrize(
    ("host", "own", "here", "elsewhere"),
    [
        ("0.0.0.0", "192.168.1.23", "http://127.0.0.1:8000", "http://192.168.1.23:8000"),
        ("::", "2003:1::5", "http://[::1]:8000", "http://[2003:1::5]:8000"),
        ("127.0.0.1", "192.168.1.23", "http://127.0.0.1:8000", None),
        ("::1", "2003:1::5", "http://[::1]:8000", None),
        ("192.168.1.23", "192.168.1.23", "http://192.168.1.23:8000", None),
        ("0.0.0.0", "127.0.0.1", "http://127.0.0.1:8000", None),
        ("0.0.0.0", "169.254.3.4", "http://127.0.0.1:8000", None),
        ("::", "fe80::1%eth0", "http://[::1]:8000", None),
        ("0.0.0.0", "0.0.0.0", "http://127.0.0.1:8000", None),
        ("0.0.0.0", OSError("Network is unreachable"), "http://127.0.0.1:8000", None),
    ],
)
def test_a_service_on_all_addresses_is_named_by_those_that_a_browser_opens(
    host: str, own: str | OSError, here: str, elsewhere: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sending_from(monkeypatch, own)
    listener: Any = Listener(host)
    assert (address_here(listener), address_elsewhere(listener)) == (here, elsewhere)


def test_the_systems_answer_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(addresses.SOMEWHERE, socket.AF_INET, "127.0.0.1")  # from which follows loopback
    assert own_address(socket.AF_INET) is None


def test_the_service_answers_at_the_addresses_that_it_names() -> None:
    pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")
    from fastapi import FastAPI

    from thumbnet.serving.protection import accepted_hosts, protect
    from thumbnet.serving.server import listen, serve

    answers: list[int | Exception] = []

    def visit(named: list[str]) -> None:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            for address in named:
                with direct.open(address, timeout=30) as answer:
                    answers.append(answer.status)
        except Exception as error:
            answers.append(error)
        signal.raise_signal(signal.SIGTERM)

    app = FastAPI()

    @app.get("/")
    async def root() -> str:
        return "here"

    with listen("0.0.0.0", 0) as listener:
        protect(app, accepted_hosts(listener, "0.0.0.0"))
        elsewhere = address_elsewhere(listener)

        def greet(here: str) -> None:
            named = [here] if elsewhere is None else [here, elsewhere]
            threading.Thread(target=visit, args=(named,)).start()

        serve(app, listener, greet)
    assert answers == [200] * (1 if elsewhere is None else 2)
