"""Compare runs: choose the comparable ones, group repeated seeds, and test whether two groups differ.

Runs that differ only in the seed form one group. Its mean and standard deviation say what a recipe achieves;
a single run is only one sample.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from thumbnet.errors import RunError, needs_extra, printable
from thumbnet.evaluation import Z95, student_quantiles
from thumbnet.files import user_path
from thumbnet.invocation import command
from thumbnet.reports.repetitions import code_of, description, differing
from thumbnet.reports.summary import ended_early, of_split, optimism
from thumbnet.runs.finding import FINAL_RUN, is_finished, is_run, is_search, no_run
from thumbnet.runs.folder import CORRECTIONS_NAME, Run
from thumbnet.runs.summaries import headline_key, headline_name

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Group:
    """Runs of one recipe on the same data, with different seeds.

    Attributes:
        name: the recipe's name, with a number if several recipes share it.
        runs: the runs, in the order given.
        accuracies: their final accuracies on ``split``; empty if nothing was measured.
            For runs on pictures with several labels, these are values of mAP.
        repeated: further runs with the seed and the result of one of ``runs``, such as a run that was named
            twice. They are no further samples, so they do not count.
        settings: the settings in which the groups differ, with this group's values. Keys are the recipe's,
            such as ``optimizer.lr``; ``minutes``, the given time; ``fingerprint``, a digest of the data;
            ``ended``, the step at which the user ended the training and the number of planned steps; and
            ``code``, a digest of the user's own code, if only that differs.
        split: the split whose accuracies are compared; None for the one that each run reports.
    """

    name: str
    runs: tuple[Run, ...]
    accuracies: tuple[float, ...]
    repeated: tuple[Run, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    split: str | None = None

    @property
    def mean(self) -> float:
        """The mean accuracy; nan if nothing was measured."""
        return statistics.fmean(self.accuracies) if self.accuracies else math.nan

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation (n - 1) of the accuracies; None for a single run."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None

    @property
    def balanced_accuracies(self) -> list[float | None]:
        """The balanced accuracy of each run; None with several labels, and in runs of earlier versions."""
        return [self.summary_of(run).get("balanced_accuracy") for run in self.runs]

    def summary_of(self, run: Run) -> dict[str, Any]:
        """The summary of a run of the group, with the measures of ``split``."""
        return _summary(run, self.split)


@dataclass(frozen=True)
class Spread:
    """How a measure varies over the runs of a group.

    Attributes:
        mean: the mean.
        deviation: the sample standard deviation (n - 1); None for a single run.
        interval: the 95 % confidence interval of the mean, by Student's t distribution; None for a single
            run. It assumes that the runs' values are normally distributed, so it may reach beyond 1.
    """

    mean: float
    deviation: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class LeftOut:
    """A folder or file that cannot be compared with the other runs, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Difference:
    """The difference between two groups' mean accuracies, by Welch's t-test (1947).

    Welch's test allows the groups to have different variances.

    Attributes:
        first, second: the groups' names.
        difference: the second mean minus the first.
        interval: the 95 % confidence interval of the difference.
        p: the probability of a difference at least this large if the true difference were 0.
        adjusted: ``p`` after Holm's correction (:func:`holm`), if several differences are tested together;
            else the same as ``p``. The interval is that of this difference alone.
    """

    first: str
    second: str
    difference: float
    interval: tuple[float, float]
    p: float
    adjusted: float


@dataclass(frozen=True)
class _Measured:
    """What a run was measured on: a split, and digests of its pictures and of all of the run's data.

    Runs of older versions have no digest of the measured pictures alone.
    """

    split: str | None
    pictures: str | None
    data: str | None

    @classmethod
    def by(cls, run: Run, split: str | None) -> _Measured:
        settings, reported = run.settings, run.summary["split"]
        key = "measured_fingerprint" if split in (None, reported) else "val_fingerprint"
        return cls(split or reported, settings.get(key), settings.get("fingerprint"))

    def like(self, other: _Measured) -> bool:
        """Whether these are the same pictures, with the same labels."""
        if self.split != other.split:
            return False
        if self.pictures is None or other.pictures is None:
            return self.data == other.data
        return self.pictures == other.pictures


