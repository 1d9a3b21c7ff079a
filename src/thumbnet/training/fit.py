"""The training loop. It yields one result per epoch, prints nothing and writes nothing.

```python
prepared = prepare(data, recipe, device)
state = build_state(recipe, prepared, data.class_names, device)
for result in fit(state, prepared.train):
    print(f"epoch {result.epoch}: loss {result.loss:.3f} at rate {result.lr:.3f}")
```

The guide has the whole program, and one with a ``DataLoader`` and an evaluation: docs/guide/4-loop.md.

The caller decides what to show, log and save. After any step, ``state.state_dict()`` holds everything needed
to resume the training.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from thumbnet.batches.batches import Batches, LoaderBatches
from thumbnet.errors import DataError, RecipeError, memory_guard
from thumbnet.training.epochs import EpochResult, Score
from thumbnet.training.state import TrainingState
from thumbnet.training.steps import choose_steps

LOOK_EVERY = 20  # steps between checks of the loss: each check makes the CPU wait for the GPU


@dataclass(frozen=True)
class StepResult:
    """The progress of the training after a step.

    Attributes:
        epoch: counted from 1.
        step_in_epoch: steps done in this epoch.
        steps_per_epoch: steps in every epoch.
        step: steps done since the training began.
        total_steps: steps of the whole training, as planned now.
        pictures: pictures seen so far in this epoch.
        loss: the newest loss that was read from the device; None before the first one.
        skipped: whether this step was skipped, see ``training.on_nonfinite``.
    """

    epoch: int
    step_in_epoch: int
    steps_per_epoch: int
    step: int
    total_steps: int
    pictures: int
    loss: float | None
    skipped: bool = False


def fit(
    state: TrainingState,
    batches: Batches | DataLoader[Any],
    *,
    evaluate: Callable[[nn.Module], Score] | None = None,
    evaluate_sample: Callable[[nn.Module], Score] | None = None,
    on_step: Callable[[StepResult], None] | None = None,
    on_note: Callable[[str], None] = lambda text: None,
) -> Iterator[EpochResult]:
    """Train from the step that ``state`` has reached to the end of the recipe, or until it stops early.

    It stops early if ``training.patience`` asks for it and ``evaluate`` returns scores on ``val``.

    Args:
        state: changed in place, and consistent after every step.
        batches: batches of the training split, or a ``DataLoader`` that gives float pictures and labels, see
            :class:`~thumbnet.batches.batches.LoaderBatches`. The recipe's data and augmentation then do not
            apply.
        evaluate: called with the network in eval mode after the epochs that ``evaluation.every`` selects,
            and after the last one.
        evaluate_sample: called the same way after all other epochs.
        on_step: called after every step. If it raises an exception, the training ends and ``state`` is still
            consistent.
        on_note: called with what the user should know about how the steps are taken.

    Yields:
        One result per epoch.

    Raises:
        DataError: a loader has no length, has another number of batches than the state has steps per epoch,
            or gives pictures that are not float; there is a loader and several processes; or an epoch ends
            before its last step.
        DivergedError: a loss is not finite, or a parameter at the end of an epoch; or too many steps were
            skipped.
        RecipeError: the recipe has a setting that this loop, or the way in which ``state`` was made, would
            ignore.
        OutOfMemoryError: a step, or an evaluation, does not fit into the device's memory.
    """
    _check_applied(state, batches)
    steps = choose_steps(state, _as_batches(state, batches), on_note)  # by train_step, or CUDA graphs of it
    newest_loss: float | None = None
    while not state.is_over:
        state.model.train()
        seconds_before, started = state.seconds_in_epoch, time.perf_counter()
        for pictures in steps.epoch():  # each iteration has taken one step, on so many pictures
            state.step += 1
            state.pictures_in_epoch += pictures
            if state.epoch_is_over:
                newest_loss = state.check_losses()
            elif state.step_in_epoch % LOOK_EVERY == 0:
                known = steps.look()
                newest_loss = newest_loss if known is None else known
            state.seconds_in_epoch = seconds_before + time.perf_counter() - started
            if on_step is not None:
                on_step(_step_result(state, newest_loss))
        yield _finish_epoch(state, evaluate, evaluate_sample)


def _check_applied(state: TrainingState, batches: Batches | DataLoader[Any]) -> None:
    """Refuse what would silently not apply to a state that :func:`build_state` has not made for ``batches``.

    Raises:
        RecipeError: there is such a setting.
    """
    recipe, build_state = state.recipe, "thumbnet.training.build.build_state"
    if recipe.training.frozen:
        raise RecipeError(
            "training.frozen computes the last layer without steps, and fit takes steps with all layers: "
            "train with thumbnet.train, or set training.frozen to false"
        )
    begins_with = {
        "training.init": bool(recipe.training.init) and state.start is None,
        "model.pretrained": recipe.model.pretrained is True and state.pretrained is None,
    }
    for key, is_missing in begins_with.items():
        if is_missing and not state.step:  # a state that is restored has learned from them
            raise RecipeError(
                f"{key} names weights to start from, and this state did not read them: make it with "
                f"{build_state}, or leave {key} out"
            )
    selection = getattr(batches, "selection", None)
    if selection is not None and selection is not state.selection:
        raise RecipeError(
            "data.skip_easy chooses the batches' pictures by losses that this state would not tell them: "
            f"make the state for these batches with {build_state}, or pass it selection=batches.selection"
        )


def _as_batches(state: TrainingState, batches: Batches | DataLoader[Any]) -> Batches:
    """Wrap a loader, and check it however it comes."""
    wrapped = LoaderBatches(batches, state.device) if isinstance(batches, DataLoader) else batches
    if not isinstance(wrapped, LoaderBatches):
        return wrapped
    if state.world.size > 1:
        raise DataError(
            "a DataLoader does not divide its batches among several processes, so each would train on the "
            "same pictures. Train in one process, or with the batches of thumbnet.batches.prepare.prepare, "
            "which does if it is given the world"
        )
    if len(wrapped) != state.steps_per_epoch:
        raise DataError(
            f"the loader has {len(wrapped)} batches, but the state was made for {state.steps_per_epoch} "
            "steps per epoch: make it with steps_per_epoch=len(loader)"
        )
    return wrapped


def end_early(
    state: TrainingState, why: str, evaluate: Callable[[nn.Module], Score] | None = None
) -> EpochResult:
    """End the training at the step that ``state`` has reached, before the last one that is planned.

    An epoch that has begun ends there. If none has, the newest one is the last, and is evaluated on the whole
    split unless it has been.

    Args:
        state: after one step or more, changed in place.
        why: goes into the result, see :class:`~thumbnet.training.epochs.EpochResult`.
        evaluate: see :func:`fit`.

    Returns:
        The result of the last epoch, as recorded.

    Raises:
        DivergedError: a loss of the epoch that ends is not finite, or a parameter.
        OutOfMemoryError: the evaluation of that epoch does not fit into the device's memory.
    """
    if state.step_in_epoch:
        state.check_losses()
        return _finish_epoch(state, evaluate, None, why)
    newest = state.history[-1]
    if newest.score is None and evaluate is not None:
        newest = replace(newest, score=_scored(state, evaluate), sample=None)
    state.history.pop()  # only now, because the evaluation may be interrupted
    return state.close_epoch(replace(newest, stopped=why))


def _step_result(state: TrainingState, loss: float | None) -> StepResult:
    return StepResult(
        epoch=state.epoch + 1,
        step_in_epoch=state.step_in_epoch,
        steps_per_epoch=state.steps_per_epoch,
        step=state.step,
        total_steps=state.total_steps,
        pictures=state.pictures_in_epoch,
        loss=loss,
        skipped=state.skipped[-1:] == [state.step],
    )


def _finish_epoch(
    state: TrainingState,
    evaluate: Callable[[nn.Module], Score] | None,
    evaluate_sample: Callable[[nn.Module], Score] | None,
    why: str = "",
) -> EpochResult:
    """Evaluate if the recipe asks for it, and close the epoch; ``why`` says why it is the last one early.

    Raises:
        DivergedError: a parameter is not finite.
        OutOfMemoryError: the evaluation does not fit into the device's memory.
    """
    number = state.epoch + 1
    every = state.recipe.evaluation.every
    last = bool(why) or state.step >= state.total_steps
    whole = last or (every > 0 and number % every == 0)  # evaluate on the whole split, else on a sample
    chosen = evaluate if whole else evaluate_sample
    advice = "Use a narrower network: --set model.width=0.5"
    with memory_guard(str(state.device), "after an epoch", advice):
        hits = state.checked_hits()  # first: a network that is not finite is neither evaluated nor saved
        found = None if chosen is None else _scored(state, chosen)
        seconds = state.seconds_in_epoch
        result = EpochResult(
            epoch=number,
            step=state.step,
            loss=state.mean_loss(),
            lr=state.lr_at(state.step - 1),
            seconds=seconds,
            pictures_per_second=state.pictures_in_epoch / seconds if seconds else math.inf,
            score=found if whole else None,
            train_accuracy=hits / max(1, state.pictures_in_epoch),
            sample=None if whole else found,
            stopped=why,
        )
        return state.close_epoch(result)


def _scored(state: TrainingState, evaluate: Callable[[nn.Module], Score]) -> Score:
    """The score of the network to evaluate, the same in all processes."""
    state.world.send_buffers(state.evaluated_model)  # each process has its own running statistics
    return state.world.from_first(evaluate(state.evaluated_model.eval()))  # all choose and stop by it
