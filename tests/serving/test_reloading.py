"""The served network is replaced while requests are answered, or else it stays."""

from __future__ import annotations

import gc
import hashlib
import os
import re
import shutil
import signal
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import coloured
from serving_helpers import (
    LIMITS,
    Slow,
    brightness,
    client_of,
    data_to_read,
    encoded,
    grey,
    served,
    wait_until,
)
from thumbnet.classifiers.base import Classifier
from thumbnet.data.rendering import Preprocessing
from thumbnet.data.splits import Data
from thumbnet.errors import RunError
from thumbnet.runs.folder import Run
from thumbnet.runs.weights import read_weights, weights_content
from thumbnet.serving.identity import Identity
from thumbnet.serving.network import Network
from thumbnet.serving.service import build_service

httpx = pytest.importorskip("httpx")


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
