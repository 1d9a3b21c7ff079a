"""Check whether kernels can run, and call them."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from thumbnet.distributed import World
from thumbnet.kernels.library import load_kernels, switch_off

MAX_CHANNELS = 4096  # as in vectors.h
_STRIDED = "strided"  # the first word of the names of kernels that are in a library of their own


def available() -> bool:
    """Whether the kernels can run."""
    return load_kernels() is not None


def strided_available() -> bool:
    """Whether the kernels of stride 2 can run, which are a library of their own."""
    return load_kernels(strided=True) is not None


def agree_on_kernels(world: World) -> None:
    """Switch the kernels off in all processes of a training if they cannot run in one of them.

    All processes must call this. In BatchNorm, the kernels exchange float64 sums, and PyTorch's operations
    float32, so a mixture would fail.
    """
    here = available()
    if world.any(not here) and here:
        switch_off("they cannot run in another process of this training")


def applies(x: Tensor) -> bool:
    """Whether kernels can run: bfloat16 autocast is on, and ``x`` is on the CPU, stored channels last.

    While torch.compile traces, the answer is False, so that it traces the reference implementations.
    """
    return (
        isinstance(x, Tensor)  # for anything else, PyTorch raises its own error
        and x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and x.ndim == 4
        and x.numel() > 0
        and x.shape[1] <= MAX_CHANNELS
        and x.is_contiguous(memory_format=torch.channels_last)
        and available()
    )


def call(name: str, *arguments: Tensor | int | float | None) -> None:
    """Run a kernel. Tensors are passed as pointers, numbers as int or float. The last argument, the number of
    threads, is added here.

    Raises:
        MemoryError: the kernel could not allocate its scratch memory. It has written no result.
    """
    library = load_kernels(strided=name.startswith(_STRIDED))
    assert library is not None
    passed = [_as_passed(argument) for argument in arguments]
    if library[name](*passed, torch.get_num_threads()):
        raise MemoryError(f"not enough memory: the CPU kernel {name} could not allocate its scratch memory")


def _as_passed(argument: Tensor | int | float | None) -> ctypes.c_void_p | ctypes.c_float | int | None:
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    return ctypes.c_float(argument) if isinstance(argument, float) else argument


def empty(*shape: int) -> Tensor:
    """An uninitialised bfloat16 tensor of ``shape`` [B, C, H, W], stored channels last."""
    return torch.empty(shape, dtype=torch.bfloat16, memory_format=torch.channels_last)
