"""The trials of a search: what to try next, and what is known, kept in a journal that survives a kill.

The first trials are guesses (:func:`thumbnet.tuning.space.guesses`). Then Optuna (https://optuna.org, an
extra) suggests each trial by its tree-structured Parzen estimator. The loss judges all trials, because a few
hundred pictures tell it more exactly than the accuracy (docs/notebook/tuning.md): trials whose loss is above
the median of the others at the same point are stopped, and the best trial is the one with the lowest. It has
to be lower than the start's, on the same pictures, by at least two standard errors of the difference: the
recipe where a search starts was chosen with care, and the best of seven trials without any effect gains more
than one standard error in 70 of 100 searches, and more than two in 15. Copies of a picture, and pictures of
one group, tell less than as many independent ones; :func:`paired_gain` takes that into account.

The journal is Optuna's own: a line of JSON per change, appended and synced. It holds no pickles. A line that
was cut off by a kill is removed when the search goes on, and so is the trial that was running.

A suggestion depends only on the seed and on the finished trials, so a search that was interrupted suggests
the same as one that was not.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thumbnet.errors import RunError, needs_extra
from thumbnet.invocation import command
from thumbnet.seeds import derive_seed
from thumbnet.tuning.space import Knob, Point, guesses
from thumbnet.tuning.trial import POINTS

JOURNAL = "journal.jsonl"
NAME = "thumbnet"
UNPRUNED = 4  # trials that run to their end in any case
JUDGED_FROM = POINTS // 2  # no trial is stopped before this point of its first network
FEWEST_FOR_IMPORTANCE = 8  # complete trials
SURE = 2  # standard errors of its gain that a trial needs to win
BEST_PART = 0.25  # importance is about reaching this part of the complete trials


@dataclass(frozen=True)
class Record:
    """A finished trial.

    Attributes:
        number: counted from 1. The first one is the recipe where the search started.
        state: ``complete``, ``stopped`` (hopeless) or ``failed`` (diverged, out of memory, or the network
            cannot be built).
        point: the value of every knob.
        value: accuracy or mAP on the held-out pictures; nan if it is not complete.
        loss: mean loss of the held-out pictures, see :class:`thumbnet.tuning.trial.Outcome`; if it was
            stopped, at that point; nan if it failed.
        seconds: how long it took.
        elapsed: seconds of search when it ended.
        predicted: how long it was expected to take at the measured speed; 0 in a search without a time.
        reason: why it failed.
        gain: how much lower the loss is than that of the first trial, if it is complete.
        error: the standard error of that difference.
    """

    number: int
    state: str
    point: Point
    value: float
    loss: float
    seconds: float
    elapsed: float
    predicted: float
    reason: str = ""
    gain: float = 0.0
    error: float = 0.0


def load_optuna() -> Any:
    """Import Optuna, and keep it quiet.

    Raises:
        MissingExtraError: it is not installed.
    """
    with needs_extra("thumbnet tune", "tune"):
        import optuna
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


class Study:
    """A search in a folder. Only one process may use it at a time."""

    def __init__(
        self,
        folder: Path,
        varied: Sequence[Knob],
        seed: int,
        options: Sequence[str] = (),
        together: Sequence[int] = (),
    ) -> None:
        """Open the journal in ``folder``, or begin one.

        Args:
            folder: the folder of the search.
            varied: what the search varies.
            seed: decides what is suggested.
            options: what the command that goes on with the search also needs.
            together: which held-out pictures belong together, see :func:`paired_gain`.

        Raises:
            RunError: the journal is damaged or cannot be written.
            MissingExtraError: Optuna is not installed.
        """
        self._optuna = load_optuna()
        self._varied, self._seed, self._together = tuple(varied), seed, tuple(together)
        self._guesses = guesses(varied)
        self._file = folder / JOURNAL
        pruner = self._optuna.pruners.MedianPruner(n_startup_trials=UNPRUNED, n_warmup_steps=JUDGED_FROM)
        journal = self._optuna.storages.journal
        try:
            _mend(self._file)
            # A lock by a symbolic link, the default, cannot be made on every file system.
            lock = journal.JournalFileOpenLock(str(self._file))
            backend = journal.JournalFileBackend(str(self._file), lock_obj=lock)
            storage = journal.JournalStorage(_Journal(self._file, backend, options))
            self._study = self._optuna.create_study(
                storage=storage, study_name=NAME, direction="minimize", pruner=pruner, load_if_exists=True
            )
            self._forget_unfinished()
            self._losses_at_the_start()
            for one in self.records():
                for knob in self._varied:
                    knob.at(one.point)
        except RunError:
            raise
        except OSError as error:
            raise _not_written(self._file, error, options) from None
        except Exception as error:  # Optuna replays the lines without checking them
            reason = str(error).split("\n")[0] or type(error).__name__
            raise RunError(f"{self._file} is damaged ({reason}). Start a new search") from None
        if self._study.direction != self._optuna.study.StudyDirection.MINIMIZE:
            raise RunError(f"{self._file} is of an earlier version of thumbnet. Start a new search")

    def _forget_unfinished(self) -> None:
        states = self._optuna.trial.TrialState
        for trial in self._study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            self._study.tell(trial.number, state=states.FAIL)

    def records(self) -> list[Record]:
        """The finished trials, in the order in which they were tried."""
        states = self._optuna.trial.TrialState
        told = self._study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED))
        return [_record(number, trial) for number, trial in enumerate(told, 1)]

    def ask(self) -> Suggestion:
        """Suggest the next trial: first the recipe where the search started, then the other guesses."""
        number = len(self.records()) + 1
        waiting = (self._optuna.trial.TrialState.WAITING,)
        if number <= len(self._guesses) and not self._study.get_trials(deepcopy=False, states=waiting):
            self._study.enqueue_trial(self._guesses[number - 1])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # multivariate sampling is called experimental
            self._study.sampler = self._optuna.samplers.TPESampler(
                seed=derive_seed(self._seed, "suggestion", number) % 2**32,
                n_startup_trials=len(self._guesses),
                multivariate=True,
            )
            trial = self._study.ask()
            point = {knob.name: _suggested(trial, knob) for knob in self._varied}
        return Suggestion(
            number,
            point,
            self._losses_at_the_start(),
            self._together,
            trial,
            self._study,
            self._optuna.trial.TrialState,
        )

    def _losses_at_the_start(self) -> tuple[float, ...]:
        """The loss of each held-out picture in the first trial; empty before it is complete."""
        complete = (self._optuna.trial.TrialState.COMPLETE,)
        first = self._study.get_trials(deepcopy=False, states=complete)[:1]
        return tuple(float(one) for one in first[0].user_attrs["values"]["losses"]) if first else ()

    def importances(self) -> dict[str, float]:
        """Each knob's share in reaching the best quarter of the complete trials.

        This is PED-ANOVA (Watanabe et al. 2023, https://arxiv.org/abs/2304.10255). Shares add up to 1, the
        largest first. Empty if there are too few complete trials.
        """
        complete = [one for one in self.records() if one.state == "complete"]
        if len(complete) < FEWEST_FOR_IMPORTANCE or not self._varied:
            return {}
        evaluator = self._optuna.importance.PedAnovaImportanceEvaluator(target_quantile=BEST_PART)
        with suppress(RuntimeError, ValueError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = self._optuna.importance.get_param_importances(self._study, evaluator=evaluator)
            return {name: float(share) for name, share in found.items() if math.isfinite(share)}
        return {}


@dataclass
class Suggestion:
    """A trial to run. Exactly one of :meth:`complete`, :meth:`stop`, :meth:`fail` and :meth:`drop` ends it.

    Attributes:
        number: the number of its record.
        point: the value of every knob.
    """

    number: int
    point: Point
    _reference: tuple[float, ...]  # losses of the first trial
    _together: tuple[int, ...]  # see paired_gain
    _trial: Any
    _study: Any
    _states: Any
    _last: int = 0  # the last point with a loss

    def report(self, point: int, loss: float) -> bool:
        """Note the mean loss at a point of the trial; returns whether it is hopeless."""
        self._trial.report(loss, point)
        self._last = point
        return self.number > 1 and bool(self._trial.should_prune())

    def complete(self, value: float, losses: Sequence[float], **times: float) -> None:
        """End the trial with its result; ``times`` are seconds, elapsed and predicted."""
        loss = statistics.fmean(losses)
        result: dict[str, Any] = {"value": value, "loss": loss}
        if self._reference:
            result["gain"], result["error"] = paired_gain(losses, self._reference, self._together)
        else:
            result["losses"] = [round(one, 5) for one in losses]
        self._end("complete", {**result, **times})
        self._study.tell(self._trial, loss)

    def stop(self, **times: float) -> None:
        """End the trial as hopeless."""
        self._end("stopped", times)
        self._study.tell(self._trial, state=self._states.PRUNED)

    def fail(self, reason: str, **times: float) -> None:
        """End the trial as failed. Optuna learns that this point is bad."""
        self._trial.report(math.inf, self._last + 1)
        self._end("failed", {"reason": reason, **times})
        self._study.tell(self._trial, state=self._states.PRUNED)

    def drop(self) -> None:
        """Forget the trial: it was not run to an end."""
        self._study.tell(self._trial, state=self._states.FAIL)

    def _end(self, outcome: str, values: Mapping[str, Any]) -> None:
        self._trial.set_user_attr("values", dict(values))
        self._trial.set_user_attr("outcome", outcome)


def best_of(records: Sequence[Record]) -> Record:
    """The complete trial with the lowest loss among those that gain at least two standard errors.

    Of equal ones it is that with the highest value, then the first. The first trial qualifies in any case.
    """
    complete = [one for one in records if one.state == "complete"]
    return min(complete, key=lambda one: (one.gain < SURE * one.error, one.loss, -one.value, one.number))


def paired_gain(
    losses: Sequence[float], reference: Sequence[float], together: Sequence[int] = ()
) -> tuple[float, float]:
    """How much lower ``losses`` are than ``reference``, those of the same pictures; and its standard error.

    Where pictures belong together, the error is that of a mean over clusters (Liang and Zeger 1986): the
    differences from the mean are summed within each cluster, and these sums vary independently. It is never
    below the error for independent pictures, because few clusters may agree by chance.

    >>> paired_gain([0.1, 0.2, 0.3, 0.2], [0.2, 0.4, 0.4, 0.4])
    (0.15, 0.0289)
    >>> paired_gain([0.1, 0.2, 0.3, 0.2], [0.2, 0.4, 0.4, 0.4], together=[0, 1, 0, 1])
    (0.15, 0.05)

    Args:
        losses: of the held-out pictures in one trial.
        reference: of the same pictures in the first trial.
        together: a number for each picture, equal for those that belong together, such as copies of one
            picture; empty if all are independent.

    Returns:
        The mean difference and its standard error. Fewer than two independent sets of pictures tell nothing:
        then the gain is 0 and its error 1, so the first trial stays the best.
    """
    differences = [before - now for now, before in zip(losses, reference, strict=True)]
    pictures = len(differences)
    clusters = len(set(together)) if together else pictures
    if clusters < 2:
        return 0.0, 1.0
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / math.sqrt(pictures)
    if clusters < pictures:
        sums: dict[int, float] = defaultdict(float)
        for cluster, difference in zip(together, differences, strict=True):
            sums[cluster] += difference - mean
        squares = math.fsum(one**2 for one in sums.values())
        error = max(error, math.sqrt(clusters / (clusters - 1) * squares) / pictures)
    return float(f"{mean:.3g}"), float(f"{error:.3g}")


def _suggested(trial: Any, knob: Knob) -> float | int | str:
    if knob.kind == "choice":
        return str(trial.suggest_categorical(knob.name, list(knob.options)))
    if knob.kind == "int":
        return int(trial.suggest_int(knob.name, int(knob.low), int(knob.high), log=knob.log))
    return float(trial.suggest_float(knob.name, knob.low, knob.high, log=knob.log))


def _record(number: int, trial: Any) -> Record:
    values, state = trial.user_attrs["values"], str(trial.user_attrs["outcome"])
    # A damaged value of any trial is noticed here: it would stop Optuna's pruner later.
    curve = {int(point): float(loss) for point, loss in trial.intermediate_values.items()}
    loss = float(values.get("loss", math.nan))
    if state == "stopped":
        loss = curve[max(curve)]
    return Record(
        number,
        state,
        dict(trial.params),
        float(values.get("value", math.nan)),
        loss,
        float(values["seconds"]),
        float(values["elapsed"]),
        float(values["predicted"]),
        str(values.get("reason", "")),
        float(values.get("gain", 0.0)),
        float(values.get("error", 0.0)),
    )


class _Journal:
    """Optuna's journal. If a line cannot be written, nothing is written after what there is of it.

    :func:`_mend` then removes that part when the search goes on.
    """

    def __init__(self, file: Path, backend: Any, options: Sequence[str]) -> None:
        self._file, self._backend, self._options = file, backend, options
        self._failure: OSError | None = None

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        yield from self._backend.read_logs(log_number_from)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append lines, and sync them.

        Raises:
            RunError: they cannot be written, or earlier ones could not.
        """
        if self._failure is None:
            try:
                self._backend.append_logs(logs)
                return
            except OSError as error:
                self._failure = error
        raise _not_written(self._file, self._failure, self._options) from None


def _not_written(journal: Path, error: OSError, options: Sequence[str]) -> RunError:
    again = command("tune", "--resume", journal.parent, *options)
    return RunError(
        f"cannot write {journal}: {error.strerror or error}. Finished trials are kept.\nGo on: {again}"
    )


def _mend(journal: Path) -> None:
    """Remove what a killed process left: a lock, and a last line without an end."""
    for lock in journal.parent.glob(f"{journal.name}.*lock*"):
        lock.unlink(missing_ok=True)
    if not journal.is_file():
        return
    with journal.open("r+b") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
