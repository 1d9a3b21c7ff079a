from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch

from helpers import TINY, coloured_data
from thumbnet.batches.prepare import Prepared, prepare
from thumbnet.classifiers.logits import collect_logits
from thumbnet.distributed import ALONE, World
from thumbnet.errors import InterruptedRunError, OutOfMemoryError, RecipeError
from thumbnet.models import build_model
from thumbnet.recipes.recipe import Recipe, load_recipe
from thumbnet.runs.folder import Run
from thumbnet.training import time_budget
from thumbnet.training.build import build_state
from thumbnet.training.choose import choose_recipe
from thumbnet.training.epochs import EpochResult
from thumbnet.training.fit import StepResult
from thumbnet.training.listener import Listener
from thumbnet.training.results import measure
from thumbnet.training.schedules import done_at, factor_at, trains_head_only
from thumbnet.training.speed import Speed, slowdown
from thumbnet.training.state import TrainingState
from thumbnet.training.time_budget import (
    AT_THE_END,
    LEAST_STEPS,
    TimeBudget,
    check_minutes,
    costs,
    fit_steps,
    may_choose_width,
    may_watch_less,
    suitable_width,
    watch_less,
)
from thumbnet.training.train import resume, train
from training_helpers import Clock, Noting, StopAfter

CPU = torch.device("cpu")
SPEED = Speed({(16, 16): 0.001, (20, 20): 0.002, (24, 24): 0.003, (32, 32): 0.004}, 0.01, 0.0005)
QUICK = ["model.width=0.125", "data.engine=memory", "training.precision=fp32"]


def prepared_for(recipe: Recipe, count: int = 400, side: int = 32) -> Prepared:
    return prepare(coloured_data(count, side), recipe, CPU)


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return prepared_for(load_recipe("fast", ["training.batch_size=20"]))


def simulate(
    recipe: Recipe,
    prepared: Prepared,
    budget: TimeBudget,
    clock: Clock,
    slowness: Callable[[float], float],
    speed: Speed = SPEED,
) -> tuple[TrainingState, list[str]]:
    """Pretend to train: each step takes what it costs, times ``slowness`` at that time."""
    found = costs(recipe, prepared, speed)
    budget._costs = found
    train = prepared.with_recipe(recipe).train
    state = TrainingState(build_model(recipe.model, 3), recipe, len(train), CPU)
    notes = []
    while not state.is_over:
        done = done_at(state.recipe.schedule, state.step + 0.5, state.total_steps)
        size = (20, 20) if done < 0.25 else (24, 24) if done < 0.5 else (32, 32)
        cost = speed.step(size, found.batch_size)
        if trains_head_only(state.recipe.schedule, state.step, state.total_steps):
            cost *= 0.3  # there is no backward pass through the other layers
        clock.now += cost * slowness(clock.now)
        state.step += 1
        note = budget.after_step(state, ALONE)
        notes += [note] if note else []
        if state.epoch_is_over:
            clock.now += found.per_epoch * slowness(clock.now)
            result = EpochResult(state.epoch + 1, state.step, 1.0, 0.1, 1.0, 1.0, None)
            state.close_epoch(result)
    clock.now += found.at_the_end * slowness(clock.now)
    return state, notes


@pytest.mark.parametrize(
    ("slowness", "told"),
    [
        (lambda now: 1.0, False),
        (lambda now: 2.0, True),
        (lambda now: 0.4, True),
        (lambda now: 1.0 if now < 150 else 3.0, True),
        (lambda now: 3.0 if now < 150 else 1.0, True),
        (lambda now: 0.9 + 0.2 * (int(now) % 2), False),
        (lambda now: 30.0 if now == 105 else 1.0, False),
        (lambda now: 100.0 if 105.1 < now < 111 else 1.0, True),
        (lambda now: 1000.0 if 120 < now < 121 else 1.0, True),
        (lambda now: 8.0 if int(now) % 11 == 0 else 1.2, True),
    ],
    ids=[
        "as measured",
        "twice as slow",
        "faster",
        "slower later",
        "faster later",
        "noisy",
        "slow first step",
        "held up at first",
        "held up for a minute",
        "held up now and then",
    ],
)
def test_the_training_ends_in_time_and_at_the_end_of_its_schedule(
    slowness: Callable[[float], float], told: bool, prepared: Prepared
) -> None:
    clock = Clock()
    budget = TimeBudget(2.0, clock(), clock=clock)
    recipe = load_recipe("fast", ["training.batch_size=20", "training.min_steps=0"])
    recipe = fit_steps(recipe, prepared, SPEED, 115.0)
    clock.now += 5.0  # for the start
    state, notes = simulate(recipe, prepared, budget, clock, slowness)
    assert clock.now == pytest.approx(100 + 120, abs=0.03 * 120)
    assert factor_at(state.recipe.schedule, state.step - 1, state.total_steps) < 0.02
    assert done_at(state.recipe.schedule, state.step, state.total_steps) == pytest.approx(1.0)
    assert state.recipe.training.steps in (state.step, recipe.training.steps)
    assert bool(notes) == told
    assert len(state.recipe.schedule.planned_at) < 1 / 0.04


