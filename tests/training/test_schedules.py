from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thumbnet.errors import RecipeError
from thumbnet.recipes.recipe import load_recipe
from thumbnet.recipes.settings import ScheduleSettings
from thumbnet.training.schedules import (
    done_at,
    factor_at,
    learning_rates,
    replanned,
    resize_at,
    size_at,
    sizes_after,
    smaller_sizes,
    trains_head_only,
)

SMALL = ScheduleSettings(small_until=0.5, small_sides=(0.625, 0.75))


def test_sizes_after_are_those_of_the_steps() -> None:
    small, middle, full = (20, 20), (24, 24), (32, 32)
    assert sizes_after(SMALL, 0.0, full) == [(0.25, small), (0.25, middle), (0.5, full)]
    (share, size), (last_share, last) = sizes_after(SMALL, 0.4, full)
    assert (size, last) == (middle, full)
    assert (share, last_share) == pytest.approx((1 / 6, 5 / 6))
    assert sizes_after(SMALL, 0.5, full) == sizes_after(SMALL, 1.0, full) == [(1.0, full)]
    assert sizes_after(ScheduleSettings(), 0.3, full) == [(1.0, full)]


@given(st.floats(0, 1), st.floats(0, 1), st.lists(st.floats(0.5, 1), max_size=4))
def test_shares_of_sizes_are_those_of_many_steps(done: float, until: float, sides: list[float]) -> None:
    settings = ScheduleSettings(small_until=until, small_sides=tuple(sides) or (0.75,))
    found = sizes_after(settings, done, (32, 32))
    assert sum(share for share, _ in found) == pytest.approx(1)
    points = [done + (1 - done) * (part + 0.5) / 2000 for part in range(2000)]
    expected = sum(size_at(settings, point, (32, 32))[0] for point in points) / 2000
    assert sum(share * side for share, (side, _) in found) == pytest.approx(expected, abs=0.05)


def test_multistep_equals_torchs_own_schedule_epoch_by_epoch() -> None:
    recipe = load_recipe("tutorial")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    torchs = torch.optim.lr_scheduler.MultiStepLR(optimizer, [150, 200], 0.1)
    for epoch in range(200):
        for step in (0, 390):
            factor = factor_at(recipe.schedule, epoch * 391 + step, 200 * 391)
            assert factor == pytest.approx(optimizer.param_groups[0]["lr"]), epoch
        optimizer.step()
        torchs.step()


def test_the_schedule_fills_what_the_head_leaves() -> None:
    plain = ScheduleSettings("cosine", warmup=0.25, start=0.1, end=0.02)
    first = replace(plain, head_first=0.2)
    assert [trains_head_only(first, step, 50) for step in range(50)] == [True] * 10 + [False] * 40
    assert not trains_head_only(plain, 0, 50)
    assert [factor_at(first, step, 50) for step in range(10)] == [1.0] * 10
    rest = [factor_at(first, 10 + step, 50) for step in range(40)]
    assert rest == pytest.approx([factor_at(plain, step, 40) for step in range(40)])
    stones = ScheduleSettings("multistep", milestones=(0.5,), head_first=0.2)
    assert [factor_at(stones, step, 10) for step in range(10)] == [1] * 6 + [0.1] * 4
    for wrong in (-0.1, 1.0):
        with pytest.raises(RecipeError, match=r"schedule\.head_first"):
            ScheduleSettings(head_first=wrong)


def test_a_milestone_falls_on_its_very_step() -> None:
    settings = ScheduleSettings("multistep", milestones=(0.3, 0.7), factor=0.5)
    factors = [factor_at(settings, step, 10) for step in range(10)]
    assert factors == [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]


def test_cosine_equals_torchs_own() -> None:
    settings = ScheduleSettings("cosine", end=0.1)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    torchs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.1)
    for step in range(50):
        assert factor_at(settings, step, 50) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        torchs.step()


def test_warm_up_rises_to_the_full_rate_and_linear_falls_to_the_end() -> None:
    settings = ScheduleSettings("linear", warmup=0.25, start=0.2, end=0.1)
    factors = [factor_at(settings, step, 400) for step in range(400)]
    assert factors[0] == pytest.approx(0.2, abs=0.01)
    assert factors[:100] == sorted(factors[:100])
    assert factors[100] == 1.0
    assert factors[100:] == sorted(factors[100:], reverse=True)
    assert factors[250] == pytest.approx(0.55)
    assert factors[-1] == pytest.approx(0.1, abs=0.01)


