"""Divide the time of a search between its trials and the final training.

A third of the time is kept for the final training, which uses all that is left. The rest has to hold
``TRIALS`` trials of the recipe where the search starts. All trials take about the same time, because the
final training has a given time, too: a wider network, or one that sees larger pictures, has fewer epochs. If
``MANY`` trials fit, they are longer instead of more. A search that finds nothing better ends early.

If the user set the number of epochs, every training has as many. The final training then takes as long as it
takes, and if that is more than a third of the time, so much is kept for it.

With less time there is no search: one training that takes all of it is better. With trials of fewer epochs,
and half of the time for them, it lost up to three points (docs/notebook/tuning.md).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from thumbnet.batches.prepare import Prepared
from thumbnet.errors import ThumbnetError
from thumbnet.invocation import command
from thumbnet.recipes.recipe import Recipe
from thumbnet.training.speed import Speed, measure_speed, slowdown
from thumbnet.training.time_budget import VIEWS, costs
from thumbnet.tuning.parts import Parts, held_out_of
from thumbnet.tuning.space import enlargement
from thumbnet.tuning.study import Record
from thumbnet.tuning.trial import POINTS

FINAL_SHARE = 1 / 3
TRIALS = 6  # fewer find nothing
MANY = 20  # trials, before they become longer
PER_NETWORK = 0.3  # seconds to build a network, in addition to its steps
WRITING = 4.0  # seconds for the page
MARGIN = 1.2  # on the time that is advised: the computer may be slower when it is measured again


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
        """Measure the network of ``recipe``, which takes a few seconds."""
        return cls(measure_speed(recipe, parts.parts[0], classes, device), recipe.model.width)

    def learn(self, records: Sequence[Record]) -> Cost:
        """The same with the pace of these trials: the median of those that were complete."""
        complete = [one for one in records if one.state == "complete" and one.predicted > 0]
        paces = [one.seconds / one.predicted for one in complete]
        return replace(self, pace=statistics.median(paces)) if paces else self

    def trial(self, recipe: Recipe, parts: Sequence[Prepared]) -> float:
        """Seconds of a trial of ``recipe`` that runs to its end.

        Args:
            recipe: all settings.
            parts: the division of the pictures, as where the search starts; ``recipe`` may want another size.
        """
        return self.pace * self.unpaced(recipe, parts)

    def final(self, recipe: Recipe, parts: Parts) -> float:
        """Seconds of a training of ``recipe`` on all training pictures, with its evaluations."""
        one, asked = parts.parts[:1], recipe.evaluation
        times = (recipe.training.epochs / asked.every if asked.every else 0.0) + VIEWS[asked.tta]
        watching = self._factor(recipe, one[0]) * times * parts.watched * self.speed.evaluating
        return self.trial(recipe, one) * parts.pictures / one[0].train.count + self.pace * watching

    def unpaced(self, recipe: Recipe, parts: Sequence[Prepared]) -> float:
        """Seconds of a trial at the measured speed."""
        return sum(
            self._factor(recipe, part)
            * (
                self._steps(recipe, part)
                + min(recipe.training.epochs, POINTS) * held_out_of(part) * self.speed.evaluating
            )
            + PER_NETWORK
            for part in parts
        )

    def _steps(self, recipe: Recipe, part: Prepared) -> float:
        batches = part.with_recipe(recipe)
        return recipe.training.epochs * len(batches.train) * costs(recipe, batches, self.speed).mean_step()

    def _factor(self, recipe: Recipe, part: Prepared) -> float:
        """How much slower than the measured network one is that is wider, or sees larger pictures."""
        larger = enlargement(recipe.data, part.preprocessing.size)
        return larger * slowdown(recipe.model.width, self.width)


def plan(
    recipe: Recipe,
    parts: Parts,
    cost: Cost,
    minutes: float,
    left: float,
    trials: int | None = None,
    *,
    data: str = "DATA",
    fixed: bool = False,
) -> tuple[Recipe, str]:
    """Plan a search of ``minutes``.

    Args:
        recipe: where the search starts.
        parts: what trials train on.
        cost: of the recipe's network.
        minutes: the whole time.
        left: seconds of it that are left.
        trials: the number of trials that the user asked for.
        data: the data, as the advice names them.
        fixed: whether the user set the number of epochs.

    Returns:
        Where the search starts, with as many epochs as its trial has; and the plan in words.

    Raises:
        ThumbnetError: the time is too short for ``TRIALS`` trials, or for ``trials``, and the final training.
    """
    share, final = 60 * minutes * FINAL_SHARE, cost.final(recipe, parts) if fixed else 0.0
    for_trials = left - max(share, final) - WRITING
    takes = cost.trial(recipe, parts.parts)
    fewest = min(TRIALS, trials or TRIALS)
    if fewest * takes > for_trials:
        needed = 60 * minutes - left + fewest * takes + WRITING
        least = MARGIN * max(needed / (1 - FINAL_SHARE), needed + final) / 60
        least = math.ceil(10 * least) / 10
        room = "two thirds of the time"
        if final > share:
            room = f"the time that a final training of about {final:.0f} s leaves"
        raise ThumbnetError(
            f"--minutes {minutes:g} is too short for a search: a trial takes about {takes:.0f} s here, and "
            f"{fewest} of them have to fit into {room}. Give at least --minutes {least:.4g}, "
            "or let one training have all of the time, which is better than a hurried search: "
            f"{command('train', data, '--minutes', f'{minutes:g}')}"
        )
    if not fixed and MANY * takes < for_trials:
        epochs = max(recipe.training.epochs, _epochs_within(for_trials / MANY, recipe, parts, cost))
        recipe = replace(recipe, training=replace(recipe.training, epochs=epochs))
        takes = cost.trial(recipe, parts.parts)
    networks = f" ({len(parts.parts)} networks)" if len(parts.parts) > 1 else ""
    kept = f"about {final:.0f} s are" if final > share else "a third of the time is"
    note = (
        f"{minutes:g} minute(s): a trial takes about {takes:.0f} s{networks}, so about "
        f"{int(for_trials / takes)} of them; {kept} kept for the final training"
    )
    return recipe, note


def _epochs_within(seconds: float, recipe: Recipe, parts: Parts, cost: Cost) -> int:
    """The number of epochs of a trial that takes at most ``seconds``; 0 if not even one fits."""
    one, many = (
        cost.trial(replace(recipe, training=replace(recipe.training, epochs=epochs)), parts.parts)
        for epochs in (POINTS, 2 * POINTS)
    )
    per_epoch = (many - one) / POINTS
    at_first = one - POINTS * per_epoch
    return max(0, int((seconds - at_first) / per_epoch))
