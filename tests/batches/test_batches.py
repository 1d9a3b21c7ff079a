from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from helpers import coloured_data, write_class_folders
from thumbnet.batches import decoding, engines
from thumbnet.batches import prepare as preparing
from thumbnet.batches.batches import Batch, LoaderBatches, TrainBatches
from thumbnet.batches.engines import MemoryEngine
from thumbnet.batches.prepare import Prepared, prepare
from thumbnet.batches.statistics import Normalise
from thumbnet.data.rendering import Preprocessing
from thumbnet.data.splits import ArraySplit, Data
from thumbnet.errors import DataError
from thumbnet.recipes.recipe import Recipe, load_recipe
from thumbnet.recipes.settings import AugmentSettings, TrainingSettings
from thumbnet.seeds import derive_seed
from thumbnet.sources.load import load_data

CPU = torch.device("cpu")


def recipe(*overrides: str) -> Recipe:
    base = ["training.batch_size=7", "augment.flip=random", "augment.translate=2", "training.drop_last=false"]
    return load_recipe("tutorial", ["data.mean='auto'", "data.std='auto'", *base, *overrides])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Data:
    root = write_class_folders(tmp_path_factory.mktemp("pictures"), ["train", "test"])
    return load_data(root)


def test_both_engines_give_the_same_batches_to_the_bit(folder: Data) -> None:
    changes = ["augment.rotate=20", "augment.hue=0.2", "augment.erase=0.5", "augment.mixup=0.4"]
    memory = prepare(folder, recipe("data.engine=memory", *changes), CPU)
    workers = prepare(folder, recipe("data.engine=workers", *changes), CPU)
    assert (memory.engine, workers.engine) == ("memory", "workers")
    assert memory.preprocessing == workers.preprocessing
    for epoch in (0, 1):
        pairs = list(zip(memory.train.epoch(epoch), workers.train.epoch(epoch), strict=True))
        assert len(pairs) == len(memory.train) == 3
        for a, b in pairs:
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.labels, b.labels)
    for a, b in zip(memory.evaluation["test"].epoch(), workers.evaluation["test"].epoch(), strict=True):
        assert torch.equal(a.images, b.images)


def plain(settings: Recipe, data: Data) -> Prepared:
    return prepare(data, settings, CPU)


def test_each_epoch_has_every_picture_once_in_a_new_order() -> None:
    labels = np.arange(50)
    images = np.broadcast_to(labels[:, None, None, None].astype(np.uint8), (50, 16, 16, 3))
    data = Data("x", "x", tuple(map(str, labels)), {"train": ArraySplit(images, labels, "t")})
    prepared = plain(recipe("augment.flip=none", "augment.translate=0"), data)
    orders = []
    for epoch in (0, 1):
        batches = list(prepared.train.epoch(epoch))
        seen = torch.cat([batch.labels for batch in batches])
        assert sorted(seen.tolist()) == labels.tolist()
        orders.append(seen.tolist())
        # Every label stays with its picture.
        values = torch.cat([batch.images[:, 0, 0, 0] for batch in batches])
        assert torch.equal(values.argsort(), seen.argsort())
    assert orders[0] != orders[1]
    again = [batch.labels.tolist() for batch in plain(recipe("augment.flip=none"), data).train.epoch(1)]
    assert sum(again, []) == orders[1]


@pytest.mark.parametrize("changes", [[], ["augment.scale=[0.5, 2]", "augment.mixup=1", "augment.cutmix=1"]])
def test_an_epoch_can_start_at_any_step(changes: list[str]) -> None:
    train = plain(recipe(*changes), coloured_data()).train
    whole = list(train.epoch(3))
    for start in (0, 1, 5, len(whole) - 1, len(whole)):
        rest = list(train.epoch(3, start))
        assert len(rest) == len(whole) - start
        for a, b in zip(rest, whole[start:], strict=True):
            assert torch.equal(a.images, b.images)
            if changes:
                assert a.mixed is not None
                assert b.mixed is not None
                assert torch.equal(a.mixed.share, b.mixed.share)


