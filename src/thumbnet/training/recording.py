"""Record work as a CUDA graph, and read results without making the GPU wait.

A CUDA graph repeats a sequence of kernels, with the same arguments and at the same places in memory, after a
single call. A step of ``fast`` has some hundred kernels, and launching each of them costs the host more time
than the GPU needs to run it.
"""

from __future__ import annotations

import contextlib
import functools
import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

WARM_UPS = 3  # PyTorch allocates workspaces and chooses algorithms in the first runs, not while recording


class Recorder:
    """Records functions that work on the same tensors. Their graphs share memory for intermediate results.

    Args:
        device: where the functions compute. On other devices than CUDA's, a recorded function is the function
            itself.
        changed: every tensor that the functions change and that outlives them.
    """

    def __init__(self, device: torch.device, changed: Sequence[Tensor]) -> None:
        self._device = device
        self._changed = list(changed)
        self._pool: Any = None

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """A function that repeats ``work``. Recording leaves all tensors in ``changed`` as they were.

        Raises:
            RuntimeError: CUDA refused to record. The message is that of the call that it refused.
        """
        before = [tensor.detach().clone() for tensor in self._changed]

        def tried() -> None:
            try:
                work()
            finally:
                with torch.no_grad():
                    for tensor, value in zip(self._changed, before, strict=True):
                        tensor.copy_(value)

        if self._device.type != "cuda":
            for _ in range(WARM_UPS):
                tried()
            return work
        with torch.cuda.device(self._device):
            stream = _recording_stream(self._device)
            stream.wait_stream(torch.cuda.current_stream())
            try:
                with torch.cuda.stream(stream):
                    for _ in range(WARM_UPS):
                        tried()
            finally:
                torch.cuda.current_stream().wait_stream(stream)
            return self._captured(work, stream)

    def _captured(self, work: Callable[[], None], stream: torch.cuda.Stream) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            gc.collect()  # later captures make no garbage that holds a graph
            # No graph uses what another one left in this memory, so all of them can share it.
            self._pool = torch.cuda.graph_pool_handle()
        failures: list[BaseException] = []
        try:
            # Leaving torch.cuda.stream puts the stream back. torch.cuda.graph does not if it fails.
            # "thread_local": the search for repeated pictures may use the GPU in another thread meanwhile.
            with (
                without_garbage_collection(),
                torch.cuda.stream(torch.cuda.current_stream()),
                torch.cuda.graph(graph, self._pool, stream, capture_error_mode="thread_local"),
            ):
                try:
                    work()
                except BaseException as error:
                    failures.append(error)
                    raise
        except BaseException:
            _forget_capture(self._pool)
            if not failures:
                raise
            # After a call that CUDA refuses, ending the capture fails as well, and hides which call it was.
            raise failures.pop() from None

        def replay() -> None:
            with torch.cuda.device(self._device):
                graph.replay()

        return replay


@functools.cache
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which this process records for ``device``: always the same one.

    PyTorch keeps a workspace of some megabytes for each stream on which matrices were ever multiplied.
    """
    return torch.cuda.Stream(device)


def _forget_capture(pool: Any) -> None:
    """Tell PyTorch that a capture on the current device, which allocated from ``pool``, is over.

    If ending the capture fails, older versions of PyTorch do not notice. From then on, the allocator frees no
    memory (https://github.com/pytorch/pytorch/pull/180395), and drawing random numbers on the device raises
    an error (https://github.com/pytorch/pytorch/issues/172390).
    """
    device = torch.cuda.current_device()
    # RuntimeError: PyTorch has done so itself. AttributeError: the function, which is not public, has gone.
    with contextlib.suppress(RuntimeError, AttributeError):
        torch._C._cuda_endAllocateToPool(device, pool)
    generator = torch.cuda.default_generators[device]
    with contextlib.suppress(RuntimeError):  # the device may be unusable
        generator.graphsafe_set_state(generator.clone_state())  # the same numbers, in no capture


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Collect no garbage in this block.

    Garbage may hold a CUDA graph, and destroying one while another is captured can spoil the capture
    (https://github.com/pytorch/pytorch/issues/161037).
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class LateReader:
    """Reads a tensor one request late, so that the device always has work while the host waits."""

    def __init__(self) -> None:
        self._before: tuple[Tensor, Callable[[], None]] | None = None

    def read(self, tensor: Tensor) -> Tensor | None:
        """Ask for ``tensor`` and return, on the CPU, what the previous call asked for; None at first.

        The host waits until the work queued before the previous call is done, and for nothing later.
        """
        asked, self._before = self._before, _ask(tensor)
        if asked is None:
            return None
        values, wait = asked
        wait()
        return values

    def forget(self) -> None:
        """Forget what the previous call asked for."""
        self._before = None


def _ask(tensor: Tensor) -> tuple[Tensor, Callable[[], None]]:
    """Begin to copy ``tensor`` to the CPU; return the copy and a function that waits until it is complete."""
    if tensor.device.type != "cuda":
        return tensor.detach().cpu().clone(), lambda: None
    with torch.cuda.device(tensor.device):
        values = tensor.detach().to("cpu", non_blocking=True)  # into pinned memory
        copied = torch.cuda.Event()
        copied.record()
    return values, copied.synchronize
