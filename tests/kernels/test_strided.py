from __future__ import annotations

import pytest
import torch

from kernel_helpers import assert_near_float64, needs_kernels, pictures
from thumbnet.kernels.strided import strided, strided_input_gradient, strided_pays, strided_weight_gradient


@needs_kernels
@pytest.mark.usefixtures("no_tiles")
@pytest.mark.parametrize(
    ("count", "inputs", "outputs", "height", "width"),
    [
        (3, 24, 40, 5, 9),  # channels that do not fill a vector, odd sides, tiles beyond the end
        (2, 64, 128, 32, 32),
        (70, 32, 96, 8, 8),  # more tiles and pairs of tiles than are transformed at a time
        (9, 256, 512, 8, 8),  # the threads divide the output channels
        (35, 48, 32, 14, 7),  # an odd number of pictures
        (5, 32, 16, 2, 3),
        (1, 16, 16, 1, 1),
    ],
)
def test_a_strided_convolution_is_close_to_its_reference(
    count: int, inputs: int, outputs: int, height: int, width: int
) -> None:
    ours = (strided, strided_input_gradient, strided_weight_gradient)
    assert_near_float64(*ours, pictures(count, inputs, height, width), outputs, stride=2, most=0.0065)


def pays(count: int, inputs: int, outputs: int, side: int) -> bool:
    return strided_pays(pictures(count, inputs, side, side), torch.empty(outputs, inputs, 3, 3))


def test_it_pays_with_enough_channels_and_tiles_that_results_fill() -> None:
    assert pays(4, 32, 32, 32)
    assert not pays(3, 32, 32, 32)  # 48 tiles
    assert not pays(64, 16, 32, 32)
    assert not pays(64, 32, 16, 32)
    assert not pays(64, 2048, 1024, 8)
    assert pays(64, 32, 32, 7)  # 4x4 results
    assert pays(64, 32, 32, 14)  # 7x7
    assert not pays(64, 32, 32, 12)  # 6x6, which take as many tiles as 8x8
