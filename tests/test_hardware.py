from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import math
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed

from helpers import TINY, coloured, coloured_data
from kernel_helpers import on_threads
from simulated_device import CUDA, simulated_gpu
from thumbnet import hardware
from thumbnet.classifiers.torch_classifier import Predictor
from thumbnet.errors import FallbackWarning, ThumbnetError
from thumbnet.hardware import (
    as_device,
    autocast,
    can_compile,
    choose_device,
    compiled,
    compute_dtype,
    describe,
    deterministic,
    keep_freed_memory,
    memory_layout,
    one_thread,
    return_large_blocks,
    seeded,
    send,
    use_threads,
    usual_defaults,
    why_not_compile,
)
from thumbnet.kernels import library
from thumbnet.runs.folder import Run
from thumbnet.training.train import train
from training_helpers import refuse_seeds

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


@pytest.mark.usefixtures("no_gpu")
def test_a_device_may_be_pytorchs_object_and_anything_else_is_refused() -> None:
    assert choose_device(CPU) == as_device(CPU) == as_device("cpu") == CPU
    with pytest.raises(ThumbnetError, match="--device cuda: there is no GPU"):
        choose_device(torch.device("cuda"))
    for wrong in (None, 0, b"cpu"):
        with pytest.raises(ThumbnetError, match=r"device: expected auto, .* or a torch\.device, got"):
            choose_device(wrong)  # type: ignore[arg-type]


