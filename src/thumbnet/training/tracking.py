"""Follow a training in TensorBoard, MLflow or Weights & Biases: ``thumbnet train DATA --track mlflow``.

A tracker may have to wait for a network or write to a full disk. The training neither waits for it nor stops:
MLflow and Weights & Biases work in a thread of their own, and after a failure the user reads one note and the
training goes on without the tracker.
"""

from __future__ import annotations

import json
import math
import queue
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from thumbnet.errors import InterruptedRunError, MissingExtraError, ThumbnetError
from thumbnet.invocation import rank
from thumbnet.recipes.tables import flattened
from thumbnet.training.listener import Listener, Listeners
from thumbnet.training.tracker import Facts, How, Tracker

if TYPE_CHECKING:
    from thumbnet.batches.prepare import Prepared
    from thumbnet.recipes.recipe import Recipe
    from thumbnet.runs.folder import Run
    from thumbnet.training.epochs import EpochResult
    from thumbnet.training.fit import StepResult
    from thumbnet.training.state import TrainingState

TRACKERS = ("tensorboard", "mlflow", "wandb")
WAIT = 20.0  # seconds to wait at the end for a tracker to take the rest
FILES = ("recipe.toml", "summary.json")  # what a tracker keeps of the run's folder
FINAL = (
    "accuracy", "accuracy_plain", "balanced_accuracy", "loss", "map", "map_plain", "micro_f1", "macro_f1",
    "calibration_error", "temperature", "kept_epoch", "epochs", "parameters", "seconds_training",
    "seconds_total",
)  # fmt: skip


@contextmanager
def tracked(names: str | Sequence[str], listener: Listener) -> Iterator[Listener]:
    """A listener that passes every event on to ``listener`` and to the trackers ``names`` (one, or several).

    Of several processes of one training, only the first has trackers.

    Raises:
        ThumbnetError: there is no such tracker.
        MissingExtraError: its library is not installed.
    """
    if not names or rank() != 0:
        yield listener
        return
    wanted = dict.fromkeys([names] if isinstance(names, str) else names)
    with ExitStack() as stack:
        yield Listeners(listener, *[stack.enter_context(_opened(name, listener)) for name in wanted])


@contextmanager
def _opened(name: str, listener: Listener) -> Iterator[Listener]:
    if name not in TRACKERS:
        raise ThumbnetError(f"there is no tracker {name!r}: expected one of {', '.join(TRACKERS)}")
    if name == "tensorboard":
        from thumbnet.training.tensorboard import TensorBoardWriter

        with Guarded(TensorBoardWriter(), "TensorBoard", listener.on_note) as guarded:
            yield guarded
        return
    # The import itself takes a second, so it is left to the tracker's thread.
    found = find_spec(name)
    if found is None or found.origin is None:  # a mere folder, such as the one that W&B writes
        raise MissingExtraError(f"--track {name}", name)
    tracker: Tracker
    if name == "mlflow":
        from thumbnet.training.mlflow_tracker import MLflowTracker

        tracker = MLflowTracker()
    else:
        from thumbnet.training.wandb_tracker import WandbTracker

        tracker = WandbTracker()
    with InBackground(tracker, listener.on_note) as background:
        yield background


class InBackground(Listener):
    """Passes the events of a training to a tracker, in a thread of its own. A context manager.

    A resumed training first adds the epochs that the tracker lacks, and never adds one twice.
    """

    def __init__(self, tracker: Tracker, note: Callable[[str], None], wait: float = WAIT) -> None:
        """``note`` is called with what the user should know: where the entry is, and at most one failure.

        ``wait`` is how long the end of the training waits for the tracker, in seconds.
        """
        self._tracker, self._note, self._wait = tracker, note, wait
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._last: Callable[[], None] | None = None  # the work after which the thread ends
        self._thread = threading.Thread(target=self._run, name=f"thumbnet {tracker.name}", daemon=True)
        self._logged = -1  # the last step in the tracker
        self._problem: str | None = None  # set by the thread
        self._where = ""  # set by the thread, too
        self._told: set[str] = set()
        self._is_complete = False

    def __enter__(self) -> InBackground:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        how: How = "finished" if self._is_complete else "failed"
        if isinstance(error, InterruptedRunError | KeyboardInterrupt):
            how = "stopped"
        self._last = lambda: self._tracker.close(how)
        self._work.put(self._last)
        self._thread.join(self._wait)
        if self._thread.is_alive() and self._problem is None:
            self._problem = f"did not answer within {self._wait:g} s, and may lack the last values"
        self._tell()

    def on_start(self, run: Run, state: TrainingState, prepared: Prepared) -> None:
        """Open the entry, and add the epochs that it lacks."""
        recipe = state.recipe

        def begin() -> None:
            facts = Facts(run.path.resolve(), parameters_of(recipe), tags_of(run))
            self._logged = self._tracker.begin(facts)
            self._where = self._tracker.where

        self._work.put(begin)
        for result in state.history:
            self._add(result)

    def on_step(self, step: StepResult) -> None:
        """Tell the user where the entry is, or that the tracker has failed."""
        self._tell()

    def on_epoch(self, result: EpochResult) -> None:
        """Add the values of an epoch."""
        self._add(result)

    def on_finish(self, run: Run) -> None:
        """Add the final values, the recipe and the summary."""
        self._is_complete = True

        def finish() -> None:
            summary, files = run.summary, [run.path / name for name in FILES]
            self._tracker.finish(final_values(summary), final_tags(summary), files)

        self._work.put(finish)

    def _add(self, result: EpochResult) -> None:
        def add() -> None:
            if result.step > self._logged:
                self._tracker.log(result.step, values_of(result))
                self._logged = result.step

        self._work.put(add)

    def _run(self) -> None:
        """Do the work in the queue. After a failure, the only work left is to close the entry."""
        while True:
            work = self._work.get()
            if self._problem is None or work is self._last:
                try:
                    work()
                except (Exception, SystemExit) as error:
                    why = f"failed: {reason_of(error)}; the training goes on without it"
                    self._problem = self._problem or why
            if work is self._last:
                return

    def _tell(self) -> None:
        name = self._tracker.name
        for text in (
            f"{name}: {self._where}" if self._where else "",
            f"{name} {self._problem}" if self._problem else "",
        ):
            if text and text not in self._told:
                self._told.add(text)
                self._note(text)


