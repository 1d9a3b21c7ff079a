"""timm for the tests that need it, and a Hub that has weights for it. ``make test-timm`` runs these tests."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from sources.hub_standin import HubStandIn, instead_of_the_hub

TAG = "r160_in1k"  # of timm's networks for tests, such as timm:test_resnet


def timm_or_skip() -> Any:
    """Import timm, or skip the calling test.

    PyPI's torchvision for Linux is linked to CUDA. With a torch for the CPU its C library does not load, and
    torchvision then fails at two operators of that library. Networks do not use them, so they are only declared.
    """
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed: make test-timm")
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor a, Tensor b, float c) -> Tensor")
    return importlib.import_module("timm")


def some_weights(network: str) -> dict[str, torch.Tensor]:
    """Weights for a thousand classes that no network draws: every tensor is random, statistics too."""
    timm = timm_or_skip()
    torch.manual_seed(5)
    tensors = timm.create_model(network, num_classes=1000).state_dict()
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            tensor.add_(torch.rand_like(tensor) * (1 if "running_var" in name else 0.1))
    return dict(tensors)


def weights_file(tensors: dict[str, torch.Tensor]) -> bytes:
    from safetensors.torch import save

    return save({name: tensor.contiguous() for name, tensor in tensors.items()})


@contextmanager
def hub_with(
    network: str, files: dict[str, bytes], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HubStandIn]:
    """Let huggingface_hub find ``files`` in timm's repository of ``network``, and nothing else."""
    hub = HubStandIn(f"timm/{network}.{TAG}", files, "models")
    with instead_of_the_hub(hub, cache, monkeypatch):
        yield hub
