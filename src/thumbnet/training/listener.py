"""What a training tells whoever wants to show it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thumbnet.batches.prepare import Prepared
    from thumbnet.data.splits import Data
    from thumbnet.runs.folder import Run
    from thumbnet.training.fit import StepResult
    from thumbnet.training.state import EpochResult, TrainingState


class Listener:
    """Is told what happens in a training. Each method may be overridden; here they do nothing."""

    def on_download(self, done: int, total: int | None) -> None:
        """Bytes of a download that are there, and in all where known."""

    def on_data(self, data: Data) -> None:
        """The data were found."""

    def on_decode(self, done: int, total: int) -> None:
        """Pictures of a split that are decoded."""

    def on_start(self, run: Run, state: TrainingState, prepared: Prepared) -> None:
        """The first step is about to be done; after a resume, ``state`` says from where."""

    def on_step(self, step: StepResult) -> None:
        """A step was done."""

    def on_epoch(self, result: EpochResult) -> None:
        """An epoch was done and its checkpoint is saved."""

    def on_note(self, text: str) -> None:
        """Something that the user should know was found while the training ran."""

    def should_stop(self) -> bool:
        """Asked after each step: True saves a checkpoint and ends the training."""
        return False


class Listeners(Listener):
    """Tells several; one of them is enough to stop."""

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

    def on_note(self, text: str) -> None:
        for one in self._listeners:
            one.on_note(text)

    def should_stop(self) -> bool:
        return any(one.should_stop() for one in self._listeners)


class StoppableListener(Listener):
    """Shows nothing, and stops when it is asked to.

    Attributes:
        started: whether steps are being done, so that there is something to save.
        stop_requested: whether to stop after the step at hand.
    """

    def __init__(self) -> None:
        self.started = False
        self.stop_requested = False

    def on_start(self, run: Run, state: TrainingState, prepared: Prepared) -> None:
        """From now on there is something to save."""
        self.started = True

    def should_stop(self) -> bool:
        """Whether it was asked to."""
        return self.stop_requested
