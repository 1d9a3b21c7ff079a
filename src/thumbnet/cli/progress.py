"""Show the progress of a training, and of other work on many pictures.

On a terminal this is a live bar. If the output goes to a file, a pipe or a terminal that cannot move its
cursor, plain lines take its place.
"""

from __future__ import annotations

import math
import textwrap
import time
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from thumbnet.cli.console import duration, is_live, note, plain, progress_console
from thumbnet.reports.summary import percent
from thumbnet.training.listener import StoppableListener

if TYPE_CHECKING:
    from rich.progress import Task

    from thumbnet.batches.prepare import Prepared
    from thumbnet.data.splits import Data
    from thumbnet.recipes.settings import TrainingSettings
    from thumbnet.reviewing.scores import Scoring
    from thumbnet.runs.folder import Run
    from thumbnet.training.epochs import EpochResult
    from thumbnet.training.fit import StepResult
    from thumbnet.training.state import TrainingState

PLAIN_EVERY = 10.0  # seconds between plain lines of progress


def _why_no_kernels(state: TrainingState) -> str | None:
    """Why a training on the CPU does not use the compiled kernels; None if it does, or runs on a GPU."""
    if state.device.type != "cpu" or state.uses_kernels:
        return None
    if state.compiled:
        return "torch.compile is used instead"
    from thumbnet.kernels.library import why_off

    return why_off() or f"they compute in bf16, and the recipe has training.precision = '{state.precision}'"


def _how(state: TrainingState) -> str:
    """How a training computes: its precision and device, and whether it uses the kernels."""
    from thumbnet.hardware import uses_tf32

    tf32 = " (convolutions in TF32)" if state.precision == "fp32" and uses_tf32(state.device) else ""
    kernels = " with kernels" if state.uses_kernels else ""
    return f"{state.precision}{tf32} on {state.device}{kernels}"


def _whether_compiled(state: TrainingState) -> str:
    """Whether ``torch.compile`` is in use, and why not."""
    from thumbnet.hardware import why_not_compile

    return "in use" if state.compiled else f"not in use, because {why_not_compile(state.device)}"


def _why_kernels_are_not_kept(state: TrainingState) -> str | None:
    """Why the kernels that this training uses are not in the cache; None if they are, or it uses none."""
    if not state.uses_kernels:
        return None
    from thumbnet.kernels.library import why_not_kept

    return why_not_kept()


def _how_chosen(training: TrainingSettings, measured: Set[str]) -> str:
    """Which epoch is kept, when the training stops, and what that means for the accuracy."""
    if not measured:
        return "no test or val split: no accuracy is measured, the last epoch is kept"
    if "val" not in measured:
        return "no val split: the last epoch is kept; test accuracies are only reported"
    text = "the last epoch is kept" if training.keep == "last" else "the best epoch on val is kept"
    if training.frozen:
        text = "val chooses L2"
    if training.patience:
        text += f"; the training stops after {training.patience} epoch(s) without a better one on val"
    if "test" in measured:
        return f"{text}; test is looked at once, at the end"
    chooses = training.chooses or training.frozen
    return f"{text}; its accuracy is optimistic, as it was chosen by it" if chooses else text


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        rate = task.fields.get("rate")
        return Text("" if rate is None else f"{rate:,.0f} pictures/s", style="cyan")


class _LeftColumn(TimeRemainingColumn):
    """The time left: a task's field ``left``, in seconds, or by the pace of the last half minute."""

    def render(self, task: Task) -> Text:
        left = task.fields.get("left")
        if left is None:
            return super().render(task)
        minutes, seconds = divmod(round(left), 60)
        return Text(f"{minutes // 60}:{minutes % 60:02}:{seconds:02}", style="progress.remaining")


class _Bars(Progress):
    """Progress bars that print nothing while they are disabled, and survive the end of their terminal."""

    def refresh(self) -> None:
        """Draw the bars."""
        with suppress(OSError):
            super().refresh()

    def stop(self) -> None:
        """Remove the bars. Old versions of rich end disabled bars, too, with an empty line."""
        if not self.disable:
            with suppress(OSError):
                super().stop()

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        with suppress(OSError):
            self.console.print(plain(text), markup=False, soft_wrap=True)


