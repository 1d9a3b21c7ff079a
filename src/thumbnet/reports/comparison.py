"""Compare runs: group repeated seeds, and test whether two groups differ.

Runs that differ only in the seed form one group. Its mean and standard deviation say what a recipe achieves;
a single run is only one sample.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from thumbnet.errors import MissingExtraError, RunError
from thumbnet.files import read_whole, reason
from thumbnet.invocation import command
from thumbnet.recipes.recipe import Recipe
from thumbnet.recipes.settings import SMALLEST_BATCH
from thumbnet.reports.summary import headline_key
from thumbnet.runs.folder import CORRECTIONS_NAME, Run, without_length
from thumbnet.runs.summaries import check_metrics

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Group:
    """Runs of one recipe on the same data, with different seeds.

    Attributes:
        name: the recipe's name, with a number if several recipes share it.
        runs: the runs, in the order given.
        accuracies: their final accuracies on the split that the runs report; empty if nothing was measured.
            For runs on pictures with several labels, these are values of mAP.
        repeated: further runs with the seed and the result of one of ``runs``, such as a run that was named
            twice. They are no further samples, so they do not count.
    """

    name: str
    runs: tuple[Run, ...]
    accuracies: tuple[float, ...]
    repeated: tuple[Run, ...] = ()

    @property
    def mean(self) -> float:
        """The mean accuracy; nan if nothing was measured."""
        return statistics.fmean(self.accuracies) if self.accuracies else math.nan

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation (n - 1) of the accuracies; None for a single run."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None


@dataclass(frozen=True)
class Difference:
    """The difference between two groups' mean accuracies, by Welch's t-test (1947).

    Welch's test allows the groups to have different variances.

    Attributes:
        first, second: the groups' names.
        difference: the second mean minus the first.
        interval: the 95 % confidence interval of the difference.
        p: the probability of a difference at least this large if the true difference were 0.
    """

    first: str
    second: str
    difference: float
    interval: tuple[float, float]
    p: float


def _asked(recipe: Recipe) -> dict[str, Any]:
    """The settings of a training for a given time, without what the clock decided.

    That are the number of steps, the size of the batches, with which all rates change, and how often the
    network was evaluated. The width counts: networks of different widths are not repetitions.
    """
    described = without_length(recipe).with_batch_size(SMALLEST_BATCH).to_dict()
    for rates in (described["optimizer"], *described["optimizer"]["groups"]):
        if rates.get("lr") is not None:
            rates["lr"] = float(f"{rates['lr']:.5g}")
    for key in ("every", "sample"):
        described["evaluation"].pop(key, None)
    return described


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Group runs that differ only in the seed, in the order of the groups' first runs.

    Runs that were trained on different pictures or labels are in different groups. Runs of one time budget
    (``--minutes``) may differ in what the clock decides; see :func:`_asked`. In a group, a seed counts once,
    unless its results differ, as they may on another device.

    Raises:
        RunError: a run is not complete, or the runs were measured on different pictures or labels.
    """
    members: dict[str, list[Run]] = {}
    for run in runs:
        _check_measured_alike(runs[0], run)
        minutes = run.settings.get("minutes")
        described = run.recipe.to_dict() if minutes is None else _asked(run.recipe)
        for key in ("seed", "name", "description"):
            described.pop(key, None)
        described |= {"fingerprint": run.settings.get("fingerprint"), "minutes": minutes}
        members.setdefault(json.dumps(described, sort_keys=True), []).append(run)
    groups = []
    names: dict[str, int] = {}
    for same in members.values():
        name = same[0].recipe.name
        if same[0].settings.get("labels"):
            name += ", corrected labels"
        names[name] = names.get(name, 0) + 1
        label = name if names[name] == 1 else f"{name} ({names[name]})"
        samples: dict[tuple[int, float | None], Run] = {}
        repeated = []
        for run in same:
            sample = run.recipe.seed, run.summary[headline_key(run.summary)]
            if sample in samples:
                repeated.append(run)
            else:
                samples[sample] = run
        accuracies = tuple(float(value) for _, value in samples if value is not None)
        groups.append(Group(label, tuple(samples.values()), accuracies, tuple(repeated)))
    return groups


def _check_measured_alike(first: Run, second: Run) -> None:
    """Check that two runs were measured on the same pictures, with the same labels.

    Raises:
        RunError: they were not, or a run is not complete.
    """
    one, other = first.settings, second.settings
    key = "measured_fingerprint" if "measured_fingerprint" in one.keys() & other.keys() else "fingerprint"
    if one.get(key) == other.get(key) and first.summary["split"] == second.summary["split"]:
        return
    measured = [run.summary["split"] is not None for run in (first, second)]
    if any(measured) and not all(measured):
        lacks, has = (first, second) if measured[1] else (second, first)
        raise RunError(
            f"{lacks.path} was not measured, because its data have no test split, so it cannot be compared "
            f"with {has.path}: leave it out, or train it again with a test split"
        )
    message = (
        f"{first.path} and {second.path} were measured on different pictures or labels, so their "
        "accuracies cannot be compared"
    )
    if one.get("labels") != other.get("labels"):
        changed = second if other.get("labels") else first
        plain = first if changed is second else second
        measure = command("evaluate", plain.path, "--labels", changed.path / CORRECTIONS_NAME)
        message += f".\nTo measure {plain.path} with the corrected labels of {changed.path}: {measure}"
    raise RunError(message)


def welch_test(first: Group, second: Group) -> Difference | None:
    """Test whether the means of two groups differ; None if that cannot be tested.

    That is the case if a group has only one run, or if all runs within each group have the same accuracy.

    Raises:
        MissingExtraError: SciPy is not installed.
    """
    if first.deviation is None or second.deviation is None or first.deviation == second.deviation == 0:
        return None
    try:
        from scipy.stats import ttest_ind
    except ImportError:
        raise MissingExtraError("testing the difference", "report") from None
    result = ttest_ind(second.accuracies, first.accuracies, equal_var=False)
    interval = result.confidence_interval(CONFIDENCE)
    return Difference(
        first.name,
        second.name,
        second.mean - first.mean,
        (float(interval.low), float(interval.high)),
        float(result.pvalue),
    )


def read_metrics(run: Run) -> list[dict[str, Any]]:
    """Read ``metrics.jsonl``: one dictionary per epoch.

    Raises:
        RunError: the file cannot be read.
    """
    path = run.path / "metrics.jsonl"
    try:
        lines = [json.loads(line) for line in read_whole(path).decode().splitlines()]
        if not all(isinstance(line, dict) for line in lines):
            raise ValueError("it does not hold one JSON object per epoch")
        for line in lines:
            check_metrics(line)
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"cannot read {path}: {reason(error)}") from None
    return lines
