"""Train one network in several processes: ``torchrun ... -m thumbnet train ...``.

``torchrun`` starts the processes and restarts them after a failure; ``torch.distributed`` carries their
messages. This module has what a training needs from both: this process's rank, sums over processes, values
of the first process, barriers. A training in one process uses a :class:`World` of size 1, where all of this
costs nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
import secrets
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from thumbnet.errors import InterruptedRunError, LostContactError, ThumbnetError

T = TypeVar("T")

DEFAULT_TIMEOUT = 600.0  # seconds to wait for the other processes
PATIENCE = timedelta(days=1)  # for one process to load the data; torchrun notices if it dies
MEETING_SECONDS = 0.5  # between two meetings of the processes; a slower next step makes it longer
_patient: dist.ProcessGroup | None = None  # all processes, with PATIENCE as the timeout


def sum_over_processes(tensor: Tensor) -> None:
    """Sum ``tensor`` over all processes of the training, in place in each of them."""
    dist.all_reduce(tensor)


@dataclass(frozen=True)
class World:
    """The processes of a training.

    Attributes:
        rank: this process's number, from 0. Only process 0 writes and prints.
        size: number of processes.
        local_rank: this process's number on its machine, which is also the number of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def share(self, items: Tensor) -> Tensor:
        """This process's part of ``items`` [N, ...]: contiguous, with lengths that differ by at most one."""
        return items if self.size == 1 else items.tensor_split(self.size)[self.rank]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place in ``values``."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether any process has set ``flag``."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(float(flag))))

    def from_first(self, value: T) -> T:
        """The first process's ``value``, in every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, rows: Tensor) -> Tensor:
        """All processes' ``rows`` [n, ...] in order of rank: [N, ...]; on the CPU if there are several."""
        if self.size == 1:
            return rows
        rows = rows.cpu().contiguous()
        counts = torch.zeros(self.size, dtype=torch.int64)
        counts[self.rank] = len(rows)
        lengths = self.sum(counts).tolist()
        padded = rows.new_zeros(max(lengths), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded)
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    def send_buffers(self, module: nn.Module) -> None:
        """Copy the first process's buffers, such as running statistics, into ``module`` of all others."""
        if self.size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)

    @contextlib.contextmanager
    def one_per_machine_first(self) -> Iterator[None]:
        """In this block, one process per machine works first; the others then find its results cached.

        All of them wait for each other, however long it takes: a download or decoding may take hours, and the
        others as long again if the cache is on a full disk.
        """
        if self.size == 1:
            yield
            return
        if self.local_rank > 0:
            dist.barrier(group=_patient)
        yield
        if self.local_rank == 0:
            dist.barrier(group=_patient)
        dist.barrier(group=_patient)


ALONE = World()


