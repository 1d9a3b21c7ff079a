from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from thumbnet.batches.augment import Augmentation, cutout, mirror, translate
from thumbnet.recipes.settings import AugmentSettings


def random_images(count: int = 5, height: int = 12, width: int = 10) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def test_mirroring_swaps_left_and_right_of_the_selected_pictures_only() -> None:
    images = random_images(2)
    out = mirror(images, torch.tensor([True, False]))
    assert torch.equal(out[0], images[0].flip(2))
    assert torch.equal(out[1], images[1])
    assert torch.equal(out[0, :, 3, 0], images[0, :, 3, -1])  # the other end of the same row


@pytest.mark.parametrize("reflect", [True, False])
def test_translating_equals_padding_and_cropping(reflect: bool) -> None:
    images, reach = random_images(25), 2
    shift = torch.tensor([[dy, dx] for dy in range(-2, 3) for dx in range(-2, 3)])
    pads = (reach,) * 4
    floats = images.float()
    padded = F.pad(floats, pads, mode="reflect") if reflect else F.pad(floats, pads)
    out = translate(images, shift, reflect)
    for index, (dy, dx) in enumerate(shift.tolist()):
        expected = padded[index, :, reach - dy : reach - dy + 12, reach - dx : reach - dx + 10]
        assert torch.equal(out[index].float(), expected), (dy, dx)


def test_cutout_fills_a_square_of_the_given_side() -> None:
    images = torch.zeros(3, 3, 12, 10, dtype=torch.uint8)
    fill = torch.tensor([10, 20, 30], dtype=torch.uint8)
    out = cutout(images, torch.tensor([[6, 5], [0, 0], [11, 9]]), 4, fill)
    assert (out[0] != 0).sum(dim=(1, 2)).tolist() == [16, 16, 16]
    assert (out[1] != 0).sum(dim=(1, 2)).tolist() == [4, 4, 4]  # half of each side lies outside
    assert out[0, :, 6, 5].tolist() == [10, 20, 30]


def test_alternating_flips_show_both_orientations_in_every_two_epochs() -> None:
    settings = AugmentSettings(flip="alternating")
    augmentation = Augmentation(settings, 1000, (8, 8), seed=0)
    generator, indices = torch.Generator(), torch.arange(1000)
    epochs = [augmentation.draw(indices, epoch, generator).flip for epoch in range(4)]
    assert torch.equal(epochs[0], ~epochs[1])
    assert torch.equal(epochs[0], epochs[2])
    assert 400 < int(epochs[0].sum()) < 600


def test_without_augmentation_pictures_do_not_change() -> None:
    images = random_images()
    augmentation = Augmentation(AugmentSettings(), 5, (12, 10), seed=0)
    draw = augmentation.draw(torch.arange(5), 0, torch.Generator().manual_seed(0))
    assert augmentation.apply(images, draw, torch.zeros(3, dtype=torch.uint8)) is images
    assert augmentation.relight(images, draw) is images


def test_light_changes_a_whole_picture_within_the_given_limits() -> None:
    augmentation = Augmentation(AugmentSettings(brightness=0.2, contrast=0.1), 500, (4, 4), seed=0)
    draw = augmentation.draw(torch.arange(500), 0, torch.Generator().manual_seed(0))
    images = torch.tensor([0.0, 1.0]).repeat(500, 3, 4, 4)  # 0, 1, 0, 1, ... along each row
    lit = augmentation.relight(images.clone(), draw)
    dark, bright = lit[..., 0::2], lit[..., 1::2]
    assert torch.equal(dark, dark[:, :1, :1, :1].expand_as(dark))
    factor = (bright - dark)[:, 0, 0, 0]
    shift = dark[:, 0, 0, 0] / factor
    assert 0.9 <= float(factor.min()) < 0.91 < 1.09 < float(factor.max()) <= 1.1 + 1e-6
    assert -0.2 <= float(shift.min()) < -0.18 < 0.18 < float(shift.max()) <= 0.2
    assert abs(float(torch.corrcoef(torch.stack([factor, shift]))[0, 1])) < 0.2


@given(
    flip=st.sampled_from(["none", "random", "alternating"]),
    reach=st.integers(0, 15),
    fill=st.sampled_from(["reflect", "zero"]),
    side=st.integers(0, 40),
    height=st.integers(16, 40),
    width=st.integers(16, 40),
    count=st.integers(1, 6),
    seed=st.integers(0, 2**32),
    epoch=st.integers(0, 5),
)
def test_augmentation_keeps_shape_and_type_and_depends_only_on_its_seed(
    flip: str, reach: int, fill: str, side: int, height: int, width: int, count: int, seed: int, epoch: int
) -> None:
    settings = AugmentSettings(flip=flip, translate=reach, translate_fill=fill, cutout=side)  # type: ignore[arg-type]
    images = torch.randint(1, 256, (count, 3, height, width), dtype=torch.uint8)
    mean = torch.tensor([1, 2, 3], dtype=torch.uint8)
    outs = []
    for _ in range(2):
        augmentation = Augmentation(settings, count, (height, width), seed)
        draw = augmentation.draw(torch.arange(count), epoch, torch.Generator().manual_seed(seed))
        outs.append(augmentation.apply(images, draw, mean))
    assert outs[0].shape == images.shape
    assert outs[0].dtype == torch.uint8
    assert torch.equal(outs[0], outs[1])
    if fill == "reflect" and not side:  # every resulting value was in the picture
        for before, after in zip(images, outs[0], strict=True):
            assert set(after.flatten().tolist()) <= set(before.flatten().tolist())