def test_one_cycle_rises_and_falls_along_half_a_cosine() -> None:
    settings = ScheduleSettings("one-cycle", warmup=0.5, start=0.2, end=0.1)
    factors = {step: factor_at(settings, step, 4000) for step in range(4000)}
    rising = {step: 0.2 + 0.8 * (1 - math.cos(math.pi * (step + 0.5) / 2000)) / 2 for step in range(2000)}
    assert {step: factors[step] for step in rising} == pytest.approx(rising)
    falling = {
        step: 0.1 + 0.9 * (1 + math.cos(math.pi * (step - 2000) / 2000)) / 2 for step in range(2000, 4000)
    }
    assert {step: factors[step] for step in falling} == pytest.approx(falling)


def test_only_one_cycle_warms_up_along_a_cosine() -> None:
    for name in ("constant", "cosine", "linear"):
        settings = ScheduleSettings(name, warmup=0.5, start=0.2)
        assert factor_at(settings, 500, 4000) == pytest.approx(0.2 + 0.8 * 0.25, abs=1e-3), name


@pytest.mark.parametrize("name", ["multistep", "cosine", "linear", "one-cycle"])
def test_a_schedule_begun_later_is_the_end_of_a_longer_one(name: str) -> None:
    """As --more-epochs has it: 100 steps that begin at 3/4 are the last 100 of 400."""
    stones = (0.8, 0.9) if name == "multistep" else ()
    whole = ScheduleSettings(name, milestones=stones, warmup=0.1, end=0.05)  # type: ignore[arg-type]
    last = replace(whole, begin_at=0.75)
    expected = [factor_at(whole, 300 + step, 400) for step in range(100)]
    assert [factor_at(last, step, 100) for step in range(100)] == pytest.approx(expected)


@given(
    name=st.sampled_from(["constant", "multistep", "cosine", "linear", "one-cycle"]),
    warmup=st.floats(0, 0.9),
    start=st.floats(0, 1),
    end=st.floats(0, 1),
    total=st.integers(1, 300),
)
def test_every_schedule_stays_within_its_bounds_at_every_step(
    name: str, warmup: float, start: float, end: float, total: int
) -> None:
    settings = ScheduleSettings(
        name=name,  # type: ignore[arg-type]
        milestones=(0.5,) if name == "multistep" else (),
        warmup=warmup,
        start=start,
        end=end,
    )
    for step in range(total):
        assert 0 <= factor_at(settings, step, total) <= 1 + 1e-12


@pytest.mark.parametrize("name", ["tutorial", "one-cycle", "fast"])
def test_a_schedule_scales_with_the_number_of_epochs(name: str) -> None:
    schedule = load_recipe(name).schedule
    long = [factor_at(schedule, step, 1000) for step in range(0, 1000, 10)]
    short = [factor_at(schedule, step, 100) for step in range(100)]
    assert short == pytest.approx(long, abs=0.05)


def test_pictures_are_small_until_they_are_not() -> None:
    settings = ScheduleSettings(small_sides=(0.75,), small_until=0.5)
    images = torch.rand(2, 3, 32, 48).contiguous(memory_format=torch.channels_last)
    sizes = [resize_at(settings, images, step, 10).shape[-2:] for step in range(10)]
    assert sizes == [(24, 36)] * 5 + [(32, 48)] * 5
    small = resize_at(settings, images, 0, 10)
    assert small.mean() == pytest.approx(float(images.mean()), abs=0.01)
    assert resize_at(settings, torch.rand(1, 3, 18, 24), 0, 10).shape[-2:] == (16, 21)  # not below 16
    assert resize_at(ScheduleSettings(), images, 0, 10) is images


def test_smaller_pictures_are_antialiased_so_that_fine_stripes_become_grey() -> None:
    settings = ScheduleSettings(small_sides=(0.5,), small_until=1.0)
    stripes = (torch.arange(32) % 2).float().expand(1, 3, 32, 32)
    small = resize_at(settings, stripes, 0, 10)
    assert small.shape[-2:] == (16, 16)
    inner = small[..., 2:-2, 2:-2]
    assert float((inner - 0.5).abs().max()) < 0.01
    wide = resize_at(ScheduleSettings(small_sides=(0.75,), small_until=1.0), stripes, 0, 10)
    assert float(wide[..., 2:-2].std()) < 0.2  # 0.28 without antialiasing, 0.11 with it


