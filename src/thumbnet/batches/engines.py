"""Engines deliver the pictures at given positions as uint8.

:class:`MemoryEngine` keeps the whole decoded split in memory. :class:`WorkerEngine` decodes pictures in other
processes during the training.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from thumbnet.batches.forked import ignore_terminal
from thumbnet.batches.statistics import CHANNELS, count_values
from thumbnet.data.rendering import BY_TYPE, Fit, Rendering, fit_pixels
from thumbnet.data.repeats import picture_digests
from thumbnet.data.splits import Split
from thumbnet.errors import FailedReadError, UnreadableImageError
from thumbnet.hardware import memory_of, send

# Decoding more than MANY pictures before the first step would take minutes. Larger splits are decoded during
# the training, and their statistics come from a sample of SAMPLE pictures.
MANY = 500_000
SAMPLE = 50_000
CPU = torch.device("cpu")
_TELLS_SENDER = hasattr(signal, "sigwaitinfo")  # who sent a signal; macOS does not


class Engine(Protocol):
    """Delivers pictures by their positions.

    Attributes:
        labels: the classes, int64 [N], or whether each picture has each label, int8 [N, classes]; on the CPU.
        workers: number of worker processes; 0 if the pictures are in memory.
        home: the device on which ``fetch`` looks pictures up.
    """

    labels: Tensor
    workers: int

    @property
    def home(self) -> torch.device: ...

    def fetch(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Deliver the pictures, uint8 [B, 3, H, W], for each batch of positions (int64 [B]).

        Positions on :attr:`home` are used as they are; others are copied there.
        """

    def value_counts(self) -> Tensor:
        """How often each of the 256 values occurs per channel, over all pictures: int64 [3, 256]."""