class Meetings:
    """The steps after which the processes of a training tell each other their wishes, such as to stop.

    After every step would be too often: on GPUs a message takes as long as a step. So they meet about every
    ``seconds``. Each meeting fixes the step of the next one by the first process's clock, so that all of them
    come to the same meetings. They also meet at the end of an epoch, before they evaluate. A process that is
    alone decides for itself after every step.

    Args:
        world: the processes.
        step: steps done before.
        seconds: between two meetings; less at first, because the time between them at most doubles.
        clock: gives the time in seconds.
    """

    def __init__(
        self,
        world: World,
        step: int,
        seconds: float = MEETING_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.world, self._seconds, self._clock = world, seconds, clock
        self._step, self._time, self._interval = step, clock(), 1

    def is_due(self, step: int, epoch_is_over: bool) -> bool:
        """Whether the processes meet after ``step``; the same answer in all of them."""
        return self.world.size == 1 or epoch_is_over or step >= self._step + self._interval

    def hold(self, step: int, *wishes: bool) -> list[bool]:
        """For each of ``wishes``, whether any process has it. All processes call this if a meeting is due."""
        if self.world.size == 1:
            return list(wishes)
        now = self._clock()
        taken = (now - self._time) / max(1, step - self._step) if self.world.is_first else 0.0
        *counts, per_step = self.world.sum(torch.tensor([*wishes, taken], dtype=torch.float64)).tolist()
        fitting = int(self._seconds / max(per_step, 1e-6))
        self._step, self._time = step, now
        self._interval = max(1, min(fitting, 2 * self._interval))
        return [count > 0 for count in counts]


@contextlib.contextmanager
def joined() -> Iterator[World]:
    """Join the world that ``torchrun`` started, or use :data:`ALONE` without ``torchrun``.

    Raises:
        LostContactError: another process ended or lost its connection.
        ThumbnetError: the script has a process group already, the variables that ``torchrun`` sets are
            incomplete, or ``THUMBNET_TIMEOUT`` is no number of seconds.
    """
    global _patient
    if "TORCHELASTIC_RUN_ID" not in os.environ and "RANK" not in os.environ:
        yield ALONE
        return
    world = _started()
    rank, size = world.rank, world.size
    if size > 1 and dist.is_initialized():
        raise ThumbnetError(
            "torch.distributed has a process group already, from init_process_group in this script or from a "
            "training that failed, but training in several processes makes its own group. Call "
            "destroy_process_group before it, and init_process_group after it"
        )
    _end_with_parent()
    if size == 1:
        yield world
        return
    seconds = _timeout()
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    failed = True
    try:
        timeout = timedelta(seconds=seconds)
        store, _, _ = next(dist.rendezvous("env://", rank, size, timeout=timeout))  # type: ignore[attr-defined]
        store = dist.PrefixStore(_agree(store, world, seconds), store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
        _patient = dist.new_group(backend="gloo", timeout=PATIENCE)
        yield world
        failed = False
    except InterruptedRunError:
        failed = False  # all processes stop after the same step
        raise
    except RuntimeError as error:
        if not _is_about_others(error):
            traceback.clear_frames(error.__traceback__)
            raise
        _forget_frames(error)
        reason = re.sub(r"^\[[^ ]*\] ", "", str(error).strip()).split("\n")[0].split(". ")[0]
        raise LostContactError(
            f"process {rank} of {size} has lost contact with the others ({reason}). "
            "torchrun --max-restarts N restarts all of them; with --auto-resume they continue the run"
        ) from None
    finally:
        # Free everything that still refers to the group, such as a wrapped network, before the group itself.
        # Without this, one in ten processes aborted on exit (gloo, PyTorch 2.13).
        gc.collect()
        _patient = None
        # NCCL ends a group once all of its processes end it. After an error in only one of them, that one
        # would wait for the others, and they for it. So it exits: its error is shown, and torchrun ends them.
        if dist.is_initialized() and not (failed and "nccl" in backend):
            dist.destroy_process_group()


def _started() -> World:
    """This process's place among those that ``torchrun`` has started.

    Raises:
        ThumbnetError: the variables that ``torchrun`` sets are incomplete.
    """
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        return World(rank, size, int(os.environ.get("LOCAL_RANK", "0")))
    except (KeyError, ValueError) as error:
        raise ThumbnetError(
            f"some of the variables that torchrun sets are here, but not all of them are numbers ({error}): "
            "RANK, WORLD_SIZE, LOCAL_RANK. Start the script with torchrun, or unset RANK and "
            "TORCHELASTIC_RUN_ID to train in one process"
        ) from None


def _timeout() -> float:
    """Seconds to wait for the other processes.

    Raises:
        ThumbnetError: ``THUMBNET_TIMEOUT`` is no number of seconds.
    """
    given = os.environ.get("THUMBNET_TIMEOUT") or DEFAULT_TIMEOUT
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise ThumbnetError(f"THUMBNET_TIMEOUT={given}: expected a number of seconds, such as 600")
    return seconds


def _forget_frames(error: BaseException) -> None:
    """Free what the frames of an error, and of those before it, refer to; frames that still run keep theirs.

    If the wrapped network outlives the group, it ends the group's threads, and holds Python's lock meanwhile.
    One of these threads may wait for that lock to free a tensor: a deadlock (gloo, PyTorch 2.13). Clearing a
    frame is not enough, because a nested function's frame also refers to what the function uses.
    """
    one: BaseException | None = error
    while one is not None:
        traceback.clear_frames(one.__traceback__)
        entry = one.__traceback__
        while entry is not None:
            following = entry.tb_next
            entry.tb_next = None
            entry = following
        one = one.__context__


def _agree(store: Any, world: World, seconds: float) -> str:
    """A random key prefix that only the processes of this attempt share.

    torchrun keeps its store across restarts, with the addresses of dead processes in it (PyTorch 2.13). So
    rank 0 publishes a fresh token. Every other rank replies with a nonce and accepts the token once rank 0
    has echoed the nonce, because only the current rank 0 can do that.

    Raises:
        LostContactError: rank 0 did not answer in time.
    """
    deadline = time.monotonic() + seconds
    if world.is_first:
        token = secrets.token_hex(8)
        store.set("thumbnet/token", token)
        answers = [f"thumbnet/{token}/{rank}" for rank in range(1, world.size)]
        store.wait(answers, timedelta(seconds=seconds))
        store.set(f"thumbnet/{token}", b" ".join(store.get(answer) for answer in answers))
        return token
    nonce = secrets.token_hex(8)
    while time.monotonic() < deadline:
        token = str(store.get("thumbnet/token").decode())
        store.set(f"thumbnet/{token}/{world.rank}", nonce)
        if store.check([f"thumbnet/{token}"]) and nonce in store.get(f"thumbnet/{token}").decode().split():
            return token
        time.sleep(0.02)
    raise LostContactError(f"process {world.rank} of {world.size} got no answer from process 0")


def _end_with_parent() -> None:
    """Have Linux send SIGTERM to this process if torchrun's agent dies; otherwise the process would go on.

    On SIGTERM, all processes save and end. The agents on the other machines then start a smaller world.
    """
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1  # noqa: N806 - see prctl(2)
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))


