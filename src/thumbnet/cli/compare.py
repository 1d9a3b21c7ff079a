"""``thumbnet compare``."""

from __future__ import annotations

import argparse
import json
from typing import Any

from thumbnet.errors import MissingExtraError


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "compare",
        help="put runs side by side",
        description="Put complete runs side by side. Runs that differ only in the seed form a group, with "
        "mean, standard deviation, and Welch's test of the difference from the first group.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="runs' folders")
    parser.add_argument("--plot", metavar="FILE", help="draw their learning curves (.png, .svg, .pdf)")
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
                "accuracies": group.accuracies,
                "mean": group.mean if group.accuracies else None,
                "deviation": group.deviation,
            }
            for group in groups
        ]
        say(json.dumps({"groups": described, "differences": [asdict(one) for one in differences or []]}))
        return 0
    show_comparison(groups, differences)
    if target:
        say(f"drawn: {target}")
    return 0
