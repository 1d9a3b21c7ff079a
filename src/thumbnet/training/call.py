"""How a training was called, and what its processes have to agree on: their kind of device and their data."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from thumbnet.distributed import World
from thumbnet.errors import DataError, FallbackWarning, ThumbnetError, memory_guard
from thumbnet.hardware import choose_device, device_name
from thumbnet.runs.folder import Run
from thumbnet.training.listener import Listener

# Seconds that the last processes of a killed training may take to end. Workers notice after up to 5 s that
# their parent is gone. Until then, with filelock before version 4, they hold the lock that they inherited.
ENDING = 10.0


def memory_of(work: str) -> AbstractContextManager[None]:
    """Turn a failed allocation into our error, wherever nothing closer to it does so with better advice."""
    advice = "Use smaller batches (--batch-size) or a narrower network (--set model.width=0.5)"
    return memory_guard("this computer", f"during the {work}", advice)


@dataclass(frozen=True)
class Call:
    """How a training was called.

    Attributes:
        device: the device's name, such as ``auto``, or PyTorch's object.
        listener: receives the events of the training.
        world: the processes of the training.
        started: when the caller started it, in seconds of ``time.perf_counter``.
    """

    device: str | torch.device
    listener: Listener
    world: World
    started: float

    def choose_device(self) -> torch.device:
        """The device of this process.

        Apple's GPU is for one process: gloo cannot sum its tensors. With several, ``auto`` means the CPU, and
        a :class:`FallbackWarning` says so.

        Raises:
            ThumbnetError: it is not available, or the first process computes on another kind of device.
        """
        asked, own = device_name(self.device), f"cuda:{self.world.local_rank}"
        if self.world.size > 1 and asked.startswith("cuda:") and asked != own:
            raise ThumbnetError(
                f"--device {asked}: process {self.world.rank} has {own}, because each process has a "
                "GPU of its own. Leave out the number: --device cuda"
            )
        device = choose_device(asked, self.world.local_rank)
        if self.world.size > 1 and device.type == "mps":
            if asked != "auto":
                raise ThumbnetError(
                    f"--device {asked}: Apple's GPU cannot train in several processes. Leave out "
                    "torchrun, or use the CPU: --device cpu"
                )
            device = torch.device("cpu")
            warnings.warn(
                f"mps cannot train in several processes: using {device}", FallbackWarning, stacklevel=2
            )
        first = self.world.from_first(device.type)
        if first != device.type:
            raise ThumbnetError(
                f"process {self.world.rank} computes on {device} and process 0 on {first}: choose one kind "
                "of device for all of them, such as --device cpu"
            )
        if self.world.size > 1 and device.type == "cuda":
            torch.cuda.set_device(device)  # else every process would also take memory on the first GPU
        return device

    def lock(self, run: Run, *, resumes: bool = False) -> AbstractContextManager[None]:
        """Lock a run's folder for this training; the first process does so for all of them.

        If the run was begun before (``resumes``), or torchrun has restarted the training, this waits for
        earlier processes, which may still be ending.
        """
        wait = ENDING if resumes else 0.0
        if self.world.size > 1 or "TORCHELASTIC_RUN_ID" in os.environ:
            wait = 30.0  # seconds
        return run.locked(wait) if self.world.is_first else nullcontext()

    def check_same_data(self, fingerprint: str, source: str) -> None:
        """Check that all processes have the same data.

        Raises:
            DataError: this process has other data than the first one.
        """
        if self.world.from_first(fingerprint) != fingerprint:
            raise DataError(f"{source} holds other data here than where the first process runs")

    def check_same_skipped(self, skipped: Sequence[tuple[str, str, str]], source: str) -> None:
        """Check that all processes leave out the same pictures, so that they draw the same batches.

        Raises:
            DataError: this process leaves out others than the first one.
        """
        first, here = (
            {f"{split}: {name}" for split, name, _ in each}
            for each in (self.world.from_first(skipped), skipped)
        )
        if first != here:
            raise DataError(
                f"{source} holds other damaged pictures here than where the first process runs, for example "
                f"{min(first ^ here)}. Copy the pictures again, or remove the damaged ones everywhere"
            )
