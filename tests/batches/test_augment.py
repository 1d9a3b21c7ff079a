from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from thumbnet.batches.augment import Augmentation, Draw, cutout, draw_erased, mirror, translate
from thumbnet.batches.mixing import inside_box
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


@settings(max_examples=50)
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


NEW = AugmentSettings(
    flip="random",
    translate=2,
    flip_vertical="random",
    rotate=30,
    scale=(0.8, 1.25),
    hue=0.1,
    saturation=0.5,
    erase=0.5,
    mixup=0.4,
    cutmix=1.0,
)


def drawn(settings: AugmentSettings, count: int = 50, seed: int = 3) -> tuple[Draw, torch.Tensor]:
    """A draw, and a number that the generator gives after it."""
    generator = torch.Generator().manual_seed(seed)
    draw = Augmentation(settings, count, (12, 10), 0).draw(torch.arange(count), 0, generator)
    return draw, torch.rand((), generator=generator)


def test_a_setting_that_is_off_draws_no_random_numbers() -> None:
    """So recipes from before these settings existed give the same pictures to the bit."""
    settings = AugmentSettings(flip="random", translate=2, cutout=4, brightness=0.1)
    draw, after = drawn(settings)
    generator = torch.Generator().manual_seed(3)  # all draws of these recipes, in their order
    assert torch.equal(draw.flip, torch.rand(50, generator=generator) < 0.5)
    assert torch.equal(draw.shift, torch.randint(-2, 3, (50, 2), generator=generator))
    assert torch.equal(draw.hole, (torch.rand(50, 2, generator=generator) * torch.tensor([12, 10])).long())
    assert torch.equal(draw.light, 2 * torch.rand(50, 2, generator=generator) - 1)
    assert torch.equal(after, torch.rand((), generator=generator))
    assert all(values.shape == (50, 0) for values in draw[4:])


def test_new_draws_leave_the_old_ones_as_they_are() -> None:
    old, new = drawn(AugmentSettings(flip="random", translate=2))[0], drawn(NEW)[0]
    assert all(torch.equal(one, other) for one, other in zip(old[:4], new[:4], strict=True))
    assert all(values.numel() for values in new)


@pytest.mark.parametrize("name", [*AugmentSettings.__dataclass_fields__])
def test_what_is_used_is_what_is_drawn(name: str) -> None:
    value = getattr(NEW, name)
    settings = AugmentSettings(**{name: value})
    draw, _ = drawn(settings)
    used = Augmentation(settings, 50, (12, 10), 0).used
    assert [bool(values.numel()) for values in draw[4:]] == list(used[4:])


def test_a_vertical_flip_swaps_top_and_bottom_of_half_the_pictures() -> None:
    images = random_images(200)
    augmentation = Augmentation(AugmentSettings(flip_vertical="random"), 200, (12, 10), seed=0)
    draw = augmentation.draw(torch.arange(200), 0, torch.Generator().manual_seed(0))
    out = augmentation.apply(images, draw, torch.zeros(3, dtype=torch.uint8))
    turned = draw.flip_vertical
    assert 60 < int(turned.sum()) < 140
    assert torch.equal(out[turned], images[turned].flip(2))
    assert torch.equal(out[~turned], images[~turned])


def test_angles_zooms_and_colours_stay_within_their_limits() -> None:
    draw, _ = drawn(NEW, count=4000)
    zoom = (draw.turn[:, 0] ** 2).sum(dim=1).rsqrt()
    assert 0.8 - 1e-4 < float(zoom.min()) < 0.81 < 1.24 < float(zoom.max()) < 1.25 + 1e-4
    assert abs(float(zoom.log().mean())) < 0.01
    degrees = torch.atan2(draw.turn[:, 0, 1], draw.turn[:, 0, 0]).rad2deg()
    assert -30.01 < float(degrees.min()) < -29 < 29 < float(degrees.max()) < 30.01
    torch.testing.assert_close(draw.colours.sum(dim=2), torch.ones(4000, 3))  # greys stay


def test_erased_rectangles_lie_in_the_picture_and_have_the_given_areas() -> None:
    settings = AugmentSettings(erase=0.7, erase_area=(0.1, 0.3))
    box = draw_erased(settings, 4000, (40, 60), torch.Generator().manual_seed(0))
    assert (box >= 0).all()
    assert (box[:, 2] <= 40).all()
    assert (box[:, 3] <= 60).all()
    area = inside_box(box, 40, 60).sum(dim=(1, 2)) / 2400
    erased = area > 0
    assert 0.66 < float(erased.float().mean()) < 0.74
    assert 0.09 < float(area[erased].min()) < 0.12
    assert 0.28 < float(area[erased].max()) < 0.32
    height, width = (box[:, 2:] - box[:, :2])[erased].float().unbind(dim=1)
    assert float((height / width).min()) < 0.4
    assert float((height / width).max()) > 1.8
    images = torch.zeros(4000, 1, 40, 60, dtype=torch.uint8)
    augmentation = Augmentation(settings, 4000, (40, 60), 0)
    draw = augmentation.draw(torch.arange(4000), 0, torch.Generator().manual_seed(1))
    out = augmentation.apply(images, draw, torch.tensor([9], dtype=torch.uint8))
    assert torch.equal(out[:, 0] == 9, inside_box(draw.erased, 40, 60))


low_and_high = st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)).map(lambda pair: (min(pair), max(pair)))


@settings(max_examples=50)
@given(
    flip=st.sampled_from(["none", "random"]),
    rotate=st.floats(0, 180),
    scale=low_and_high,
    fill=st.sampled_from(["reflect", "zero"]),
    hue=st.floats(0, 0.5),
    saturation=st.floats(0, 1),
    erase=st.floats(0, 1),
    alphas=st.tuples(*[st.sampled_from([0.0, 1e-9, 0.2, 1.0, 100.0])] * 2),
    height=st.integers(16, 40),
    width=st.integers(16, 40),
    count=st.integers(1, 6),
    seed=st.integers(0, 2**32),
)
def test_any_settings_keep_shape_and_type_and_depend_only_on_the_seed(
    flip: str,
    rotate: float,
    scale: tuple[float, float],
    fill: str,
    hue: float,
    saturation: float,
    erase: float,
    alphas: tuple[float, float],
    height: int,
    width: int,
    count: int,
    seed: int,
) -> None:
    settings = AugmentSettings(
        flip_vertical=flip,  # type: ignore[arg-type]
        rotate=rotate,
        scale=scale,
        translate_fill=fill,  # type: ignore[arg-type]
        hue=hue,
        saturation=saturation,
        erase=erase,
        mixup=alphas[0],
        cutmix=alphas[1],
    )
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)
    outs, labels = [], torch.arange(count)
    for _ in range(2):
        augmentation = Augmentation(settings, count, (height, width), seed)
        draw = augmentation.draw(labels, 0, torch.Generator().manual_seed(seed))
        moved = augmentation.apply(images, draw, torch.zeros(3, dtype=torch.uint8))
        assert moved.dtype == torch.uint8
        assert moved.shape == images.shape
        out, mixed = augmentation.mix(moved.float(), labels, draw)
        assert (mixed is not None) == settings.mixes
        if mixed is not None:
            assert ((mixed.share >= 0) & (mixed.share <= 1)).all()
            assert sorted(mixed.labels.tolist()) == labels.tolist()
        outs.append(out)
    assert outs[0].shape == images.shape
    assert float(outs[0].min()) >= 0
    assert float(outs[0].max()) <= 255.001
    assert torch.equal(outs[0], outs[1])
