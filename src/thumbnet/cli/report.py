"""``thumbnet report``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from thumbnet.cli.importing import importing
from thumbnet.cli.options import (
    add_common,
    add_data_of_run,
    add_groups_of_other_data,
    add_model_code,
    add_reading_of_run,
)
from thumbnet.cli.run_data import data_of_run, split_of

if TYPE_CHECKING:
    from thumbnet.data.splits import Data
    from thumbnet.runs.folder import Run


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "report",
        help="write a report on a run: one HTML page with pictures",
        description="Write a self-contained HTML page: learning curves, the confusion matrix with its "
        "pictures, measures and thresholds per class, calibration, mistakes, doubtful labels, heat maps, "
        "data and recipe. Next to it, mistakes.csv lists all mistakes and suspects.csv all doubtful labels.",
    )
    parser.add_argument("run", metavar="RUN", help="folder of a complete run")
    add_model_code(parser)
    add_data_of_run(parser)
    add_reading_of_run(parser, "skip damaged ones; for missing ones the run's setting")
    add_groups_of_other_data(parser)
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="file to write (default: report.html in RUN, for the run's own data only). The lists next to "
        "NAME.html are then called NAME-mistakes.csv and NAME-suspects.csv",
    )
    parser.add_argument("--open", action="store_true", help="then open the page in the browser")
    add_common(parser)
    parser.set_defaults(command=execute)


def execute(options: argparse.Namespace) -> int:
    import os
    from pathlib import Path

    with importing():
        from thumbnet.cli.console import say
        from thumbnet.cli.progress import counting
        from thumbnet.errors import RunError
        from thumbnet.files import check_output, user_path
        from thumbnet.invocation import command
        from thumbnet.reports.label_page import write_label_report
        from thumbnet.reports.page import check_jinja, write_report
        from thumbnet.runs.folder import Run

    check_jinja()
    run = Run.open(options.run)
    _ = run.summary  # refuse an incomplete run before loading its data
    out = user_path(options.out) if options.out else run.path / "report.html"
    check_output(out, named=bool(options.out))
    data = data_of_run(options, run.recipe.data)
    split = split_of(options, data)
    if not options.out and not _is_usual(options, run, data, split):
        raise RunError(
            f"{out} is for the pictures on which the run was measured. Name a file for the report on others: "
            f"{command(*options.words, '--out', 'FILE')}"
        )
    with counting("heat maps") as count:
        if data.multilabel:
            written = write_label_report(run, data, split, out, device=options.device)
        else:
            written = write_report(run, data, split, out, device=options.device, progress=count)
    say(f"written: {out}  ({out.stat().st_size / 1e6:.2f} MB)")
    for path in written[1:]:
        say(f"written: {path}")
    if options.open:
        import webbrowser

        # The links on the page start from this path, without following symbolic links.
        webbrowser.open(Path(os.path.abspath(out)).as_uri())
    return 0


def _is_usual(options: argparse.Namespace, run: Run, data: Data, split: str) -> bool:
    """Whether a report is on the pictures that the run's summary is about, as far as is known."""
    from thumbnet.runs.finding import same_source

    settings = run.settings
    source, own = options.data, settings.get("data")
    named = source is None or own is None or same_source(source, own)
    unchanged = settings.get("measured_fingerprint") == data.fingerprint(split)  # perhaps in a new place
    return split == data.measured_split() and (named or unchanged)
