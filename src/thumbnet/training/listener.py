"""The events of a training, for code that displays or logs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thumbnet.batches.prepare import Prepared
    from thumbnet.data.splits import Data
    from thumbnet.runs.folder import Run
    from thumbnet.training.epochs import EpochResult
    from thumbnet.training.fit import StepResult
    from thumbnet.training.state import TrainingState


class Listener:
    """Receives the events of a training. Override the methods that you need; here they do nothing."""

    def on_download(self, done: int, total: int | None) -> None:
        """Part of a download has arrived: ``done`` bytes of ``total`` (None if unknown)."""

    def on_data(self, data: Data) -> None:
        """The data have been loaded."""

    def on_decode(self, done: int, total: int) -> None:
        """``done`` of a split's ``total`` pictures are decoded."""

    def on_start(self, run: Run, state: TrainingState, prepared: Prepared) -> None:
        """The first step is about to begin. After a resume, ``state`` says how far the training was."""

    def on_step(self, step: StepResult) -> None:
        """A step is done."""

    def on_epoch(self, result: EpochResult) -> None:
        """An epoch is done, and its checkpoint is saved if one was due."""

    def on_finish(self, run: Run) -> None:
        """The training is complete, and the first process has written the weights and the summary."""

    def on_note(self, text: str) -> None:
        """The training found or decided something that the user should know."""

    def should_stop(self) -> bool:
        """Called after each step, and for each batch of an evaluation between epochs if one process trains.

        Return True to save a checkpoint and end the training.
        """
        return False


class Listeners(Listener):
    """Passes every event on to several listeners. The training stops if any of them asks for it."""

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = listeners

    def on_download(self, done: int, total: int | None) -> None:
        for one in self._listeners:
            one.on_download(done, total)

    def on_data(self, data: Data) -> None:
        for one in self._listeners:
            one.on_data(data)

    def on_decode(self, done: int, total: int) -> None:
        for one in self._listeners:
            one.on_decode(done, total)

    def on_start(self, run: Run, state: TrainingState, prepared: Prepared) -> None:
        for one in self._listeners:
            one.on_start(run, state, prepared)

    def on_step(self, step: StepResult) -> None:
        for one in self._listeners:
            one.on_step(step)

    def on_epoch(self, result: EpochResult) -> None:
        for one in self._listeners:
            one.on_epoch(result)

    def on_finish(self, run: Run) -> None:
        for one in self._listeners:
            one.on_finish(run)

    def on_note(self, text: str) -> None:
        for one in self._listeners:
            one.on_note(text)

    def should_stop(self) -> bool:
        return any(one.should_stop() for one in self._listeners)


class StoppableListener(Listener):
    """Shows nothing, and stops the training on request.

    Attributes:
        started: whether the first step has begun, so that there is something to save.
        stop_requested: set it to stop after the current step.
    """

    def __init__(self) -> None:
        self.started = False
        self.stop_requested = False

    def on_start(self, run: Run, state: TrainingState, prepared: Prepared) -> None:
        """Note that there is something to save from now on."""
        self.started = True

    def should_stop(self) -> bool:
        """Whether a stop was requested."""
        return self.stop_requested
