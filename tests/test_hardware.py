from __future__ import annotations

import contextlib
import ctypes
import shutil
import sys

import pytest
import torch

from thumbnet import hardware
from thumbnet.errors import ThumbnetError
from thumbnet.hardware import (
    autocast,
    can_compile,
    choose_device,
    describe,
    deterministic,
    keep_freed_memory,
    one_thread,
    send,
    use_bf16,
)

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


def test_each_process_gets_the_gpu_with_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto", 3) == choose_device("gpu", 3) == torch.device("cuda", 3)


def test_bfloat16_is_used_if_asked_for_or_if_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for fast in (True, False):
        monkeypatch.setattr(hardware, "multiplies_bf16", lambda fast=fast: fast)
        assert use_bf16("bf16", CPU)
        assert not use_bf16("fp32", CPU)
        assert use_bf16("auto", CPU) is fast


def test_matrix_products_are_bfloat16_only_if_asked_for() -> None:
    a = torch.ones(2, 2)
    with autocast(True, CPU):
        assert (a @ a).dtype == torch.bfloat16
    with autocast(False, CPU):
        assert (a @ a).dtype == torch.float32


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
        torch.set_num_threads(2)
        with contextlib.suppress(KeyError), one_thread():
            assert torch.get_num_threads() == 1
            raise KeyError
        assert torch.get_num_threads() == 2
        with one_thread(False):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(original)


def test_a_tensor_that_is_already_on_the_device_is_not_copied() -> None:
    tensor = torch.ones(3)
    assert send(tensor, CPU) is tensor


def test_keeping_freed_memory_does_nothing_without_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    keep_freed_memory.__wrapped__()
    monkeypatch.setattr(sys, "platform", "darwin")
    keep_freed_memory.__wrapped__()


def test_compiling_for_the_cpu_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not can_compile(CPU)
    assert can_compile(torch.device("cuda"))
    monkeypatch.setenv("CXX", "mine")
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "mine" else None)
    assert can_compile(CPU)


def test_the_computer_is_described_in_plain_values() -> None:
    described = describe(CPU)
    assert described["device"] == "cpu"
    assert described["threads"] == torch.get_num_threads()
    assert described["memory_bytes"] > 0
    assert described["processor"]
    assert "gpu" not in described