def test_a_mixed_batch_says_what_is_in_its_pictures() -> None:
    data = coloured_data()
    settings = ["augment.flip=none", "augment.translate=0"]
    pure = plain(recipe(*settings), data).train
    mixing = plain(recipe(*settings, "augment.mixup=1"), data).train
    for batch, unmixed in zip(mixing.epoch(0), pure.epoch(0), strict=True):
        assert batch.mixed is not None
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch.labels, unmixed.labels)
        for picture, own, other, share in zip(
            batch.images, unmixed.images, batch.mixed.labels, batch.mixed.share, strict=True
        ):
            same_class = unmixed.images[unmixed.labels == other]
            blends = share * own + (1 - share) * same_class
            assert (blends - picture).abs().amax(dim=(1, 2, 3)).min() < 1e-5


def test_a_short_last_batch_can_be_dropped_but_small_data_make_one_batch() -> None:
    kept = plain(recipe(), coloured_data()).train
    dropped = plain(recipe("training.drop_last=true"), coloured_data()).train
    assert [len(b.labels) for b in kept.epoch(0)] == [7] * 8 + [4]
    assert [len(b.labels) for b in dropped.epoch(0)] == [7] * 8
    assert (len(kept), len(dropped)) == (9, 8)
    small = plain(recipe("training.drop_last=true", "training.batch_size=1000"), coloured_data()).train
    assert [len(b.labels) for b in small.epoch(0)] == [60]
    assert [batches.taken for batches in (kept, dropped, small)] == [60, 56, 60]


def test_evaluation_batches_are_in_order_and_always_the_same() -> None:
    data = coloured_data()
    batches = plain(recipe("augment.cutout=4", "evaluation.batch_size=16"), data).evaluation["test"]
    first, second = list(batches.epoch(0)), list(batches.epoch(1))
    assert torch.equal(torch.cat([b.labels for b in first]), torch.from_numpy(data.splits["test"].labels))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.images, b.images)


