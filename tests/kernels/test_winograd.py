from __future__ import annotations

import pytest
import torch
from torch import nn

from kernel_helpers import NAN_BITS, assert_near, assert_near_float64, needs_kernels, on_threads, pictures
from thumbnet.kernels.winograd import (
    winograd,
    winograd_input_gradient,
    winograd_pooled,
    winograd_weight_gradient,
)

pytestmark = [needs_kernels, pytest.mark.usefixtures("no_tiles")]


@pytest.mark.parametrize(
    ("count", "inputs", "outputs", "height", "width"),
    [
        (3, 24, 40, 5, 9),  # channels that do not fill a vector, tiles of 3 and 2
        (2, 32, 64, 31, 31),
        (35, 256, 256, 3, 3),  # an odd number of pictures
        (9, 32, 32, 2, 11),
        (5, 64, 32, 6, 5),
        (6, 64, 96, 8, 6),
        (1, 16, 16, 1, 2),
        (70, 128, 32, 4, 4),
        (300, 256, 16, 7, 7),  # more pairs of tiles than are transformed at a time
    ],
)
def test_winograd_is_close_to_its_reference(
    count: int, inputs: int, outputs: int, height: int, width: int
) -> None:
    ours = (winograd, winograd_input_gradient, winograd_weight_gradient)
    assert_near_float64(*ours, pictures(count, inputs, height, width), outputs)


@pytest.mark.parametrize(
    ("count", "inputs", "outputs", "height", "width"),
    [
        (3, 24, 40, 5, 9),  # channels that do not fill a vector, odd sides
        (2, 24, 32, 31, 31),
        (35, 256, 256, 3, 3),  # an odd number of pictures
        (9, 32, 32, 2, 11),
        (6, 64, 96, 8, 6),
        (300, 256, 16, 7, 7),  # more pairs of tiles than are transformed at a time
    ],
)
def test_winograd_with_pooling_is_close_to_its_reference(
    count: int, inputs: int, outputs: int, height: int, width: int
) -> None:
    """The maxima are as precise as without pooling. Gradients flow to those that the kernel chose."""
    x, weight = pictures(count, inputs, height, width), pictures(outputs, inputs, 3, 3, seed=2).float()
    x64, weight64 = x.double().requires_grad_(), weight.double().requires_grad_()
    y64 = nn.functional.conv2d(x64, weight64, padding=1)
    pooled64 = nn.functional.max_pool2d(y64, 2)
    for threads in (1, 2, 3):
        with on_threads(threads):
            y, which = winograd_pooled(x, weight)
            g = pictures(*y.shape, seed=1)
            dx = winograd_input_gradient(g, weight, (height, width), which)
            dw = winograd_weight_gradient(x, g, which)
            assert torch.equal(dw, winograd_weight_gradient(x, g, which)), threads
        which = which.permute(0, 3, 1, 2).long()
        rows, columns = torch.arange(height // 2)[:, None], torch.arange(width // 2)
        places = (2 * rows + which // 2) * width + 2 * columns + which % 2
        chosen = y64.flatten(2).gather(2, places.flatten(2)).view_as(pooled64)
        missed = (pooled64 - chosen).detach() > 0.05 * y64.std()
        assert missed.double().mean() < 0.01, threads
        unpooled = nn.functional.max_unpool2d(g.double(), places, [2, 2], output_size=(height, width))
        dx64, dw64 = torch.autograd.grad(y64, (x64, weight64), unpooled, retain_graph=True)
        for ours, exact in ((y, pooled64.detach()), (dx, dx64), (dw, dw64)):
            assert_near(ours, exact)


def test_the_first_of_equal_results_is_the_maximum() -> None:
    y, which = winograd_pooled(pictures(2, 32, 6, 6) * 0, pictures(32, 32, 3, 3).float())
    assert not y.any()
    assert not which.any()


@pytest.mark.parametrize("bits", NAN_BITS)
def test_the_maximum_of_a_window_with_nan_is_nan(bits: int) -> None:
    x, weight = pictures(2, 32, 6, 6), pictures(32, 32, 3, 3, seed=1).float()
    x.view(torch.int16)[1, 2, 2, 2] = bits
    y, _ = winograd_pooled(x, weight)
    expected = nn.functional.max_pool2d(nn.functional.conv2d(x.double(), weight.double(), padding=1), 2)
    assert y[expected.isnan()].isnan().all()
    assert not y[0].isnan().any()
