"""A classifier, pictures and clients for tests of the service."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image

from thumbnet.classifiers.base import Classifier
from thumbnet.data.rendering import Preprocessing
from thumbnet.data.splits import ArraySplit, Data
from thumbnet.recipes.settings import ModelSettings
from thumbnet.runs.folder import Run
from thumbnet.runs.weights_info import WeightsInfo
from thumbnet.serving.service import ServiceSettings

testclient = pytest.importorskip("starlette.testclient")

LIMITS = ServiceSettings(max_bytes=100_000, max_pixels=10_000, max_pictures=8)


class Slow(Classifier):
    """A classifier of brightness. A test can make it wait."""

    def __init__(self) -> None:
        half = (0.5, 0.5, 0.5)
        pre = Preprocessing((8, 8), "squash", half, half)
        super().__init__(WeightsInfo(ModelSettings(), ("dark", "bright"), pre, "fp32", "", ""))
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.batches: list[int] = []

    def _forward(self, pixels: np.ndarray) -> np.ndarray:
        self.batches.append(len(pixels))
        assert self.may_go_on.wait(60)
        bright = pixels.mean(axis=(1, 2, 3)) / 255
        return np.stack([1 - bright, bright], axis=1).astype(np.float32)


class Decided(Slow):
    """A classifier of brightness with large logits."""

    def _forward(self, pixels: np.ndarray) -> np.ndarray:
        return 10 * super()._forward(pixels)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def grey(level: int) -> bytes:
    return encoded(np.full((8, 8, 3), level, dtype=np.uint8))


@contextmanager
def client_of(app: FastAPI) -> Iterator[Any]:
    with testclient.TestClient(app, base_url="http://localhost") as client:
        yield client


class Read(ArraySplit):
    """Bright pictures with the label dark, which a test's function reads."""

    def __init__(self, count: int, read: Callable[[int], None]) -> None:
        super().__init__(np.full((count, 8, 8, 3), 255, np.uint8), np.zeros(count, np.int64), "test")
        self._read = read

    def load(self, index: int) -> np.ndarray:
        self._read(index)
        return super().load(index)

    def subset(self, indices: np.ndarray) -> ArraySplit:
        return self


def data_to_read(count: int, read: Callable[[int], None]) -> Data:
    split = Read(count, read)
    return Data("made", "made by the test", ("dark", "bright"), {"train": split, "test": split})


def brightness(client: Any, *levels: int) -> list[str]:
    """The likeliest class of each of several pictures in one request."""
    answer = client.post("/predict", files=[("file", grey(level)) for level in levels])
    assert answer.status_code == 200, answer.text
    return [one["classes"][0]["name"] for one in answer.json()["predictions"]]


def wait_until(condition: Any) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@contextmanager
def served(
    run: Run, *options: str, key: str | None = None, log: str = "off"
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run ``thumbnet serve`` on a free port; yield its address and its process."""
    command = [
        sys.executable,
        "-m",
        "thumbnet",
        "serve",
        str(run.path),
        "--data",
        "none",
        "--port",
        "0",
        "--access-log",
        log,
        *options,
    ]
    environment = {name: value for name, value in os.environ.items() if name != "THUMBNET_API_KEY"}
    if key is not None:
        environment["THUMBNET_API_KEY"] = key
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, line + (process.stderr.read() if process.stderr else "")
        yield found.group(), process
    finally:
        process.kill()
        process.wait()
