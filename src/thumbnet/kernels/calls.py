"""Check whether kernels can run, and call them."""

from __future__ import annotations

import ctypes
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook

from thumbnet.distributed import World
from thumbnet.kernels.library import load_kernels, switch_off

MAX_CHANNELS = 4096  # as in vectors.h
CAST = (torch.float32, torch.bfloat16, torch.float16)  # the types that autocast casts to bfloat16
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

    For anything that is not such a tensor, PyTorch computes, or raises its own error.
    """
    return (
        not intercepted()
        and in_memory(x, CAST)
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and x.ndim == 4
        and x.shape[1] <= MAX_CHANNELS
        and x.is_contiguous(memory_format=torch.channels_last)
        and available()
    )


def intercepted() -> bool:
    """Whether PyTorch traces, transforms or counts operations at the moment: it would not see a kernel.

    This is so in torch.compile, torch.export and torch.jit.trace, in torch.func and forward-mode derivatives,
    and in modes such as make_fx, FakeTensorMode and FlopCounterMode.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
    )


def in_memory(tensor: Tensor | None, types: tuple[torch.dtype, ...]) -> TypeGuard[Tensor]:
    """Whether a kernel can read ``tensor``: it has values of one of ``types`` in the CPU's memory.

    Subclasses of Tensor are refused: they may keep their values elsewhere, or have none.
    """
    return (
        (type(tensor) is Tensor or type(tensor) is nn.Parameter)
        and tensor.is_cpu
        and tensor.dtype in types
        and tensor.numel() > 0
    )


def is_plain(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a call of ``module`` does only what its class does, one of ``kinds``.

    A kernel in its place would skip its hooks, and what a subclass or another forward method does.
    """
    return type(module) in kinds and not (
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
        or _has_any_global_hook()
        or "forward" in vars(module)
    )


def has_geometry(conv: nn.Conv2d, channels: int, size: int, padding: int) -> bool:
    """Whether ``conv`` convolves ``channels`` with filters of size x size, and with one stride for both axes.

    Filters and attributes may have been replaced since the module was made.
    """
    weight = conv.weight
    return (
        in_memory(weight, CAST)
        and weight.shape[1:] == (channels, size, size)
        and conv.stride[0] == conv.stride[1]
        and conv.padding == (padding, padding)
        and conv.padding_mode == "zeros"
        and conv.dilation == (1, 1)
        and conv.groups == 1
    )


def call(name: str, *arguments: Tensor | int | float | None) -> None:
    """Run a kernel. Tensors are passed as pointers, numbers as int or float. The last argument, the number of
    threads, is added here.

    Raises:
        MemoryError: the kernel could not allocate its scratch memory. It has written no result.
        RuntimeError: a tensor is not in the CPU's memory.
    """
    library = load_kernels(strided=name.startswith(_STRIDED))
    assert library is not None
    passed = [_as_passed(argument) for argument in arguments]
    if library[name](*passed, torch.get_num_threads()):
        raise MemoryError(f"not enough memory: the CPU kernel {name} could not allocate its scratch memory")


def _as_passed(argument: Tensor | int | float | None) -> ctypes.c_void_p | ctypes.c_float | int | None:
    if isinstance(argument, Tensor):
        if not argument.is_cpu or (argument.data_ptr() == 0 and argument.numel() > 0):
            raise RuntimeError(f"a kernel got a tensor outside the CPU's memory, on {argument.device}")
        return ctypes.c_void_p(argument.data_ptr())
    return ctypes.c_float(argument) if isinstance(argument, float) else argument


def empty(*shape: int) -> Tensor:
    """An uninitialised bfloat16 tensor of ``shape`` [B, C, H, W], stored channels last."""
    # PyTorch's defaults may be another device and type; this holds for every tensor that a kernel writes.
    return torch.empty(shape, dtype=torch.bfloat16, device="cpu", memory_format=torch.channels_last)
