"""Choose the device and the precision, and use the hardware well. No other module asks about hardware."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import os
import platform
import shutil
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.torch_version import TorchVersion

from thumbnet.errors import FallbackWarning, ThumbnetError
from thumbnet.kernels.library import load_kernels

# How PyTorch reports a device that it cannot use; AssertionError if it was built without CUDA.
UNAVAILABLE = (RuntimeError, AssertionError, NotImplementedError)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # by training.precision
# Devices on which PyTorch before this version computes a wrong gradient of BatchNorm2d, or raises an error,
# if pictures are stored channels last (https://github.com/pytorch/pytorch/issues/175189).
WRONG_CHANNELS_LAST = {"mps": "2.14"}
_CPU = torch.device("cpu")
_LARGE_BLOCK = 8 << 20  # bytes; Pillow decodes large pictures into blocks of a little less than 16 MB
STAGED_BYTES = 64 * 1024  # CUDA copies this much from ordinary memory without making the host wait


def choose_device(name: str = "auto", number: int = 0) -> torch.device:
    """Choose a device by name, and try a convolution and its gradient on it.

    ``auto`` means the CUDA device ``number``, else Apple's GPU, else the CPU. If one of them is there but
    does not work, a :class:`FallbackWarning` says why the next one is used. ``gpu`` means the same without
    the CPU, and ``cuda`` the CUDA device ``number``. Any other name goes to PyTorch.

    Raises:
        ThumbnetError: the device is not available on this computer, or does not work.
    """
    if name in ("auto", "gpu"):
        return _best_device(name, number)
    if name.split(":")[0] == "cuda" and not torch.cuda.is_available():
        raise _no_gpu(name)
    try:
        device = torch.device("cuda", number) if name == "cuda" else torch.device(name)
        torch.empty(1, device=device)
    except UNAVAILABLE as error:
        raise ThumbnetError(
            f"the device {name!r} is not available: {_reason(error)}. "
            "Choose auto, cpu, gpu, cuda, cuda:1 or mps."
        ) from None
    failure = why_unusable(device)
    if failure:
        raise ThumbnetError(
            f"--device {name}: {device} cannot be used: {failure}. "
            "Leave --device out, or use the CPU: --device cpu"
        )
    return device


def _best_device(name: str, number: int) -> torch.device:
    """The first device of ``auto`` or ``gpu`` that works."""
    there = [torch.device("cuda", number)] if torch.cuda.is_available() else []
    there += [torch.device("mps")] if torch.backends.mps.is_available() else []
    count = torch.cuda.device_count() if there else 0
    if 0 < count <= number:
        raise ThumbnetError(
            f"process {number} of this machine (they count from 0) has no GPU of its own: start {count} "
            f"process(es) with --nproc-per-node {count}, or use the CPUs: --device cpu"
        )
    failures: list[str] = []
    for device in [*there, *([torch.device("cpu")] if name == "auto" else [])]:
        failure = why_unusable(device)
        if failure is None:
            if failures:
                warnings.warn(f"{'; '.join(failures)}: using {device}", FallbackWarning, stacklevel=3)
            return device
        failures.append(f"{device} cannot be used ({failure})")
    if failures:
        raise ThumbnetError(
            f"--device {name}: {'; '.join(failures)}. Leave --device out, or use the CPU: --device cpu"
        )
    raise _no_gpu(name)


@functools.cache
def why_unusable(device: torch.device) -> str | None:
    """Why ``device`` cannot train, found by trying; None if it can. The CPU always can.

    ``torch.cuda.is_available()`` is also true for a GPU that is too old for PyTorch's kernels, and for one
    whose memory is full.
    """
    if device.type == "cpu":
        return None
    try:
        _try_out(device)
    except UNAVAILABLE as error:
        return _reason(error)
    return None


def _try_out(device: torch.device) -> None:
    """Compute a convolution and its gradient on ``device``."""
    filters = torch.ones(4, 3, 3, 3, device=device, requires_grad=True)
    F.conv2d(torch.ones(2, 3, 8, 8, device=device), filters).sum().backward()
    assert filters.grad is not None
    float(filters.grad.sum())  # waits for the device, which reports some errors late


def _reason(error: Exception) -> str:
    """The first line of PyTorch's message, without its full stop."""
    return (str(error).strip().split("\n")[0] or type(error).__name__).rstrip(".")


def _no_gpu(name: str) -> ThumbnetError:
    return ThumbnetError(
        f"--device {name}: there is no GPU that PyTorch {torch.__version__} can use (CUDA, ROCm or "
        "Apple's MPS). Leave --device out, or use the CPU: --device cpu"
    )


def has_fast_bf16(device: torch.device) -> bool:
    """Whether ``device`` multiplies bfloat16 faster than float32."""
    if device.type == "cuda":
        with torch.cuda.device(device):  # PyTorch answers for the current one
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return multiplies_bf16()
    return False