def _is_about_others(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in ("gloo", "nccl", "timed out"))


class _SumOverAll(torch.autograd.Function):
    """Sum values over all processes; the backward pass sums the gradients in the same way."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose training statistics cover the pictures of all processes.

    ``torch.nn.SyncBatchNorm`` has no version for CPUs. On GPUs it makes the host wait three times per layer
    (PyTorch 2.13), to leave out processes without pictures, which a batch does not have. Nothing here makes
    the host wait, unless the momentum is None. But this launches some 55 operations per layer, forwards and
    backwards, which PyTorch's class fuses.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` [B, C, H, W]."""
        if not self.training:
            return super().forward(x)
        values = x if x.dtype == torch.float64 else x.float()
        positions = values.numel() // values.shape[1]
        sums = torch.stack([values.sum(dim=(0, 2, 3)), values.square().sum(dim=(0, 2, 3))])
        counted = torch.cat([sums.flatten(), sums.new_full((1,), positions)])
        totals: Tensor = _SumOverAll.apply(counted)  # type: ignore[no-untyped-call]
        count = totals[-1].detach()
        mean, square = (totals[:-1].view(2, -1) / count).unbind()
        variance = (square - mean.square()).clamp(min=0)
        track_running(self, mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        inverse = (variance + self.eps).rsqrt()
        scale = inverse if self.weight is None else self.weight * inverse
        shift = -mean * scale if self.bias is None else self.bias - mean * scale
        return torch.addcmul(shift.view(-1, 1, 1), values, scale.view(-1, 1, 1)).to(x.dtype)


def track_running(norm: nn.BatchNorm2d, mean: Tensor, unbiased: Tensor) -> None:
    """Update the running statistics of ``norm``, if it has any, as BatchNorm2d does in a training step.

    Args:
        norm: the normalisation.
        mean: of the batch, [C].
        unbiased: its unbiased variance, [C].
    """
    if not norm.track_running_stats or norm.running_mean is None or norm.running_var is None:
        return
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked += 1
    momentum = 1 / int(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean), momentum)
    norm.running_var.lerp_(unbiased.to(norm.running_var), momentum)


def synchronise_norms(model: nn.Module, device: torch.device) -> nn.Module:
    """``model`` with every BatchNorm2d replaced by a synchronised one that has the same tensors.

    On CUDA, PyTorch's own class replaces the BatchNorm of other dimensions. It has no version for CPUs.
    """
    for name, child in model._modules.items():  # named_children() leaves out a child's second name
        if type(child) is nn.BatchNorm2d:
            norm = SyncBatchNorm2d(
                child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
            )
            norm.weight, norm.bias = child.weight, child.bias
            norm.running_mean, norm.running_var = child.running_mean, child.running_var
            norm.num_batches_tracked = child.num_batches_tracked
            setattr(model, name, norm)
        elif device.type == "cuda" and type(child) in (nn.BatchNorm1d, nn.BatchNorm3d):
            setattr(model, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))
        elif child is not None:
            synchronise_norms(child, device)
    return model