@pytest.mark.usefixtures("no_gpu")
def test_a_pytorch_without_cuda_says_that_there_is_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(hardware, "NVIDIA_DRIVERS", (str(tmp_path / "none"), str(tmp_path)))
    with pytest.warns(FallbackWarning, match=r"^the NVIDIA GPU .* built without CUDA.*: using cpu$"):
        assert choose_device("auto") == CPU
    with pytest.raises(
        ThumbnetError, match="--device gpu: the NVIDIA GPU cannot be used .*built without CUDA"
    ):
        choose_device("gpu")
    assert choose_device("cpu") == CPU  # no warning


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("case", ["no driver", "hidden", "built with CUDA"])
def test_there_is_no_word_of_a_gpu_where_pytorch_should_not_use_one(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0" if case == "built with CUDA" else None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "" if case == "hidden" else "0")
    there = tmp_path / "none" if case == "no driver" else tmp_path
    monkeypatch.setattr(hardware, "NVIDIA_DRIVERS", (str(there),))
    assert choose_device("auto") == CPU


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


def test_cuda_without_a_number_is_the_current_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(hardware, "why_unusable", lambda device: None)
    assert as_device(torch.device("cuda")) == as_device("gpu") == torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert as_device(torch.device("cuda")) == as_device("gpu") == torch.device("cuda", 1)
    assert as_device(torch.device("cuda", 0)) == torch.device("cuda", 0)
    assert as_device("cpu") == as_device(CPU) == CPU


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
        ("NVIDIA GeForce GTX 1650", (7, 5), torch.float32),
        ("NVIDIA GeForce GTX 1630", (7, 5), torch.float32),
        ("NVIDIA T400 4GB", (7, 5), torch.float32),
        ("NVIDIA T500", (7, 5), torch.float32),
        ("NVIDIA T550 Laptop GPU", (7, 5), torch.float32),
        ("NVIDIA T600 Laptop GPU", (7, 5), torch.float32),
        ("NVIDIA T1000 8GB", (7, 5), torch.float32),
        ("NVIDIA T1200 Laptop GPU", (7, 5), torch.float32),
        ("Quadro T2000 with Max-Q Design", (7, 5), torch.float32),
        ("NVIDIA GeForce MX450", (7, 5), torch.float32),
        ("NVIDIA GeForce MX550", (7, 5), torch.float32),
        ("NVIDIA CMP 30HX", (7, 5), torch.float32),
        ("Quadro RTX 4000", (7, 5), torch.float16),
        ("TITAN RTX", (7, 5), torch.float16),
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
    monkeypatch.setattr(hardware, "computes_fp16", lambda device: True)
    assert compute_dtype("auto", torch.device("cuda", 1)) == dtype
    assert compute_dtype("fp32", torch.device("cuda", 1)) == torch.float32
    monkeypatch.setattr(hardware, "computes_fp16", lambda device: False)
    without = torch.float32 if dtype == torch.float16 else dtype
    assert compute_dtype("auto", torch.device("cuda", 1)) == without


@pytest.mark.parametrize(
    ("error", "right"), [(0.0, True), (0.2, False), (math.nan, False), (math.inf, False)]
)
def test_float16_is_tried_out_against_float32(
    error: float, right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convolved(images: torch.Tensor, filters: torch.Tensor, padding: int) -> torch.Tensor:
        assert images.dtype == filters.dtype
        return images if images.dtype == torch.float32 else images * (1 + error)

    monkeypatch.setattr(F, "conv2d", convolved)
    hardware.computes_fp16.cache_clear()
    assert hardware.computes_fp16(CPU) is right
    hardware.computes_fp16.cache_clear()


def test_a_device_that_cannot_convolve_in_float16_is_not_right_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise NotImplementedError("not implemented for 'Half'")

    monkeypatch.setattr(F, "conv2d", refused)
    hardware.computes_fp16.cache_clear()
    assert not hardware.computes_fp16(CPU)
    hardware.computes_fp16.cache_clear()


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


@contextlib.contextmanager
def of_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, np.ndarray, float]:
    """The weights of a training that nothing surrounds, the logits of a picture and the accuracy."""
    return trained_in(tmp_path_factory.mktemp("undisturbed") / "run")


def trained_in(out: Path) -> tuple[bytes, np.ndarray, float]:
    settings = [*TINY, "training.epochs=1"]
    run = train(coloured_data(), "one-cycle", overrides=settings, out=out, device="cpu")
    predictor = Predictor.load(run.path, "cpu")
    logits, measured = predictor.logits(coloured(1, 5)[None]), predictor.evaluate(coloured_data())
    return run.weights_path.read_bytes(), logits, measured.accuracy


@pytest.mark.parametrize(
    "surroundings",
    [of_float64, torch.no_grad, torch.inference_mode, lambda: torch.device("meta")],
    ids=["float64", "no gradients", "inference", "another device"],
)
def test_a_training_does_not_depend_on_what_the_program_has_set(
    surroundings: Callable[[], Any], undisturbed: tuple[bytes, np.ndarray, float], tmp_path: Path
) -> None:
    def state() -> tuple[Any, ...]:
        kind, device = torch.get_default_dtype(), torch.get_default_device()
        return kind, device, torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    usual = state()
    with surroundings():
        before = state()
        assert before != usual
        weights, logits, accuracy = trained_in(tmp_path / "run")
        assert state() == before
    assert state() == usual
    assert (weights, accuracy) == (undisturbed[0], undisturbed[2])
    assert np.array_equal(logits, undisturbed[1])


def test_threads_whose_blocks_overlap_restore_the_default_type_together() -> None:
    inside, may_end = threading.Event(), threading.Event()
    seen: list[torch.dtype] = []

    def work() -> None:
        with usual_defaults():
            inside.set()
            may_end.wait(60)
            seen.append(torch.get_default_dtype())

    thread = threading.Thread(target=work)
    with of_float64():
        with usual_defaults():
            thread.start()
            assert inside.wait(60)
        may_end.set()
        thread.join()
        assert seen == [torch.float32]
        assert torch.get_default_dtype() == torch.float64


def test_loading_a_network_leaves_the_memory_of_the_process_as_it_is(
    tiny_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "_tell_glibc", lambda **_: pytest.fail("asked to keep freed memory"))
    keep_freed_memory.cache_clear()
    Predictor.load(tiny_run.path, "cpu").logits(coloured(1, 5)[None])


def test_the_number_of_threads_is_restored_even_after_an_error() -> None:
    with on_threads(torch.get_num_threads()):
        use_threads(2)
        assert torch.get_num_threads() == 2
        with contextlib.suppress(KeyError), one_thread():
            assert torch.get_num_threads() == 1
            raise KeyError
        assert torch.get_num_threads() == 2
        with one_thread(False):
            assert torch.get_num_threads() == 2


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
        overrides = [*(one for one in TINY if "epochs" not in one), f"model.name={name}"]
        run = train(coloured_data(), "small", overrides=overrides, out=out, device="cpu", minutes=0.01)
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
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "gcc" else None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if triton else None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert can_compile(gpu) is (reason is None)
    assert (reason or "None") in str(why_not_compile(gpu))


@pytest.mark.parametrize(
    ("system", "compiler", "there", "able"),
    [
        ("linux", "clang", "clang", True),
        ("linux", "mine", "mine", True),
        ("linux", "gone", "gcc", True),
        ("linux", "gone", "g++", False),
        ("win32", "gone", "g++", True),
    ],
)
def test_compiling_for_a_gpu_needs_a_c_compiler_where_triton_brings_none(
    system: str, compiler: str, there: str, able: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setattr(shutil, "which", lambda name: name if name == there else None)
    assert why_not_compile(gpu) == (
        None if able else "there is no C compiler (gcc or clang), which Triton needs"
    )


def test_if_the_compiler_fails_the_error_says_how_to_train_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cause = RuntimeError("Failed to find C compiler.\nPlease specify via CC")
    failures = [
        BackendCompilerFailed("inductor", cause, None),
        BackendCompilerFailed("inductor", RuntimeError("CUDA out of memory"), None),
        RuntimeError("CUDA error: device-side assert triggered"),
    ]

    def fail(images: torch.Tensor) -> torch.Tensor:
        raise failures.pop(0)

    monkeypatch.setattr(torch, "compile", lambda forward, **_: fail)
    forward = compiled(nn.Identity(), "default")
    said = r"torch.compile failed: Failed to find C compiler\. Train without it: --set training.compile=false"
    with pytest.raises(ThumbnetError, match=said):
        forward(torch.ones(1))
    with pytest.raises(BackendCompilerFailed):  # the caller knows what to do about memory
        forward(torch.ones(1))
    with pytest.raises(RuntimeError, match="device-side assert"):
        forward(torch.ones(1))


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
    assert described["kernels"] == library.kind_of_kernels()
    assert "gpu" not in described


def test_the_callers_random_numbers_stay_as_they_were() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with seeded(0):
        torch.rand(2)
    assert torch.equal(torch.rand(3), expected)


def test_only_the_cpu_and_the_device_are_seeded_and_both_go_on_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refuse_seeds(monkeypatch)
    with simulated_gpu():
        generators = [torch.default_generator, torch.cuda.default_generators[0]]
        states = [generator.get_state() for generator in generators]
        for _ in range(2):
            with seeded(3, CUDA):
                assert [generator.initial_seed() for generator in generators] == [3, 3]
                torch.rand(2)
        assert all(map(torch.equal, [generator.get_state() for generator in generators], states))
