from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from helpers import TINY, coloured_data
from thumbnet import hardware
from thumbnet.classifiers.torch_classifier import Predictor
from thumbnet.errors import FallbackWarning, ThumbnetError
from thumbnet.hardware import (
    autocast,
    can_compile,
    choose_device,
    compute_dtype,
    describe,
    deterministic,
    keep_freed_memory,
    memory_layout,
    one_thread,
    return_large_blocks,
    send,
    use_threads,
    why_not_compile,
)
from thumbnet.training.train import train

CPU = torch.device("cpu")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_auto_means_the_cpu_and_asking_for_a_gpu_is_an_error() -> None:
    assert choose_device("auto") == choose_device("cpu") == CPU
    for name in ("gpu", "cuda", "cuda:1"):
        with pytest.raises(ThumbnetError, match=f"--device {name}: there is no GPU") as caught:
            choose_device(name)
        assert "--device cpu" in str(caught.value)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("name", ["abacus", "", "cpu:x"])
def test_the_error_for_a_device_that_does_not_exist_lists_possible_names(name: str) -> None:
    with pytest.raises(ThumbnetError, match="is not available") as caught:
        choose_device(name)
    assert repr(name) in str(caught.value)
    assert "Choose auto, cpu" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def broken_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """PyTorch says that there is a CUDA GPU, but the first use of it fails, as with a card that is too old."""
    why_unusable = hardware.why_unusable
    why_unusable.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    yield
    why_unusable.cache_clear()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU works")
@pytest.mark.usefixtures("broken_gpu")
def test_auto_falls_back_from_a_gpu_that_does_not_work_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(FallbackWarning, match=r"^cuda:0 cannot be used \(.+\): using cpu$"):
        assert choose_device("auto") == CPU
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.warns(FallbackWarning, match=r"^cuda:0 .+\); mps cannot be used \(.+\): using cpu$"):
        assert choose_device("auto") == CPU
    monkeypatch.setattr(hardware, "why_unusable", lambda device: "too old" if device.type == "cuda" else None)
    with pytest.warns(FallbackWarning, match=r"^cuda:0 cannot be used \(too old\): using mps$"):
        assert choose_device("auto") == choose_device("gpu") == torch.device("mps")


@pytest.mark.usefixtures("broken_gpu")
@pytest.mark.parametrize("name", ["gpu", "cuda", "cuda:1"])
def test_a_gpu_that_was_asked_for_and_does_not_work_is_an_error_with_the_reason(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)  # memory can be had, but no kernel runs
    monkeypatch.setattr(hardware, "why_unusable", lambda device: "no kernel image is available")
    with pytest.raises(ThumbnetError, match=f"--device {name}: cuda:[01] cannot be used.*no kernel image"):
        choose_device(name)


def test_a_device_is_tried_with_a_gradient_and_the_reason_is_the_first_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hardware._try_out(CPU)
    message = "CUDA error: no kernel image is available for execution on the device.\nCUDA kernel errors"

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(torch.Tensor, "backward", fail)
    with pytest.raises(RuntimeError, match="no kernel image"):
        hardware._try_out(CPU)
    monkeypatch.setattr(hardware, "_try_out", fail)
    hardware.why_unusable.cache_clear()
    assert hardware.why_unusable(torch.device("mps")) == message.split(".\n")[0]
    assert hardware.why_unusable(CPU) is None
    hardware.why_unusable.cache_clear()


@pytest.mark.usefixtures("broken_gpu")
def test_a_process_without_a_gpu_of_its_own_is_told_how_many_to_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(hardware, "why_unusable", lambda device: None)
    assert choose_device("auto", 1) == torch.device("cuda", 1)
    with pytest.raises(ThumbnetError, match="process 2 of this machine .*--nproc-per-node 2"):
        choose_device("auto", 2)


def test_each_process_gets_the_gpu_with_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(hardware, "why_unusable", lambda device: None)
    assert choose_device("auto", 3) == choose_device("gpu", 3) == torch.device("cuda", 3)


