from __future__ import annotations

import multiprocessing
import signal
import subprocess
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from helpers import write_class_folders
from thumbnet.batches import engines
from thumbnet.batches.decoding import decode_split
from thumbnet.batches.engines import (
    MANY,
    SAMPLE,
    MemoryEngine,
    WorkerEngine,
    evenly_spaced,
    fits_in_memory,
    sample_positions,
)
from thumbnet.batches.statistics import count_values
from thumbnet.data.repeats import picture_digests
from thumbnet.data.splits import ArraySplit, Split
from thumbnet.errors import UnreadableImageError
from thumbnet.sources.load import load_data


@pytest.fixture
def split(tmp_path: Path) -> Split:
    return load_data(write_class_folders(tmp_path / "data", ["train", "test"])).splits["train"]


@pytest.mark.parametrize("workers", [1, 2])
def test_both_engines_deliver_the_same_pictures_in_the_given_order(split: Split, workers: int) -> None:
    decoded = decode_split(split, (16, 16), "pad").images
    memory = MemoryEngine(decoded, torch.from_numpy(np.array(split.labels)))
    others = WorkerEngine(split, (16, 16), "pad", workers)
    batches = [torch.tensor([5, 0, 17]), torch.tensor([3]), torch.tensor([9, 9])]
    for positions, a, b in zip(batches, memory.fetch(batches), others.fetch(batches), strict=True):
        assert torch.equal(a, decoded[positions])
        assert torch.equal(a, b)
    assert torch.equal(memory.labels, others.labels)
    assert torch.equal(memory.value_counts(), others.value_counts())


def test_known_counts_are_not_computed_again(split: Split) -> None:
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    known = torch.full((3, 256), 7)
    assert MemoryEngine(images, torch.arange(2), known).value_counts() is known
    assert torch.equal(MemoryEngine(images, torch.arange(2)).value_counts(), count_values(images))


def test_digests_are_computed_once_from_the_pictures_as_they_are_stored(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = decode_split(split, (16, 16), "pad").images
    memory = MemoryEngine(images, torch.arange(len(images)))
    assert np.array_equal(memory.digests, picture_digests(images.permute(0, 2, 3, 1).numpy()))
    monkeypatch.setattr(engines, "picture_digests", lambda *_: pytest.fail("computed again"))
    assert len(memory.digests) == len(images)


def test_a_picture_that_a_worker_cannot_read_raises_an_error_with_its_name(
    split: Split, tmp_path: Path
) -> None:
    engine = WorkerEngine(split, (16, 16), "pad", 1)
    bad = next((tmp_path / "data" / "train").rglob("*.png"))
    bad.write_bytes(b"not a picture")
    with pytest.raises(UnreadableImageError, match=bad.name):
        list(engine.fetch(torch.arange(len(split)).split(4)))


def test_a_split_fits_if_it_needs_less_than_a_quarter_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.zeros((10, 8, 8, 3), np.uint8)
    split = ArraySplit(images, np.zeros(10, np.int64), "x")
    memory = namedtuple("memory", "total")
    for total, fits in ((4 * 10 * 8 * 8 * 3, False), (4 * 10 * 8 * 8 * 3 + 4, True)):
        monkeypatch.setattr(psutil, "virtual_memory", lambda total=total: memory(total))
        assert fits_in_memory([split], (8, 8)) is fits


def test_only_very_many_pictures_are_sampled_and_always_the_same_way() -> None:
    assert torch.equal(sample_positions(MANY), torch.arange(MANY))
    sampled = sample_positions(MANY + 1)
    assert 0.9 * SAMPLE < len(sampled) <= SAMPLE
    assert bool((sampled.diff() > 0).all())
    assert torch.equal(sampled, sample_positions(MANY + 1))


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [(0, 3, []), (3, 3, [0, 1, 2]), (3, 9, [0, 1, 2]), (9, 3, [0, 4, 8]), (9, 1, [0]), (10, 4, [0, 3, 6, 9])],
)
def test_positions_are_evenly_spaced_from_the_first_to_the_last(
    count: int, most: int, expected: list[int]
) -> None:
    assert evenly_spaced(count, most).tolist() == expected


def of(count: int) -> Split:
    return ArraySplit(np.zeros((count, 8, 8, 3), np.uint8), np.zeros(count, np.int64), "x")


@pytest.mark.parametrize(
    ("device", "needed"), [("cuda", 10), ("cuda", 9), ("mps", 10), ("mps", 9), ("cpu", 10), ("cpu", 9)]
)
def test_all_splits_together_must_fit_into_the_free_memory_of_the_device_that_keeps_them(
    device: str, needed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 4 * 10 * 8 * 8 * 3  # too little for ten pictures by one byte, as they may take a quarter of it
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free - 700, 10 * free))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 1000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 300)  # 700 can be used again
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: free + 5)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 5)
    memory = namedtuple("memory", "total")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(free))
    splits = [of(needed - 3), of(2), of(1)]
    assert fits_in_memory(splits, (8, 8), torch.device(device)) is (needed < 10)


def test_workers_pin_their_batches_only_for_a_gpu(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    class Loader:
        def __init__(self, *_: object, pin_memory: bool, **__: object) -> None:
            seen.append(pin_memory)

        def __iter__(self) -> Iterator[torch.Tensor]:
            return iter([])

    monkeypatch.setattr(engines, "DataLoader", Loader)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for device in ("cpu", "cuda"):
        engine = WorkerEngine(split, (16, 16), "pad", 1, device=torch.device(device))
        assert list(engine.fetch([torch.arange(3)])) == []
    assert seen == [False, True]


def started_by(fetched: Iterator[torch.Tensor]) -> list[BaseProcess]:
    """The worker processes that deliver the first of the pictures."""
    before = multiprocessing.active_children()
    next(fetched)
    return [child for child in multiprocessing.active_children() if child not in before]


@pytest.fixture(params=["one thread", "more threads"])
def _worker_has(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """More threads are already there when a worker is prepared, as PyTorch starts after `set_num_threads(2)`."""
    prepare = engines._leave_signals_to_the_parent

    def with_a_thread(worker: int) -> None:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        prepare(worker)

    if request.param == "more threads":
        monkeypatch.setattr(engines, "_leave_signals_to_the_parent", with_a_thread)


@pytest.mark.usefixtures("_worker_has")
@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="the system does not tell who sent a signal")
def test_workers_ignore_signals_that_a_scheduler_sends_to_all_processes(split: Split) -> None:
    fetched = WorkerEngine(split, (16, 16), "pad", 1).fetch(torch.arange(len(split)).split(1))
    (worker,) = started_by(fetched)
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    for name in ("-TERM", "-HUP", "-TERM"):
        subprocess.run(["kill", name, str(worker.pid)], check=True)
    assert len(list(fetched)) == len(split) - 1 > 10


@pytest.mark.usefixtures("_worker_has")
def test_the_parent_can_end_a_worker(split: Split) -> None:
    fetched = WorkerEngine(split, (16, 16), "pad", 1).fetch(torch.arange(len(split)).split(1))
    (worker,) = started_by(fetched)
    worker.terminate()  # as at the end of a Python whose last error still refers to the loader
    worker.join(10)
    assert worker.exitcode == 0