def comparable_runs(paths: Sequence[str | Path], split: str | None = None) -> tuple[list[Run], list[LeftOut]]:
    """Open those runs that can be compared with each other.

    Others are left out, because ``runs/*`` names whatever is there: folders and files that hold no run, runs
    that are not complete, and runs that were measured on other pictures or labels than most, or not on
    ``split``. The folder of a search stands for its final training.

    Args:
        paths: folders of runs, and anything else.
        split: the split to compare by, ``test`` or ``val``; by default the one that each run reports.

    Returns:
        the runs, in the order given, and what was left out.

    Raises:
        RunError: a path does not exist, a run is damaged, none is complete, or there are several and
            no two of them were measured on the same pictures and labels.
    """
    complete: list[Run] = []
    left_out: dict[Path, str] = {}
    for path in map(user_path, paths):
        folder = path / FINAL_RUN if is_search(path) else path
        if is_finished(folder):
            run = Run(folder)
            if of_split(run.summary, split) is None:
                left_out[path] = _not_measured(run, str(split))
            else:
                complete.append(run)
        elif is_search(path):
            left_out[path] = f"its search is not complete. Continue it: {command('tune', '--resume', path)}"
        elif len(paths) == 1 or not path.exists():
            raise no_run(path)
        elif is_run(path):
            left_out[path] = f"it is not complete. Resume it: {command('train', '--resume', path)}"
        else:
            left_out[path] = "it is not a run's folder"
    if not complete:
        lines = [f"  {printable(str(path))}: {why}" for path, why in left_out.items()]
        by = "" if split is None else f" by {split}"
        raise RunError(f"there is no complete run to compare{by}:\n" + "\n".join(lines))
    runs, others = _divide(complete, split)
    if others and len(runs) == 1:
        raise RunError(others[0].reason)
    return runs, [*(LeftOut(path, why) for path, why in left_out.items()), *others]


def _divide(runs: Sequence[Run], split: str | None) -> tuple[list[Run], list[LeftOut]]:
    """Divide runs into those that were measured on the same pictures and labels as most, and the others.

    Raises:
        RunError: a run is not complete.
    """
    measured = [_Measured.by(run, split) for run in runs]
    counts = {one: sum(one.like(other) for other in measured) for one in dict.fromkeys(measured)}
    if not counts:
        return [], []
    most = max(counts, key=lambda one: (counts[one] > 1, one.split is not None, counts[one]))
    reference = runs[measured.index(most)]
    alike: list[Run] = []
    others: list[LeftOut] = []
    for run, one in zip(runs, measured, strict=True):
        if most.like(one):
            alike.append(run)
        else:
            others.append(LeftOut(run.path, _why_not(reference, run)))
    return alike, others