def test_the_plan_stays_where_evaluations_take_as_long_as_planned() -> None:
    """Steps take 4 s and evaluations 12 s, each longer than the time between two looks at the clock."""
    settings = ["training.batch_size=9", "training.min_steps=0", "data.skip_easy=0", "evaluation.every=1"]
    recipe = load_recipe("fast", [*settings, "evaluation.tta=none"])
    prepared = prepared_for(recipe)
    speed = Speed({(20, 20): 4 / 9, (24, 24): 4 / 9, (32, 32): 4 / 9}, 0.0, 12 / 400)
    recipe = fit_steps(recipe, prepared, speed, 600.0)
    assert recipe.training.epochs > 2
    clock = Clock()
    budget = TimeBudget(10.0, clock(), clock=clock)
    state, notes = simulate(recipe, prepared, budget, clock, lambda _: 1.0, speed)
    assert (notes, state.recipe) == ([], recipe)


def test_several_processes_change_the_plan_only_where_they_meet_and_as_the_first_decides(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe("fast", ["training.batch_size=20", "training.min_steps=0"])
    asked: list[int | None] = []

    def from_first(world: World, value: int | None) -> int | None:
        asked.append(value)
        return 777 if world.rank else value

    monkeypatch.setattr(World, "from_first", from_first)
    for rank in (0, 1):
        clock = Clock()
        budget = TimeBudget(2.0, clock(), clock=clock)
        recipe = fit_steps(recipe, prepared, SPEED, 120.0)
        budget._costs = costs(recipe, prepared, SPEED)
        train = prepared.with_recipe(recipe).train
        state = TrainingState(build_model(recipe.model, 3), recipe, len(train), CPU)
        before = state.total_steps
        for state.step in range(1, 101):
            clock.now += 0.5  # far slower than planned
            assert budget.after_step(state, World(rank, 2), meeting=False) is None
        assert (asked, state.total_steps) == ([], before)
        budget.after_step(state, World(rank, 2), meeting=True)
        assert state.total_steps == (777 if rank else asked[0])
        assert (asked[0] is None) == bool(rank)
        asked.clear()


@pytest.mark.parametrize(
    ("slowness", "told"),
    [
        (1.0, "training only the last layer took less time than planned: "),
        (3.0, "the computer is slower now: "),
    ],
)
def test_the_first_part_of_the_last_layer_alone_says_nothing_about_the_computer(
    slowness: float, told: str, prepared: Prepared
) -> None:
    clock = Clock()
    settings = ["training.batch_size=20", "training.min_steps=0", "schedule.head_first=0.4"]
    recipe = fit_steps(load_recipe("fast", settings), prepared, SPEED, 120.0)
    budget = TimeBudget(2.0, clock(), clock=clock)
    state, notes = simulate(recipe, prepared, budget, clock, lambda _: slowness)
    assert clock.now == pytest.approx(100 + 120, abs=0.03 * 120)
    assert notes
    assert all(note.startswith(told) for note in notes)
    schedule = state.recipe.schedule
    alone = sum(trains_head_only(schedule, step, state.total_steps) for step in range(state.step))
    assert alone == pytest.approx(0.4 * recipe.training.steps, abs=1)


def test_a_time_that_is_too_short_still_has_the_fewest_steps(prepared: Prepared) -> None:
    clock = Clock()
    recipe = load_recipe("fast", ["training.batch_size=20", "training.min_steps=0"])
    recipe = fit_steps(recipe, prepared, SPEED, -14.0)
    budget = TimeBudget(0.1, clock() - 20.0, clock=clock)
    state, notes = simulate(recipe, prepared, budget, clock, lambda _: 30.0)
    assert (state.step, state.recipe, notes) == (LEAST_STEPS, recipe, [])


def test_a_recipe_that_was_planned_before_is_planned_anew(prepared: Prepared) -> None:
    settings = ["training.batch_size=20", "training.min_steps=0"]
    plan = ["training.steps=60", "schedule.planned_at=[0,30]", "schedule.planned_steps=[50,60]"]
    found = [
        fit_steps(load_recipe("fast", [*settings, *more]), prepared, SPEED, 100.0) for more in ([], plan)
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "splits", [("train",), ("train", "test"), ("train", "val"), ("train", "val", "test")]
)
@pytest.mark.parametrize("aside", [0, 500])
def test_the_end_costs_what_the_final_measurement_computes(splits: tuple[str, ...], aside: int) -> None:
    settings = ["evaluation.tta=mirror-shift", f"data.calibration_pictures={aside}"]
    recipe = load_recipe("one-cycle", [*TINY, *settings])
    data = coloured_data(60, splits=splits)
    prepared = prepare(data, recipe, CPU)
    state = build_state(recipe, prepared, data.class_names, CPU)
    seen: list[int] = []
    state.model.register_forward_hook(lambda model, images, logits: seen.append(len(logits)))
    planned = costs(recipe, prepared, Speed({(16, 16): 0.0}, 0.0, 1.0)).at_the_end - AT_THE_END
    known: tuple[str, torch.Tensor] | None = None
    evaluation = 0
    if prepared.watched is not None:  # the evaluation after the last epoch
        batches = prepared.evaluation[prepared.watched]
        known = prepared.watched, collect_logits(state.model, batches, dtype=state.dtype)[0]
        evaluation = sum(seen)
    measured = measure(state.model, state, prepared, data.class_names, None)
    assert sum(seen) == planned
    seen.clear()
    assert measure(state.model, state, prepared, data.class_names, known) == measured
    assert sum(seen) == planned - 2 * evaluation


def test_the_note_says_that_the_computer_became_slower(prepared: Prepared) -> None:
    clock = Clock()
    recipe = fit_steps(load_recipe("fast", ["training.batch_size=20"]), prepared, SPEED, 120.0)
    _, notes = simulate(recipe, prepared, TimeBudget(2.0, clock(), clock=clock), clock, lambda _: 2.0)
    assert notes[0].startswith("the computer is slower now: ")
    assert notes[0].endswith(", to end in time")


def test_as_many_steps_are_planned_as_fit_into_the_time(prepared: Prepared) -> None:
    recipe = load_recipe("fast", ["training.batch_size=20", "training.min_steps=0", "evaluation.every=0"])
    chosen = fit_steps(recipe, prepared, SPEED, 100.0)
    mean = 20 * (0.25 * 0.002 + 0.25 * 0.003 + 0.5 * 0.004) + 0.01
    at_the_end = (3.5 * 400 + 400) * 0.0005 + 1.0  # adaptive test-time augmentation, and all pictures once
    per_step = mean + 400 * 0.0005 * 20 / 268  # a sample of up to 1,000 pictures after each of 268
    assert chosen.training.steps == pytest.approx((100 - at_the_end) / per_step, abs=1)
    steps_per_epoch = 268 // 20
    assert chosen.training.epochs == -(-chosen.training.steps // steps_per_epoch)


@pytest.mark.parametrize(
    ("settings", "every", "sample"),
    [
        # An epoch of 268 pictures takes 1.005 s, and looking at all 400 test pictures 0.2 s.
        (["evaluation.every=1"], 2, 0),
        (["evaluation.every=4"], 4, 0),  # three times of four, a sample of all of them
        (["evaluation.every=0"], 0, 0),
        (["evaluation.every=4", "evaluation.sample=50"], 4, 50),
        (["evaluation.every=3", "evaluation.sample=0"], 3, 0),
    ],
)
def test_evaluations_take_a_tenth_of_the_time_at_most(
    prepared: Prepared, settings: list[str], every: int, sample: int
) -> None:
    recipe = load_recipe("fast", ["training.batch_size=20", "training.min_steps=0", *settings])
    chosen = watch_less(recipe, prepared, SPEED)
    assert (chosen.evaluation.every, chosen.evaluation.sample) == (every, sample)
    found = costs(chosen, prepared, SPEED)
    assert found.per_epoch <= 0.1 * found.mean_step() * 268 / 20
    evaluation = replace(recipe.evaluation, every=every, sample=sample)
    assert chosen == replace(recipe, evaluation=evaluation)  # nothing else changes


def test_evaluations_stay_as_the_user_wants_them() -> None:
    recipe = load_recipe("small")
    assert may_watch_less({"seed"}, recipe)
    assert not may_watch_less({"evaluation.every"}, recipe)
    assert not may_watch_less({"evaluation.sample"}, recipe)
    for choice in ("patience=5", "keep=best", "choose_by=loss"):
        assert not may_watch_less(set(), load_recipe("small", [f"training.{choice}"]))


def test_the_plan_says_how_often_it_evaluates(prepared: Prepared) -> None:
    recipe = load_recipe("small", [*QUICK, "training.batch_size=20", "evaluation.batch_size=1"])
    budget = TimeBudget(2.0, time.perf_counter(), may_watch_less=True)
    slow = Speed({(32, 32): 0.004}, 0.01, 0.004)
    with mock.patch.object(time_budget, "measure_speed", return_value=slow):
        chosen, note = budget.plan(recipe, prepared, 3, CPU)
    assert chosen.evaluation.every > 1
    assert note.endswith(f", evaluated every {chosen.evaluation.every} epochs")
    with mock.patch.object(time_budget, "measure_speed", return_value=slow):
        budget = TimeBudget(2.0, time.perf_counter())
        assert budget.plan(recipe, prepared, 3, CPU)[0].evaluation == recipe.evaluation


def test_batches_become_smaller_where_there_would_be_too_few_steps(prepared: Prepared) -> None:
    recipe = load_recipe("fast", ["training.batch_size=200", "training.min_steps=130", "evaluation.sample=0"])
    chosen = fit_steps(recipe, prepared, SPEED, 20.0)
    assert 32 <= chosen.training.batch_size < 200
    assert chosen.training.steps >= 125
    factor = (chosen.training.batch_size / 200) ** 0.5
    assert chosen.optimizer.lr == pytest.approx(recipe.optimizer.lr * factor)
    assert fit_steps(recipe, prepared, SPEED, 0.5).training.steps == LEAST_STEPS
    free = recipe.override(["training.min_steps=0"])
    assert fit_steps(free, prepared, SPEED, 0.5).training.steps == LEAST_STEPS


def test_a_batch_size_that_an_option_names_stays(prepared: Prepared) -> None:
    named = ["training.batch_size=200"]
    recipe, _ = choose_recipe(coloured_data(400, 32), "fast", named, None, Listener())
    chosen = fit_steps(recipe, prepared, SPEED, 20.0)
    assert chosen.training.steps < 130  # the recipe's training.min_steps
    assert chosen.training.batch_size == 200
    assert chosen.optimizer == load_recipe("fast").optimizer


def test_it_says_that_the_time_changes_a_rate_that_an_option_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Begun(Exception):
        pass

    def plan(self: TimeBudget, recipe: Recipe, *_: object) -> tuple[Recipe, str]:
        return recipe.with_batch_size(8), "planned"

    def begin(*_: object, **__: object) -> TrainingState:
        raise Begun

    monkeypatch.setattr(TimeBudget, "plan", plan)
    monkeypatch.setattr("thumbnet.training.train.build_state", begin)
    for overrides, warned in ((["optimizer.lr=0.1"], 1), (["seed=1"], 0)):
        listener = Noting(1)
        with pytest.raises(Begun):
            train(
                coloured_data(),
                "tutorial",
                overrides=overrides,
                minutes=1,
                out=tmp_path / "run",
                device="cpu",
                listener=listener,
            )
        assert "planned" in listener.notes
        told = [note for note in listener.notes if "optimizer.lr is 0.025, not 0.1" in note]
        assert len(told) == warned


def test_a_time_that_is_over_before_the_first_step_gets_the_fewest_steps(prepared: Prepared) -> None:
    recipe = load_recipe("fast", ["training.batch_size=20", "training.min_steps=0"])
    assert fit_steps(recipe, prepared, SPEED, -5.0).training.steps == LEAST_STEPS


def test_a_batch_larger_than_an_epoch_is_planned_as_it_will_be(prepared: Prepared) -> None:
    def planned(batch_size: int) -> tuple[int, int, float]:
        settings = [f"training.batch_size={batch_size}", "training.min_steps=0", "data.skip_easy=0"]
        recipe = fit_steps(load_recipe("fast", settings), prepared, SPEED, 600.0)
        return recipe.training.steps, recipe.training.epochs, suitable_width(recipe, prepared.train.count)

    assert planned(5_000) == planned(prepared.train.count)
    assert planned(5_000)[0] > LEAST_STEPS


def test_a_planned_recipe_is_not_fitted_again(prepared: Prepared) -> None:
    chosen = fit_steps(load_recipe("fast"), prepared, SPEED, 20.0)
    assert chosen.fitted(400) == chosen


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_a_time_that_is_none_is_refused(minutes: float) -> None:
    with pytest.raises(RecipeError, match="expected a number of minutes"):
        check_minutes(minutes)


def test_time_and_length_cannot_both_be_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"training\.epochs and --minutes cannot go together"):
        train(coloured_data(), "fast", overrides=["training.epochs=3"], minutes=1, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_only_fastnets_width_is_chosen_and_only_if_the_user_has_not() -> None:
    fast = load_recipe("fast")
    assert may_choose_width(None, [], fast)
    assert may_choose_width("fast", ["seed"], fast)
    assert not may_choose_width("fast", ["model.width"], fast)
    assert not may_choose_width("my.toml", [], fast)
    assert not may_choose_width(fast, [], fast)
    assert not may_choose_width("one-cycle", [], load_recipe("one-cycle"))
    begun = load_recipe("fast", ["training.init=/a/run"])  # its weights have a width
    assert not may_choose_width("fast", ["training.init"], begun)


def test_a_recipe_of_ones_own_becomes_wider_only_if_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Begun(Exception):
        pass

    def plan(self: TimeBudget, recipe: Recipe, *_: object) -> tuple[Recipe, str]:
        raise Begun(self.least_width)

    monkeypatch.setattr(TimeBudget, "plan", plan)
    own = load_recipe("fast", ["model.width=1.25"])
    cases: list[tuple[Recipe | str, bool, float | None]] = [
        (own, False, None), (own, True, 1.25), ("fast", False, 0.0),
    ]  # fmt: skip
    for recipe, may_widen, least in cases:
        with pytest.raises(Begun) as begun:
            train(coloured_data(), recipe, minutes=1, may_widen=may_widen, out=tmp_path / "run", device="cpu")
        assert begun.value.args == (least,)


def test_a_repeat_and_a_resume_do_what_was_planned_without_a_clock(tmp_path: Path) -> None:
    data = coloured_data(200)
    stop = Noting(1)  # before the first look at the clock, which may shorten the plan
    with pytest.raises(InterruptedRunError):
        train(data, "fast", overrides=QUICK, minutes=0.04, out=tmp_path / "run", device="cpu", listener=stop)
    assert any("0.04 minute(s)" in note for note in stop.notes)
    run = resume(tmp_path / "run", data=data, device="cpu")
    recipe = run.recipe
    assert recipe.training.steps >= LEAST_STEPS
    assert run.settings["minutes"] == 0.04
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert f'"step": {recipe.training.steps}' in lines[-1]
    again = train(data, recipe, out=tmp_path / "again", device="cpu")
    assert again.recipe == recipe
    assert torch.equal(weights(again), weights(run))


def weights(run: Run) -> torch.Tensor:
    from safetensors.torch import load_file

    return torch.cat([tensor.double().flatten() for tensor in load_file(run.weights_path).values()])


def test_a_plan_that_was_changed_is_followed_to_the_bit(tmp_path: Path) -> None:
    """The recipe that a changed plan leaves gives the same training from its start."""
    data = coloured_data(200)
    recipe = load_recipe("fast", [*QUICK, "training.batch_size=20", "training.steps=30", "training.epochs=5"])
    changed = replace(
        recipe,
        training=replace(recipe.training, steps=24),
        schedule=replace(recipe.schedule, planned_at=(0, 12, 18), planned_steps=(30, 20, 24)),
    )

    class Replan(StopAfter):
        def on_start(self, run: Run, state: TrainingState, prepared: Prepared) -> None:
            self.state = state

        def on_step(self, step: StepResult) -> None:
            super().on_step(step)
            if step.step in (12, 18):
                self.state.replan({12: 20, 18: 24}[step.step])

    first = train(data, recipe, out=tmp_path / "a", device="cpu", listener=Replan(1000))
    second = train(data, changed, out=tmp_path / "b", device="cpu")
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(train(data, recipe, out=tmp_path / "c", device="cpu")))


@pytest.mark.parametrize(
    ("steps", "pictures", "width"),
    [
        (10, 50_000, 0.5),
        (164, 50_000, 0.5),
        (166, 50_000, 1),
        (650, 50_000, 1),
        (670, 50_000, 1.5),
        (50, 2_000, 0.5),
        (70, 2_000, 1),
        (230, 2_000, 1),
        (250, 2_000, 1.5),
    ],
)
def test_the_width_depends_on_the_pictures_shown(steps: int, pictures: int, width: float) -> None:
    recipe = load_recipe("fast", [f"training.steps={steps}", "training.batch_size=1000"])
    assert suitable_width(recipe, pictures) == width
    wide = replace(recipe, model=replace(recipe.model, width=2.0))  # the same time is enough for fewer steps
    wide = replace(wide, training=replace(wide.training, steps=round(steps / slowdown(2.0, 1.0))))
    assert suitable_width(wide, pictures) == width


@pytest.mark.parametrize(
    ("minutes", "too_wide", "tried", "width"),
    [
        (0.2, 9.0, [1.0, 0.5], 0.5),
        (2.0, 9.0, [1.0], 1.0),
        (20.0, 9.0, [1.0, 1.5], 1.5),
        (20.0, 1.5, [1.0, 1.5], 1.0),  # it does not fit into the memory
    ],
)
def test_a_plan_has_the_width_that_suits_the_time(
    prepared: Prepared,
    monkeypatch: pytest.MonkeyPatch,
    minutes: float,
    too_wide: float,
    tried: list[float],
    width: float,
) -> None:
    widths: list[float] = []

    def measured(recipe: Recipe, *_: object) -> Speed:
        widths.append(recipe.model.width)
        if recipe.model.width >= too_wide:
            raise OutOfMemoryError("cuda", "measuring the speed", "no advice")
        cost = recipe.model.width**2
        return Speed({size: cost * seconds / 4 for size, seconds in SPEED.per_picture.items()}, 0.01, 1e-9)

    monkeypatch.setattr(time_budget, "measure_speed", measured)
    fast, clock = load_recipe("fast"), Clock()
    budget = TimeBudget(minutes, clock(), least_width=0.0, clock=clock)
    recipe, note = budget.plan(fast, prepared, 3, CPU)
    assert widths == tried
    assert recipe.model.width == width
    assert f"of width {width:g}" in note
    # The steps are those of the chosen width, and so is the speed that the training is compared with.
    found = costs(recipe, prepared, measured(recipe))
    assert budget._costs == found
    took = found.mean_step() * recipe.training.steps + found.at_the_end
    assert took == pytest.approx(60 * minutes, rel=0.05)

    widths.clear()
    wider = replace(fast, model=replace(fast.model, width=1.25))
    kept, _ = TimeBudget(minutes, clock(), least_width=1.25, clock=clock).plan(wider, prepared, 3, CPU)
    assert kept.model.width == max(width, 1.25)  # never narrower

    widths.clear()
    as_asked, note = TimeBudget(minutes, clock(), clock=clock).plan(fast, prepared, 3, CPU)
    assert (widths, as_asked.model.width) == ([1.0], 1.0)
    assert "of width" not in note
