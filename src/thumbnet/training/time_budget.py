"""Plan a training that ends after a given wall time, and keep to the plan.

``thumbnet train DATA --minutes M`` measures for a few seconds how long a step takes, and chooses how many
steps, and how wide a network, fit into what is left of M minutes after decoding and before the final
evaluation. While the training runs, :class:`TimeBudget` compares its pace with the measured one. If the end
moves away from M minutes, because other work slows the computer down or has ended, it changes the number of
steps. The learning rate then falls to its end over the steps that are left; the schedule is never cut off.

What was chosen, first and later, is in the run's recipe (``training.steps``, ``schedule.planned_at``), so a
resumed or repeated run does exactly the same without a clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from thumbnet.batches.prepare import Prepared
from thumbnet.distributed import World
from thumbnet.errors import OutOfMemoryError, RecipeError
from thumbnet.recipes.recipe import Recipe, recipe_names
from thumbnet.recipes.settings import SMALLEST_BATCH, ScheduleSettings, kept_per_epoch
from thumbnet.training.schedules import done_at, size_at, sizes_after, trains_head_only
from thumbnet.training.speed import (
    LONGEST_BATCH,
    Size,
    Speed,
    batch_of,
    measure_speed,
    own_batch,
    slowdown,
)
from thumbnet.training.state import TrainingState

LONGEST = 60 * 24 * 30  # minutes: a month
LONGEST_PART = 0.01  # of the budget that a batch may take while the speed is measured
LEAST_STEPS = 10
# The width that makes the best use of the time, from so many pictures on, which width 1 would be shown of
# 50,000 in that time; see :func:`suitable_width`.
WIDTHS = {0.5: 0, 1.0: 165_000, 1.5: 660_000}
UNSURE = 0.5  # share of pictures that adaptive test-time augmentation looks at in all views, at a guess
VIEWS = {"none": 1.0, "mirror": 2.0, "mirror-shift": 6.0, "adaptive": 1.0 + 5 * UNSURE}
WATCHING = 0.1  # the most that evaluations on the way take, as a share of the time of the steps
AT_THE_END = 1.0  # seconds for writing, comparing and the rest after the last evaluation
CHECK_SECONDS = 1.0  # between two looks at the clock
MEMORY = 0.1  # of the budget, at least SHORTEST_MEMORY seconds: after it, a look counts for e times less
SHORTEST_MEMORY = 10.0
TRUST = 0.3  # of the memory: the time for which the measured speed counts at the start
TOLERANCE = 0.015  # of the budget: how far the end may move before the plan changes
NOTED = 0.1  # relative change in the number of steps from which the user is told
SELDOM = 0.04  # of the budget: the least time between two changes of the plan
LAST_CHANGE = 0.97  # of the schedule: afterwards the plan stays


def check_minutes(minutes: float) -> None:
    """Check a budget.

    Raises:
        RecipeError: not a positive number, or more than a month.
    """
    if not (math.isfinite(minutes) and 0 < minutes <= LONGEST):
        raise RecipeError(
            f"--minutes {minutes:g}: expected a number of minutes, above 0 and at most {LONGEST:,}"
        )


def check_free_of_length(overrides: Sequence[str]) -> None:
    """Check that no setting names the training's length, which the time decides.

    Raises:
        RecipeError: one does.
    """
    for assignment in overrides:
        key = assignment.partition("=")[0].strip()
        if key in ("training.epochs", "training.steps"):
            raise RecipeError(f"{key} and --minutes cannot go together: the time decides how long to train")


def may_choose_width(asked: str | Path | Recipe | None, named: Collection[str], recipe: Recipe) -> bool:
    """Whether the network's width may be chosen: FastNet's, unless the user names it or brings a recipe.

    Initial weights (``training.init``) have a width already.
    """
    own = asked is not None and asked not in recipe_names()
    return (
        recipe.model.name == "fastnet"
        and recipe.model.width == 1
        and "model.width" not in named
        and not own
        and not recipe.training.init
    )


def may_watch_less(named: Collection[str], recipe: Recipe) -> bool:
    """Whether evaluations on the way may become fewer: unless the user names them, or they must choose."""
    named_here = {"evaluation.every", "evaluation.sample"}.intersection(named)
    return not named_here and not recipe.training.must_choose


def suitable_width(recipe: Recipe, pictures: int) -> float:
    """The width of FastNet that reaches the most in the time that ``recipe`` takes.

    With 50,000 pictures, half the width reached more below 165,000 pictures shown to a network of width 1.
    One and a half times the width drew level at about 594,000 (18 epochs) and is taken from 660,000 (20
    epochs) on. With 2,000 pictures, the limits are 60,000 and 240,000 (docs/notebook/minutes.md).
    """
    with_width_1 = recipe.training.steps * slowdown(recipe.model.width, 1.0)
    shown = with_width_1 * batch_of(recipe, pictures) / (pictures / 50_000) ** 0.31
    return max(width for width, least in WIDTHS.items() if shown >= least)


@dataclass(frozen=True)
class Costs:
    """What a training with its evaluations costs, in seconds.

    Attributes:
        speed: as measured.
        schedule: says when pictures are small.
        size: the full size, height and width.
        batch_size: pictures per step, of one process.
        per_epoch: seconds of evaluation after an epoch, on average.
        at_the_end: seconds after the last step.
    """

    speed: Speed
    schedule: ScheduleSettings
    size: Size
    batch_size: int
    per_epoch: float
    at_the_end: float

    def mean_step(self, done: float = 0.0) -> float:
        """Mean seconds of the steps after the part ``done`` of the schedule."""
        return sum(
            share * self.speed.step(size, self.batch_size)
            for share, size in sizes_after(self.schedule, done, self.size)
        )


def costs(recipe: Recipe, prepared: Prepared, speed: Speed) -> Costs:
    """What a training of ``recipe`` costs at ``speed``.

    At the end, the watched split is evaluated once more, and then each split that
    :func:`~thumbnet.training.results.measure` needs is classified in all views. That is the most that it may
    be: logits that are known already are not computed again.
    """
    settings, processes = recipe.evaluation, prepared.train.world.size

    def count(split: str | None) -> int:
        return 0 if split is None else len(prepared.evaluation[split].engine.labels)

    pictures = count(prepared.watched)
    sampled = min(settings.sample, pictures)
    each = pictures / settings.every + sampled * (1 - 1 / settings.every) if settings.every else sampled
    classified = {prepared.measured, "val" if "val" in prepared.evaluation else None}
    if recipe.data.calibration_pictures:
        classified.add(prepared.calibrates_on)
    last = VIEWS[settings.tta] * sum(map(count, classified)) + pictures
    return Costs(
        speed,
        recipe.schedule,
        prepared.preprocessing.size,
        own_batch(recipe, prepared),
        each * speed.evaluating / processes,
        last * speed.evaluating / processes + AT_THE_END,
    )


def watch_less(recipe: Recipe, prepared: Prepared, speed: Speed) -> Recipe:
    """The recipe with fewer evaluations on the way, if these would take too long compared with the steps.

    With 500 training and 2,000 test pictures, an evaluation after each epoch would take more than half of
    the time.
    """
    found = costs(recipe, prepared, speed)
    pictures = prepared.train.count
    steps = kept_per_epoch(pictures, recipe.data.skip_easy) / batch_of(recipe, pictures)
    allowed = WATCHING * steps * found.mean_step()
    if found.per_epoch <= allowed:
        return recipe
    each = replace(recipe, evaluation=replace(recipe.evaluation, every=1, sample=0))
    every = recipe.evaluation.every
    if every:
        every = max(every, math.ceil(costs(each, prepared, speed).per_epoch / allowed))
    return replace(recipe, evaluation=replace(recipe.evaluation, every=every, sample=0))


def fit_steps(recipe: Recipe, prepared: Prepared, speed: Speed, seconds: float) -> Recipe:
    """The recipe with as many steps as fit into ``seconds``, which include the final evaluation.

    As ``training.min_steps`` asks, batches become smaller where there would be too few steps. It is 0 if an
    option names the batch size. What ``recipe`` says about an earlier plan is forgotten.
    """
    recipe = recipe.without_plan()
    pictures = kept_per_epoch(prepared.train.count, recipe.data.skip_easy)
    batch = batch_of(recipe, prepared.train.count)
    least = recipe.training.min_steps
    found = costs(recipe, prepared, speed)
    step = found.mean_step() + found.per_epoch * batch / pictures
    left = seconds - found.at_the_end
    if least > 0 and left / step < least:
        per_picture = (step - speed.per_step) / batch
        size = int((left / least - speed.per_step) / per_picture)
        batch = min(max(size, SMALLEST_BATCH), batch)
        recipe = recipe.with_batch_size(batch)
        step = per_picture * batch + speed.per_step
    steps = max(LEAST_STEPS, int(left / step))
    per_epoch = pictures // batch if recipe.training.drop_last else -(-pictures // batch)
    training = replace(recipe.training, steps=steps, epochs=-(-steps // per_epoch), min_steps=0)
    return replace(recipe, training=training)


@dataclass
class TimeBudget:
    """A training's wall time: the first plan, and the changes to it while the training runs.

    Attributes:
        minutes: the whole time, from ``started`` to the end of the final evaluation.
        started: when the clock started, in seconds of ``time.perf_counter``.
        least_width: the least width that may be chosen for the network; None to keep the recipe's.
        may_watch_less: whether evaluations on the way may become fewer.
        clock: gives the time in seconds.
    """

    minutes: float
    started: float
    least_width: float | None = None
    may_watch_less: bool = False
    clock: Callable[[], float] = time.perf_counter
    _costs: Costs | None = None
    _expected: float = 0.0  # seconds for the steps since the last look, at the measured speed
    _since: float | None = None  # when the clock was last read; None before the first step
    # Time expected and taken of late, in memories.
    _recent_expected: float = TRUST
    _recent_taken: float = TRUST
    _changed: float = 0.0  # when the plan was last changed
    _told: int = 0  # the number of steps that the user was last told; 0 for the first plan
    _after_head: bool = False  # whether the next change of the plan is the first one after the head's part

    @property
    def deadline(self) -> float:
        """When the training should end, in seconds of ``time.perf_counter``."""
        return self.started + 60 * self.minutes

    def plan(
        self, recipe: Recipe, prepared: Prepared, classes: int, device: torch.device
    ) -> tuple[Recipe, str]:
        """Choose the number of steps, the network's width, and how often it is evaluated on the way.

        Returns:
            The recipe for the training, and a sentence that says what was chosen and why.

        Raises:
            OutOfMemoryError: a step does not fit into the device's memory.
        """
        before = self.clock() - self.started
        longest = max(LONGEST_BATCH, LONGEST_PART * 60 * self.minutes)
        speed = measure_speed(recipe, prepared, classes, device, longest)
        given = recipe.evaluation
        if self.may_watch_less:
            recipe = watch_less(recipe, prepared, speed)
        chosen, epochs = self._fitted(recipe, prepared, speed)
        width = recipe.model.width
        if self.least_width is not None:
            width = max(self.least_width, suitable_width(chosen, prepared.train.count))
        if width != recipe.model.width:
            other = replace(recipe, model=replace(recipe.model, width=width))
            # If it does not fit into the memory, the width stays: nobody asked for another.
            with suppress(OutOfMemoryError):
                speed = measure_speed(other, prepared, classes, device, longest)
                chosen, epochs = self._fitted(other, prepared, speed)
        found = self._costs = costs(chosen, prepared, speed)
        total = chosen.training.steps
        of_width = "" if self.least_width is None else f" of width {chosen.model.width:g}"
        note = (
            f"{self.minutes:g} minute(s): {before:.0f} s until now, about {found.at_the_end:.0f} s at the "
            f"end; {1 / speed.per_picture[found.size]:,.0f} pictures/s at full size, so {total:,} steps "
            f"({epochs:.1f} epochs){of_width}"
        )
        if chosen.evaluation != given:
            every = chosen.evaluation.every
            note += f", evaluated every {every} epochs" if every else ", evaluated only at the end"
        if total == LEAST_STEPS:
            note = f"warning: {self.minutes:g} minute(s) are too short for a training; it will take longer"
        return chosen, note

    def _fitted(self, recipe: Recipe, prepared: Prepared, speed: Speed) -> tuple[Recipe, float]:
        """The recipe for the time that is left, and its number of epochs."""
        chosen = fit_steps(recipe, prepared, speed, self.deadline - self.clock())
        return chosen, chosen.training.steps / len(prepared.with_recipe(chosen).train)

    def after_step(self, state: TrainingState, world: World, meeting: bool = True) -> str | None:
        """Look at the clock after a step, and change the number of steps if the end has moved.

        Args:
            state: the state of the training, after the step.
            world: its processes. All of them do what the first one decides.
            meeting: whether all processes meet after this step, see
                :class:`~thumbnet.distributed.Meetings`. They change the number of steps only then.

        Returns:
            A sentence for the user if the change is large, else None.
        """
        found = self._costs
        assert found is not None
        now = self.clock()
        schedule, total = state.recipe.schedule, state.total_steps
        evaluation = found.per_epoch if state.epoch_is_over else 0.0  # it follows this step
        only_head = trains_head_only(schedule, state.step - 1, total)
        if self._since is None or only_head:
            # The first step prepares memory and code, and a step of the head alone costs less than a measured
            # one. Neither says anything about the pace.
            self._since = self._changed = now
            self._expected, self._after_head = evaluation, only_head
            return None
        last = done_at(schedule, state.step - 0.5, total)
        self._expected += found.speed.step(size_at(schedule, last, found.size), found.batch_size)
        new_total: int | None = None
        if meeting:
            look = world.is_first and now - self._since > CHECK_SECONDS
            new_total = world.from_first(self._new_total(state) if look else None)
        self._expected += evaluation
        if new_total is None:
            return None
        told, after_head = self._told or total, self._after_head
        self._after_head = False
        state.replan(new_total)
        if abs(new_total / told - 1) < NOTED:
            return None
        self._told = new_total
        why = f"the computer is {'slower' if new_total < told else 'faster'} now"
        if after_head and new_total > told:
            why = "training only the last layer took less time than planned"
        now_epochs, then = (steps / state.steps_per_epoch for steps in (new_total, told))
        return f"{why}: {now_epochs:.1f} epochs instead of {then:.1f}, to end in time"

    def _pace(self, expected: float, taken: float) -> float:
        """Seconds taken per second expected, of late, after a look at the clock that found these.

        While another program runs, single steps may take ten times as long as expected, and a computer may
        stand still for a minute. If a plan became as short as that suggests, it would be over before the next
        look. So the measured speed counts at first, and no look counts for more than half of the memory.
        """
        memory = max(MEMORY * 60 * self.minutes, SHORTEST_MEMORY)
        counts = min(taken / memory, 0.5)
        kept = math.exp(-counts)
        self._recent_expected = kept * self._recent_expected + counts * expected / taken
        self._recent_taken = kept * self._recent_taken + counts
        return self._recent_taken / self._recent_expected

    def _new_total(self, state: TrainingState) -> int | None:
        """The number of steps with which the training ends in time, after a step; None for no change.

        This reads the clock, for which it waits until the device has done the step: the host may have queued
        40 steps on a GPU that it would count as done.
        """
        found = self._costs
        assert found is not None
        assert self._since is not None
        state.hits.item()  # waits for the device
        now = self.clock()
        pace = self._pace(self._expected, now - self._since)
        self._expected, self._since = 0.0, now
        done = done_at(state.recipe.schedule, state.step, state.total_steps)
        if done > LAST_CHANGE or now - self._changed < SELDOM * 60 * self.minutes:
            return None
        watching = found.per_epoch / state.steps_per_epoch
        step = found.mean_step(done) + watching
        # The evaluation that these steps of the epoch have a share in is still to come.
        left = self.deadline - now - pace * (found.at_the_end + watching * state.step_in_epoch)
        planned = (state.total_steps - state.step) * step * pace
        if abs(planned - left) < max(TOLERANCE * 60 * self.minutes, step * pace):
            return None
        new_total = max(LEAST_STEPS, state.step + max(1, round(left / (step * pace))))
        if new_total == state.total_steps:
            return None
        self._changed = now
        return new_total
