"""Choose the device and the precision, and use the hardware well."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import os
import platform
import re
import shutil
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.torch_version import TorchVersion

from thumbnet.errors import FallbackWarning, ThumbnetError, is_out_of_memory
from thumbnet.kernels.library import kind_of_kernels

# How PyTorch reports a device that it cannot use; AssertionError if it was built without CUDA.
UNAVAILABLE = (RuntimeError, AssertionError, NotImplementedError)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}  # by training.precision
# Devices on which PyTorch before this version computes a wrong gradient of BatchNorm2d, or raises an error,
# if pictures are stored channels last (https://github.com/pytorch/pytorch/issues/175189).
WRONG_CHANNELS_LAST = {"mps": "2.14"}
# The cards with Turing chips that have no tensor cores (TU116, TU117): GTX 16, T400 to T600, T1000, T1200,
# T2000, MX450, MX550 and CMP 30HX.
NO_TENSOR_CORES = re.compile(r"\b(GTX 16|T[456]\d\d\b|T1[02]00\b|T2000\b|MX[45]50\b|CMP 30HX\b)")
_CPU = torch.device("cpu")
_LARGE_BLOCK = 8 << 20  # bytes; Pillow decodes large pictures into blocks of a little less than 16 MB
# Linux has one of these if it has a driver for an NVIDIA GPU; the second one is in WSL.
NVIDIA_DRIVERS = ("/proc/driver/nvidia/version", "/usr/lib/wsl/lib/libcuda.so.1")
STAGED_BYTES = 64 * 1024  # CUDA copies this much from ordinary memory without making the host wait


def choose_device(name: str | torch.device = "auto", number: int = 0) -> torch.device:
    """Choose a device by name, and try a convolution and its gradient on it. A device has a name, too.

    ``auto`` means the CUDA device ``number``, else Apple's GPU, else the CPU. If one of them is there but
    does not work, or PyTorch was built without CUDA, a :class:`FallbackWarning` says why the next one is
    used. ``gpu`` means the same without the CPU, and ``cuda`` the CUDA device ``number``. Any other name goes
    to PyTorch.

    Raises:
        ThumbnetError: the device is not available on this computer, or does not work; or ``name`` is neither
            a text nor a device.
    """
    name = device_name(name)
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


def device_name(device: str | torch.device) -> str:
    """The name of a device that a user gave by its name or as PyTorch's object.

    Raises:
        ThumbnetError: it is something else, such as a number.
    """
    if isinstance(device, str | torch.device):
        return str(device)
    raise ThumbnetError(
        f"device: expected auto, cpu, gpu, cuda, cuda:1, mps or a torch.device, got {device!r}"
    )


def as_device(device: str | torch.device) -> torch.device:
    """A device as its tensors name it: ``cuda`` without a number is the current GPU, such as ``cuda:0``.

    To PyTorch, ``cuda`` and ``cuda:0`` differ. A name is read by :func:`choose_device`.
    """
    current = torch.cuda.current_device() if torch.cuda.is_initialized() else 0
    if not isinstance(device, torch.device):
        return choose_device(device, current)
    if device.type != "cuda":
        return device
    return torch.device("cuda", current if device.index is None else device.index)


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
    unusable = None if there else _why_no_cuda()
    failures = [unusable] if unusable else []
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


def _why_no_cuda() -> str | None:
    """Why PyTorch cannot use the NVIDIA GPU that is here; None if there is none, or if it is hidden from it.

    If PyTorch was built for CUDA, it warns by itself, for example of a driver that is too old.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if hidden or torch.version.cuda or not any(map(os.path.exists, NVIDIA_DRIVERS)):
        return None
    return (
        f"the NVIDIA GPU cannot be used (PyTorch {torch.__version__} was built without CUDA: install another "
        "build, see https://pytorch.org/get-started/locally/)"
    )


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
    with usual_defaults():
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

    Some Turing chips have no tensor cores, and their convolutions in float16 give nan
    (https://github.com/pytorch/pytorch/issues/77955).
    """
    if device.type != "cuda" or has_fast_bf16(device):
        return False
    if not (7, 0) <= torch.cuda.get_device_capability(device) < (8, 0):
        return False
    return not NO_TENSOR_CORES.search(torch.cuda.get_device_name(device)) and computes_fp16(device)


@functools.cache
def computes_fp16(device: torch.device) -> bool:
    """Whether a convolution in float16 gives on ``device`` what it gives in float32, found by trying.

    It is as large as those of a network, because small ones may be right where these are not.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = (
        torch.randn(shape, generator=generator, device=_CPU) for shape in ((32, 64, 32, 32), (64, 64, 3, 3))
    )
    try:
        images, filters = (tensor.to(device) for tensor in drawn)
        exact, found = (
            F.conv2d(images.to(dtype), filters.to(dtype), padding=1).float()
            for dtype in (torch.float32, torch.float16)
        )
        return bool((found - exact).abs().max() < 0.05 * exact.abs().max())  # never for nan
    except UNAVAILABLE:
        return False


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


class _Float32:
    """While any block of :func:`usual_defaults` runs, float32 is the default type.

    All threads share this default, and blocks of several threads overlap. So the first one sets it, and the
    last one restores what was there before: a block that restored it alone would change it for the others.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks = 0
        self._before = torch.float32

    def __enter__(self) -> None:
        with self._lock:
            if not self._blocks:
                self._before = torch.get_default_dtype()
                torch.set_default_dtype(torch.float32)
            self._blocks += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._blocks -= 1
            if not self._blocks:
                torch.set_default_dtype(self._before)


_FLOAT32 = _Float32()


@contextlib.contextmanager
def usual_defaults() -> Iterator[None]:
    """In this block, PyTorch makes tensors of float32 on the CPU, and computes gradients.

    The surrounding program may have set another type or device, or have switched gradients off. The type
    changes for all threads of the program, the rest only for this one.
    """
    elsewhere = torch.get_default_device().type != "cpu"
    # Only if it is needed: while a device is set, each call of PyTorch takes longer.
    on_cpu: contextlib.AbstractContextManager[object]
    on_cpu = torch.device("cpu") if elsewhere else contextlib.nullcontext()
    with _FLOAT32, on_cpu, torch.inference_mode(False), torch.enable_grad():
        yield


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """In this block, cuDNN uses only deterministic algorithms and does not choose them by timing.

    Thus the same seed gives the same result, whatever defaults the surrounding program has set, see
    :func:`usual_defaults`.
    """
    flags = torch.backends.cudnn
    before = flags.deterministic, flags.benchmark
    flags.deterministic, flags.benchmark = True, False
    try:
        with usual_defaults():
            yield
    finally:
        flags.deterministic, flags.benchmark = before


def use_threads(count: int) -> None:
    """Let operations on the CPU run on ``count`` threads from now on, in the whole process."""
    torch.set_num_threads(count)


def limit_threads(most: int) -> None:
    """Like :func:`use_threads`, but only if there are more than ``most`` threads now."""
    if torch.get_num_threads() > most:
        use_threads(most)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device = _CPU) -> Iterator[None]:
    """Seed torch's global generators of the CPU and of ``device``, and restore their states afterwards.

    ``torch.manual_seed`` would also look for all other devices, for 0.3 ms, and seed them. Their numbers are
    the caller's.
    """
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[as_device(device).index])
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
def at_most_threads(most: int) -> Iterator[None]:
    """In this block, run operations on no more than ``most`` CPU threads."""
    threads = torch.get_num_threads()
    if threads <= most:
        yield
        return
    torch.set_num_threads(most)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def one_thread(only: bool = True) -> contextlib.AbstractContextManager[None]:
    """In this block, run operations on one CPU thread if ``only`` is true.

    If other processes keep the cores busy, an operation on two threads waits until the second thread is
    scheduled. That takes milliseconds, for an operation that itself takes 0.1 ms.
    """
    return at_most_threads(1) if only else contextlib.nullcontext()


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
    above and is not part of PyTorch on Windows. Triton compiles what launches its programs with a C compiler,
    and brings one only on Windows.
    """
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed"
        if torch.cuda.get_device_capability(device) < (7, 0):
            return "Triton does not support GPUs below compute capability 7.0"
        if sys.platform != "win32" and not _any_program("CC", "gcc", "clang"):
            return "there is no C compiler (gcc or clang), which Triton needs"
    if device.type == "cpu" and not _any_program("CXX", "g++", "clang++"):
        return "there is no C++ compiler (g++ or clang++)"
    return None


def _any_program(variable: str, *names: str) -> bool:
    """Whether the program that an environment variable names, or one of ``names``, is installed."""
    return any(shutil.which(name) for name in (os.environ.get(variable, names[0]), *names))


def can_compile(device: torch.device) -> bool:
    """Whether ``torch.compile`` can work, see :func:`why_not_compile`."""
    return why_not_compile(device) is None


def compiled(forward: Callable[[Tensor], Tensor], mode: str) -> Callable[[Tensor], Tensor]:
    """``forward`` with ``torch.compile`` in one of its modes, which compiles it when it is first called.

    Pictures have few different sizes, so each size gets its own compiled code. What this returns raises a
    :class:`ThumbnetError` if the compiler fails.
    """
    fast = torch.compile(forward, mode=mode, dynamic=False)

    def call(images: Tensor) -> Tensor:
        try:
            return fast(images)
        except RuntimeError as error:
            from torch._dynamo.exc import TorchDynamoException  # its module has been imported by now

            if not isinstance(error, TorchDynamoException) or is_out_of_memory(error):
                raise
            reason = _reason(getattr(error, "inner_exception", error))
            raise ThumbnetError(
                f"torch.compile failed: {reason}. Train without it: --set training.compile=false"
            ) from error

    return call


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
        "kernels": kind_of_kernels() if device.type == "cpu" else "none",
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
