"""How the steps of an epoch are taken: launched one operation at a time, or replayed as a CUDA graph."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Protocol

import torch

from thumbnet.batches.batches import Batch, Batches, TrainBatches
from thumbnet.batches.prepare import WORKERS
from thumbnet.errors import DataError, is_out_of_memory, memory_guard
from thumbnet.training.graphed import OWN_AUGMENTATION, OWN_LOSS, GraphedSteps, why_not_graphed
from thumbnet.training.schedules import factor_at
from thumbnet.training.state import TrainingState
from thumbnet.training.step import train_step


class Steps(Protocol):
    """Takes the steps of a training; ``fit`` counts them."""

    def epoch(self) -> Iterator[int]:
        """Take the steps left in the state's epoch, one per iteration; yield each step's number of pictures.

        After each of them, the caller counts the step in the state.

        Raises:
            OutOfMemoryError: a step does not fit into the device's memory.
            DivergedError: too many steps were skipped.
            DataError: there are fewer batches than steps.
        """

    def look(self) -> float | None:
        """Check the losses that are known, and return the newest of them; None if none is known.

        Raises:
            DivergedError: a loss is not finite.
        """


def choose_steps(state: TrainingState, batches: Batches, on_note: Callable[[str], None]) -> Steps:
    """Graphs where :func:`~thumbnet.training.graphed.why_not_graphed` allows them and CUDA can record them.

    ``on_note`` is called with a sentence for the user if CUDA recorded graphs, or failed to, or if the user's
    own code is the reason for doing without them.
    """
    reason = why_not_graphed(state, batches)
    if reason in (OWN_LOSS, OWN_AUGMENTATION):
        on_note(f"no CUDA graphs, which would be faster: {reason}")
    if reason is None:
        assert isinstance(batches, TrainBatches)
        started = time.perf_counter()
        try:
            steps = GraphedSteps(state, batches)
        except (RuntimeError, MemoryError) as error:
            reason = "out of memory" if is_out_of_memory(error) else str(error).split("\n")[0].rstrip(".")
        else:
            seconds = time.perf_counter() - started
            on_note(f"steps are replayed as CUDA graphs; recording {steps.graphs} took {seconds:.1f} s")
            return steps
        on_note(
            f"the training step could not be recorded as a CUDA graph ({reason}), so its operations are "
            "launched one by one, which is slower. To leave out the attempt: --set training.graph=off"
        )
        if state.device.type == "cuda":
            torch.cuda.empty_cache()
    return EagerSteps(state, batches)


class EagerSteps:
    """Takes the steps of a training with :func:`~thumbnet.training.step.train_step`."""

    def __init__(self, state: TrainingState, batches: Batches) -> None:
        self._state, self._batches = state, batches

    def epoch(self) -> Iterator[int]:
        """See :class:`Steps`."""
        state = self._state
        for batch in self._delivered():
            factor = factor_at(state.recipe.schedule, state.step, state.total_steps)
            loss = train_step(state, batch, factor)
            state.losses[state.step_in_epoch] = loss
            yield batch.total

    def look(self) -> float:
        """See :class:`Steps`."""
        return self._state.check_losses()

    def _delivered(self) -> Iterator[Batch]:
        """The batches of the steps left. Uploading and augmenting can run out of memory as well.

        Raises:
            DataError: there are fewer batches.
        """
        state = self._state
        size = state.recipe.training.batch_size
        smaller = f"--batch-size {max(2, size // 2)}"
        advice = f"Use a smaller batch: {smaller}; or keep the pictures out of memory: {WORKERS}"
        waiting = iter(self._batches.epoch(state.epoch, start=state.step_in_epoch))
        while not state.epoch_is_over:
            with memory_guard(str(state.device), f"preparing a batch of {size} pictures", advice):
                batch = next(waiting, None)
            if batch is None:
                raise DataError(
                    f"epoch {state.epoch + 1} has {state.steps_per_epoch} steps, but the batches ended after "
                    f"{state.step_in_epoch}. The length of the loader, which is that of its data set, has to "
                    "be what it gives in every epoch"
                )
            yield batch
