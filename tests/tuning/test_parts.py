from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers import coloured_data, coloured_labels, noise
from thumbnet.batches.engines import MemoryEngine, WorkerEngine
from thumbnet.batches.prepare import Prepared
from thumbnet.data.splits import ArraySplit, Data
from thumbnet.errors import DataError
from thumbnet.recipes.recipe import load_recipe
from thumbnet.tuning import parts as module
from thumbnet.tuning.parts import FOLDS, divide

CPU = torch.device("cpu")
RECIPE = load_recipe("small")


def pictures(part: Prepared, split: str) -> set[bytes]:
    """The pixels of each picture that a network trains on, or is judged by."""
    engine = part.train.engine if split == "train" else part.evaluation["val"].engine
    (images,) = engine.fetch([torch.arange(len(engine.labels))])
    return {image.numpy().tobytes() for image in images}


def test_a_small_data_set_holds_out_every_picture_once_and_trains_on_all_others() -> None:
    found = divide(coloured_data(60), RECIPE, CPU)
    assert len(found.parts) == FOLDS
    assert (found.pictures, found.held_out) == (60, 60)
    every: set[bytes] = set()
    for part in found.parts:
        train, held = pictures(part, "train"), pictures(part, "val")
        assert (len(train), len(held)) == (40, 20)
        assert not train & held
        assert not every & held
        every |= held
        labels = part.evaluation["val"].engine.labels
        assert torch.bincount(labels).tolist() in ([6, 7, 7], [7, 6, 7], [7, 7, 6])
    assert len(every) == 60


def test_a_larger_data_set_holds_out_a_fifth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALL", 50)
    found = divide(coloured_data(60), RECIPE, CPU)
    (part,) = found.parts
    assert found.held_out == len(part.evaluation["val"].engine.labels) == 12
    assert part.train.count == 48
    assert "12 of the 60 training pictures" in found.how


def test_another_fold_is_held_out_if_the_first_one_is_the_only_group_of_its_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SMALL", 50)
    images = np.stack([noise(number) for number in range(60)])
    groups = np.array([f"g{max(0, number // 10 - 1)}" for number in range(60)], dtype=object)
    labels = np.array([2] * 20 + [number % 2 for number in range(40)])  # g0 has 20 pictures, all of its class
    train = ArraySplit(images, labels, "t")
    data = Data("x", "made", ("a", "b", "c"), {"train": train}, groups={"train": groups})
    found = divide(data, RECIPE, CPU)
    assert found.held_out == 10
    assert found.parts[0].train.count == 50
    assert 2 not in found.parts[0].evaluation["val"].engine.labels


def test_a_val_split_of_the_data_is_used_as_it_is() -> None:
    data = coloured_data(30, splits=("train", "val", "test"))
    found = divide(data, RECIPE, CPU)
    (part,) = found.parts
    assert (part.train.count, found.held_out) == (30, 30)
    assert "val split" in found.how


class NobodyLooks(ArraySplit):
    """A test split that fails if anyone looks at a picture or a label."""

    def load(self, index: int) -> np.ndarray:
        raise AssertionError("the test split was read")

    content_stamp = stamp = load  # type: ignore[assignment]


def test_the_test_split_is_never_read() -> None:
    data = coloured_data(30)
    test = data.splits["test"]
    hidden = NobodyLooks(np.stack([np.asarray(test.load(i)) for i in range(30)]), test.labels, "test")
    found = divide(replace(data, splits={**data.splits, "test": hidden}), RECIPE, CPU)
    assert all(part.evaluation.keys() == {"val"} for part in found.parts)


