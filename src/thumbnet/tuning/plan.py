"""Divide the time of a search between its trials and the final training.

A third of the time is kept for the final training. If the rest holds ``TRIALS`` trainings of the recipe where
the search starts, the number of epochs is searched as well, and the final training has as many as the best
trial. Otherwise, trials train for fewer epochs than the recipe. Half of the time is then kept for the final
training, because its length matters more than its settings, and it uses all the time that is left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from thumbnet.batches.prepare import Prepared
from thumbnet.errors import ThumbnetError
from thumbnet.recipes.recipe import Recipe
from thumbnet.training.time_budget import AT_THE_END, NARROW, VIEWS, Speed, costs, is_short, measure_speed
from thumbnet.tuning.parts import Parts
from thumbnet.tuning.study import Record
from thumbnet.tuning.trial import POINTS

FINAL_SHARE, FINAL_SHARE_AFTER_SHORT_TRIALS = 1 / 3, 1 / 2
TRIALS = 6
FEWEST_STEPS = 20  # of a trial's network; fewer say nothing
GROWTH = 1.7  # a training takes as many times as long as this power of the width
PER_NETWORK = 0.3  # seconds to build a network, in addition to its steps
WRITING = 4.0  # seconds for the page
SPARE = 1.2  # factor on the expected time of the final training


@dataclass(frozen=True)
class Cost:
    """Expects how long trainings take, from the speed of one network.

    Attributes:
        speed: as measured for a network of ``width``.
        width: the measured network's width.
        pace: seconds that trials took per second that was expected.
    """

    speed: Speed
    width: float
    pace: float = 1.0

    @classmethod
    def measure(cls, recipe: Recipe, parts: Parts, classes: int, device: torch.device) -> Cost:
        """Measure the network of ``recipe``, which takes a second or two."""
        return cls(measure_speed(recipe, parts.parts[0], classes, device), recipe.model.width)

    def learn(self, records: Sequence[Record]) -> Cost:
        """The same with the pace of these trials: the median of those that were complete."""
        complete = [one for one in records if one.state == "complete" and one.predicted > 0]
        paces = sorted(one.seconds / one.predicted for one in complete)
        return replace(self, pace=paces[len(paces) // 2]) if paces else self

    def trial(self, recipe: Recipe, parts: Sequence[Prepared]) -> float:
        """Seconds of a trial that runs to its end."""
        return self.pace * self.unpaced(recipe, parts)

    def unpaced(self, recipe: Recipe, parts: Sequence[Prepared]) -> float:
        """Seconds of a trial at the measured speed."""
        return sum(
            self._steps(recipe, part, 1.0)
            + min(recipe.training.epochs, POINTS) * self._pictures(recipe, _held_out(part))
            + PER_NETWORK
            for part in parts
        )

    def final(self, recipe: Recipe, parts: Sequence[Prepared], pictures: int, measured: int) -> float:
        """Seconds of the final training.

        Args:
            recipe: its recipe.
            parts: the batches of the trials.
            pictures: training pictures of the final training.
            measured: pictures that it is measured on.
        """
        steps = self._steps(recipe, parts[0], pictures / parts[0].train.count)
        settings = recipe.evaluation
        often = recipe.training.epochs / settings.every if settings.every else 1
        looks = VIEWS[settings.tta] + often
        return self.pace * (steps + looks * self._pictures(recipe, measured)) + AT_THE_END + PER_NETWORK

    def _steps(self, recipe: Recipe, part: Prepared, share: float) -> float:
        batches = part.with_recipe(recipe)
        step = costs(recipe, batches, self.speed).mean_step()
        return share * recipe.training.epochs * len(batches.train) * step * self._factor(recipe)

    def _pictures(self, recipe: Recipe, count: int) -> float:
        return count * self.speed.evaluating * self._factor(recipe)

    def _factor(self, recipe: Recipe) -> float:
        return float((recipe.model.width / self.width) ** GROWTH)


@dataclass(frozen=True)
class Plan:
    """How the time of a search is used.

    Attributes:
        recipe: where the search starts.
        shortened: whether trials are shorter than the recipe's training.
        most_epochs: the longest training that a trial may have.
        note: the plan in words.
    """

    recipe: Recipe
    shortened: bool
    most_epochs: int
    note: str


def plan(
    recipe: Recipe, parts: Parts, cost: Cost, minutes: float, left: float, *, fixed: bool, may_narrow: bool
) -> Plan:
    """Plan a search of ``minutes``.

    Args:
        recipe: the recipe for the data.
        parts: what trials train on.
        cost: of the recipe's network.
        minutes: the whole time.
        left: seconds of it that are left.
        fixed: whether the user set the number of epochs.
        may_narrow: whether the network of half the width may be the start if the time is short.

    Raises:
        ThumbnetError: the time is too short for one trial and the final training.
    """
    wanted = recipe.training.epochs
    if not fixed and _epochs_within(_share_of_a_trial(minutes, left, False), recipe, parts, cost) < wanted:
        recipe = _for_short_time(recipe, parts, cost, minutes, left, may_narrow)
    shortened = recipe.training.epochs < wanted
    for_trials = TRIALS * _share_of_a_trial(minutes, left, shortened)
    takes = cost.trial(recipe, parts.parts)
    kept = "half" if shortened else "a third"
    if takes > for_trials:
        least = (60 * minutes - left + takes + WRITING) / (1 - final_share(shortened)) / 60
        least = max(math.ceil(10 * least) / 10, minutes + 0.1)
        raise ThumbnetError(
            f"--minutes {minutes:g} is too short: one trial takes about {takes:.0f} s here, and {kept} of "
            f"the time is kept for the final training. Give at least --minutes {least:.4g}, and several "
            "times as much for a search that finds something"
        )
    most = recipe.training.epochs
    if not (shortened or fixed):
        most = _epochs_within(2 * for_trials / TRIALS, recipe, parts, cost)
    networks = f" ({len(parts.parts)} networks)" if len(parts.parts) > 1 else ""
    note = (
        f"{minutes:g} minute(s): a trial takes about {takes:.0f} s{networks}, so about "
        f"{max(1, int(for_trials / takes))} of them; {kept} of the time is kept for the final training"
    )
    if shortened:
        note += (
            f". Trials have {recipe.training.epochs} epochs instead of {wanted}, and the final training has "
            "all the time that is left"
        )
    return Plan(recipe, shortened, most, note)


def final_share(shortened: bool) -> float:
    """The share of the time that is kept for the final training."""
    return FINAL_SHARE_AFTER_SHORT_TRIALS if shortened else FINAL_SHARE


def _share_of_a_trial(minutes: float, left: float, shortened: bool) -> float:
    """Seconds that each of ``TRIALS`` trials may take."""
    return (left - 60 * minutes * final_share(shortened) - WRITING) / TRIALS


def _for_short_time(
    recipe: Recipe, parts: Parts, cost: Cost, minutes: float, left: float, may_narrow: bool
) -> Recipe:
    """The recipe with a narrower network, if that suits the final training, and fewer epochs if need be."""
    wanted = recipe.training.epochs
    for_final = 60 * minutes * final_share(True)
    if may_narrow and is_short(_of_length(recipe, for_final, cost), parts.pictures):
        recipe = replace(recipe, model=replace(recipe.model, width=NARROW * recipe.model.width))
        if _epochs_within(_share_of_a_trial(minutes, left, False), recipe, parts, cost) >= wanted:
            return recipe
    possible = _epochs_within(_share_of_a_trial(minutes, left, True), recipe, parts, cost)
    epochs = min(wanted, max(possible, _fewest(recipe, parts)))
    return replace(recipe, training=replace(recipe.training, epochs=epochs))


def _epochs_within(seconds: float, recipe: Recipe, parts: Parts, cost: Cost) -> int:
    """The number of epochs of a trial that takes at most ``seconds``; 0 if not even one fits."""
    one, many = (
        cost.trial(replace(recipe, training=replace(recipe.training, epochs=epochs)), parts.parts)
        for epochs in (POINTS, 2 * POINTS)
    )
    per_epoch = (many - one) / POINTS
    at_first = one - POINTS * per_epoch
    return max(0, int((seconds - at_first) / per_epoch))


def _of_length(recipe: Recipe, seconds: float, cost: Cost) -> Recipe:
    """The recipe with about as many steps as fit into ``seconds``."""
    per_picture = max(cost.speed.per_picture.values())
    steps = max(1, int(seconds / per_picture / recipe.training.batch_size))
    return replace(recipe, training=replace(recipe.training, steps=steps))


def _fewest(recipe: Recipe, parts: Parts) -> int:
    """The least number of epochs of a trial."""
    return min(recipe.training.epochs, -(-FEWEST_STEPS // len(parts.parts[0].with_recipe(recipe).train)))


def _held_out(part: Prepared) -> int:
    return len(part.evaluation["val"].engine.labels)
