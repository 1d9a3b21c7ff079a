"""Several processes that train one network: ``torchrun ... -m thumbnet train ...``.

``torchrun`` starts the processes and starts them again after a failure; ``torch.distributed`` carries what
they tell each other. Here is what a training asks of both: who am I, sum this, go first, say the same.
A training in one process has the same :class:`World`, of size 1, in which all of this costs nothing.
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
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from thumbnet.errors import ThumbnetError

T = TypeVar("T")

DEFAULT_TIMEOUT = 600.0  # seconds without a word from the others


def sum_over_processes(tensor: Tensor) -> None:
    """Add up ``tensor`` over all processes of the training, in place in each of them."""
    dist.all_reduce(tensor)


class LostContactError(ThumbnetError):
    """Another process of the training has ended or is out of reach. ``torchrun`` starts all of them anew."""

    exit_status = 1


@dataclass(frozen=True)
class World:
    """The processes of a training.

    Attributes:
        rank: which one this is, from 0. The first alone writes and prints.
        size: how many there are.
        local_rank: which one on this machine; the GPU of that number is its own.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def share(self, items: Tensor) -> Tensor:
        """This process' part of ``items`` [N, ...]: contiguous, as long as all others' or one less."""
        return items if self.size == 1 else items.tensor_split(self.size)[self.rank]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes; ``values`` itself is changed."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any_of(self, *flags: bool) -> list[bool]:
        """For each of ``flags``, whether it is set in any process."""
        if self.size == 1:
            return list(flags)
        return [count > 0 for count in self.sum(torch.tensor(flags, dtype=torch.float32)).tolist()]

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set in any process."""
        return self.any_of(flag)[0]

    def from_first(self, value: T) -> T:
        """``value`` of the first process, in all of them."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, rows: Tensor) -> Tensor:
        """All processes' ``rows`` [n, ...] in the order of their ranks: [N, ...], on the CPU in each."""
        if self.size == 1:
            return rows
        rows = rows.cpu().contiguous()
        lengths = [int(n) for n in self.gather_numbers(len(rows))]
        padded = rows.new_zeros(max(lengths), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded)
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    def gather_numbers(self, value: float) -> list[float]:
        """``value`` of each process, in the order of their ranks."""
        values = torch.zeros(self.size, dtype=torch.float64)
        values[self.rank] = value
        return [float(number) for number in self.sum(values)]

    def send_buffers(self, module: nn.Module) -> None:
        """The first process' buffers, such as running statistics, into every other one's ``module``."""
        if self.size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)

    @contextlib.contextmanager
    def one_per_machine_first(self) -> Iterator[None]:
        """On each machine one process does what is within first; the others find it in its cache."""
        if self.size > 1 and self.local_rank > 0:
            dist.barrier()
        yield
        if self.size > 1 and self.local_rank == 0:
            dist.barrier()


ALONE = World()


