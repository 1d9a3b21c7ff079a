"""Runs side by side: their outcomes, repeated seeds together, and whether two groups of them differ.

Runs that differ in nothing but the seed are one group: its mean and standard deviation say what a recipe
does, a single run only what it did once.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from thumbnet.errors import MissingExtraError, RunError
from thumbnet.runs.folder import Run

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Group:
    """Runs of one recipe on the same data, with different seeds.

    Attributes:
        name: the recipe's, and a number where several recipes have that name.
        runs: in the order in which they were named.
        accuracies: final ones, of the split that the runs report; empty where nothing was measured.
    """

    name: str
    runs: tuple[Run, ...]
    accuracies: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Of the accuracies; nan where nothing was measured."""
        return statistics.fmean(self.accuracies) if self.accuracies else math.nan

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the accuracies (of the sample, n - 1); None of one run."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None


@dataclass(frozen=True)
class Difference:
    """Of the mean accuracies of two groups, by Welch's t-test (1947): their variances may differ.

    Attributes:
        first, second: the groups' names.
        difference: second minus first.
        interval: its 95 % interval.
        p: how likely a difference at least as large would be, were there none.
    """

    first: str
    second: str
    difference: float
    interval: tuple[float, float]
    p: float


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """The groups, in the order of their first runs.

    Raises:
        RunError: a run is not complete, or they were not all measured on the same pictures.
    """
    members: dict[str, list[Run]] = {}
    measured: dict[tuple[Any, Any], Run] = {}
    for run in runs:
        summary, settings = run.summary, run.settings
        measured.setdefault((settings.get("fingerprint"), summary["split"]), run)
        described = run.recipe.to_dict()
        for key in ("seed", "name", "description"):
            described.pop(key, None)
        members.setdefault(json.dumps(described, sort_keys=True), []).append(run)
    if len(measured) > 1:
        one, other, *_ = measured.values()
        raise RunError(
            f"{one.path} and {other.path} were not measured on the same pictures: their accuracies cannot be "
            "compared"
        )
    groups = []
    names: dict[str, int] = {}
    for same in members.values():
        name = same[0].recipe.name
        names[name] = names.get(name, 0) + 1
        label = name if names[name] == 1 else f"{name} ({names[name]})"
        found = [run.summary["accuracy"] for run in same]
        accuracies = tuple(float(one) for one in found if one is not None)
        groups.append(Group(label, tuple(same), accuracies))
    return groups


def welch_test(first: Group, second: Group) -> Difference | None:
    """Whether the second group's mean differs from the first's; None where there is no spread to judge it by.

    That is where either group has one run only, or all runs of both are as accurate as the others of theirs.

    Raises:
        MissingExtraError: SciPy is not installed.
    """
    if first.deviation is None or second.deviation is None or first.deviation == second.deviation == 0:
        return None
    try:
        from scipy.stats import ttest_ind
    except ImportError:
        raise MissingExtraError("a test of the difference", "report") from None
    result = ttest_ind(second.accuracies, first.accuracies, equal_var=False)
    interval = result.confidence_interval(CONFIDENCE)
    return Difference(
        first.name, second.name, second.mean - first.mean,
        (float(interval.low), float(interval.high)), float(result.pvalue),
    )  # fmt: skip


def read_metrics(run: Run) -> list[dict[str, Any]]:
    """``metrics.jsonl``: a dictionary an epoch.

    Raises:
        RunError: it cannot be read.
    """
    path = run.path / "metrics.jsonl"
    try:
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"cannot read {path}: {error}") from None
    if not all(isinstance(line, dict) and "epoch" in line for line in lines):
        raise RunError(f"{path} does not hold what a run's does")
    return lines
