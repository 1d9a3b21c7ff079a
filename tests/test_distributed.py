"""Which pictures each of several processes gets. tests/faults starts real processes; here there are none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers import coloured_data
from thumbnet.batches.batches import NO_LABEL, Batch, EvalBatches, TrainBatches
from thumbnet.batches.engines import MemoryEngine
from thumbnet.batches.statistics import Normalise
from thumbnet.data.images import Preprocessing
from thumbnet.data.splits import ArraySplit
from thumbnet.distributed import ALONE, SyncBatchNorm2d, World, joined, synchronise_norms
from thumbnet.models import build_model
from thumbnet.recipes.recipe import Recipe
from thumbnet.recipes.settings import AugmentSettings, ModelSettings, TrainingSettings

AUGMENT = AugmentSettings(flip="random", translate=2, cutout=4)
NORMALISE = Normalise(Preprocessing((16, 16), "pad", (0.4,) * 3, (0.2,) * 3), torch.device("cpu"))


def engine(count: int) -> MemoryEngine:
    split = coloured_data(count).splits["train"]
    assert isinstance(split, ArraySplit)
    images = torch.from_numpy(np.ascontiguousarray(split.images)).permute(0, 3, 1, 2)
    return MemoryEngine(images, torch.arange(count))  # the label is the index of the picture


def train_batches(count: int, batch_size: int, world: World) -> TrainBatches:
    training = TrainingSettings(batch_size=batch_size)
    return TrainBatches(
        engine(count), NORMALISE, Recipe(seed=3, augment=AUGMENT, training=training), (16, 16), world
    )


def merged(batches: list[Batch]) -> Batch:
    """Put the shares of a batch together again, without the padding."""
    labels = torch.cat([batch.labels for batch in batches])
    images = torch.cat([batch.images for batch in batches])
    return Batch(images[labels != NO_LABEL], labels[labels != NO_LABEL], batches[0].total)


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize(("count", "batch_size"), [(60, 16), (61, 20), (33, 32)])
def test_the_shares_of_all_processes_together_are_the_batch_of_a_single_process(
    size: int, count: int, batch_size: int
) -> None:
    alone = list(train_batches(count, batch_size, ALONE).epoch(1))
    shares = [list(train_batches(count, batch_size, World(rank, size)).epoch(1)) for rank in range(size)]
    assert {len(own) for own in shares} == {len(alone)}
    for whole, *parts in zip(alone, *shares, strict=True):
        together = merged(parts)
        assert torch.equal(together.images, whole.images)
        assert torch.equal(together.labels, whole.labels)
        assert {part.total for part in parts} == {len(whole.labels)}
        assert all(len(part.labels) >= 1 for part in parts), (
            "a process without a picture would have no gradient"
        )


@pytest.mark.parametrize("size", [1, 2, 5])
def test_each_picture_is_evaluated_once(size: int) -> None:
    seen = []
    for rank in range(size):
        for batch in EvalBatches(engine(23), NORMALISE, batch_size=4, world=World(rank, size)).epoch():
            seen += batch.labels.tolist()
    assert seen == list(range(23))


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    with joined() as world:
        assert world == ALONE
        assert world.is_first
        assert world.any_of(True, False) == [True, False]
        assert world.gather_numbers(2.5) == [2.5]
        assert world.from_first("x") == "x"


def test_norms_are_synchronised_in_place_and_keep_their_tensors() -> None:
    model = build_model(ModelSettings("resnet20", 0.5), 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    synchronise_norms(model)
    assert not [m for m in model.modules() if type(m) is nn.BatchNorm2d]
    assert [m for m in model.modules() if isinstance(m, SyncBatchNorm2d)]
    assert all(parameters[name] is p for name, p in model.named_parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_synchronised_norm_evaluates_like_an_ordinary_one() -> None:
    plain, synced = nn.BatchNorm2d(4).eval(), SyncBatchNorm2d(4).eval()
    with torch.no_grad():
        for norm in (plain, synced):
            assert norm.running_mean is not None
            norm.running_mean.fill_(0.3)
    x = torch.randn(5, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(plain(x), synced(x))
    assert F.mse_loss(synced(x), x) > 0