@contextlib.contextmanager
def joined() -> Iterator[World]:
    """The world that ``torchrun`` started this process in, joined while within; else :data:`ALONE`.

    Raises:
        LostContactError: another process ended or was cut off.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ and "RANK" not in os.environ:
        yield ALONE
        return
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    world = World(rank, size, int(os.environ.get("LOCAL_RANK", "0")))
    _end_with_parent()
    if size == 1:
        yield world
        return
    seconds = float(os.environ.get("THUMBNET_TIMEOUT", DEFAULT_TIMEOUT))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        timeout = timedelta(seconds=seconds)
        store, _, _ = next(dist.rendezvous("env://", rank, size, timeout=timeout))  # type: ignore[attr-defined]
        store = dist.PrefixStore(_agree(store, world, seconds), store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
        yield world
    except RuntimeError as error:
        traceback.clear_frames(error.__traceback__)
        if not _is_about_others(error):
            raise
        reason = re.sub(r"^\[[^ ]*\] ", "", str(error).strip()).split("\n")[0].split(". ")[0]
        raise LostContactError(
            f"process {rank} of {size} has lost the others ({reason}). "
            "torchrun --max-restarts N starts all of them again; with --auto-resume they go on"
        ) from None
    finally:
        # What still holds the group, such as a network wrapped for it, must go first: freed at the very end
        # of the process, one in ten processes aborted there (gloo, PyTorch 2.13).
        gc.collect()
        if dist.is_initialized():
            dist.destroy_process_group()


def _agree(store: Any, world: World, seconds: float) -> str:
    """A word that these processes share, and no earlier ones of the same torchrun.

    torchrun gives the processes that it starts again the same store: in it stand the addresses of those that
    are gone (PyTorch 2.13). The first process sets a new word; every other one answers with a number of its
    own, and believes the word once the first has repeated that number: it was the first process of now.

    Raises:
        LostContactError: not all have answered in time.
    """
    deadline = time.monotonic() + seconds
    number = secrets.token_hex(8)
    if world.is_first:
        store.set("thumbnet/word", number)
        answers = [f"thumbnet/{number}/{rank}" for rank in range(1, world.size)]
        store.wait(answers, timedelta(seconds=seconds))
        store.set(f"thumbnet/{number}", b" ".join(store.get(answer) for answer in answers))
        return number
    while time.monotonic() < deadline:
        word = str(store.get("thumbnet/word").decode())
        store.set(f"thumbnet/{word}/{world.rank}", number)
        if store.check([f"thumbnet/{word}"]) and number in store.get(f"thumbnet/{word}").decode().split():
            return word
        time.sleep(0.02)
    raise LostContactError(f"process {world.rank} of {world.size} was not answered by the first one")


def _end_with_parent() -> None:
    """Have the system send SIGTERM, where it can, when torchrun's agent is gone: else this would go on.

    With SIGTERM all processes save and end, and the other machines' agents start a smaller world.
    """
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1  # noqa: N806 - see prctl(2)
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))


def _is_about_others(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in ("gloo", "nccl", "timed out"))


class _SumOverAll(torch.autograd.Function):
    """The sum of all processes' values; its gradient is summed over all of them, too."""

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
    """BatchNorm2d whose statistics in training are those of all processes' pictures together.

    ``torch.nn.SyncBatchNorm`` does the same on GPUs, and on GPUs only.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalised, [B, C, H, W]."""
        if not self.training:
            return super().forward(x)
        values = x if x.dtype == torch.float64 else x.float()
        positions = values.numel() // values.shape[1]
        sums = torch.stack([values.sum(dim=(0, 2, 3)), values.square().sum(dim=(0, 2, 3))])
        counted = torch.cat([sums.flatten(), sums.new_tensor([float(positions)])])
        totals: Tensor = _SumOverAll.apply(counted)  # type: ignore[no-untyped-call]
        count = float(totals[-1].item())
        mean, square = (totals[:-1].view(2, -1) / count).unbind()
        variance = (square - mean.square()).clamp(min=0)
        self.track(mean.detach(), variance.detach(), count)
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return torch.addcmul(shift.view(-1, 1, 1), values, scale.view(-1, 1, 1)).to(x.dtype)

    def track(self, mean: Tensor, variance: Tensor, count: float) -> None:
        """Draw the running statistics towards a batch's, of ``count`` positions."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        momentum = 0.1 if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), momentum)
        self.running_var.lerp_((variance * count / max(count - 1, 1)).to(self.running_var), momentum)
        self.num_batches_tracked += 1


def synchronise_norms(model: nn.Module) -> nn.Module:
    """``model`` with each BatchNorm2d in its parts made a synchronised one, its tensors kept."""
    for name, child in model.named_children():
        if type(child) is nn.BatchNorm2d:
            momentum = 0.1 if child.momentum is None else child.momentum
            norm = SyncBatchNorm2d(child.num_features, child.eps, momentum)
            norm.weight, norm.bias = child.weight, child.bias
            norm.running_mean, norm.running_var = child.running_mean, child.running_var
            norm.num_batches_tracked = child.num_batches_tracked
            setattr(model, name, norm)
        else:
            synchronise_norms(child)
    return model