class Guarded(Listener):
    """Passes the events of a training on, until one of them fails. A context manager."""

    def __init__(self, listener: Any, name: str, note: Callable[[str], None]) -> None:
        self._listener, self._name, self._note = listener, name, note
        self._has_failed = False

    def __enter__(self) -> Guarded:
        self._listener.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._try("__exit__", *error)

    def on_start(self, run: Run, state: TrainingState, prepared: Prepared) -> None:
        self._try("on_start", run, state, prepared)

    def on_step(self, step: StepResult) -> None:
        self._try("on_step", step)

    def on_epoch(self, result: EpochResult) -> None:
        self._try("on_epoch", result)

    def on_finish(self, run: Run) -> None:
        self._try("on_finish", run)

    def _try(self, event: str, *arguments: object) -> None:
        if self._has_failed:
            return
        try:
            getattr(self._listener, event)(*arguments)
        except Exception as error:
            self._has_failed = True
            self._note(f"{self._name} failed: {reason_of(error)}; the training goes on without it")


def parameters_of(recipe: Recipe) -> dict[str, str | int | float]:
    """A recipe's settings by key, such as ``optimizer.lr``. Empty ones are left out, lists are JSON."""
    settings = flattened(recipe.to_dict())
    return {
        key: json.dumps(value) if isinstance(value, list) else value
        for key, value in settings.items()
        if value not in ("", [])
    }


def tags_of(run: Run) -> dict[str, str]:
    """What identifies a training besides its recipe. Values that are unknown are left out."""
    settings, environment = run.settings, run.environment
    hardware, packages = environment.get("hardware"), environment.get("packages")
    continues = settings.get("continues")
    found = {
        "run": str(run.path.resolve()),
        "data": settings.get("data"),
        "data_fingerprint": settings.get("fingerprint"),
        "git_commit": environment.get("git_commit"),
        "thumbnet_version": environment.get("thumbnet"),
        "torch_version": packages.get("torch") if isinstance(packages, dict) else None,
        "hardware": json.dumps(hardware) if isinstance(hardware, dict) else hardware,
        "continues": continues.get("run") if isinstance(continues, dict) else None,
    }
    return {key: str(value) for key, value in found.items() if value}


def values_of(result: EpochResult) -> dict[str, float]:
    """The numbers of an epoch that are known. A score on a sample of the split says so in its name."""
    values: dict[str, float] = {
        "epoch": result.epoch,
        "train_loss": result.loss,
        "train_accuracy": result.train_accuracy,
        "learning_rate": result.lr,
        "pictures_per_second": result.pictures_per_second,
    }
    for score, word in ((result.score, ""), (result.sample, "sample_")):
        if score is not None:
            prefix = f"{score.split}_{word}"
            values |= {f"{prefix}accuracy": score.accuracy, f"{prefix}loss": score.loss}
            if score.map is not None:
                values[f"{prefix}map"] = score.map
            if score.balanced_accuracy is not None:
                values[f"{prefix}balanced_accuracy"] = score.balanced_accuracy
    return {key: float(value) for key, value in values.items() if math.isfinite(value)}


def final_values(summary: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a run's summary, with the prefix ``final_``."""
    values = {key: summary.get(key) for key in FINAL}
    for measure in ("accuracy", "map"):
        bounds = summary.get(f"{measure}_interval")
        if bounds is not None:
            values |= {f"{measure}_low": bounds[0], f"{measure}_high": bounds[1]}
    numbers = {f"final_{key}": float(value) for key, value in values.items() if value is not None}
    return {key: value for key, value in numbers.items() if math.isfinite(value)}


def final_tags(summary: Mapping[str, Any]) -> dict[str, str]:
    """How the final numbers of a run were measured."""
    stop = summary.get("stopped_early")
    found = {
        "split": summary.get("split"),
        "kept_by": summary.get("kept_by"),
        "tta": summary.get("tta"),
        "stopped_early": stop["why"] if stop else None,
    }
    return {key: str(value) for key, value in found.items() if value}


def reason_of(error: BaseException) -> str:
    """The first line of an error's message, without a password in an address."""
    text = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return re.sub(r"//[^/\s@]+@", "//***@", text).rstrip(".")
