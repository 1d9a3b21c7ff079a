"""Train the networks of one trial, and judge them by the pictures that they have not seen."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from thumbnet.batches.prepare import Prepared
from thumbnet.classifiers.logits import collect_logits
from thumbnet.classifiers.temperature import fit_sigmoid_temperature, fit_temperature
from thumbnet.errors import memory_guard
from thumbnet.evaluation import log_softmax
from thumbnet.multilabel import binary_cross_entropy
from thumbnet.recipes.recipe import Recipe
from thumbnet.runs.any_weights import AnyWeights
from thumbnet.seeds import derive_seed
from thumbnet.training.build import build_state
from thumbnet.training.epochs import Score
from thumbnet.training.fit import StepResult, fit
from thumbnet.training.results import score_of
from thumbnet.training.state import TrainingState

POINTS = 10  # a network is judged at most this often on its way; hopeless trials stop there
SPLIT = "held out"


class HopelessTrialError(Exception):
    """The trial was stopped early, because others were better at that point."""


@dataclass(frozen=True)
class Outcome:
    """How good a trial is.

    Attributes:
        value: accuracy, or mAP if the pictures have several labels each, 0 to 1, over all networks.
        losses: the loss of each held-out picture, those of one network after those of another. Each network
            has the temperature that suits it best: label smoothing makes it less sure than it could be.
    """

    value: float
    losses: tuple[float, ...]


def run_trial(
    recipe: Recipe,
    parts: Sequence[Prepared],
    class_names: tuple[str, ...],
    device: torch.device,
    report: Callable[[int, float], bool],
    on_step: Callable[[StepResult, int], None] = lambda step, part: None,
    initial: AnyWeights | None = None,
) -> Outcome:
    """Train one network per part with ``recipe``; the last epoch counts.

    Args:
        recipe: all settings.
        parts: batches to train on, and the held-out ones as ``val``.
        class_names: class names by label.
        device: where to compute.
        report: called with a point (0 to ``POINTS * len(parts)``) and the mean loss so far, of calibrated
            probabilities as in :class:`Outcome`. If it returns True, the trial stops.
        on_step: called after every step, with the number of the part, from 0.
        initial: what ``training.init`` names, if it has been read already.

    Raises:
        HopelessTrialError: ``report`` returned True.
        DivergedError, OutOfMemoryError: see :func:`thumbnet.training.fit.fit`.
    """
    done: list[Score] = []
    losses: list[float] = []  # of the networks that are done
    latest: list[float] = []
    for number, part in enumerate(parts):
        own = _for_part(recipe, number, len(parts))
        prepared = part.with_recipe(own)
        state = build_state(own, prepared, class_names, device, initial=initial)
        judge = _Judge(state, prepared, class_names)
        results = fit(
            state,
            prepared.train,
            evaluate=judge,
            on_step=lambda step, number=number: on_step(step, number),  # type: ignore[misc]
        )
        for result in results:
            if result.score is None:
                continue
            if not math.isfinite(result.score.loss):
                state.raise_diverged(
                    state.step, result.score.loss, "the loss on held-out pictures is not finite"
                )
            latest = judge.losses()
            point = number * POINTS + POINTS * result.step // state.total_steps
            hopeless = report(point, statistics.fmean([*losses, *latest]))
            if hopeless and not (state.is_over and number == len(parts) - 1):
                raise HopelessTrialError
        score = state.history[-1].score
        assert score is not None
        done.append(score)
        losses += latest
    return Outcome(_mean(done), tuple(losses))


def _for_part(recipe: Recipe, number: int, parts: int) -> Recipe:
    """The recipe of one network: judged up to ``POINTS`` times, with a seed of its own among several."""
    every = -(-recipe.training.epochs // POINTS)
    return replace(
        recipe,
        seed=derive_seed(recipe.seed, "fold", number) if parts > 1 else recipe.seed,
        evaluation=replace(recipe.evaluation, every=every, sample=0),
        training=replace(recipe.training, compile=False),  # compiling takes longer than a trial
    )


class _Judge:
    """Evaluates a network on held-out pictures."""

    def __init__(self, state: TrainingState, prepared: Prepared, class_names: tuple[str, ...]) -> None:
        self._state, self._batches, self._class_names = state, prepared.evaluation["val"], class_names
        self._last: tuple[np.ndarray, np.ndarray] | None = None

    def __call__(self, model: nn.Module) -> Score:
        state = self._state
        size = state.recipe.evaluation.batch_size
        advice = f"Use smaller batches to evaluate: --set evaluation.batch_size={max(1, size // 2)}"
        with memory_guard(str(state.device), f"evaluating {size} pictures at a time", advice):
            logits, labels = collect_logits(model, self._batches, dtype=state.dtype)
        self._last = logits.numpy(), labels.numpy()
        return score_of(SPLIT, *self._last, self._class_names)

    def losses(self) -> list[float]:
        """The loss of each picture in the last evaluation."""
        assert self._last is not None
        logits, labels = self._last
        # Even for a few pictures: without a temperature, label smoothing would look worse than it is.
        if labels.ndim == 2:
            temperature = fit_sigmoid_temperature(logits, labels, fewest=1)
            surprise = binary_cross_entropy(logits / temperature, labels > 0)
            return list(surprise.mean(axis=1).tolist())
        likely = log_softmax(logits / fit_temperature(logits, labels, fewest=1))
        return list((-likely[np.arange(len(labels)), labels]).tolist())


def _mean(scores: Sequence[Score]) -> float:
    """The value over all held-out pictures of these scores."""
    pictures = sum(score.pictures for score in scores)
    return sum(score.headline * score.pictures for score in scores) / pictures
