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
        description="Compare complete runs that were measured on the same pictures. Others are left out, and "
        "a note says why. Runs that differ only in the seed form a group. Each group has its mean, standard "
        "deviation and the settings in which it differs from others. Groups of two or more runs are tested "
        "against the first such group (Welch's t-test). A seed counts once, unless its results differ.",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="folder of a complete run, or of a search by tune"
    )
    parser.add_argument("--plot", metavar="FILE", help="draw the learning curves (.png, .svg, .pdf)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(command=execute)


def execute(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from thumbnet.cli.console import note, say
    from thumbnet.cli.views import show_comparison
    from thumbnet.reports import figures as plots
    from thumbnet.reports.comparison import comparable_runs, group_runs, welch_tests

    target = plots.check_plot_path(options.plot) if options.plot else None
    runs, left_out = comparable_runs(options.runs)
    for one in left_out:
        note(f"thumbnet: {one.path} is left out: {one.reason}")
    groups = group_runs(runs)
    for group in groups:
        for run in group.repeated:
            note(
                f"thumbnet: {run.path} does not count: it has the recipe, data, seed and result of another "
                "run named here"
            )
    differences = None
    try:
        differences = welch_tests(groups)
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
                "settings": dict(group.settings),
                "accuracies": group.accuracies,
                "balanced_accuracies": group.balanced_accuracies,
                "mean": group.mean if group.accuracies else None,
                "deviation": group.deviation,
            }
            for group in groups
        ]
        found = {
            "groups": described,
            "differences": [asdict(test) for test in differences or []],
            "left_out": [{"path": str(one.path), "reason": one.reason} for one in left_out],
        }
        say(json.dumps(found))
        return 0
    show_comparison(groups, differences)
    if target:
        say(f"written: {target}")
    return 0
