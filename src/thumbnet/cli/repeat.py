"""``thumbnet repeat``."""

from __future__ import annotations

import argparse
import textwrap
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

from thumbnet.cli.importing import importing
from thumbnet.cli.options import (
    DATA_HELP,
    add_common,
    add_outcome,
    add_recipe_options,
    add_training,
    overrides,
    trackers,
)
from thumbnet.errors import DivergedError, InterruptedRunError, ThumbnetError
from thumbnet.invocation import command, processes

if TYPE_CHECKING:
    from pathlib import Path

    from thumbnet.runs.folder import Run
    from thumbnet.training.repeat import Planned

SEEDS = (0, 1, 2)


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "repeat",
        help="train with several seeds, and with each combination of settings; compare the results",
        description="Train on DATA with several seeds, for each combination of the settings that vary, one\n"
        "training after the other. Then compare them, as `compare` does. Each training has a folder in\n"
        "--out. The same command goes on after an interruption, and with more seeds or values it keeps\n"
        "the trainings that are complete.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=textwrap.dedent("""\
            examples:
              %(prog)s pictures/ --seeds 5 --out study
              %(prog)s pictures/ --seeds 5 --vary augment.cutout=0,8 --vary training.loss=a:f,b:g --out study
              %(prog)s pictures/ --seeds 3,7,11 --vary 'augment.scale=[1,1],[0.8,1.2]' --out study"""),
    )
    parser.add_argument("data", metavar="DATA", help=DATA_HELP)
    parser.add_argument(
        "--seeds",
        type=seeds,
        default=SEEDS,
        metavar="N",
        help="N for the seeds 0 to N-1, or a list such as 3,7,11 (default: 3)",
    )
    parser.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="KEY=VALUE,VALUE",
        help="train with each of these values of a setting, such as augment.cutout=0,8. Commas within "
        "brackets or quotes belong to a value. Can be repeated: with several keys, all combinations are "
        "trained",
    )
    parser.add_argument("--out", metavar="DIR", help="the folder for the runs (required)")
    add_training(parser)
    add_outcome(parser, "the runs' folders")
    add_recipe_options(parser, seed=False)
    add_common(parser)
    parser.set_defaults(command=execute)


def seeds(text: str) -> tuple[int, ...]:
    """Parse a number of seeds, or a list of seeds, for argparse.

    >>> seeds("2"), seeds("3,7")
    ((0, 1), (3, 7))
    """
    expected = "expected a number such as 5, or different seeds such as 3,7,11"
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: {expected}") from None
    if "," not in text:
        found = tuple(range(found[0]))
    if not found or min(found) < 0 or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text}: {expected}")
    return found


def execute(options: argparse.Namespace) -> int:
    if options.out is None:
        again = command(*options.words, "--out", "study")
        raise ThumbnetError(f"name a folder for the runs. The same command goes on there: {again}")
    if processes() > 1:
        raise ThumbnetError("repeat trains in one process: start it without torchrun")

    with importing():
        from thumbnet.cli.compare import compare_runs, show
        from thumbnet.cli.console import note, say
        from thumbnet.training.repeat import plan
        from thumbnet.training.stopping import Terminated

    planned = plan(
        options.out, options.recipe, overrides(options), options.vary, options.seeds, options.minutes
    )
    if not options.quiet:
        note(f"{len(planned)} training(s) in {options.out}")
    try:
        runs, failed = _train_all(options, planned)
    except (KeyboardInterrupt, Terminated):
        note(f"\nto go on: {command(*options.words)}")
        raise
    if runs and options.quiet and not options.json:
        for run in runs:
            say(str(run.path))
    elif runs:
        show(compare_runs([run.path for run in runs]), as_json=options.json)
    if failed:
        lines = "".join(f"\n  {path}: {why}" for path, why in failed)
        raise ThumbnetError(f"{len(failed)} of {len(planned)} trainings failed:{lines}")
    return 0


def _train_all(
    options: argparse.Namespace, planned: list[Planned]
) -> tuple[list[Run], list[tuple[Path, str]]]:
    """Train what is planned. Return the runs, and the folders of those that diverged, with the reason.

    Raises:
        InterruptedRunError: the user stopped; the message has the command that goes on with all of them.
    """
    from thumbnet.cli.console import note

    shown: set[str] = set()
    runs: list[Run] = []
    failed: list[tuple[Path, str]] = []
    for number, one in enumerate(planned, start=1):
        try:
            runs.append(_train(options, one, shown))
        except InterruptedRunError as error:
            error.continue_by(command(*options.words))
            raise
        except DivergedError as error:  # another combination may still train well
            failed.append((one.path, str(error)))
            note(f"thumbnet: {one.path}: {error}")
            continue
        if not options.quiet:
            note(finished(runs, number, len(planned)))
    return runs, failed


def _train(options: argparse.Namespace, planned: Planned, shown: set[str]) -> Run:
    """One training, or the rest of it; lines in ``shown`` are not shown again."""
    from thumbnet.cli.console import note
    from thumbnet.cli.progress import RepeatedDisplay
    from thumbnet.training.listener import StoppableListener
    from thumbnet.training.stopping import stopping
    from thumbnet.training.tracking import tracked
    from thumbnet.training.train import train

    displayed = nullcontext(StoppableListener()) if options.quiet else RepeatedDisplay(shown)
    with displayed as display, ExitStack() as stack, stopping(display, note, ends_process=True):
        return train(
            options.data,
            options.recipe,
            overrides=planned.overrides,
            out=planned.path,
            device=options.device,
            data_dir=options.data_dir,
            listener=stack.enter_context(tracked(trackers(options), display)),
            auto_resume=True,
            minutes=options.minutes,
            labels=options.labels,
        )


def finished(runs: list[Run], number: int, total: int) -> str:
    """The line about the newest of ``runs``: its position, its accuracy, and the time that the others take.

    Args:
        runs: the complete runs; the last one is the newest.
        number: the position of the newest in the study, from 1.
        total: all trainings of the study.
    """
    from thumbnet.cli.console import duration
    from thumbnet.reports.summary import headline_key, headline_name, percent

    summary = runs[-1].summary
    value = summary[headline_key(summary)]
    measured = "" if value is None else f"  {summary['split']} {headline_name(summary)} {percent(value)}"
    seconds = [float(run.summary["seconds_total"]) for run in runs]
    left = (total - number) * sum(seconds) / len(seconds)
    time_left = f"  about {duration(left)} left" if number < total else ""
    return f"{number} of {total}  {runs[-1].path}{measured}{time_left}"
