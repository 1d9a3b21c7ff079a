from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from kernel_helpers import BF16, FP32, NAN_BITS, assert_close, needs_kernels, on_threads, pictures
from thumbnet.kernels import tiles as tile_kernels
from thumbnet.kernels.calls import call
from thumbnet.kernels.conv import Conv3x3, uses_tiles
from thumbnet.kernels.norm import conv_norm_act, plain_norm_act
from thumbnet.kernels.tiles import (
    MIN_PICTURES,
    conv3x3,
    conv3x3_pooled,
    input_gradient,
    weight_gradient,
)

pytestmark = pytest.mark.usefixtures("tiles")


@pytest.mark.parametrize(
    ("count", "inputs", "outputs", "height", "width", "stride"),
    [
        (17, 24, 40, 5, 9, 1),  # channels that do not fill a tile, odd sides
        (16, 32, 64, 31, 31, 1),  # a large map, which is convolved by PyTorch
        (35, 256, 256, 3, 3, 1),  # threads share the output channels of the weight gradient
        (16, 512, 32, 8, 8, 1),  # more rows than fit into the cache
        (16, 16, 16, 1, 2, 1),
        (70, 32, 32, 2, 2, 1),  # several blocks of pictures at a time
        (33, 64, 96, 8, 6, 2),
        (17, 40, 24, 7, 5, 2),  # odd sides
        (16, 24, 40, 32, 32, 2),
        (16, 16, 32, 1, 3, 2),
    ],
)
def test_a_convolution_with_tiles_equals_its_reference(
    count: int, inputs: int, outputs: int, height: int, width: int, stride: int
) -> None:
    x = pictures(count, inputs, height, width)
    conv = Conv3x3(inputs, outputs, stride)
    reference = copy.deepcopy(conv).double()
    reference.weight.data.copy_(conv.weight.bfloat16())
    x64 = x.double().requires_grad_()
    y64 = reference(x64)
    dy = pictures(*y64.shape, seed=1)
    y64.backward(dy.double())
    for threads in (1, 2, 5):
        ours = x.detach().requires_grad_()
        conv.weight.grad = None
        with on_threads(threads):
            with torch.autocast("cpu", torch.bfloat16):
                assert uses_tiles(ours, conv)
                y = conv(ours)
            y.backward(dy)
        assert_close(y, y64, BF16)
        assert_close(ours.grad, x64.grad, BF16)
        assert_close(conv.weight.grad, reference.weight.grad, FP32)


