"""Compile ``cpu.c`` once, keep it in the user's cache, load it. Where that cannot be, the twins do."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import torch

from thumbnet.files import cache_folder

SOURCE = Path(__file__).with_name("cpu.c")
FLAGS = (
    "-O3", "-shared", "-fPIC", "-fopenmp",
    "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mamx-tile", "-mamx-bf16",
)  # fmt: skip
_COMPILING = threading.Lock()
_failure: str | None = None  # what went wrong the last time


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels; None without bfloat16 instructions, Linux or gcc, or where ``THUMBNET_KERNELS=0`` says so.

    Compiling takes a second. Only gcc: PyTorch ships its OpenMP runtime (libgomp), and a second one would
    compete for the cores.
    """
    global _failure
    compiler = shutil.which("gcc")
    if compiler is None or _obstacle():
        return None
    try:
        with _COMPILING:  # once, even if two threads ask
            loaded = _load(compiler)
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or b"").decode(errors="replace").splitlines()
        _failure = f"{compiler} cannot compile them: {(lines or [f'exit status {error.returncode}'])[0]}"
        return None
    except (OSError, subprocess.SubprocessError) as error:
        _failure = f"they cannot be compiled or loaded: {error}"
        return None
    return loaded


def why_off() -> str | None:
    """Why :func:`library` has no kernels, in a few words; None where it has."""
    if library() is not None:
        return None
    return _obstacle() or _failure or "they cannot be loaded"


def _obstacle() -> str | None:
    """What is missing, as far as can be seen without compiling."""
    if os.environ.get("THUMBNET_KERNELS", "1") == "0":
        return "THUMBNET_KERNELS=0"
    if not multiplies_bf16():
        return "this processor has neither AVX-512 BF16 nor AMX"
    if sys.platform != "linux":
        return f"they are for Linux, and this is {sys.platform}"
    if shutil.which("gcc") is None:
        return "there is no gcc to compile them with; install it, and they are used from the next start on"
    return None


@functools.cache
def has_tiles() -> bool:
    """Whether there are the kernels and AMX."""
    loaded = library()
    return loaded is not None and torch.cpu._is_amx_tile_supported() and bool(loaded.ask_for_tiles())


def multiplies_bf16() -> bool:
    """Whether the processor does, by matrix tiles (AMX) or by vectors (AVX-512 BF16)."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def _load(compiler: str) -> ctypes.CDLL:
    """From the cache, named by all that it depends on; several processes may make it at once."""
    described = repr((SOURCE.read_bytes(), FLAGS, compiler, os.stat(compiler).st_mtime_ns))
    target = cache_folder() / "kernels" / f"cpu-{hashlib.sha256(described.encode()).hexdigest()[:16]}.so"
    if not target.exists():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            folder = tempfile.TemporaryDirectory(dir=target.parent)
        except OSError:  # no cache can be written here: then for this process alone
            folder = tempfile.TemporaryDirectory()
        with folder as place:
            made = Path(place) / target.name
            command = [compiler, *FLAGS, "-o", str(made), str(SOURCE)]
            subprocess.run(command, check=True, capture_output=True, timeout=120)
            if Path(place).parent != target.parent:
                return ctypes.CDLL(str(made))
            made.replace(target)
    return ctypes.CDLL(str(target))
