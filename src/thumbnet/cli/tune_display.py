"""Show the progress of a search for settings, and of its final training."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from thumbnet.cli.console import duration
from thumbnet.cli.progress import PLAIN_EVERY, TrainingDisplay
from thumbnet.reports.summary import percent
from thumbnet.training.listener import StoppableListener
from thumbnet.tuning.listener import Progress, TuneListener

if TYPE_CHECKING:
    from thumbnet.data.splits import Data
    from thumbnet.tuning.study import Record

BAR = "search"


class QuietTuning(StoppableListener, TuneListener):
    """Shows nothing, and stops the search on request."""

    def on_search(self, folder: Path, notes: Sequence[str]) -> None:
        """Note that there is something to keep from now on."""
        self.started = True


class TuneDisplay(TrainingDisplay, TuneListener):
    """A listener that shows a search. Use it as a context manager."""

    _seen_data = False

    def on_data(self, data: Data) -> None:
        """Show what was loaded, once: the final training loads it again."""
        if not self._seen_data:
            super().on_data(data)
        self._seen_data = True

    def on_search(self, folder: Path, notes: Sequence[str]) -> None:
        """Show how the search is planned."""
        self.started = True
        self._clear()
        for text in notes:
            self._line(f"        {text}")
        self._line(f"search  {folder}")

    def on_progress(self, progress: Progress) -> None:
        """Move the bar, or print a line every ``PLAIN_EVERY`` seconds."""
        best = "" if progress.best is None else f"best {percent(progress.best.value)}"
        left = f"{duration(max(0.0, progress.seconds_left))} left"
        if self.live:
            if BAR not in self.tasks:
                self.tasks[BAR] = self.progress.add_task("", total=1000, loss="", rate=None)
            self.progress.update(
                self.tasks[BAR],
                description=f"trial {progress.trial}",
                completed=int(1000 * progress.search),
                rate=progress.pictures_per_second,
                loss=f"{best}  {left}",
            )
        elif time.monotonic() - self._last_line > PLAIN_EVERY:
            rate = f"{progress.pictures_per_second:,.0f} pictures/s"
            self._line(f"trial {progress.trial}  {100 * progress.done:.0f} %  {rate}  {best}  {left}")

    def on_trial(self, record: Record, best: Record | None) -> None:
        """Print a line about the trial."""
        outcome = {
            "complete": f"{percent(record.value)}  loss {record.loss:.3f}",
            "stopped": f"stopped early at loss {record.loss:.3f}",
            "failed": f"failed: {record.reason}",
        }[record.state]
        is_best = best is not None and best.number == record.number
        mark = "  best so far" if is_best and record.number > 1 else ""
        what = "  the recipe as it is" if record.number == 1 else ""
        self._line(f"trial {record.number:3}  {duration(record.seconds):>7}  {outcome}{what}{mark}")

    def on_final(self, best: Record, minutes: float | None) -> None:
        """Say that the final training begins."""
        self._clear()
        how = "" if minutes is None else f", for the {duration(60 * minutes)} that are left"
        self._line(f"final   trains with the settings of trial {best.number} on all training pictures{how}")