def group_runs(runs: Sequence[Run], split: str | None = None) -> list[Group]:
    """Group runs that differ only in the seed, in the order of the groups' first runs.

    Runs that were trained on different pictures or labels are in different groups. So are runs that the user
    ended at different steps (``--finish``), and runs whose own code (a network, loss or augmentation) has
    changed in between. Runs of earlier versions have no record of it, and join the first group otherwise like
    them. Runs of one time budget (``--minutes``) may differ in what the clock decides. In a group, a seed
    counts once, unless its results differ, as they may on another device.

    Args:
        runs: complete runs.
        split: the split to compare by, ``test`` or ``val``; by default the one that each run reports.

    Raises:
        RunError: a run is not complete or was not measured on ``split``, or the runs were measured on
            different pictures or labels.
    """
    _, others = _divide(runs, split)
    if others:
        raise RunError(others[0].reason)
    described = [json.dumps(description(run), sort_keys=True) for run in runs]
    codes = [code_of(run) for run in runs]
    known: dict[str, str] = {}
    for one, code in zip(described, codes, strict=True):
        if code is not None:
            known.setdefault(one, code)
    members: dict[tuple[str, str | None], list[Run]] = {}
    for run, one, code in zip(runs, described, codes, strict=True):
        members.setdefault((one, code or known.get(one)), []).append(run)
    groups = []
    names: dict[str, int] = {}
    firsts = [same[0] for same in members.values()]
    alike = Counter(one for one, _ in members)
    # Code of another name is another setting, which says enough.
    told = [code if alike[one] > 1 else None for one, code in members]
    differences = differing(firsts, told)
    for same, settings in zip(members.values(), differences, strict=True):
        name = same[0].recipe.name
        if same[0].settings.get("labels"):
            name += ", corrected labels"
        if ended_early(same[0].summary):
            name += ", ended early"
        names[name] = names.get(name, 0) + 1
        label = name if names[name] == 1 else f"{name} ({names[name]})"
        samples: dict[tuple[int, float | None], Run] = {}
        repeated = []
        for run in same:
            summary = _summary(run, split)
            sample = run.recipe.seed, summary[headline_key(summary)]
            if sample in samples:
                repeated.append(run)
            else:
                samples[sample] = run
        accuracies = tuple(float(value) for _, value in samples if value is not None)
        groups.append(Group(label, tuple(samples.values()), accuracies, tuple(repeated), settings, split))
    return groups


def _summary(run: Run, split: str | None) -> dict[str, Any]:
    """The summary of a run with the measures of ``split``.

    Raises:
        RunError: the run was not measured on it.
    """
    found = of_split(run.summary, split)
    if found is None:
        raise RunError(f"{run.path}: {_not_measured(run, str(split))}")
    return found


def _not_measured(run: Run, split: str) -> str:
    """Say why the result of a run on ``split`` is not known."""
    if split != "val":
        return f"its data have no {split} split"
    if "val" in run.summary or run.summary["split"] is None:
        return "its data have no val split. Train with one: --val-fraction 0.1"
    evaluate = command("evaluate", run.path, "--split", "val")
    return (
        f"an earlier version of thumbnet trained it, which kept no result on val. To measure it: {evaluate}"
    )


def _why_not(first: Run, second: Run) -> str:
    """Say why two runs cannot be compared that were not measured on the same pictures and labels."""
    measured = [run.summary["split"] is not None for run in (first, second)]
    if not any(measured):
        return f"{first.path} and {second.path} were trained on different data, and neither was measured"
    if not all(measured):
        lacks, has = (first, second) if measured[1] else (second, first)
        return (
            f"{lacks.path} was not measured, because its data have no test split, so it cannot be compared "
            f"with {has.path}: train it again with a test split"
        )
    fold, other_fold = first.recipe.data.test_fold, second.recipe.data.test_fold
    if fold is not None and other_fold is not None and fold != other_fold:
        again = command("repeat", "DATA", "--folds", str(fold[1]))
        return (
            f"{first.path} and {second.path} were measured on different folds of their data, so their "
            f"accuracies cannot be compared. The command that trained them ({again} ...) measures all folds "
            "together"
        )
    why = (
        f"{first.path} and {second.path} were measured on different pictures or labels, so their "
        "accuracies cannot be compared"
    )
    one, other = first.settings.get("labels"), second.settings.get("labels")
    if one != other:
        changed, plain = (second, first) if other else (first, second)
        measure = command("evaluate", plain.path, "--labels", changed.path / CORRECTIONS_NAME)
        why += f".\nTo measure {plain.path} with the corrected labels of {changed.path}: {measure}"
    return why


def optimistic_lines(groups: Sequence[Group]) -> list[str]:
    """Sentences that say whether the accuracies are optimistic, and why.

    See :func:`~thumbnet.reports.summary.optimism`.
    """
    found: dict[str, None] = {}
    for group in groups:
        for run in group.runs:
            summary = group.summary_of(run)
            split, measure = summary["split"], headline_name(summary)
            why = optimism(run, split).get(measure)
            if why is not None:
                found[f"{split} {measure}: {why}."] = None
    return list(found)


