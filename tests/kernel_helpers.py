"""Helpers for the tests of the kernels.

The tests compare every kernel with its reference implementation in float64, forwards and backwards, on the same
inputs, which are rounded to bfloat16.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from thumbnet.kernels import augment, calls, library, muon, norm, strided, tiles, whiten, winograd
from thumbnet.kernels.library import load_kernels

# Tolerances, relative to the largest value. Results stored as bfloat16 are rounded; float32 sums are not.
BF16, FP32 = 2**-8, 1e-5

NAN_BITS = (0x7FC0, 0xFFC0 - 2**16)
"""NaN and -NaN in bfloat16, as int16. x86 computes the latter, for example for inf - inf."""

CAN_RUN = library._obstacle() is None and shutil.which("gcc") is not None
"""Whether the kernels have to compile and load here."""

needs_kernels = pytest.mark.skipif(
    load_kernels() is None, reason="no AVX-512 BF16 or no gcc here: only the reference implementations run"
)


def kernel_names() -> list[str]:
    """The functions of the C files that Python calls."""
    return [name for unit in library.UNITS for name in re.findall(r"^int (\w+)\(", unit.read_text(), re.M)]


def gcc() -> str:
    compiler = shutil.which("gcc")
    assert compiler is not None
    return compiler


def fake_gcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Replace ``gcc`` by a shell script; $target is the file that it should write."""
    fake = tmp_path / "bin" / "gcc"
    fake.parent.mkdir()
    find = 'for word; do test "$last" = -o && target=$word; last=$word; done'
    fake.write_text(f"#!/bin/sh\n{find}\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def loaded(kernels: ctypes.CDLL, has_tiles: bool) -> Iterator[None]:
    """Make all operations in the context use this library."""
    before = dict(library._loaded)
    whole = dataclasses.replace(library._kernels(), library=kernels, has_tiles=has_tiles)
    library._loaded.update({False: whole, True: whole})
    try:
        yield
    finally:
        library._loaded.clear()
        library._loaded.update(before)


def watched(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> list[str]:
    """The names of the kernels that ``modules`` run from now on, in this order; by default all modules."""
    names: list[str] = []

    def watch(name: str, *arguments: Tensor | int | float | None) -> None:
        names.append(name)
        calls.call(name, *arguments)

    for module in modules or (augment, muon, norm, strided, tiles, whiten, winograd):
        monkeypatch.setattr(module, "call", watch)
    return names


def pictures(*shape: int, seed: int = 0, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator) * scale + shift
    return values.bfloat16().contiguous(memory_format=torch.channels_last)


def assert_close(actual: Tensor | None, expected: Tensor | None, tolerance: float) -> None:
    assert actual is not None
    assert expected is not None
    error = (actual.detach().double() - expected.detach()).abs().max() / expected.detach().abs().max()
    assert float(error) < tolerance


def assert_near_float64(
    forward: Callable[[Tensor, Tensor], Tensor],
    input_gradient: Callable[[Tensor, Tensor, tuple[int, int]], Tensor],
    weight_gradient: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    outputs: int,
    *,
    stride: int = 1,
    most: float = 0.015,
) -> None:
    """Compare a 3x3 convolution and its gradients with float64, with 1 to 3 threads.

    The gradient of the weights has to be the same to the bit each time.
    """
    weight = pictures(outputs, x.shape[1], 3, 3, seed=2).float()
    x64, weight64 = x.double().requires_grad_(), weight.double().requires_grad_()
    y64 = nn.functional.conv2d(x64, weight64, stride=stride, padding=1)
    g = pictures(*y64.shape, seed=1)
    y64.backward(g.double())
    for threads in (1, 2, 3):
        with on_threads(threads):
            y, dx = forward(x, weight), input_gradient(g, weight, (x.shape[2], x.shape[3]))
            dw = weight_gradient(x, g)
            assert torch.equal(dw, weight_gradient(x, g)), threads
        for ours, exact in ((y, y64.detach()), (dx, x64.grad), (dw, weight64.grad)):
            assert_near(ours, exact, most)


def assert_near(ours: Tensor, exact: Tensor | None, most: float = 0.015) -> None:
    """Check that the error is below ``most`` (root mean square).

    1.5 % is usual for Winograd's algorithm in bfloat16 with tiles of 4x4 results and 3x3 weights.
    """
    assert exact is not None
    assert ours.shape == exact.shape
    assert float((ours.double() - exact).norm() / exact.norm()) < most
