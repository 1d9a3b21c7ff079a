from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from kernel_helpers import needs_kernels
from thumbnet.kernels import processor


@needs_kernels
def test_the_instructions_that_linux_names_are_those_that_pytorch_finds() -> None:
    found = processor.instructions()
    assert ("amx_tile" in found) == torch.cpu._is_amx_tile_supported()
    assert ("avx512_bf16" in found) == torch.cpu._is_avx512_bf16_supported()


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux only")
def test_the_processor_is_described_by_its_model_and_its_instructions() -> None:
    described = processor.description()
    if os.uname().machine == "x86_64":
        assert [line.split("\t")[0].split(":")[0].strip() for line in described] == ["model name", "flags"]


def test_a_processor_that_linux_does_not_describe_has_no_instructions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processor, "Path", lambda _: Path("/nowhere/cpuinfo"))
    assert processor.description() == []
    assert processor.instructions() == set()
