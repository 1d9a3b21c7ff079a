from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kernel_helpers import BF16, assert_close, loaded, needs_kernels, pictures, watched
from thumbnet.kernels import calls, norm, strided, tiles, winograd
from thumbnet.kernels.conv import Conv1x1, Conv3x3, uses_strided, uses_tiles, uses_winograd
from thumbnet.kernels.library import load_kernels
from thumbnet.kernels.norm import conv_norm_act, norm_act
from thumbnet.models import build_model
from thumbnet.recipes.settings import ModelSettings


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, no_tiles: None) -> list[str]:
    """The names of the kernels that run; the processor appears to have no tiles."""
    return watched(monkeypatch, norm, strided, tiles, winograd)


@needs_kernels
@pytest.mark.parametrize(("side", "runs"), [(8, True), (5, True), (1, False)])
def test_winograd_runs_forwards_and_backwards_where_it_is_faster(
    side: int, runs: bool, called: list[str]
) -> None:
    layer = Conv3x3(64, 64).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = pictures(300, 64, side, side).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        layer(x).float().sum().backward()
    assert called == (["winograd", "winograd", "winograd_weight_gradient"] if runs else [])
    assert layer.weight.grad is not None


@needs_kernels
@pytest.mark.parametrize(("side", "runs"), [(8, True), (5, False)])
def test_a_strided_kernel_runs_forwards_and_backwards_where_it_is_faster(
    side: int, runs: bool, called: list[str]
) -> None:
    layer = Conv3x3(64, 64, 2).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = pictures(300, 64, side, side).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        layer(x).float().sum().backward()
    assert called == (["strided", "strided", "strided_weight_gradient"] if runs else [])
    assert layer.weight.grad is not None


@needs_kernels
@pytest.mark.parametrize("pool", [1, 2])
def test_a_convolution_and_its_normalisation_run_in_seven_calls(pool: int, called: list[str]) -> None:
    layer = Conv3x3(64, 64).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = pictures(300, 64, 8, 8).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        conv_norm_act(x, layer, nn.BatchNorm2d(64), "silu", pool=pool).float().sum().backward()
    sums = ["pool_and_sum", "scale_and_activate", "backward_sums", "backward"]
    assert called == ["winograd", *sums, "winograd", "winograd_weight_gradient"]


def dilate(conv: Conv3x3) -> None:
    conv.dilation = conv.padding = (2, 2)


def step_along_one_axis(conv: Conv3x3) -> None:
    conv.stride = (1, 2)


def pad_in_a_circle(conv: Conv3x3) -> None:
    conv.padding_mode = "circular"


def enlarge(conv: Conv3x3) -> None:
    conv.weight = nn.Parameter(torch.ones(64, 64, 5, 5))


def group(conv: Conv3x3) -> None:
    conv.weight, conv.groups = nn.Parameter(torch.ones(64, 32, 3, 3)), 2


def add_a_bias(conv: Conv3x3) -> None:
    """This is what fuse_conv_bn_eval does."""
    conv.bias = nn.Parameter(torch.full((64,), 100.0))


@needs_kernels
@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("change", [dilate, step_along_one_axis, pad_in_a_circle, enlarge, group, add_a_bias])
def test_a_convolution_that_was_changed_runs_in_pytorch(
    change: Callable[[Conv3x3], None], pool: int, monkeypatch: pytest.MonkeyPatch, test_kernels: ctypes.CDLL
) -> None:
    layer, x, normalise = Conv3x3(64, 64), pictures(300, 64, 8, 8), nn.BatchNorm2d(64)
    change(layer)
    names = watched(monkeypatch, strided, tiles, winograd)
    for has_tiles in (False, True):
        with loaded(test_kernels, has_tiles), torch.autocast("cpu", torch.bfloat16):
            y = conv_norm_act(x, layer, normalise, pool=pool)
            assert torch.equal(y, norm_act(nn.Conv2d.forward(layer, x), normalise, pool=pool))
    assert names == []


@needs_kernels
@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize(
    "other", [nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.Identity()], ids=["conv", "none"]
)
def test_another_module_in_the_place_of_a_convolution_is_called(other: nn.Module, pool: int) -> None:
    called: list[nn.Module] = []
    x, normalise = pictures(300, 64, 8, 8), nn.BatchNorm2d(64)
    for module in (other, Conv3x3(64, 64)):
        module.register_forward_hook(lambda layer, inputs, result: called.append(layer))
        with torch.autocast("cpu", torch.bfloat16):
            conv_norm_act(x, module, normalise, pool=pool)  # type: ignore[arg-type]
        assert called.pop() is module


@needs_kernels
@pytest.mark.parametrize("stride", [1, 2])
def test_filters_outside_the_memory_of_the_cpu_or_in_float64_are_left_to_pytorch(
    stride: int, test_kernels: ctypes.CDLL
) -> None:
    x = pictures(300, 64, 8, 8)
    for has_tiles in (False, True):
        with loaded(test_kernels, has_tiles), torch.autocast("cpu", torch.bfloat16):
            for layer, runs in (
                (Conv3x3(64, 64, stride), True),
                (Conv3x3(64, 64, stride).to("meta"), False),
                (Conv3x3(64, 64, stride).double(), False),
            ):
                uses = (uses_winograd(x, layer), uses_strided(x, layer), uses_tiles(x, layer))
                assert any(uses) == runs
            assert layer(x.double()).dtype == torch.float64