def test_bfloat16_is_used_if_asked_for_or_if_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for fast in (True, False):
        monkeypatch.setattr(hardware, "multiplies_bf16", lambda fast=fast: fast)
        assert compute_dtype("bf16", CPU) == torch.bfloat16
        assert compute_dtype("fp16", CPU) == torch.float16
        assert compute_dtype("fp32", CPU) == torch.float32
        assert compute_dtype("auto", CPU) == (torch.bfloat16 if fast else torch.float32)


@pytest.mark.parametrize(
    ("name", "capability", "dtype"),
    [
        ("NVIDIA H100", (9, 0), torch.bfloat16),
        ("NVIDIA A100", (8, 0), torch.bfloat16),
        ("Tesla T4", (7, 5), torch.float16),
        ("Tesla V100-SXM2-16GB", (7, 0), torch.float16),
        ("NVIDIA GeForce RTX 2080 Ti", (7, 5), torch.float16),
        ("NVIDIA GeForce GTX 1660 Ti", (7, 5), torch.float32),
        ("NVIDIA GeForce GTX 1080", (6, 1), torch.float32),
    ],
)
def test_auto_is_the_fastest_type_of_a_gpu(
    name: str, capability: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    current = [0]

    @contextlib.contextmanager
    def choose(device: torch.device) -> Iterator[None]:
        assert device.index is not None
        current.append(device.index)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", choose)
    # The other GPU of this computer can do what this one cannot, and the other way round.
    able = capability >= (8, 0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: able == (current[-1] == 1))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert compute_dtype("auto", torch.device("cuda", 1)) == dtype
    assert compute_dtype("fp32", torch.device("cuda", 1)) == torch.float32


def test_matrix_products_have_the_type_that_was_asked_for() -> None:
    a = torch.ones(2, 2)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        with autocast(dtype, CPU):
            assert (a @ a).dtype == dtype


@pytest.mark.parametrize("before", [(False, True), (True, False), (False, False)])
def test_cudnns_flags_are_restored_even_after_an_error(before: tuple[bool, bool]) -> None:
    flags = torch.backends.cudnn
    original = flags.deterministic, flags.benchmark
    try:
        flags.deterministic, flags.benchmark = before
        with contextlib.suppress(KeyError), deterministic():
            assert (flags.deterministic, flags.benchmark) == (True, False)
            raise KeyError
        assert (flags.deterministic, flags.benchmark) == before
    finally:
        flags.deterministic, flags.benchmark = original


def test_the_number_of_threads_is_restored_even_after_an_error() -> None:
    original = torch.get_num_threads()
    try:
        use_threads(2)
        assert torch.get_num_threads() == 2
        with contextlib.suppress(KeyError), one_thread():
            assert torch.get_num_threads() == 1
            raise KeyError
        assert torch.get_num_threads() == 2
        with one_thread(False):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(original)


@pytest.mark.parametrize(
    ("device", "version", "right"),
    [
        ("mps", "2.11.0", False),
        ("mps", "2.13.1", False),
        ("mps", "2.14.0.dev20261101", False),
        ("mps", "2.14.0", True),
        ("mps", "3.0.0", True),
        ("cpu", "2.11.0+cpu", True),
        ("cuda", "2.11.0+cu128", True),
    ],
)
def test_apples_gpus_store_channels_last_only_where_batchnorms_gradient_is_right(
    device: str, version: str, right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    expected = torch.channels_last if right else torch.contiguous_format
    assert memory_layout(torch.device(device)) is expected
    assert memory_layout(torch.device(device), channels_last=False) is torch.contiguous_format


@pytest.mark.parametrize("name", ["fastnet", "resnet20"])
def test_no_batchnorm_sees_channels_last_on_a_device_that_computes_it_wrongly(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU stands in for such a device, in training, evaluation, prediction and every estimate of time."""
    seen = []

    def watch(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, nn.BatchNorm2d):
            seen.append(
                (inputs[0].is_contiguous(memory_format=torch.channels_last), inputs[0].is_contiguous())
            )

    def train_and_predict(out: Path) -> None:
        overrides = [one for one in TINY if "epochs" not in one]
        overrides += [
            f"model.name={name}",
            "data.largest_auto_size=16",
        ]  # the pictures are larger: a time note
        run = train(coloured_data(side=24), "small", overrides=overrides, out=out, device="cpu", minutes=0.01)
        Predictor.load(run.path, "cpu").logits(np.zeros((2, 16, 16, 3), np.uint8))

    with nn.modules.module.register_module_forward_pre_hook(watch):
        train_and_predict(tmp_path / "last")
        assert all(last for last, _ in seen)
        seen.clear()
        monkeypatch.setitem(hardware.WRONG_CHANNELS_LAST, "cpu", "99")
        train_and_predict(tmp_path / "first")
        assert len(seen) > 20
        assert all(first for _, first in seen)


def test_a_tensor_that_is_already_on_the_device_is_not_copied() -> None:
    tensor = torch.ones(3)
    assert send(tensor, CPU) is tensor


@pytest.mark.parametrize("ask", [keep_freed_memory, return_large_blocks])
def test_freed_memory_is_left_alone_without_glibc(
    ask: functools._lru_cache_wrapper[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def missing(name: str) -> None:
        asked.append(name)
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    monkeypatch.setattr(sys, "platform", "linux")
    ask.__wrapped__()
    assert asked == ["libc.so.6"]
    monkeypatch.setattr(sys, "platform", "darwin")
    ask.__wrapped__()
    assert asked == ["libc.so.6"]


@pytest.mark.parametrize(
    ("ask", "most_mapped", "kept"), [(keep_freed_memory, 0, -1), (return_large_blocks, 65536, 32 << 20)]
)
def test_glibc_is_told_how_much_freed_memory_to_keep(
    ask: functools._lru_cache_wrapper[None], most_mapped: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []

    class Libc:
        def mallopt(self, parameter: int, value: int) -> int:
            told.append((parameter, value))
            return 1

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Libc())
    monkeypatch.setattr(sys, "platform", "linux")
    ask.__wrapped__()
    # M_MMAP_MAX, M_MMAP_THRESHOLD and M_TRIM_THRESHOLD in malloc.h
    assert told == [(-4, most_mapped), (-3, 8 << 20), (-1, kept)]


def test_compiling_for_the_cpu_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not can_compile(CPU)
    assert "no C++ compiler" in str(why_not_compile(CPU))
    monkeypatch.setenv("CXX", "mine")
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "mine" else None)
    assert can_compile(CPU)


@pytest.mark.parametrize(
    ("triton", "capability", "reason"),
    [
        (True, (7, 0), None),
        (True, (9, 0), None),
        (True, (6, 1), "below compute capability 7.0"),
        (False, (9, 0), "Triton is not installed"),
    ],
)
def test_compiling_for_a_gpu_needs_triton_and_a_gpu_that_it_supports(
    triton: bool, capability: tuple[int, int], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if triton else None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert can_compile(gpu) is (reason is None)
    assert (reason or "None") in str(why_not_compile(gpu))


@pytest.mark.parametrize(
    ("capability", "precision", "tf32"),
    [((8, 0), "tf32", True), ((9, 0), "tf32", True), ((8, 0), "ieee", False), ((7, 5), "tf32", False)],
)
def test_the_environment_says_whether_float32_convolutions_use_tf32(
    capability: tuple[int, int], precision: str, tf32: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    conv: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = conv.fp32_precision
    try:
        conv.fp32_precision = precision
        assert describe(torch.device("cuda", 0))["tf32_convolutions"] is tf32
    finally:
        conv.fp32_precision = before
    assert "tf32_convolutions" not in describe(CPU)


def test_the_computer_is_described_in_plain_values() -> None:
    described = describe(CPU)
    assert described["device"] == "cpu"
    assert described["threads"] == torch.get_num_threads()
    assert described["memory_bytes"] > 0
    assert described["processor"]
    assert "gpu" not in described