class _Pace:
    """The pace of a training from now on. Work is counted in pixels, as pictures may be smaller at first."""

    def __init__(self, state: TrainingState, size: tuple[int, int]) -> None:
        self._state, self._size = state, size
        self._began, self._first = time.monotonic(), state.step
        self._step, self._done = state.step, 0.0  # the newest step, and the work until there

    def rate(self, step: StepResult) -> float:
        """Pictures per second."""
        elapsed, steps = time.monotonic() - self._began, step.step - self._first
        return steps * step.pictures / step.step_in_epoch / elapsed if elapsed else 0.0

    def left(self, step: StepResult) -> float:
        """The seconds after a step. To be called after every step."""
        from thumbnet.training.schedules import pixels_after

        schedule, total = self._state.recipe.schedule, step.total_steps
        after = pixels_after(schedule, step.step, total, self._size)
        self._done += pixels_after(schedule, self._step, total, self._size) - after
        self._step = step.step
        return (time.monotonic() - self._began) * after / self._done if self._done else 0.0


class TrainingDisplay(StoppableListener):
    """A listener that shows a training. Use it as a context manager."""

    def __init__(self, say_line: Callable[[str], None] = note) -> None:
        """Show progress on stderr. ``say_line`` prints the plain lines if there is no live bar."""
        super().__init__()
        self.live = is_live()
        self._say_line = say_line
        self.progress = _Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            _RateColumn(),
            TextColumn("{task.fields[loss]}"),
            _LeftColumn(elapsed_when_finished=True),
            console=progress_console,
            transient=True,
            disable=not self.live,
            expand=True,
        )
        self.tasks: dict[str, TaskID] = {}
        self._epochs = 0
        self._last_line = time.monotonic()
        self._pace: _Pace | None = None

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def on_download(self, done: int, total: int | None) -> None:
        """Show a download in megabytes."""
        self._advance("downloading (MB)", done // 1_000_000, None if total is None else total // 1_000_000)

    def on_data(self, data: Data) -> None:
        """Show what was loaded."""
        counts = ", ".join(f"{len(split):,} {name}" for name, split in data.splits.items())
        what = "labels, several per picture" if data.multilabel else "classes"
        self._line(f"data    {data.source}: {data.layout}; {len(data.class_names)} {what}; {counts}")
        for text in data.notes:
            self._line(f"        {text}")

    def on_decode(self, done: int, total: int) -> None:
        """Show how many pictures are decoded."""
        self._advance("decoding", done, total)

    def on_start(self, run: Run, state: TrainingState, prepared: Prepared) -> None:
        """Show what will be trained, and how the result is chosen."""
        super().on_start(run, state, prepared)
        if prepared.skipped:
            self._line(
                f"        {len(prepared.skipped)} picture(s) skipped, see {run.path / 'skipped.jsonl'}"
            )
        for text in prepared.notes:
            self._line(f"        {text}")
        if state.world.size > 1:
            self._line(f"        {state.world.size} processes")
        self._clear()
        recipe, pre = state.recipe, prepared.preprocessing
        self._epochs = recipe.training.epochs
        parameters = sum(p.numel() for p in state.model.parameters())
        self._line(
            f"recipe  {recipe.name}: {recipe.model.name}, {parameters:,} parameters; seed {recipe.seed}"
        )
        self._line(
            f"        {state.total_steps:,} steps of {prepared.train.batch_size} pictures, "
            f"{pre.size[0]}x{pre.size[1]} ({pre.fit}), from {prepared.engine}; "
            f"{_how(state)}"
        )
        off = _why_no_kernels(state)
        if off:
            self._line(f"        without the faster CPU kernels: {off}")
        not_kept = _why_kernels_are_not_kept(state)
        if not_kept:
            self._line(f"        each start compiles the CPU kernels anew: {not_kept}")
        continued = run.settings.get("continues")
        if isinstance(continued, dict):
            from thumbnet.training.schedules import factor_at

            total = state.total_steps
            first, last = (percent(factor_at(recipe.schedule, step, total)) for step in (0, total - 1))
            before = f"{continued.get('run')} after {continued.get('epochs')} epoch(s)"
            self._line(f"        continues {before}: its weights, a new optimizer")
            self._line(
                f"        the learning rate starts again at {first} of the recipe's and ends at {last}"
            )
        measured = prepared.evaluation.keys() - {"calibration"}
        self._line(f"        {_how_chosen(recipe.training, measured)}")
        every, sample = recipe.evaluation.every, recipe.evaluation.sample
        if measured and sample and every != 1:
            self._line(
                f"        an accuracy with ~ is of up to {sample:,} pictures; /s is pictures per second"
            )
        if recipe.data.skip_easy and prepared.train.engine.labels.ndim == 1:
            self._line("        training accuracy: on the pictures that an epoch does not skip")
        if recipe.training.compile:
            self._line(f"        torch.compile: {_whether_compiled(state)}")
        self._line(f"run     {run.path}")
        if state.step:
            at = f"epoch {state.epoch + 1}, step {state.step} of {state.total_steps}"
            self._line(f"        resumed in {at}")
        self._pace = _Pace(state, pre.size)

    def on_step(self, step: StepResult) -> None:
        """Move the bar, or print a line every ``PLAIN_EVERY`` seconds."""
        total = step.total_steps
        self._epochs = -(-total // step.steps_per_epoch)
        if step.skipped:
            self._line(f"        step {step.step} skipped: its loss or gradient is not finite")
        assert self._pace is not None
        rate, left = self._pace.rate(step), self._pace.left(step)
        loss = "" if step.loss is None else f"loss {step.loss:.3f}"
        if self.live:
            text = f"epoch {step.epoch}/{self._epochs}"
            if "train" not in self.tasks:
                self.tasks["train"] = self.progress.add_task(text, total=total, loss=loss, rate=rate)
            self.progress.update(
                self.tasks["train"],
                description=text,
                completed=step.step,
                total=total,
                loss=loss,
                rate=rate,
                left=left,
            )
        elif time.monotonic() - self._last_line > PLAIN_EVERY:
            self._line(
                f"epoch {step.epoch}/{self._epochs}  step {step.step_in_epoch}/{step.steps_per_epoch}  "
                f"{rate:,.0f} pictures/s  {loss}  {duration(left)} left"
            )

    def on_epoch(self, result: EpochResult) -> None:
        """Print a line of at most 80 characters."""
        score = "" if math.isnan(result.train_accuracy) else f"  train {100 * result.train_accuracy:.0f} %"
        found = result.score or result.sample
        if found is not None and found.map is not None:
            score = ""  # the share of training pictures whose labels are all right would confuse next to mAP
        name = "" if found is None else f"{found.split} " if found.map is None else f"{found.split} mAP "
        if result.score is not None:
            score += f"  {name}{percent(result.score.headline)}"
        elif result.sample is not None:
            score += f"  {name}~{100 * result.sample.headline:.0f} %"
        width = len(str(self._epochs))
        self._line(
            f"epoch {result.epoch:{width}}/{self._epochs}  loss {result.loss:.3f}  lr {result.lr:<6.2g}  "
            f"{result.pictures_per_second:,.0f}/s  {duration(result.seconds)}{score}"
        )
        if result.stopped:
            self._line(f"        stopped after epoch {result.epoch} of {self._epochs}: {result.stopped}")

    def on_note(self, text: str) -> None:
        """Print a note."""
        self._line(f"        {text}")

    def _advance(self, what: str, done: int, total: int | None) -> None:
        if self.live:
            if what not in self.tasks:
                self.tasks[what] = self.progress.add_task(what, total=total, loss="", rate=None)
            self.progress.update(self.tasks[what], completed=done, total=total)
        elif time.monotonic() - self._last_line > PLAIN_EVERY:
            self._line(f"{what} {done:,}" + ("" if total is None else f" of {total:,}"))

    def _clear(self) -> None:
        """Remove all bars."""
        for task in self.tasks.values():
            self.progress.remove_task(task)
        self.tasks.clear()

    def _line(self, text: str) -> None:
        self._last_line = time.monotonic()
        if self.live:
            text = textwrap.fill(
                text,
                self.progress.console.width,
                subsequent_indent=" " * 8,
                replace_whitespace=False,
                drop_whitespace=True,
                break_long_words=False,
                break_on_hyphens=False,
            )
            self.progress.say(text)
        else:
            self._say_line(text)


class RepeatedDisplay(TrainingDisplay):
    """Shows one of several similar trainings: no epochs, and no line that an earlier one has shown."""

    def __init__(self, shown: set[str], say_line: Callable[[str], None] = note) -> None:
        """``shown`` holds the lines that are shown already, and gets those of this training."""
        super().__init__(say_line)
        self._shown = shown

    def on_epoch(self, result: EpochResult) -> None:
        """Show nothing: the live bar, or a line every ``PLAIN_EVERY`` seconds, says how far it is."""

    def _line(self, text: str) -> None:
        if text not in self._shown:
            self._shown.add(text)
            super()._line(text)


@contextmanager
def counting(what: str, plain: bool = False) -> Iterator[_Counter]:
    """Show a bar for work on many pictures, with the time left.

    If there is no live bar, show nothing, or with ``plain`` a line every ``PLAIN_EVERY`` seconds.
    """
    progress = _Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=progress_console,
        transient=True,
        disable=not is_live(),
    )
    with progress:
        yield _Counter(progress, what, plain and not is_live())


class _Counter:
    def __init__(self, progress: Progress, what: str, plain: bool) -> None:
        self._progress, self._what, self._plain = progress, what, plain
        self._task = progress.add_task(what, total=None)
        self._last_line = time.monotonic()
        self._began: tuple[float, int] | None = None

    def __call__(self, done: int, total: int | None) -> None:
        self._progress.update(self._task, completed=done, total=total)
        now = time.monotonic()
        self._began = self._began or (now, done)
        since, before = self._began
        if self._plain and total and done > before and now - self._last_line > PLAIN_EVERY:
            self._last_line = now
            left = (total - done) * (now - since) / (done - before)
            note(f"{self._what} {done:,} of {total:,}  {duration(left)} left")


class ScoringDisplay:
    """Shows how far the scoring of pictures is. Use it as a context manager, and call it with the state."""

    def __init__(self, say_line: Callable[[str], None] = note) -> None:
        """Show a bar on stderr. ``say_line`` prints the plain lines if there is no live bar."""
        self.live = is_live()
        self._say_line = say_line
        self._progress = _Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            _RateColumn(),
            TextColumn("{task.fields[left]}"),
            console=progress_console,
            transient=True,
            disable=not self.live,
        )
        self._task = self._progress.add_task("scoring", total=1.0, rate=None, left="")
        self._network = 0
        self._last_line = time.monotonic()

    def __enter__(self) -> ScoringDisplay:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, state: Scoring) -> None:
        """Move the bar, or print a line every ``PLAIN_EVERY`` seconds."""
        if state.network and not self._network:
            self._say(
                f"training {state.networks} networks to judge the labels; the next review reuses the scores"
            )
        self._network = max(self._network, state.network)
        what = f"network {state.network} of {state.networks}" if state.network else "scoring"
        left = "" if state.seconds_left is None else f"{duration(state.seconds_left)} left"
        rate = state.pictures_per_second
        self._progress.update(self._task, description=what, completed=state.done, rate=rate, left=left)
        if not self.live and state.network and time.monotonic() - self._last_line > PLAIN_EVERY:
            speed = "" if rate is None else f"{rate:,.0f} pictures/s  "
            self._say(f"{what}  {100 * state.done:.0f} % of all  {speed}{left}")

    def _say(self, text: str) -> None:
        self._last_line = time.monotonic()
        if self.live:
            self._progress.say(text)
        else:
            self._say_line(text)
