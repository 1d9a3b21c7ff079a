"""``thumbnet compare``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thumbnet.errors import MissingExtraError

if TYPE_CHECKING:
    from thumbnet.reports.comparison import Difference, Group, LeftOut, Spread


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "compare",
        help="compare runs side by side",
        description="Compare complete runs that were measured on the same pictures. Others are left out, and "
        "a note says why. Runs that differ only in the seed form a group. Each group has its mean, standard "
        "deviation, the interval of the mean and the settings in which it differs from others. Groups of two "
        "or more runs are tested against the first such group (Welch's t-test, with Holm's correction for "
        "several tests). A seed counts once, unless its results differ.",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="folder of a complete run, or of a search by tune"
    )
    parser.add_argument(
        "--against",
        metavar="NAME",
        help="test the other groups against this one: its name, or the folder of one of its runs",
    )
    add_split(parser)
    parser.add_argument("--plot", metavar="FILE", help="draw the learning curves (.png, .svg, .pdf)")
    parser.add_argument(
        "--csv",
        metavar="FILE",
        help="write a row per group: settings, number of runs, and the mean, standard deviation and interval "
        "of accuracy and balanced accuracy. A file of that name is replaced",
    )
    parser.add_argument("--markdown", metavar="FILE", help="write such a table in Markdown, in per cent")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(command=execute)


def add_split(parser: argparse.ArgumentParser) -> None:
    """Add ``--split``, the split to compare by."""
    parser.add_argument(
        "--split",
        choices=["val", "test"],
        help="compare the results on this split: val to decide by it, so that test stays unused until the "
        "end (default: test, or val if there is no test)",
    )


@dataclass(frozen=True)
class Compared:
    """Runs that were compared.

    Attributes:
        groups: the runs, in groups that differ in more than the seed.
        measures: how the measures of each group vary.
        differences: the tests; None without SciPy.
        left_out: what could not be compared.
        chosen: whether the user chose the group that the others are tested against.
    """

    groups: Sequence[Group]
    measures: Sequence[Mapping[str, Spread]]
    differences: Sequence[Difference] | None
    left_out: Sequence[LeftOut]
    chosen: bool


def execute(options: argparse.Namespace) -> int:
    from thumbnet.cli.console import say
    from thumbnet.files import check_output, user_path, write_file
    from thumbnet.reports import figures as plots
    from thumbnet.reports.comparison_table import as_csv, as_markdown

    target = plots.check_plot_path(options.plot) if options.plot else None
    tables = {
        user_path(name): form
        for name, form in ((options.csv, as_csv), (options.markdown, as_markdown))
        if name
    }
    for path in tables:
        check_output(path)
    found = compare_runs(options.runs, options.against, options.split)
    if target:
        plots.save(plots.curves_figure(found.groups), target)
    for path, form in tables.items():
        write_file(path, form(found.groups, found.measures))
    show(found, as_json=options.json)
    if not options.json:
        for path in (*([target] if target else []), *tables):
            say(f"written: {path}")
    return 0


def compare_runs(
    paths: Sequence[str | Path], against: str | None = None, split: str | None = None
) -> Compared:
    """Compare the runs at ``paths``. Notes say what is left out, and whether SciPy is missing.

    Args:
        paths: folders of runs, and anything else.
        against: the group that the others are tested against; see
            :func:`~thumbnet.reports.comparison.reference_group`.
        split: the split to compare by; by default the one that each run reports.

    Raises:
        RunError: there is nothing to compare, or no such group.
    """
    from thumbnet.cli.console import note
    from thumbnet.reports.comparison import (
        comparable_runs,
        group_runs,
        reference_group,
        spreads,
        welch_tests,
    )

    runs, left_out = comparable_runs(paths, split)
    for one in left_out:
        note(f"thumbnet: {one.path} is left out: {one.reason}")
    groups = group_runs(runs, split)
    for group in groups:
        for run in group.repeated:
            note(
                f"thumbnet: {run.path} does not count: it has the recipe, data, seed and result of another "
                "run named here"
            )
    reference = reference_group(groups, against)
    measures = [spreads(group) for group in groups]
    differences: list[Difference] | None = None
    try:
        differences = welch_tests(groups, reference)
    except MissingExtraError as error:
        note(f"thumbnet: {error}")
    return Compared(groups, measures, differences, left_out, against is not None)


def show(found: Compared, *, as_json: bool) -> None:
    """Print a comparison: its tables and tests, or one JSON object."""
    from dataclasses import asdict

    from thumbnet.cli.console import say
    from thumbnet.cli.views import show_comparison
    from thumbnet.reports.comparison import optimistic_lines

    if not as_json:
        show_comparison(found.groups, found.differences, found.measures, chosen=found.chosen)
        return
    described = [
        {
            "name": group.name,
            "split": group.summary_of(group.runs[0])["split"],
            "runs": [str(run.path) for run in group.runs],
            "repeated": [str(run.path) for run in group.repeated],
            "settings": dict(group.settings),
            "accuracies": group.accuracies,
            "balanced_accuracies": group.balanced_accuracies,
            "mean": group.mean if group.accuracies else None,
            "deviation": group.deviation,
            "measures": {name: asdict(spread) for name, spread in measures.items()},
        }
        for group, measures in zip(found.groups, found.measures, strict=True)
    ]
    whole = {
        "groups": described,
        "notes": optimistic_lines(found.groups),
        "differences": [asdict(test) for test in found.differences or []],
        "left_out": [{"path": str(one.path), "reason": one.reason} for one in found.left_out],
    }
    say(json.dumps(whole))
