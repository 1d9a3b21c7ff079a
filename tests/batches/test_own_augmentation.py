from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import thumbnet
from helpers import coloured_data
from own_networks import OwnPackage
from thumbnet.batches.engines import MemoryEngine
from thumbnet.batches.own_augmentation import OwnAugmentation, own_augmentation
from thumbnet.batches.prepare import prepare
from thumbnet.data.splits import ArraySplit, Data
from thumbnet.distributed import World
from thumbnet.errors import ModelCodeError, OwnCodeError
from thumbnet.recipes.recipe import Recipe, load_recipe
from thumbnet.reports.augmented import VIEWS, preview_augmentation

pytestmark = pytest.mark.usefixtures("own")  # restores what is registered
CPU = torch.device("cpu")


def noisy(images: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 256, images.shape, dtype=torch.uint8, generator=generator)


def global_noise(images: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 256, images.shape, dtype=torch.uint8)


def images_of(count: int = 3) -> Tensor:
    return torch.arange(count * 3 * 4 * 5).view(count, 3, 4, 5).to(torch.uint8)


def recipe(custom: str, *overrides: str) -> Recipe:
    small = ["data.image_size=16", "training.batch_size=16", f"augment.custom={custom}"]
    return load_recipe("tutorial", [*small, "augment.flip=none", "augment.translate=0", *overrides])


def test_no_name_means_no_augmentation() -> None:
    assert own_augmentation("") is None
    with pytest.raises(ModelCodeError, match="the augmentation mine is not part of thumbnet"):
        own_augmentation("mine")


@pytest.mark.parametrize("function", [noisy, global_noise])
def test_the_seed_alone_decides_the_random_numbers(function: Callable[..., Tensor]) -> None:
    augmentation = OwnAugmentation("mine", function)
    torch.manual_seed(3)
    after = torch.rand(1)
    torch.manual_seed(3)
    first = augmentation(images_of(), 7)
    assert torch.equal(torch.rand(1), after)  # the program's own numbers are left alone
    torch.manual_seed(4)
    assert torch.equal(augmentation(images_of(), 7), first)
    assert not torch.equal(augmentation(images_of(), 8), first)


def fails(images: Tensor, generator: torch.Generator) -> Tensor:
    raise KeyError("kernel")


def views(images: Tensor, generator: torch.Generator) -> Tensor:
    return images.permute(0, 3, 1, 2).view(len(images), -1)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda images, _: None, r"the augmentation mine returns NoneType: expected uint8 \[3, 3, 4, 5\]"),
        (lambda images, _: images / 255, r"returns float32 \[3, 3, 4, 5\]: expected uint8"),
        (lambda images, _: images[..., :3], r"returns uint8 \[3, 3, 4, 3\]: expected uint8 \[3, 3, 4, 5\]"),
        (fails, r"mine fails on images of shape \[3, 3, 4, 5\]: KeyError: 'kernel' \(.*test_own_augm.*line \d+\)"),
        (views, "use flatten or reshape instead of view"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_augmentation_is_said(function: Callable[..., Any], says: str) -> None:
    with pytest.raises(OwnCodeError, match=says) as caught:
        OwnAugmentation("mine", function)(images_of(), 0)
    cause = caught.value.__cause__
    assert (cause is None) == ("returns" in says)  # Python shows the user's own traceback


def test_the_batches_of_training_are_augmented_and_those_of_evaluation_are_not() -> None:
    @thumbnet.register_augmentation("dark")
    def dark(images: Tensor, generator: torch.Generator) -> Tensor:
        images.zero_()  # in place, which must not reach the stored pictures
        return images

    data = coloured_data()
    own = prepare(data, recipe("dark", "data.mean=[0, 0, 0]", "data.std=[1, 1, 1]"), CPU)
    assert all(not batch.images.any() for epoch in (0, 1) for batch in own.train.epoch(epoch))
    assert isinstance(own.train.engine, MemoryEngine)
    assert own.train.engine.images.any()
    assert next(iter(own.evaluation["test"].epoch())).images.any()


def test_it_comes_after_the_uint8_augmentation_and_before_brightness() -> None:
    seen: list[Tensor] = []

    @thumbnet.register_augmentation("watch")
    def watch(images: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(images.clone())
        return images

    images = np.full((8, 16, 16, 3), 200, dtype=np.uint8)
    data = Data("x", "x", ("a", "b"), {"train": ArraySplit(images, np.arange(8) % 2, "t")})
    settings = recipe("watch", "augment.cutout=8", "augment.brightness=1", "training.batch_size=8",
                      "data.mean=[0, 0, 0]", "data.std=[1, 1, 1]")  # fmt: skip
    (batch,) = prepare(data, settings, CPU).train.epoch(0)
    (given,) = seen
    assert given.dtype == torch.uint8
    assert set(given.unique().tolist()) == {0, 200}  # cut out already, not brighter yet
    assert len(batch.images.unique()) > 2


@pytest.mark.parametrize("engine", ["memory", "workers"])
def test_a_training_that_resumes_within_an_epoch_sees_the_same_pictures(engine: str) -> None:
    thumbnet.register_augmentation("noisy")(noisy)
    settings = recipe("noisy", f"data.engine={engine}", "augment.mixup=0.4")
    batches = prepare(coloured_data(), settings, CPU).train
    whole = [batch.images for batch in batches.epoch(1)]
    rest = [batch.images for batch in batches.epoch(1, start=2)]
    assert len(whole) == len(rest) + 2
    assert all(torch.equal(one, other) for one, other in zip(whole[2:], rest, strict=True))
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(next(iter(batches.epoch(0))).images, whole[0])


def test_it_changes_no_random_number_of_the_built_in_augmentation() -> None:
    thumbnet.register_augmentation("same")(lambda images, generator: images)
    overrides = ["augment.rotate=20", "augment.erase=0.5", "augment.mixup=0.4", "augment.brightness=0.2"]
    with_own = prepare(coloured_data(), recipe("same", *overrides), CPU).train
    without = prepare(coloured_data(), recipe("", *overrides), CPU).train
    for one, other in zip(with_own.epoch(0), without.epoch(0), strict=True):
        assert torch.equal(one.images, other.images)


def test_each_process_draws_its_own_numbers() -> None:
    thumbnet.register_augmentation("noisy")(noisy)
    settings = recipe("noisy")
    shares = [
        next(iter(prepare(coloured_data(), settings, CPU, None, World(rank, 2)).train.epoch(0))).images
        for rank in (0, 1)
    ]
    assert shares[0].shape == shares[1].shape
    assert not torch.equal(*shares)


def test_the_preview_shows_it() -> None:
    thumbnet.register_augmentation("dark")(lambda images, generator: torch.zeros_like(images))
    rows = preview_augmentation(coloured_data(), recipe("dark"), (16, 16), (0.5,) * 3, (0.25,) * 3)
    assert all(len(row.views) == VIEWS for row in rows)
    assert not any(view.any() for row in rows for view in row.views)
    assert all(row.pixels.any() for row in rows)


def test_an_import_path_in_a_recipe_that_is_only_read_is_not_imported(own: OwnPackage) -> None:
    with pytest.raises(ModelCodeError, match="--model-code mypackage.nets:grey"):
        own_augmentation("mypackage.nets:grey")
    assert not own.was_imported()
