from __future__ import annotations

import pytest
import torch

from helpers import TURNED, coloured_data
from thumbnet.batches.prepare import Prepared, prepare
from thumbnet.recipes.recipe import load_recipe
from thumbnet.training.build import build_state
from thumbnet.training.device_epoch import DeviceEpoch
from thumbnet.training.epochs import EpochResult
from thumbnet.training.schedules import factor_at
from thumbnet.training.state import TrainingState

CPU = torch.device("cpu")
BASE = [
    "model.name=resnet20",
    "model.width=0.5",
    "training.epochs=3",
    "training.batch_size=16",
    "data.skip_easy=0",
    "optimizer.groups=[]",
]
RECIPES = {
    "every change": [
        "augment.flip=random",
        "augment.translate=2",
        "augment.cutout=6",
        "augment.brightness=0.2",
        "augment.contrast=0.2",
    ],
    "new changes": [
        "augment.flip=alternating",
        *TURNED,
    ],
    "mixup": ["augment.mixup=0.4", "data.sampling=balanced"],
    "mixup and cutmix": ["augment.mixup=0.4", "augment.cutmix=1.0", "augment.translate=1"],
    "no change": ["augment.flip=none", "augment.translate=0"],
    "alternating": ["augment.flip=alternating", "augment.translate=1", "augment.translate_fill=zero"],
    "skip_easy": ["augment.flip=alternating", "data.skip_easy=0.3"],
    "balanced": ["augment.flip=random", "data.sampling=balanced"],
    "full batches only": ["augment.flip=random", "training.drop_last=true"],
}


def made(*overrides: str) -> tuple[TrainingState, Prepared]:
    recipe = load_recipe("tutorial", [*BASE, *overrides])
    data = coloured_data(60)
    prepared = prepare(data, recipe, CPU)
    return build_state(recipe, prepared, data.class_names, CPU), prepared


@pytest.mark.parametrize("name", RECIPES)
def test_the_batches_are_those_of_train_batches_to_the_bit(name: str) -> None:
    state, prepared = made(*RECIPES[name])
    _, again = made(*RECIPES[name])
    epoch = DeviceEpoch(state, prepared.train)
    for number in range(3):
        epoch.begin(number, 0)
        for step, expected in enumerate(again.train.epoch(number)):
            batch, _ = epoch.batch(epoch.count(step))
            epoch.step.add_(1)
            assert torch.equal(batch.images, expected.images), (number, step)
            assert torch.equal(batch.labels, expected.labels)
            assert (batch.mixed is None) == (expected.mixed is None) == ("mixup" not in name)
            if batch.mixed is not None and expected.mixed is not None:
                assert torch.equal(batch.mixed.labels, expected.mixed.labels)
                assert torch.equal(batch.mixed.share, expected.mixed.share)
            assert batch.positions is not None
            assert expected.positions is not None
            assert torch.equal(batch.positions, expected.positions)
            assert batch.total == expected.total
            for one in (prepared, again):
                if one.train.selection is not None:
                    losses = (expected.positions * 7 % 60).float()
                    one.train.selection.note(expected.positions, losses)
        assert step + 1 == len(prepared.train)


def test_an_epoch_can_begin_at_any_step() -> None:
    state, prepared = made(*RECIPES["every change"])
    epoch = DeviceEpoch(state, prepared.train)
    epoch.begin(1, 2)
    (expected, *_) = prepared.train.epoch(1, start=2)
    assert torch.equal(epoch.batch(epoch.count(2))[0].images, expected.images)


def test_an_epoch_that_was_drawn_early_is_the_same() -> None:
    state, prepared = made(*RECIPES["every change"])
    early, late = DeviceEpoch(state, prepared.train), DeviceEpoch(state, prepared.train)
    early.draw_early(2)
    for one in (early, late):
        one.begin(2, 0)
    assert torch.equal(early.batch(16)[0].images, late.batch(16)[0].images)


def test_each_step_finds_the_rates_of_its_groups_and_the_averages_weight() -> None:
    group = 'optimizer.groups=[{match = "head.*", lr = 0.5}]'
    state, prepared = made("schedule.milestones=[0.5]", "training.ema_decay=0.9", group)
    epoch, steps = DeviceEpoch(state, prepared.train), len(prepared.train)
    for number in (0, 2):
        epoch.begin(number, 1)
        factor = factor_at(state.recipe.schedule, number * steps + 1, state.total_steps)
        assert factor == (1.0, 0.1)[number // 2]
        _, rates = epoch.batch(16)
        weight = state.newest_weight(number * steps + 1)
        assert torch.equal(rates, torch.tensor([0.5 * factor, 0.1 * factor, weight]))


def test_a_new_plan_changes_the_rates_of_the_steps_left() -> None:
    state, prepared = made("schedule.name=linear", "schedule.milestones=[]")
    epoch = DeviceEpoch(state, prepared.train)
    epoch.begin(0, 3)
    before = epoch.batch(12)[1]
    epoch.follow_plan()
    assert torch.equal(epoch.batch(12)[1], before)
    state.step = 2
    state.replan(4)
    epoch.follow_plan()
    after = epoch.batch(12)[1]
    expected = state.recipe.optimizer.lr * factor_at(state.recipe.schedule, 3, 4)
    assert float(after[0]) == pytest.approx(expected, rel=1e-6)
    assert float(after[0]) < float(before[0])


def test_an_epoch_drawn_before_the_plan_changed_gets_the_new_rates() -> None:
    state, prepared = made("schedule.name=linear", "schedule.milestones=[]")
    epoch = DeviceEpoch(state, prepared.train)
    epoch.draw_early(1)
    state.step = 4
    state.replan(6)
    state.history = [EpochResult(1, 4, 1.0, 0.1, 1.0, 1.0, None)]
    epoch.begin(1, 0)
    epoch.follow_plan()
    expected = state.recipe.optimizer.lr * factor_at(state.recipe.schedule, 4, 6)
    assert float(epoch.batch(16)[1][0]) == pytest.approx(expected, rel=1e-6)


def test_nothing_is_copied_that_was_not_on_the_device() -> None:
    """The pictures must not exist twice in the device's memory."""
    state, prepared = made()
    epoch = DeviceEpoch(state, prepared.train)
    engine = prepared.train.engine
    assert epoch._pictures.data_ptr() == engine.images.data_ptr()  # type: ignore[attr-defined]