def test_copies_and_groups_are_never_on_both_sides() -> None:
    train = coloured_data(60).splits["train"]
    images = np.stack([np.asarray(train.load(index)) for index in range(60)])
    images[30:33] = images[:3]  # copies
    groups = np.array([f"g{index // 6}" for index in range(60)], dtype=object)
    data = Data("x", "made", ("a", "b", "c"), {"train": ArraySplit(images, train.labels, "t")})
    copied = divide(data, RECIPE, CPU)
    for part in copied.parts:
        assert not pictures(part, "train") & pictures(part, "val")
    grouped = divide(replace(data, groups={"train": groups}), RECIPE, CPU)
    of = {image.tobytes(): group for image, group in zip(images.transpose(0, 3, 1, 2), groups, strict=True)}
    for part in grouped.parts:
        inside, outside = ({of[one] for one in pictures(part, split)} for split in ("train", "val"))
        assert not inside & (outside - {"g0", "g5"})  # g0 and g5 share copies


def test_pictures_that_are_decoded_during_the_training_are_divided_alike() -> None:
    memory = divide(coloured_data(30), RECIPE, CPU)
    workers = divide(coloured_data(30), RECIPE.override(["data.engine=workers", "data.workers=1"]), CPU)
    for one, other in zip(memory.parts, workers.parts, strict=True):
        assert isinstance(one.train.engine, MemoryEngine)
        assert isinstance(other.train.engine, WorkerEngine)
        assert torch.equal(one.train.engine.labels, other.train.engine.labels)


def test_several_labels_per_picture_are_balanced_by_the_rarest_one() -> None:
    data = coloured_labels(60, splits=("train",))
    found = divide(data, RECIPE, CPU)
    counts = torch.stack([part.evaluation["val"].engine.labels.sum(dim=0) for part in found.parts])
    assert counts.shape == (FOLDS, 3)
    rarest = counts.sum(dim=0).argmin()
    assert counts[:, rarest].max() - counts[:, rarest].min() <= 1


def test_too_few_pictures_or_only_copies_are_an_error_that_says_so() -> None:
    with pytest.raises(DataError, match="has 12 training pictures: at least 20"):
        divide(coloured_data(12), RECIPE, CPU)
    images = np.zeros((30, 16, 16, 3), np.uint8)
    images[15:] = 200
    same = Data("x", "made", ("a", "b"), {"train": ArraySplit(images, np.arange(30) // 15, "t")})
    with pytest.raises(DataError, match="copies of each other or belong to one group"):
        divide(same, RECIPE, CPU)


def test_another_size_is_divided_alike_and_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = coloured_data(60)
    found = divide(data, RECIPE, CPU)
    assert found.own == ((16, 16),) * 60
    assert found.for_recipe(RECIPE) is found.parts
    larger = found.for_recipe(RECIPE.override(["data.image_size=24", "data.fit=squash"]))
    assert len(larger) == len(found.parts)
    for one, other in zip(found.parts, larger, strict=True):
        assert (one.preprocessing.size, other.preprocessing.size) == ((16, 16), (24, 24))
        assert other.preprocessing.fit == "squash"
        for engine, again in (
            (one.train.engine, other.train.engine),
            (one.evaluation["val"].engine, other.evaluation["val"].engine),
        ):
            assert torch.equal(engine.labels, again.labels)
            (small,), (large,) = (some.fetch([torch.arange(len(some.labels))]) for some in (engine, again))
            resized = torch.nn.functional.interpolate(small.float(), (24, 24), mode="bilinear")
            assert (resized - large.float()).abs().mean() < 10  # the same pictures in the same order
    with monkeypatch.context() as patch:
        patch.setattr(module, "prepare", lambda *_: pytest.fail("decoded again"))
        assert found.for_recipe(RECIPE.override(["data.image_size=24", "data.fit=squash"])) is larger
        assert found.for_recipe(RECIPE.override(["seed=5"])) is found.parts
    assert found.for_recipe(RECIPE.override(["data.image_size=20"]))[0].preprocessing.size == (20, 20)
    decoded = found.for_recipe(RECIPE.override(["data.image_size=24", "data.fit=squash"]))
    assert decoded is not larger  # only the latest other size is kept in memory