def test_pictures_below_the_smallest_side_stay_as_they_are() -> None:
    settings = ScheduleSettings(small_sides=(0.5,), small_until=1.0)
    images = torch.rand(1, 3, 12, 40)
    assert resize_at(settings, images, 0, 10) is images


def test_pictures_grow_in_equal_steps() -> None:
    settings = ScheduleSettings(small_sides=(0.5, 0.625, 0.75), small_until=0.6)
    images = torch.rand(1, 3, 32, 32)
    sides = [resize_at(settings, images, step, 10).shape[-1] for step in range(10)]
    assert sides == [16, 16, 20, 20, 24, 24, 32, 32, 32, 32]


@pytest.mark.parametrize("sides", [[], [0.0], [0.5, 1.5], [-0.5]])
def test_sides_that_cannot_be_are_refused(sides: list[float]) -> None:
    with pytest.raises(RecipeError, match=r"schedule\.small_sides"):
        load_recipe("fast", [f"schedule.small_sides={sides}"])


def test_a_changed_plan_keeps_what_was_done_and_ends_at_the_end() -> None:
    plan = ScheduleSettings(name="linear")
    later = replanned(plan, 40, 100, 60)
    assert (later.planned_at, later.planned_steps) == ((0, 40), (100, 60))
    assert [done_at(later, step, 60) for step in (0, 20, 40)] == [0.0, 0.2, 0.4]
    assert done_at(later, 50, 60) == pytest.approx(0.7)
    assert done_at(later, 60, 60) == pytest.approx(1.0)
    again = replanned(later, 50, 60, 80)
    assert again.planned_at == (0, 40, 50)
    assert done_at(again, 65, 80) == pytest.approx(0.85)
    assert done_at(again, 80, 80) == pytest.approx(1.0)
    assert replanned(again, 50, 80, 70).planned_steps == (100, 60, 70)  # decided anew at the same step
    for step in range(80):
        assert factor_at(again, step + 1, 80) < factor_at(again, step, 80)


def test_the_size_of_pictures_follows_the_changed_plan() -> None:
    plan = ScheduleSettings(small_until=0.5, small_sides=(0.625, 0.75))
    later = replanned(plan, 20, 100, 52)
    sides = [resize_at(later, torch.zeros(1, 3, 32, 32), step, 52).shape[-1] for step in range(52)]
    assert sides == [20] * 22 + [24] * 10 + [32] * 20


@pytest.mark.parametrize(
    ("at", "steps"),
    [((0,), ()), ((5,), (10,)), ((0, 5), (10, 5)), ((0, 12), (10, 20)), ((0, 5, 5), (9, 8, 7))],
)
def test_a_plan_that_cannot_be_is_refused(at: tuple[int, ...], steps: tuple[int, ...]) -> None:
    with pytest.raises(RecipeError, match=r"schedule\.planned_"):
        ScheduleSettings(planned_at=at, planned_steps=steps)


def test_the_figure_of_a_changed_plan_has_its_kink() -> None:
    recipe = load_recipe("fast", ["schedule.planned_at=[0,50]", "schedule.planned_steps=[100,60]"])
    epochs, rates = learning_rates(recipe, 60)
    assert len(epochs) == len(rates) == 60
    assert rates[50] == pytest.approx(0.1, rel=0.15)
    assert rates[59] < 0.02
    assert learning_rates(load_recipe("fast"), 50)[1][25] == pytest.approx(0.1, rel=0.03)
    assert learning_rates(load_recipe("fast"), 50)[0][25] == pytest.approx(7.5)  # half of 15 epochs


def test_a_constant_rate_stays_at_its_full_height() -> None:
    assert [factor_at(ScheduleSettings(name="constant"), step, 10) for step in range(10)] == [1.0] * 10


def test_the_smaller_sizes_are_those_that_a_training_really_uses() -> None:
    settings = ScheduleSettings(small_until=0.5, small_sides=(0.625, 0.75, 1.0))
    assert smaller_sizes(settings, (32, 48)) == [(20, 30), (24, 36)]
    assert smaller_sizes(replace(settings, begin_at=0.4), (32, 32)) == [(20, 20), (24, 24)]
    assert smaller_sizes(replace(settings, begin_at=0.5), (32, 32)) == []
    assert smaller_sizes(ScheduleSettings(), (32, 32)) == []
