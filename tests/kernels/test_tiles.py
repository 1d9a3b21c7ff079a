from __future__ import annotations

import copy

import pytest
import torch

from kernel_helpers import BF16, FP32, assert_close, on_threads, pictures
from thumbnet.kernels import tiles as tile_kernels
from thumbnet.kernels.conv import Conv3x3, uses_tiles
from thumbnet.kernels.tiles import plain_weight_gradient, weight_gradient

pytestmark = pytest.mark.usefixtures("tiles")


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize(
    ("count", "inputs", "outputs", "height", "width", "stride"),
    [
        (7, 24, 40, 5, 9, 1),  # channels that do not fill a tile, odd sides
        (5, 32, 64, 31, 31, 1),  # one picture per chunk
        (9, 256, 256, 3, 3, 1),  # many pictures per chunk; threads share the output channels
        (3, 20, 64, 32, 32, 1),
        (1, 16, 16, 4, 4, 1),
        (9, 64, 96, 8, 6, 2),
        (2, 24, 40, 32, 32, 2),
        (70, 32, 32, 4, 4, 1),
    ],
)
def test_a_convolution_with_tiles_equals_its_reference(
    count: int, inputs: int, outputs: int, height: int, width: int, stride: int, threads: int
) -> None:
    x = pictures(count, inputs, height, width).requires_grad_()
    conv = Conv3x3(inputs, outputs, stride)
    reference = copy.deepcopy(conv).double()
    reference.weight.data.copy_(conv.weight.bfloat16())
    with on_threads(threads):
        with torch.autocast("cpu", torch.bfloat16):
            assert uses_tiles(x, conv)
            y = conv(x)
        dy = pictures(*y.shape, seed=1)
        y.backward(dy)
    x64 = x.detach().double().requires_grad_()
    y64 = reference(x64)
    y64.backward(dy.double())
    assert_close(y, y64, BF16)
    assert_close(x.grad, x64.grad, BF16)
    assert_close(conv.weight.grad, reference.weight.grad, FP32)


def test_the_weight_gradient_equals_its_reference() -> None:
    x, dy = pictures(6, 32, 8, 8), pictures(6, 48, 8, 8, seed=1)
    assert_close(weight_gradient(x, dy), plain_weight_gradient(x.double(), dy.double()), FP32)


def test_the_weight_gradient_has_the_same_bits_every_time() -> None:
    x, dy = pictures(50, 64, 15, 15), pictures(50, 128, 15, 15, seed=1)
    first = weight_gradient(x, dy)
    assert all(torch.equal(first, weight_gradient(x, dy)) for _ in range(5))


def test_small_maps_are_convolved_as_a_product_of_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = pictures(3, 32, 4, 3), pictures(48, 32, 3, 3, seed=1)
    dy = pictures(3, 48, 4, 3, seed=2)
    patches = tile_kernels.conv3x3(x, weight), tile_kernels.input_gradient(x, weight, dy)
    monkeypatch.setattr(tile_kernels, "_SMALL_MAP", 0)
    plain = tile_kernels.conv3x3(x, weight), tile_kernels.input_gradient(x, weight, dy)
    for ours, theirs in zip(patches, plain, strict=True):
        assert_close(ours, theirs.double(), BF16)
