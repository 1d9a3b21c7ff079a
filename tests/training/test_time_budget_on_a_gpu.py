"""A GPU does its steps later than the host queues them, and ``--minutes`` must not take that for speed."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from helpers import coloured_data
from thumbnet.batches.prepare import prepare
from thumbnet.distributed import ALONE
from thumbnet.models import build_model
from thumbnet.recipes.recipe import load_recipe
from thumbnet.training.epochs import EpochResult
from thumbnet.training.fit import LOOK_EVERY
from thumbnet.training.speed import Speed
from thumbnet.training.state import TrainingState
from thumbnet.training.time_budget import TimeBudget, costs, fit_steps
from training_helpers import Clock

CPU = torch.device("cpu")
STEP = 0.03  # seconds


def test_steps_that_are_queued_but_not_done_do_not_make_the_plan_longer() -> None:
    """As in graphed steps, the host runs up to 40 steps ahead. The GPU is as fast as it was measured."""
    sizes = [(side, side) for side in (20, 24, 32)]
    speed = Speed(dict.fromkeys(sizes, 0.0), STEP, 0.0)
    settings = ["training.batch_size=3", "training.min_steps=0", "model.width=0.125"]
    recipe = load_recipe("fast", settings)
    prepared = prepare(coloured_data(400, 32), recipe, CPU)
    recipe = fit_steps(recipe, prepared, speed, 60.0)
    clock = Clock()
    budget = TimeBudget(1.0, clock(), clock=clock)
    budget._costs = costs(recipe, prepared, speed)
    steps_per_epoch = len(prepared.with_recipe(recipe).train)
    assert steps_per_epoch > 3 * LOOK_EVERY
    state = TrainingState(build_model(recipe.model, 3), recipe, steps_per_epoch, CPU)
    done = [clock()]  # when the GPU has done each step

    def wait_for(step: int) -> None:
        clock.now = max(clock.now, done[step])

    state.hits = SimpleNamespace(  # type: ignore[assignment]
        item=lambda: wait_for(state.step), zero_=lambda: None
    )
    notes = []
    while not state.is_over:
        done.append(max(clock.now, done[-1]) + STEP)
        state.step += 1
        if state.epoch_is_over:
            wait_for(state.step)
        elif state.step_in_epoch % LOOK_EVERY == 0 and state.step_in_epoch > LOOK_EVERY:
            wait_for(state.step - LOOK_EVERY)
        notes.append(budget.after_step(state, ALONE))
        if state.epoch_is_over:
            state.close_epoch(EpochResult(state.epoch + 1, state.step, 1.0, 0.1, 1.0, 1.0, None))
    assert state.step > 1000
    assert set(notes) == {None}
    assert state.recipe == recipe