class MemoryEngine:
    """Keeps the decoded split in memory.

    Args:
        images: uint8 [N, 3, H, W], stored as [N, H, W, 3], in the memory of any device.
        labels: int64 [N] or int8 [N, classes].
        counts: the result of :meth:`value_counts`, if it is known.
    """

    workers = 0

    def __init__(self, images: Tensor, labels: Tensor, counts: Tensor | None = None) -> None:
        self.images = images
        self.labels = labels
        self._counts = counts

    @property
    def home(self) -> torch.device:
        """The device whose memory holds the pictures."""
        return self.images.device

    def fetch(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        for indices in batches:
            yield self.images[send(indices, self.images.device)]

    def value_counts(self) -> Tensor:
        return count_values(self.images) if self._counts is None else self._counts

    @cached_property
    def digests(self) -> np.ndarray:
        """What :func:`~thumbnet.data.repeats.picture_digests` computes of the pictures: uint64 [N, 2]."""
        return picture_digests(self.images.permute(0, 2, 3, 1).cpu().numpy())


class WorkerEngine:
    """Decodes and prefetches pictures in the worker processes of a DataLoader.

    ``device`` is where the batches are needed.
    """

    home = CPU

    def __init__(
        self,
        split: Split,
        size: tuple[int, int],
        fit: Fit,
        workers: int,
        rendering: Rendering = BY_TYPE,
        device: torch.device = CPU,
    ) -> None:
        self._device = device
        self.pictures = _Pictures(split, size, fit, rendering)
        self.labels = as_labels(split.targets)
        self.workers = workers

    def fetch(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        loader = DataLoader(
            self.pictures,
            batch_sampler=[indices.tolist() for indices in batches],
            num_workers=self.workers,
            prefetch_factor=4,
            collate_fn=_unchanged,
            worker_init_fn=_leave_signals_to_the_parent,
            pin_memory=self._device.type == "cuda",
        )
        with _sigterm_blocked():  # here the workers begin
            fetched = iter(loader)
        for images in fetched:
            if isinstance(images, UnreadableImageError | FailedReadError):
                raise images
            yield images.permute(0, 3, 1, 2)

    def value_counts(self) -> Tensor:
        positions = torch.arange(len(self.labels)).split(1000)
        return torch.stack([count_values(images) for images in self.fetch(positions)]).sum(dim=0)


def as_labels(targets: np.ndarray) -> Tensor:
    """A copy of a split's ``targets`` as a tensor: int64 [N], or int8 [N, classes] for several labels."""
    return torch.from_numpy(np.array(targets, dtype=np.int8 if targets.dtype == bool else None))


class _Pictures(Dataset[Tensor]):
    """Returns whole batches, uint8 [B, H, W, 3], so that a worker transfers one array, not many small ones.

    If a picture cannot be read, it returns the error. An error raised in a worker would arrive as text.
    """

    def __init__(self, split: Split, size: tuple[int, int], fit: Fit, rendering: Rendering) -> None:
        self.split, self.size, self.fit, self.rendering = split, size, fit, rendering

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, indices: list[int]) -> Tensor | UnreadableImageError | FailedReadError:
        images = np.empty((len(indices), *self.size, CHANNELS), dtype=np.uint8)
        try:
            for to, index in zip(images, indices, strict=True):
                to[:] = fit_pixels(self.split.load(index), self.size, self.fit, self.rendering)
        except (UnreadableImageError, FailedReadError) as error:
            return error
        return torch.from_numpy(images)


@contextlib.contextmanager
def _sigterm_blocked() -> Iterator[None]:
    """Block SIGTERM in this thread, and so in all threads of the processes that it starts meanwhile.

    After a fork, PyTorch may start threads before :func:`_leave_signals_to_the_parent` is called. A single
    one that does not block SIGTERM would get it, and end the worker.
    """
    if not _TELLS_SENDER:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ignore Ctrl-C, SIGHUP and SIGTERM in a worker, except SIGTERM from the parent.

    A terminal sends Ctrl-C and, when it is closed, SIGHUP to all of its processes, and Slurm, systemd and
    `timeout` send SIGTERM to all processes of a job. The parent then saves, and needs its workers until the
    current step is done.
    """
    ignore_terminal()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is not None and _TELLS_SENDER:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # a fork server may not have begun so
        threading.Thread(target=_end_with, args=(parent.pid,), daemon=True).start()
    show = sys.excepthook

    def show_unless_disconnected(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if not issubclass(kind, ConnectionError):  # the parent stopped in the middle of an epoch
            show(kind, error, trace)

    sys.excepthook = show_unless_disconnected


def _end_with(parent: int | None) -> None:
    """Wait for SIGTERM from the parent, which sends it to a worker that hangs or at the end of Python."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)  # any other status would be reported as a crash


def _unchanged(batch: Any) -> Any:
    return batch


def fits_in_memory(splits: Iterable[Split], size: tuple[int, int], device: torch.device = CPU) -> bool:
    """Whether the decoded splits together would take less than a quarter of the memory.

    Args:
        splits: the splits.
        size: height, width in pixels.
        device: whose memory: see :func:`thumbnet.hardware.memory_of`.
    """
    return sum(map(len, splits)) * size[0] * size[1] * CHANNELS < memory_of(device) // 4


def sample_positions(count: int) -> Tensor:
    """All positions if there are at most ``MANY``, else about ``SAMPLE`` of them: int64 [N], ascending.

    The sample is random, but always the same.
    """
    if count <= MANY:
        return torch.arange(count)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(count, (SAMPLE,), generator=generator).unique()


def evenly_spaced(count: int, most: int) -> Tensor:
    """All positions if there are at most ``most``, else that many, evenly spaced: int64 [N], ascending.

    >>> evenly_spaced(3, 5).tolist(), evenly_spaced(10, 4).tolist()
    ([0, 1, 2], [0, 3, 6, 9])
    """
    if count <= most:
        return torch.arange(count)
    return torch.linspace(0, count - 1, most, dtype=torch.float64).round().long()
