"""Choose the device and the precision, and use the hardware well. No other module asks about hardware."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from thumbnet.errors import ThumbnetError
from thumbnet.kernels.library import load_kernels, multiplies_bf16

# Devices on which PyTorch before this version computes a wrong gradient of BatchNorm2d, or raises an error,
# if pictures are stored channels last (https://github.com/pytorch/pytorch/issues/175189).
WRONG_CHANNELS_LAST: dict[str, tuple[int, int]] = {"mps": (2, 14)}


def choose_device(name: str = "auto", number: int = 0) -> torch.device:
    """Choose a device by name.

    ``auto`` means the CUDA device ``number``, else Apple's GPU, else the CPU. ``gpu`` means the same without
    the CPU, and ``cuda`` the CUDA device ``number``. Any other name goes to PyTorch.

    Raises:
        ThumbnetError: the device is not available on this computer.
    """
    if name in ("auto", "gpu"):
        if torch.cuda.is_available():
            return torch.device("cuda", number)
        if torch.backends.mps.is_available():
            return torch.device("mps")
        if name == "auto":
            return torch.device("cpu")
    if name == "gpu" or (name.split(":")[0] == "cuda" and not torch.cuda.is_available()):
        raise ThumbnetError(
            f"--device {name}: there is no GPU that PyTorch {torch.__version__} can use (CUDA, ROCm or "
            "Apple's MPS). Leave --device out, or use the CPU: --device cpu"
        )
    try:
        device = torch.device("cuda", number) if name == "cuda" else torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0]
        raise ThumbnetError(
            f"the device {name!r} is not available: {reason.rstrip('.')}. "
            "Choose auto, cpu, gpu, cuda, cuda:1 or mps."
        ) from None
    return device


def has_fast_bf16(device: torch.device) -> bool:
    """Whether ``device`` multiplies bfloat16 faster than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        # AMX: 10 times as fast or more. AVX-512 BF16: twice as fast. See docs/notebook/speed.md.
        return multiplies_bf16()
    return False


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether a recipe's ``training.precision`` means bfloat16 on ``device``."""
    return precision == "bf16" or (precision == "auto" and has_fast_bf16(device))


def autocast(bf16: bool, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """In this block, compute convolutions and matrix products in bfloat16 if ``bf16`` is true."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if bf16 else contextlib.nullcontext()


def memory_layout(device: torch.device, channels_last: bool = True) -> torch.memory_format:
    """How ``device`` should store pictures and filters: channels last if that is wanted and right there."""
    correct_from = WRONG_CHANNELS_LAST.get(device.type, (0, 0))
    right = TorchVersion(torch.__version__) >= correct_from
    return torch.channels_last if channels_last and right else torch.contiguous_format


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy ``tensor`` to ``device`` without waiting for the GPU to finish its queued work.

    An ordinary copy waits, and then the GPU is idle until the next step's calls arrive. CUDA keeps the source
    alive until it is copied. Other devices may not, so they get an ordinary copy.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """In this block, cuDNN uses only deterministic algorithms and does not choose them by timing.

    Thus the same seed gives the same result.
    """
    flags = torch.backends.cudnn
    before = flags.deterministic, flags.benchmark
    flags.deterministic, flags.benchmark = True, False
    try:
        yield
    finally:
        flags.deterministic, flags.benchmark = before


@contextlib.contextmanager
def one_thread(only: bool = True) -> Iterator[None]:
    """In this block, run operations on one CPU thread if ``only`` is true.

    If other processes keep the cores busy, an operation on two threads waits until the second thread is
    scheduled. That takes milliseconds, for an operation that itself takes 0.1 ms.
    """
    threads = torch.get_num_threads()
    if not only or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@functools.cache
def keep_freed_memory() -> None:
    """Tell glibc to keep large freed blocks instead of returning them to the system.

    Training steps free and allocate the same hundreds of megabytes again and again, and the system would map
    and clear them page by page each time. docs/notebook/kernels.md has the measurement. This does nothing
    without Linux and glibc.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, -1)  # never


def can_compile(device: torch.device) -> bool:
    """Whether ``torch.compile`` can work. For the CPU it needs a C++ compiler."""
    compilers = (os.environ.get("CXX", "g++"), "g++", "clang++")
    return device.type != "cpu" or any(shutil.which(name) for name in compilers)


def describe(device: torch.device) -> dict[str, Any]:
    """Describe the computer for a run's ``environment.json``."""
    described: dict[str, Any] = {
        "device": str(device),
        "processor": _processor_name(),
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        "kernels": load_kernels() is not None,
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
    }
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
        described["gpus"] = torch.cuda.device_count()
    return described


def _processor_name() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