def spreads(group: Group) -> dict[str, Spread]:
    """How the measures of a group vary: the main measure, and ``balanced_accuracy`` if every run has it.

    Args:
        group: any group; without a measured run, there is no measure.
    """
    measured: dict[str, Sequence[float]] = {}
    if group.accuracies:
        measured[headline_key(group.runs[0].summary)] = group.accuracies
        balanced = [value for value in group.balanced_accuracies if value is not None]
        if len(balanced) == len(group.runs):
            measured["balanced_accuracy"] = balanced
    return {name: _spread(values) for name, values in measured.items()}


def _spread(values: Sequence[float]) -> Spread:
    """How ``values`` vary; see :func:`spreads`."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Spread(mean, None, None)
    deviation = statistics.stdev(values)
    half = float(student_quantiles(Z95, np.array([len(values) - 1]))[0]) * deviation / math.sqrt(len(values))
    return Spread(mean, deviation, (mean - half, mean + half))


def reference_group(groups: Sequence[Group], against: str | None = None) -> Group | None:
    """The group that the others are tested against: by default the first one with two or more runs, if any.

    Args:
        groups: all groups.
        against: the name of the group, or the folder of one of its runs.

    Raises:
        RunError: there is no such group, or it has a single run.
    """
    if against is None:
        return next((group for group in groups if group.deviation is not None), None)
    place = user_path(against).resolve()
    found = next((group for group in groups if group.name == against), None) or next(
        (
            group
            for group in groups
            if any(run.path.resolve() == place for run in (*group.runs, *group.repeated))
        ),
        None,
    )
    if found is None:
        names = ", ".join(repr(group.name) for group in groups)
        raise RunError(
            f"--against {against}: expected the name of a group, or the folder of one of its runs. "
            f"The groups: {names}"
        )
    if found.deviation is None:
        raise RunError(f"--against {against}: this group needs two or more runs that were measured")
    return found


def welch_tests(groups: Sequence[Group], reference: Group | None = None) -> list[Difference]:
    """Test each group of two or more runs against ``reference``, where :func:`welch_test` can.

    The p-values of several tests are corrected together, see :func:`holm`.

    Args:
        groups: all groups.
        reference: one of them; by default the first one with two or more runs.

    Raises:
        MissingExtraError: SciPy is not installed.
    """
    reference = reference_group(groups) if reference is None else reference
    if reference is None:
        return []
    tests = [welch_test(reference, group) for group in groups if group is not reference]
    done = [test for test in tests if test is not None]
    adjusted = holm([test.p for test in done])
    return [replace(test, adjusted=value) for test, value in zip(done, adjusted, strict=True)]


def holm(values: Sequence[float]) -> list[float]:
    """Correct the p-values of several tests by Holm's method (1979).

    If all true differences were 0, the probability that any corrected value is below 0.05 is at most 0.05.

    >>> [round(value, 3) for value in holm([0.04, 0.01, 0.03])]
    [0.06, 0.03, 0.06]
    """
    adjusted = [0.0] * len(values)
    largest = 0.0
    order = sorted(range(len(values)), key=values.__getitem__)
    for position, index in enumerate(order):
        largest = max(largest, min((len(values) - position) * values[index], 1.0))
        adjusted[index] = largest
    return adjusted


def welch_test(first: Group, second: Group) -> Difference | None:
    """Test whether the means of two groups differ; None if that cannot be tested.

    That is the case if a group has only one run, or if all runs within each group have the same accuracy.

    Raises:
        MissingExtraError: SciPy is not installed.
    """
    if first.deviation is None or second.deviation is None or first.deviation == second.deviation == 0:
        return None
    with needs_extra("testing differences", "report"):
        from scipy.stats import ttest_ind
    result = ttest_ind(second.accuracies, first.accuracies, equal_var=False)
    interval = result.confidence_interval(CONFIDENCE)
    return Difference(
        first.name,
        second.name,
        second.mean - first.mean,
        (float(interval.low), float(interval.high)),
        float(result.pvalue),
        float(result.pvalue),
    )
