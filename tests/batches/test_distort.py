from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thumbnet.batches.augment import _reflect
from thumbnet.batches.distort import colour_matrices, recolour, turn_matrices, warp


def random_images(count: int = 4, height: int = 16, width: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def turned(images: Tensor, degrees: float, zoom: float = 1.0, reflect: bool = True) -> Tensor:
    ones = torch.ones(len(images), dtype=torch.float64)
    return warp(images, turn_matrices(ones * degrees, ones * zoom), reflect)


def coloured(images: Tensor, turn: float, saturation: float = 1.0) -> Tensor:
    ones = torch.ones(len(images), dtype=torch.float64)
    return recolour(images, colour_matrices(ones * turn, ones * saturation))


def luma(images: Tensor) -> Tensor:
    return (images.float() * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(dim=1)


@pytest.mark.parametrize("reflect", [True, False])
def test_no_rotation_leaves_every_byte_as_it_is(reflect: bool) -> None:
    images = random_images(height=17, width=30)
    assert torch.equal(turned(images, 0, reflect=reflect), images)
    assert turned(images, 0).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("degrees", "quarters"), [(90, -1), (-90, 1), (180, 2)])
def test_positive_angles_rotate_clockwise(degrees: float, quarters: int) -> None:
    images = random_images()
    # grid_sample computes positions in float32, so that values next to a pixel's centre differ by one level.
    difference = turned(images, degrees).int() - images.rot90(quarters, dims=(2, 3)).int()
    assert int(difference.abs().max()) <= 1


def test_pictures_are_enlarged_around_their_centre() -> None:
    ramp = (7 * torch.arange(31)).to(torch.uint8).expand(1, 3, 31, 31).contiguous()
    large = turned(ramp, 0, zoom=2.0).float()
    expected = 105 + 3.5 * (torch.arange(31) - 15)
    assert (large - expected).abs().max() <= 0.51


def test_smaller_pictures_have_a_border_of_reflections_or_of_zeros() -> None:
    images = random_images(height=17, width=17)
    places = 2 * torch.arange(17) - 8  # the source of each row and column at half the size
    folded = _reflect(places, 17)
    difference = turned(images, 0, 0.5).int() - images[:, :, folded][:, :, :, folded].int()
    assert int(difference.abs().max()) <= 1
    black = turned(images, 0, 0.5, reflect=False)
    assert not black[:, :, :4].any()
    assert not black[:, :, :, 13:].any()
    assert torch.equal(black[:, :, 4:13, 4:13], turned(images, 0, 0.5)[:, :, 4:13, 4:13])


@given(turn=st.floats(-0.5, 0.5), saturation=st.floats(0, 2))
def test_greys_keep_their_value_whatever_happens_to_colours(turn: float, saturation: float) -> None:
    greys = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(coloured(greys, turn, saturation), greys)


def test_no_change_of_colour_leaves_every_byte_as_it_is() -> None:
    images = random_images()
    assert torch.equal(coloured(images, 0), images)
    assert torch.equal(coloured(images, 1), images)  # once around the colour circle


def test_no_saturation_leaves_the_brightness_only() -> None:
    images = random_images()
    assert torch.equal(
        coloured(images, 0.3, 0.0), luma(images).round().to(torch.uint8)[:, None].expand(4, 3, 16, 16)
    )


def test_the_hue_turns_to_the_opposite_colour_and_back_at_the_same_brightness() -> None:
    muted = (random_images() // 4 + 96).contiguous()
    opposite = coloured(muted, 0.5)
    assert (luma(opposite) - luma(muted)).abs().max() <= 1
    assert (coloured(opposite, 0.5).int() - muted.int()).abs().max() <= 2
    red = torch.tensor([160, 96, 96], dtype=torch.uint8).view(1, 3, 1, 1)
    r, g, b = coloured(red, 0.5).flatten().tolist()
    assert r < min(g, b)
    third = coloured(red, 1 / 3).flatten().tolist()
    assert third[0] < max(third)