@needs_kernels
def test_convolutions_with_too_many_output_channels_run_in_pytorch(called: list[str]) -> None:
    """The kernels' zero pixel has 4,096 channels. The gradient of the output would be read beyond its end."""
    x, wide = pictures(300, 16, 8, 8).requires_grad_(), Conv3x3(16, 4100)
    with torch.autocast("cpu", torch.bfloat16):
        assert uses_winograd(x, Conv3x3(16, 4096))
        assert not uses_winograd(x, wide)
        wide(x[:2]).float().sum().backward()
    assert called == []


@needs_kernels
def test_a_wrong_number_of_input_channels_raises_the_error_of_pytorch(called: list[str]) -> None:
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(RuntimeError, match="expected input.* to have 64 channels, but got 128"),
    ):
        Conv3x3(64, 64)(pictures(300, 128, 8, 8))
    assert called == []


@needs_kernels
@pytest.mark.parametrize("name", ["fastnet", "resnet18"])
def test_a_network_has_similar_gradients_with_and_without_kernels(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With kernels, the gradients of all layers are about as close to float32's as with plain bfloat16."""
    x = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(16) % 10

    def gradient(kernels: bool, bf16: bool) -> Tensor:
        torch.manual_seed(0)
        model = build_model(ModelSettings(name=name, width=0.5), 10).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        monkeypatch.setattr(calls, "load_kernels", load_kernels if kernels else lambda **_: None)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(x.contiguous(memory_format=torch.channels_last))
        nn.functional.cross_entropy(logits.float(), labels).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    exact, plain, ours = gradient(False, False), gradient(False, True), gradient(True, True)
    assert (ours - exact).norm() < 1.5 * (plain - exact).norm()
    assert (ours - exact).norm() < 0.5 * exact.norm()


def test_without_kernels_the_reference_implementations_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "load_kernels", lambda **_: None)
    layer, normalise = Conv3x3(8, 32), nn.BatchNorm2d(32)
    with torch.autocast("cpu", torch.bfloat16):
        y = norm_act(layer(torch.randn(2, 8, 6, 6)), normalise, "silu", pool=2)
    y.float().sum().backward()
    assert layer.weight.grad is not None


CRASHER = """
import torch
from thumbnet.kernels.conv import Conv1x1
conv = Conv1x1(8, 16, 2).to(memory_format=torch.channels_last)
x = torch.randn(9, 8, 16, 16).to(memory_format=torch.channels_last).requires_grad_()
for _ in range(30):
    y = conv(x)
    y.backward(torch.randn_like(y))
    others = [torch.randn(n) for n in (10, 100, 1000, 3000)]
print("alive")
"""


def test_a_narrow_projection_with_a_stride_does_not_write_past_its_memory() -> None:
    done = subprocess.run([sys.executable, "-c", CRASHER], capture_output=True, text=True)
    assert done.stdout == "alive\n", done.stderr


@needs_kernels
@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize(("height", "width", "stride"), [(8, 8, 2), (9, 7, 2), (1, 2, 2), (7, 8, 3)])
def test_a_wide_projection_with_a_stride_and_its_gradients_are_those_of_a_convolution(
    height: int, width: int, stride: int, learns: bool
) -> None:
    conv = Conv1x1(64, 96, stride)
    x = pictures(5, 64, height, width).requires_grad_(learns)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(x)
    assert y.grad_fn is not None
    assert "Selected" in y.grad_fn.name()
    assert y.is_contiguous(memory_format=torch.channels_last)
    x64 = x.detach().double().requires_grad_()
    weight = conv.weight.detach().bfloat16().double().requires_grad_()
    y64 = F.conv2d(x64, weight, stride=stride)
    dy = pictures(*y.shape, seed=1)
    y.backward(dy)
    y64.backward(dy.double())
    assert_close(y, y64, BF16)
    assert_close(conv.weight.grad, weight.grad, BF16)
    if learns:
        assert_close(x.grad, x64.grad, BF16)
    else:
        assert x.grad is None


@needs_kernels
def test_the_result_of_a_wide_projection_can_be_changed_in_place() -> None:
    conv, x = Conv1x1(64, 32, 2), pictures(5, 64, 8, 8)
    gradients = []
    for multiply in (Tensor.mul_, Tensor.mul):
        conv.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            multiply(conv(x), 2).float().sum().backward()
        assert conv.weight.grad is not None
        gradients.append(conv.weight.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("channels", [8, 64])
@pytest.mark.parametrize("change", ["bias", "stride"])
def test_a_projection_that_was_changed_is_still_its_convolution(
    change: str, channels: int, bf16: bool
) -> None:
    conv, x = Conv1x1(channels, 32, 2), pictures(5, channels, 8, 8)
    if change == "bias":
        conv.bias = nn.Parameter(torch.full((32,), 100.0))
    else:
        conv.stride = (1, 2)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        y = conv(x if bf16 else x.float())
    assert_close(y, nn.Conv2d.forward(conv.double(), x.double()), 2 * BF16)


@needs_kernels
def test_a_projection_that_does_not_learn_or_is_narrow_is_pytorchs() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        for channels, learns in ((64, False), (32, True)):
            conv = Conv1x1(channels, 32, 2).requires_grad_(learns)
            y = conv(pictures(2, channels, 8, 8).requires_grad_())
            assert y.grad_fn is not None
            assert "Selected" not in y.grad_fn.name()
        with pytest.raises(RuntimeError, match="channels"):
            Conv1x1(64, 32, 2)(pictures(2, 32, 8, 8))


@pytest.mark.parametrize(("channels", "stride"), [(8, 2), (8, 1), (16, 2), (64, 2), (3, 3)])
def test_a_projection_is_a_plain_convolution(channels: int, stride: int) -> None:
    conv = Conv1x1(channels, 5, stride)
    x = torch.randn(2, channels, 9, 7, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(conv(x), F.conv2d(x, conv.weight, stride=stride), atol=1e-6)
