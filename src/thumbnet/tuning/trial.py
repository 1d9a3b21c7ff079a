"""Train the networks of one trial, and judge them by the pictures that they have not seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from thumbnet.batches.prepare import Prepared
from thumbnet.classifiers.logits import collect_logits
from thumbnet.classifiers.temperature import calibrated, fit_sigmoid_temperature, fit_temperature
from thumbnet.errors import memory_guard
from thumbnet.recipes.recipe import Recipe
from thumbnet.seeds import derive_seed
from thumbnet.training.fit import StepResult, fit
from thumbnet.training.results import score_of
from thumbnet.training.state import Score, TrainingState, build_state

POINTS = 10  # a network is judged at most this often on its way; hopeless trials stop there
SPLIT = "held out"


class HopelessTrialError(Exception):
    """The trial was stopped early, because others were better at that point."""


@dataclass(frozen=True)
class Outcome:
    """How good a trial is.

    Attributes:
        value: accuracy, or mAP if the pictures have several labels each, 0 to 1, over all networks.
        loss: mean loss over all networks; at the end of a trial, each with the temperature that suits it
            best.
    """

    value: float
    loss: float


def run_trial(
    recipe: Recipe,
    parts: Sequence[Prepared],
    class_names: tuple[str, ...],
    device: torch.device,
    report: Callable[[int, float], bool],
    on_step: Callable[[StepResult, int], None] = lambda step, part: None,
) -> Outcome:
    """Train one network per part with ``recipe``; the last epoch counts.

    Args:
        recipe: all settings.
        parts: batches to train on, and the held-out ones as ``val``.
        class_names: class names by label.
        device: where to compute.
        report: called with a point (0 to ``POINTS * len(parts)``) and the value so far. If it returns True,
            the trial stops.
        on_step: called after every step, with the number of the part, from 0.

    Raises:
        HopelessTrialError: ``report`` returned True.
        DivergedError, OutOfMemoryError: see :func:`thumbnet.training.fit.fit`.
    """
    done: list[Score] = []
    for number, part in enumerate(parts):
        own = _for_part(recipe, number, len(parts))
        prepared = part.with_recipe(own)
        state = build_state(own, prepared, class_names, device)
        results = fit(
            state,
            prepared.train,
            evaluate=_judge(state, prepared, class_names),
            on_step=lambda step, number=number: on_step(step, number),  # type: ignore[misc]
        )
        for result in results:
            if result.score is None:
                continue
            if not math.isfinite(result.score.loss):
                state.raise_diverged(
                    state.step, result.score.loss, "the loss on held-out pictures is not finite"
                )
            so_far = _mean([*done, result.score])
            point = number * POINTS + POINTS * result.step // state.total_steps
            if report(point, so_far.value) and not (state.is_over and number == len(parts) - 1):
                raise HopelessTrialError
        score = state.history[-1].score
        assert score is not None
        done.append(score)
    return _mean(done)


def _for_part(recipe: Recipe, number: int, parts: int) -> Recipe:
    """The recipe of one network: judged up to ``POINTS`` times, with a seed of its own among several."""
    every = -(-recipe.training.epochs // POINTS)
    return replace(
        recipe,
        seed=derive_seed(recipe.seed, "fold", number) if parts > 1 else recipe.seed,
        evaluation=replace(recipe.evaluation, every=every, sample=0),
        training=replace(recipe.training, compile=False),  # compiling takes longer than a trial
    )


def _judge(
    state: TrainingState, prepared: Prepared, class_names: tuple[str, ...]
) -> Callable[[nn.Module], Score]:
    batches = prepared.evaluation["val"]
    size = state.recipe.evaluation.batch_size
    advice = f"Use smaller batches to evaluate: --set evaluation.batch_size={max(1, size // 2)}"

    def judge(model: nn.Module) -> Score:
        with memory_guard(str(state.device), f"evaluating {size} pictures at a time", advice):
            found, truth = collect_logits(model, batches, dtype=state.dtype)
        logits, labels = found.numpy(), truth.numpy()
        # Label smoothing makes a network less sure than it could be, which must not decide.
        if state.step >= state.total_steps and np.isfinite(logits).all():
            fit = fit_temperature if labels.ndim == 1 else fit_sigmoid_temperature
            logits = calibrated(logits, fit(logits, labels))
        return score_of(SPLIT, logits, labels, class_names)

    return judge


def _mean(scores: Sequence[Score]) -> Outcome:
    """The mean over all held-out pictures of these scores."""
    pictures = sum(score.pictures for score in scores)
    value = sum(score.headline * score.pictures for score in scores) / pictures
    return Outcome(value, sum(score.loss * score.pictures for score in scores) / pictures)
