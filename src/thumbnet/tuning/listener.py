"""The events of a search, for code that displays or logs them. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from thumbnet.training.listener import Listener, Listeners

if TYPE_CHECKING:
    from thumbnet.tuning.study import Record


@dataclass(frozen=True)
class Progress:
    """How far a search is.

    Attributes:
        trial: the trial that is running, counted from 1.
        done: the share of it that is done, 0 to 1.
        search: the share of the search that is done, 0 to 1.
        best: the best trial so far; None before the first one is complete.
        pictures_per_second: the speed of the training.
        seconds_left: an estimate for the search.
    """

    trial: int
    done: float
    search: float
    best: Record | None
    pictures_per_second: float
    seconds_left: float


class TuneListener(Listener):
    """Receives the events of a search, and those of the final training. Here the methods do nothing."""

    def on_search(self, folder: Path, notes: Sequence[str]) -> None:
        """The first trial is about to begin."""

    def on_progress(self, progress: Progress) -> None:
        """A step of a trial is done."""

    def on_trial(self, record: Record, best: Record | None) -> None:
        """A trial is finished."""

    def on_final(self, best: Record, minutes: float | None) -> None:
        """The final training is about to begin; ``minutes`` if the time decides its length."""


class TuneListeners(Listeners, TuneListener):
    """Passes every event on to several listeners. The search stops if any of them asks for it."""

    def __init__(self, *listeners: TuneListener) -> None:
        super().__init__(*listeners)
        self._of_search = listeners

    def on_search(self, folder: Path, notes: Sequence[str]) -> None:
        for one in self._of_search:
            one.on_search(folder, notes)

    def on_progress(self, progress: Progress) -> None:
        for one in self._of_search:
            one.on_progress(progress)

    def on_trial(self, record: Record, best: Record | None) -> None:
        for one in self._of_search:
            one.on_trial(record, best)

    def on_final(self, best: Record, minutes: float | None) -> None:
        for one in self._of_search:
            one.on_final(best, minutes)
