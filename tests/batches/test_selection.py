from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from helpers import coloured_data
from thumbnet.batches.prepare import prepare
from thumbnet.batches.selection import Selection
from thumbnet.errors import RecipeError
from thumbnet.recipes.recipe import load_recipe
from thumbnet.seeds import derive_seed


def train_epoch(selection: Selection, epoch: int, losses: Tensor) -> set[int]:
    positions = selection.begin(epoch)
    for part in positions.split(3):
        selection.note(part, losses[part])
    return set(positions.tolist())


def test_the_easiest_pictures_are_skipped_and_return_in_the_next_epoch() -> None:
    losses = torch.arange(12).float()
    selection = Selection(12, 8, seed=0)
    first = train_epoch(selection, 0, losses)
    second = train_epoch(selection, 1, losses)
    third = train_epoch(selection, 2, losses)
    everything = set(range(12))
    assert len(first) == len(second) == len(third) == 8
    assert second == (everything - first) | set(sorted(first)[-4:])
    assert third == (everything - second) | set(sorted(second)[-4:])


def test_a_loss_counts_until_the_picture_is_seen_again() -> None:
    selection = Selection(4, 3, seed=0)
    seen = train_epoch(selection, 0, torch.full((4,), 5.0))
    (skipped,) = set(range(4)) - seen
    easy = min(seen)
    losses = torch.full((4,), 4.0)
    losses[easy] = 0.0
    train_epoch(selection, 1, losses)
    assert selection.visits.sum() == 3
    assert selection.visits[skipped] == 0
    assert easy not in train_epoch(selection, 2, losses)


def test_pictures_with_equal_losses_are_chosen_at_random_but_reproducibly() -> None:
    """A stable sort keeps the order of the random permutation, so all devices and processes agree."""
    chosen = Selection(5_000, 2_500, seed=1).begin(0)
    order = torch.randperm(5_000, generator=torch.Generator().manual_seed(derive_seed(1, "selection", 0)))
    assert torch.equal(chosen, order[:2_500].sort().values)


def test_state_from_before_the_first_epoch_can_be_loaded() -> None:
    fresh = Selection(6, 4, seed=0)
    assert fresh.epoch == -1
    other = Selection(6, 4, seed=0)
    other.load_state_dict(fresh.state_dict())
    assert torch.equal(other.begin(0), fresh.begin(0))


def test_state_with_a_single_chosen_picture_is_refused_by_other_selections() -> None:
    kept = Selection(6, 1, seed=0)
    kept.begin(0)
    with pytest.raises(ValueError, match="has changed"):
        Selection(6, 4, seed=0).load_state_dict(kept.state_dict())


def test_a_second_training_starts_from_scratch() -> None:
    selection = Selection(30, 20, seed=0)
    first = [train_epoch(selection, epoch, torch.arange(30).float()) for epoch in range(3)]
    assert [train_epoch(selection, epoch, torch.arange(30).float()) for epoch in range(3)] == first


def test_choosing_an_epoch_again_gives_the_same_pictures() -> None:
    selection = Selection(50, 30, seed=3)
    first = selection.begin(0)
    selection.note(first[:10], torch.ones(10))
    assert torch.equal(selection.begin(0), first)
    assert torch.equal(Selection(50, 30, seed=3).begin(0), first)
    assert not torch.equal(Selection(50, 30, seed=4).begin(0), first)


def test_state_from_the_middle_of_an_epoch_continues_the_same_way() -> None:
    losses = torch.rand(40, generator=torch.Generator().manual_seed(0))
    whole, resumed = Selection(40, 25, seed=0), Selection(40, 25, seed=0)
    train_epoch(whole, 0, losses)
    positions = whole.begin(1)
    whole.note(positions[:9], losses[positions[:9]])
    resumed.load_state_dict(whole.state_dict())
    for selection in (whole, resumed):
        assert torch.equal(selection.begin(1), positions)
        selection.note(positions[9:], losses[positions[9:]])
    assert torch.equal(whole.begin(2), resumed.begin(2))
    assert torch.equal(whole.visits, resumed.visits)


@pytest.mark.parametrize(("count", "taken"), [(39, 25), (40, 24)])
def test_state_of_other_pictures_is_refused(count: int, taken: int) -> None:
    kept = Selection(40, 25, seed=0)
    kept.begin(0)
    with pytest.raises(ValueError, match="has changed"):
        Selection(count, taken, seed=0).load_state_dict(kept.state_dict())


def test_every_picture_is_used_even_if_an_epoch_takes_less_than_half() -> None:
    """50 pictures in batches of 23, without the last one, leave one batch per epoch."""
    overrides = ["data.skip_easy=0.4", "training.batch_size=23", "training.drop_last=true"]
    prepared = prepare(coloured_data(50), load_recipe("tutorial", overrides), torch.device("cpu"))
    selection = prepared.train.selection
    assert selection is not None
    assert len(prepared.train) == 1
    shown = [train_epoch(selection, epoch, torch.rand(50)) for epoch in range(8)]
    assert all(len(epoch) == 23 for epoch in shown)
    assert not any(before & after for before, after in itertools.pairwise(shown))
    assert set.union(*shown) == set(range(50))


def test_batches_contain_the_chosen_pictures_mirrored_at_every_other_visit() -> None:
    overrides = ["data.skip_easy=0.4", "training.batch_size=8", "augment.flip=alternating"]
    recipe = load_recipe("tutorial", overrides)
    prepared = prepare(coloured_data(), recipe, torch.device("cpu"))
    batches, selection = prepared.train, prepared.train.selection
    assert selection is not None
    count = len(batches.engine.labels)
    taken = count - int(0.4 * count)
    assert len(batches) == -(-taken // 8)
    shown: dict[int, list[Tensor]] = {}
    for epoch in range(4):
        for batch in batches.epoch(epoch):
            assert batch.positions is not None
            assert torch.equal(batch.labels, batches.engine.labels[batch.positions])
            selection.note(batch.positions, torch.rand(len(batch.labels)))
            for position, image in zip(batch.positions.tolist(), batch.images, strict=True):
                shown.setdefault(position, []).append(image)
    assert len(shown) == count
    for images in shown.values():
        for earlier, later in itertools.pairwise(images):
            assert torch.equal(earlier, later.flip(-1))


@pytest.mark.parametrize("value", ["-0.1", "0.6", "nan"])
def test_a_share_that_cannot_be_skipped_is_refused(value: str) -> None:
    with pytest.raises(RecipeError, match=r"data\.skip_easy"):
        load_recipe("fast", [f"data.skip_easy={value}"])


def test_balanced_classes_and_skipping_are_refused_together() -> None:
    with pytest.raises(RecipeError, match=r"data\.skip_easy"):
        load_recipe("fast", ["data.skip_easy=0.3", "data.sampling=balanced"])
