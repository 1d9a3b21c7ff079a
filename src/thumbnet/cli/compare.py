"""``thumbnet compare``."""

from __future__ import annotations

import argparse
import json
from typing import Any

from thumbnet.errors import MissingExtraError


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "compare",
        help="compare runs side by side",
        description="Compare complete runs. Runs that differ only in the seed form a group, described by "
        "its mean, its standard deviation and Welch's t-test against the first group. A seed counts once, "
        "unless its results differ.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a complete run")
    parser.add_argument("--plot", metavar="FILE", help="draw the learning curves (.png, .svg, .pdf)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(command=execute)


def execute(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from thumbnet.cli.console import note, say
    from thumbnet.cli.views import show_comparison
    from thumbnet.reports import figures as plots
    from thumbnet.reports.comparison import group_runs, welch_test
    from thumbnet.runs.folder import Run

    target = plots.check_plot_path(options.plot) if options.plot else None
    groups = group_runs([Run.open(path) for path in options.runs])
    for group in groups:
        for run in group.repeated:
            note(
                f"thumbnet: {run.path} does not count: it has the recipe, data, seed and result of another "
                "run named here"
            )
    differences = None
    try:
        differences = [test for group in groups[1:] if (test := welch_test(groups[0], group)) is not None]
    except MissingExtraError as error:
        note(f"thumbnet: {error}")
    if target:
        plots.save(plots.curves_figure(groups), target)
    if options.json:
        described = [
            {
                "name": group.name,
                "runs": [str(run.path) for run in group.runs],
                "repeated": [str(run.path) for run in group.repeated],
                "accuracies": group.accuracies,
                "mean": group.mean if group.accuracies else None,
                "deviation": group.deviation,
            }
            for group in groups
        ]
        say(json.dumps({"groups": described, "differences": [asdict(test) for test in differences or []]}))
        return 0
    show_comparison(groups, differences)
    if target:
        say(f"written: {target}")
    return 0