def test_batches_are_normalised_and_stored_channels_last() -> None:
    prepared = plain(recipe("augment.flip=none", "augment.translate=0"), coloured_data())
    images = torch.cat([batch.images for batch in prepared.train.epoch(0)])
    assert images.shape == (60, 3, 16, 16)
    assert images.dtype == torch.float32
    assert images.mean(dim=(0, 2, 3)).abs().max() < 1e-3
    assert (images.std(dim=(0, 2, 3)) - 1).abs().max() < 1e-3
    batch = next(prepared.train.epoch(0))
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_normalising_divides_by_255_before_it_subtracts_the_mean() -> None:
    pre = Preprocessing((1, 1), "pad", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    pixel = torch.tensor([255, 0, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    out = Normalise(pre, CPU)(pixel).flatten()
    expected = [(1 - 0.4914) / 0.2023, -0.4822 / 0.1994, (0.2 - 0.4465) / 0.2010]
    assert torch.allclose(out, torch.tensor(expected), atol=1e-5)


def test_pictures_of_one_colour_cause_no_division_by_zero() -> None:
    images = np.zeros((4, 16, 16, 3), np.uint8)
    data = Data("x", "x", ("a", "b"), {"train": ArraySplit(images, np.array([0, 1, 0, 1]), "t")})
    for batch in plain(recipe(), data).train.epoch(0):
        assert batch.images.isfinite().all()


def test_sizes_need_not_be_square(tmp_path: Path) -> None:
    prepared = prepare(coloured_data(), recipe("data.image_size=32x48", "augment.cutout=8"), CPU)
    assert next(prepared.train.epoch(0)).images.shape == (7, 3, 32, 48)


def test_all_unreadable_pictures_are_listed_at_once(tmp_path: Path) -> None:
    write_class_folders(tmp_path, ["train", "test"])
    for name in ("train/red/0.png", "train/blue/3.png"):
        (tmp_path / name).write_bytes(b"broken")
    with pytest.raises(DataError) as caught:
        prepare(load_data(tmp_path), recipe("data.image_size=16"), CPU)
    assert "2 picture(s)" in str(caught.value)
    assert "red/0.png" in str(caught.value)
    assert "blue/3.png" in str(caught.value)
    with pytest.raises(DataError, match="2 picture"):
        prepare(load_data(tmp_path), recipe(), CPU)


def test_a_loader_goes_on_at_the_step_where_a_training_stopped() -> None:
    batches = LoaderBatches(
        DataLoader(TensorDataset(torch.zeros(20, 3, 4, 4), torch.arange(20)), batch_size=8)
    )
    assert len(batches) == len(list(batches.epoch(0))) == 3
    assert [one.labels.tolist() for one in batches.epoch(0, 1)] == [[*range(8, 16)], [*range(16, 20)]]


def test_derived_seeds_depend_on_every_part_of_their_path() -> None:
    seeds = {derive_seed(s, p, e) for s in range(3) for p in ("order", "augment") for e in range(5)}
    assert len(seeds) == 30
    assert all(0 <= seed < 2**63 for seed in seeds)


@settings(max_examples=50)
@given(
    flip=st.sampled_from(["none", "random", "alternating"]),
    translate=st.integers(0, 15),
    cutout=st.integers(0, 20),
    epoch=st.integers(0, 3),
    seed=st.integers(0, 2**32),
    batch_size=st.integers(2, 30),
)
def test_augmentation_changes_neither_labels_nor_order(
    flip: Any, translate: int, cutout: int, epoch: int, seed: int, batch_size: int
) -> None:
    data = coloured_data(30).splits["train"]
    assert isinstance(data, ArraySplit)
    images = torch.from_numpy(data.images).permute(0, 3, 1, 2)
    normalise = Normalise(Preprocessing((16, 16), "pad", (0.0,) * 3, (1.0,) * 3), torch.device("cpu"))

    def epoch_of(settings: AugmentSettings) -> list[Batch]:
        engine = MemoryEngine(images, torch.arange(30))
        recipe = Recipe(seed=seed, augment=settings, training=TrainingSettings(batch_size=batch_size))
        return list(TrainBatches(engine, normalise, recipe, (16, 16)).epoch(epoch))

    augmented = epoch_of(AugmentSettings(flip=flip, translate=translate, cutout=cutout))
    plain = epoch_of(AugmentSettings())
    for changed, same in zip(augmented, plain, strict=True):
        assert torch.equal(changed.labels, same.labels)
        assert changed.images.shape == same.images.shape
        assert float(changed.images.min()) >= 0
        assert float(changed.images.max()) <= 1 + 1e-6
    assert sorted(torch.cat([batch.labels for batch in augmented]).tolist()) == list(range(30))


def test_very_many_pictures_are_sampled_and_decoded_during_the_training(
    folder: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (engines, decoding, preparing):
        monkeypatch.setattr(module, "MANY", 10)
    monkeypatch.setattr(engines, "SAMPLE", 12)
    automatic = prepare(folder, recipe(), CPU)
    assert automatic.engine == "workers"
    memory = prepare(folder, recipe("data.engine=memory"), CPU)
    assert automatic.preprocessing == memory.preprocessing
    assert automatic.preprocessing.size == (16, 16)
    for a, b in zip(automatic.train.epoch(0), memory.train.epoch(0), strict=True):
        assert torch.equal(a.images, b.images)
    positions = engines.sample_positions(1000)
    assert torch.equal(positions, engines.sample_positions(1000))
    assert 8 <= len(positions) <= 12
    assert bool((positions.diff() > 0).all())


def test_a_sample_is_of_the_pictures_that_are_asked_for() -> None:
    whole = prepare(coloured_data(), recipe(), CPU).evaluation["test"]
    odd = torch.arange(1, 60, 2)
    assert whole.sample(4).positions.tolist() == [0, 20, 39, 59]
    assert whole.sample(4, odd).positions.tolist() == [1, 21, 39, 59]
    assert torch.equal(whole.sample(100, odd).positions, odd)
    assert torch.equal(whole.positions, torch.arange(60))