def multiplies_bf16() -> bool:
    """Whether the processor multiplies bfloat16, with matrix tiles (AMX) or vectors (AVX-512 BF16)."""
    # AMX is 10 times as fast as float32 or more, AVX-512 BF16 twice as fast. See docs/notebook/speed.md.
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def has_fast_fp16(device: torch.device) -> bool:
    """Whether ``device`` multiplies float16 faster than float32, and bfloat16 not: Volta (V100), Turing (T4).

    The GTX 16 series has Turing's number, but no tensor cores, and its convolutions in float16 give nan
    (https://github.com/pytorch/pytorch/issues/77955).
    """
    if device.type != "cuda" or has_fast_bf16(device):
        return False
    capability = torch.cuda.get_device_capability(device)
    return (7, 0) <= capability < (8, 0) and "GTX 16" not in torch.cuda.get_device_name(device)


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type in which ``device`` computes convolutions and matrix products, by ``training.precision``."""
    if precision == "auto":
        precision = "bf16" if has_fast_bf16(device) else "fp16" if has_fast_fp16(device) else "fp32"
    return DTYPES[precision]


def autocast(dtype: torch.dtype, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """In this block, compute convolutions and matrix products of float32 tensors in ``dtype``."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def memory_layout(device: torch.device, channels_last: bool = True) -> torch.memory_format:
    """How ``device`` should store pictures and filters: channels last if that is wanted and right there."""
    correct_from = WRONG_CHANNELS_LAST.get(device.type, "0")
    right = TorchVersion(torch.__version__) >= TorchVersion(correct_from)
    return torch.channels_last if channels_last and right else torch.contiguous_format


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy ``tensor`` to ``device`` without waiting for the GPU to finish its queued work.

    An ordinary copy waits, and then the GPU is idle until the next step's calls arrive. CUDA keeps the source
    alive until it is copied, and stages up to 64 KB; a larger source must be in pinned memory. Other devices
    may not keep the source alive, so they get an ordinary copy.
    """
    if device.type != "cuda":
        return tensor.to(device)
    large = tensor.device.type == "cpu" and tensor.numel() * tensor.element_size() > STAGED_BYTES
    if large and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def memory_of(device: torch.device) -> int:
    """How many bytes there are to share out: all of a computer's memory, and what is free of a GPU's."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # PyTorch keeps freed memory for later, which the driver counts as used.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return int(psutil.virtual_memory().total)


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


def use_threads(count: int) -> None:
    """Let operations on the CPU run on ``count`` threads from now on, in the whole process."""
    torch.set_num_threads(count)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device = _CPU) -> Iterator[None]:
    """Seed torch's global generators of the CPU and of ``device``, and restore their states afterwards.

    ``torch.manual_seed`` would also look for all other devices, for 0.3 ms, and seed them. Their numbers are
    the caller's.
    """
    generators = [torch.default_generator]
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    states = [generator.get_state() for generator in generators]
    on_mps = torch.mps.get_rng_state() if device.type == "mps" else None
    for generator in generators:
        generator.manual_seed(seed)
    if on_mps is not None:
        torch.mps.manual_seed(seed)
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        if on_mps is not None:
            torch.mps.set_rng_state(on_mps)


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
    _tell_glibc(most_mapped=0, kept=-1)


@functools.cache
def return_large_blocks() -> None:
    """Tell glibc to return freed blocks of 8 MB or more: in a service, each thread would keep its largest.

    With eight threads that decoded pictures of 12 megapixels, a process kept 1.3 GB instead of 0.45, and
    predicted no faster for it. This does nothing without Linux and glibc.
    """
    _tell_glibc(most_mapped=65536, kept=4 * _LARGE_BLOCK)


def _tell_glibc(most_mapped: int, kept: int) -> None:
    """Set how many large blocks are mapped on their own, and how many bytes of unused memory are kept."""
    if sys.platform != "linux":
        return
    m_trim_threshold, m_mmap_threshold, m_mmap_max = -1, -3, -4  # malloc.h
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(m_mmap_max, most_mapped)
        libc.mallopt(m_mmap_threshold, _LARGE_BLOCK)
        libc.mallopt(m_trim_threshold, kept)


def why_not_compile(device: torch.device) -> str | None:
    """Why ``torch.compile`` cannot work on ``device``; None if it can.

    It writes C++ for CPUs, and for CUDA devices programs in Triton, which supports compute capability 7.0 and
    above and is not part of PyTorch on Windows.
    """
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed"
        if torch.cuda.get_device_capability(device) < (7, 0):
            return "Triton does not support GPUs below compute capability 7.0"
    compilers = (os.environ.get("CXX", "g++"), "g++", "clang++")
    if device.type == "cpu" and not any(shutil.which(name) for name in compilers):
        return "there is no C++ compiler (g++ or clang++)"
    return None


def can_compile(device: torch.device) -> bool:
    """Whether ``torch.compile`` can work, see :func:`why_not_compile`."""
    return why_not_compile(device) is None


def uses_tf32(device: torch.device) -> bool:
    """Whether ``device`` rounds the factors of float32 convolutions to TF32, with 10 bits after the point.

    PyTorch does so by default where the hardware can (from compute capability 8.0), because it is several
    times as fast: ``torch.backends.cudnn.conv.fp32_precision = "ieee"`` switches it off.
    """
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    able = torch.cuda.get_device_capability(device) >= (8, 0)
    conv: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # unknown to PyTorch's own hints
    return able and conv.fp32_precision == "tf32"


def describe(device: torch.device) -> dict[str, Any]:
    """Describe the computer for a run's ``environment.json``."""
    described: dict[str, Any] = {
        "device": str(device),
        "processor": _processor_name(),
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        # On a GPU they are not used, and the first step need not wait until they are compiled.
        "kernels": device.type == "cpu" and load_kernels() is not None,
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
    }
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
        described["gpus"] = torch.cuda.device_count()
        described["tf32_convolutions"] = uses_tf32(device)
    return described


def _processor_name() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
