from __future__ import annotations

import contextlib
import functools
import gc
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from thumbnet.training import recording
from thumbnet.training.recording import WARM_UPS, LateReader, Recorder

CUDA = torch.device("cuda", 0)


class FakeCuda:
    """Stands in for ``torch.cuda``, and notes what is asked of it.

    Attributes:
        refuses: whether ending a capture fails, as after a call that CUDA refuses.
        ended: device and pool of each capture that the allocator was told is over.
        generators: of random numbers, one for each device.
    """

    def __init__(self, refuses: bool = False) -> None:
        self.refuses = refuses
        self.events: list[str] = []
        self.main = self.current = self.Side(self.events, "main")
        self.pools: list[Any] = []
        self.ended: list[tuple[int, Any]] = []
        self.generators = (self.Generator(), self.Generator())
        self.modes: list[str] = []
        self.streams: list[FakeCuda.Side] = []
        self.chosen = torch.device("cpu")  # by `with torch.cuda.device(...)`
        self.captured: list[FakeCuda.Graph] = []

    class Graph:
        def __init__(self) -> None:
            self.replays = 0

        def replay(self) -> None:
            self.replays += 1

    class Generator:
        """As in PyTorch 2.11: it gives no numbers while a capture has not ended well."""

        def __init__(self) -> None:
            self.capturing = False

        def clone_state(self) -> FakeCuda.Generator:
            return FakeCuda.Generator()

        def graphsafe_set_state(self, other: FakeCuda.Generator) -> None:
            self.capturing = other.capturing

    class Side:
        def __init__(self, events: list[str], name: str, device: torch.device = CUDA) -> None:
            self.events, self.name, self.device = events, name, device

        def wait_stream(self, other: FakeCuda.Side) -> None:
            self.events.append(f"{self.name} waits for {other.name}")

    @contextlib.contextmanager
    def stream(self, side: FakeCuda.Side) -> Iterator[None]:
        self.events.append(f"on {side.name}")
        before, self.current = self.current, side
        try:
            yield
        finally:
            self.current = before

    @contextlib.contextmanager
    def graph(
        self, graph: FakeCuda.Graph, pool: Any, stream: FakeCuda.Side, capture_error_mode: str
    ) -> Iterator[None]:
        self.events.append("capture")
        self.pools.append(pool)
        self.streams.append(stream)
        self.modes.append(capture_error_mode)
        generator = self.generators[self.chosen.index]
        generator.capturing = True
        before, self.current = self.current, self.Side(self.events, "capture")
        try:
            yield
        finally:
            if self.refuses:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
            self.current = before  # as in PyTorch, not after a failure
            generator.capturing = False
        self.captured.append(graph)

    @contextlib.contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self.chosen = self.chosen, device
        try:
            yield
        finally:
            self.chosen = before

    def end_allocating(self, device: int, pool: Any) -> None:
        self.ended.append((device, pool))

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(torch.cuda, "device", self.device)
        stream = functools.cache(recording._recording_stream.__wrapped__)  # knows no real one
        patch.setattr(recording, "_recording_stream", stream)
        patch.setattr(torch.cuda, "Stream", lambda device: self.Side(self.events, "side", device))
        handles = itertools.count(1)
        patch.setattr(torch.cuda, "graph_pool_handle", lambda: f"pool {next(handles)}")
        patch.setattr(torch.cuda, "current_device", lambda: self.chosen.index)
        patch.setattr(torch._C, "_cuda_endAllocateToPool", self.end_allocating, raising=False)
        patch.setattr(torch.cuda, "default_generators", self.generators)
        patch.setattr(torch.cuda, "current_stream", lambda: self.current)
        patch.setattr(torch.cuda, "stream", self.stream)
        patch.setattr(torch.cuda, "CUDAGraph", self.Graph)
        patch.setattr(torch.cuda, "graph", self.graph)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    fake.install(monkeypatch)
    return fake


def test_work_is_warmed_up_on_a_side_stream_undone_and_captured_once(cuda: FakeCuda) -> None:
    weights, other = torch.ones(3), torch.zeros(1)
    seen: list[float] = []

    def work() -> None:
        cuda.events.append("work")
        seen.append(float(weights[0]))
        weights.mul_(2)
        other.add_(1)

    replay = Recorder(CUDA, [weights]).record(work)
    assert cuda.events == [
        "side waits for main",
        "on side",
        *["work"] * WARM_UPS,
        "main waits for side",
        "on main",  # and back to it afterwards
        "capture",
        "work",
    ]
    assert seen == [1.0] * (WARM_UPS + 1)  # every run begins with the tensors as they were
    assert float(other) == WARM_UPS + 1  # not among the tensors to restore
    replay()
    replay()
    assert cuda.captured[0].replays == 2
    assert len(seen) == WARM_UPS + 1  # a replay runs no Python