@pytest.mark.parametrize(
    ("count", "inputs", "outputs", "height", "width"),
    [
        (17, 24, 40, 5, 9),  # channels that do not fill a tile; the last row and column have no window
        (16, 32, 64, 31, 30),
        (35, 256, 256, 3, 3),
        (16, 512, 256, 9, 8),  # more rows than fit into the cache
        (16, 16, 16, 2, 3),
    ],
)
def test_a_pooled_convolution_equals_its_reference(
    count: int, inputs: int, outputs: int, height: int, width: int
) -> None:
    x, weight = pictures(count, inputs, height, width), pictures(outputs, inputs, 3, 3, seed=2, scale=0.1)
    x64, weight64 = x.double().requires_grad_(), weight.double().requires_grad_()
    full = F.conv2d(x64, weight64, padding=1)
    chosen = full[:, :, : height // 2 * 2, : width // 2 * 2].unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    windows = chosen.transpose(3, 4).flatten(4)  # [B, CO, H / 2, W / 2, 4]
    for threads in (1, 2, 5):
        with on_threads(threads):
            y, which = conv3x3_pooled(x, weight)
            dy = pictures(*y.shape, seed=1)
            dx, dw = input_gradient(x, weight, dy, 1, which), weight_gradient(x, dy, 1, which)
        assert_close(y, F.max_pool2d(full, 2), BF16)
        at_which = windows.gather(4, which.permute(0, 3, 1, 2).long().unsqueeze(4)).squeeze(4)
        assert_close(y, at_which, BF16)
        dx64, dw64 = torch.autograd.grad(at_which, (x64, weight64), dy.double(), retain_graph=True)
        assert_close(dx, dx64, BF16)
        assert_close(dw, dw64, FP32)


def test_of_equal_values_the_first_is_the_maximum() -> None:
    x, weight = torch.zeros(16, 16, 4, 4), torch.zeros(16, 16, 3, 3)
    last = torch.channels_last
    y, which = conv3x3_pooled(*(one.bfloat16().contiguous(memory_format=last) for one in (x, weight)))
    assert not y.any()
    assert not which.any()


@pytest.mark.parametrize("bits", NAN_BITS)
def test_the_maximum_of_a_window_with_nan_is_nan(bits: int) -> None:
    x, weight = pictures(16, 16, 6, 6), pictures(16, 16, 3, 3, seed=1)
    x.view(torch.int16)[3, 2, 2, 2] = bits
    y, _ = conv3x3_pooled(x, weight)
    expected = F.max_pool2d(F.conv2d(x.double(), weight.double(), padding=1), 2)
    assert torch.equal(y.isnan(), expected.isnan())


def test_pooling_within_the_convolution_gives_the_networks_layer() -> None:
    def run(kernels: bool) -> list[Tensor]:
        torch.manual_seed(0)
        conv, norm = Conv3x3(32, 64), nn.BatchNorm2d(64)
        x = pictures(32, 32, 7, 7).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            assert uses_tiles(x, conv, pool=2)
            if kernels:
                y = conv_norm_act(x, conv, norm, "silu", pool=2)
            else:
                y = plain_norm_act(F.conv2d(x, conv.weight, padding=1), norm, "silu", pool=2)
        y.backward(pictures(*y.shape, seed=1).to(y.dtype))
        gradients = [x.grad, conv.weight.grad, norm.weight.grad, norm.bias.grad]
        return [y.detach(), *(one for one in gradients if one is not None), norm.running_mean]  # type: ignore[list-item]

    for ours, plain in zip(run(True), run(False), strict=True):
        assert float((ours.double() - plain.double()).norm() / plain.double().norm()) < 0.02


def test_the_weight_gradient_equals_its_reference() -> None:
    x, dy = pictures(6, 32, 8, 8), pictures(6, 48, 8, 8, seed=1)
    reference = conv2d_weight(x.double(), [48, 32, 3, 3], dy.double(), padding=1)
    assert_close(weight_gradient(x, dy), reference, FP32)


def test_the_results_have_the_same_bits_every_time_and_a_convolution_on_any_threads() -> None:
    x, dy = pictures(50, 64, 7, 7), pictures(50, 128, 7, 7, seed=1)
    weight = pictures(128, 64, 3, 3, seed=2)
    first, y = weight_gradient(x, dy), conv3x3(x, weight)
    assert all(torch.equal(first, weight_gradient(x, dy)) for _ in range(5))
    for threads in (1, 2, 3):
        with on_threads(threads):
            assert torch.equal(conv3x3(x, weight), y)


def test_a_result_does_not_depend_on_the_other_pictures() -> None:
    x, weight = pictures(70, 32, 6, 6), pictures(32, 32, 3, 3, seed=1)
    assert torch.equal(conv3x3(x, weight)[50:], conv3x3(x[50:], weight))


def test_large_maps_and_few_pictures_are_convolved_by_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    def noted(name: str, *arguments: Tensor | int | None) -> None:
        called.append(name)
        call(name, *arguments)

    monkeypatch.setattr(tile_kernels, "call", noted)
    conv = Conv3x3(32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        conv(pictures(16, 32, 9, 9).requires_grad_()).float().sum().backward()
        assert called == ["tile_weight_gradient"]
        conv(pictures(16, 32, 8, 8).requires_grad_()).float().sum().backward()
        assert called[1:] == ["tile_conv", "tile_conv", "tile_weight_gradient"]
        assert not uses_tiles(pictures(MIN_PICTURES - 1, 32, 8, 8), conv)
        assert not uses_tiles(pictures(16, 32, 1, 8), conv, pool=2)
        assert not uses_tiles(pictures(16, 32, 8, 8), Conv3x3(32, 32, 2), pool=2)


@needs_kernels
def test_a_process_keeps_the_tiles_that_onednn_had_configured() -> None:
    """Products of matrices before and after a kernel, in the same thread, are the same."""
    a, b = pictures(1, 1, 64, 96)[0, 0], pictures(1, 1, 96, 64, seed=1)[0, 0]
    before = a @ b
    conv3x3(pictures(32, 32, 4, 4), pictures(32, 32, 3, 3, seed=1))
    weight_gradient(pictures(32, 32, 4, 4), pictures(32, 32, 4, 4, seed=1))
    assert torch.equal(a @ b, before)