def test_all_graphs_share_their_memory_and_tolerate_other_threads(cuda: FakeCuda) -> None:
    recorder = Recorder(CUDA, [])
    for _ in range(3):
        recorder.record(lambda: None)
    assert cuda.pools == ["pool 1"] * 3
    assert cuda.modes == ["thread_local"] * 3


def test_everything_on_a_device_is_captured_on_one_stream(cuda: FakeCuda) -> None:
    for number in (0, 1, 0):
        recorder = Recorder(torch.device("cuda", number), [])
        recorder.record(lambda: None)
        recorder.record(lambda: None)
    assert [stream.device.index for stream in cuda.streams] == [0, 0, 1, 1, 0, 0]
    assert len({id(stream) for stream in cuda.streams}) == 2


def test_work_that_fails_leaves_the_tensors_as_they_were(cuda: FakeCuda) -> None:
    weights = torch.ones(3)

    def work() -> None:
        weights.mul_(2)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        Recorder(CUDA, [weights]).record(work)
    assert torch.equal(weights, torch.ones(3))
    assert cuda.events[-1] == "main waits for side"  # before anybody reads the restored tensors


def test_a_refused_call_is_the_error_and_the_stream_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(refuses=True)
    cuda.install(monkeypatch)

    def work() -> None:
        if cuda.current.name == "capture":
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        Recorder(CUDA, []).record(work)
    assert cuda.current is cuda.main
    with pytest.raises(RuntimeError, match="previous error"):  # the work is not to blame
        Recorder(CUDA, []).record(lambda: None)
    assert cuda.current is cuda.main


def test_pytorch_learns_that_a_refused_capture_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise, PyTorch 2.11 frees no memory and draws no random numbers in the rest of the process."""
    cuda = FakeCuda()
    cuda.install(monkeypatch)
    recorder = Recorder(torch.device("cuda", 1), [])
    recorder.record(lambda: None)
    assert cuda.ended == []
    cuda.refuses = True
    with pytest.raises(RuntimeError, match="previous error"):
        recorder.record(lambda: None)
    assert cuda.ended == [(1, "pool 1")]
    assert not any(generator.capturing for generator in cuda.generators)

    def done_already(device: int, pool: Any) -> None:
        raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", done_already)
    with pytest.raises(RuntimeError, match="previous error"):
        recorder.record(lambda: None)
    assert not any(generator.capturing for generator in cuda.generators)


@pytest.mark.parametrize("collects", [True, False])
def test_no_garbage_is_collected_during_a_capture(collects: bool, cuda: FakeCuda) -> None:
    seen: list[bool] = []
    try:
        if not collects:
            gc.disable()
        Recorder(CUDA, []).record(lambda: seen.append(gc.isenabled()))
        assert gc.isenabled() == collects
    finally:
        gc.enable()
    assert seen == [*[collects] * WARM_UPS, False]


def test_garbage_is_collected_once_for_all_captures(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    collected: list[int] = []
    monkeypatch.setattr(gc, "collect", lambda: collected.append(1))
    recorder = Recorder(CUDA, [])
    for _ in range(3):
        recorder.record(lambda: None)
    assert collected == [1]


def test_without_cuda_the_recorded_function_is_the_function_itself() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))

    def work() -> None:
        with torch.no_grad():
            parameter.add_(1)

    assert Recorder(torch.device("cpu"), [parameter]).record(work) is work
    assert parameter.tolist() == [1.0, 1.0]


def test_a_late_reader_gives_what_it_was_asked_for_the_time_before() -> None:
    reader, values = LateReader(), torch.tensor([1.0, 2.0])
    assert reader.read(values) is None
    values.fill_(7)
    late = reader.read(values)
    assert late is not None
    assert late.tolist() == [1.0, 2.0]
    reader.forget()
    assert reader.read(values) is None


def test_a_late_reader_waits_only_for_the_copy_before(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []
    made: list[int] = []

    def ask(tensor: torch.Tensor) -> tuple[torch.Tensor, Callable[[], None]]:
        number = len(made)
        made.append(number)
        return tensor, lambda: waits.append(number)

    monkeypatch.setattr("thumbnet.training.recording._ask", ask)
    reader = LateReader()
    for _ in range(3):
        reader.read(torch.zeros(1))
    assert waits == [0, 1]
