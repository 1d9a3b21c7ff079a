"""``thumbnet repeat``."""

from __future__ import annotations

import argparse
import textwrap
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

from thumbnet.cli.compare import add_split
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
from thumbnet.cli.usage import UsageError
from thumbnet.errors import DivergedError, InterruptedRunError, ThumbnetError
from thumbnet.invocation import command, processes

if TYPE_CHECKING:
    from pathlib import Path

    from thumbnet.reports.cross_validation import CrossValidation
    from thumbnet.runs.folder import Run
    from thumbnet.training.repeat import Planned

SEEDS = (0, 1, 2)
MOST_SEEDS = 1_000
RESULT = "folds.json"
"""The file in the study's folder that has the results over all folds."""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "repeat",
        help="train with several seeds, folds and combinations of settings; compare the results",
        description="Train on DATA with several seeds, for each combination of the settings that vary, one\n"
        "training after the other. Then compare them, as `compare` does. Each training has a folder in\n"
        "--out. The same command goes on after an interruption, and with more seeds or values it keeps\n"
        "the trainings that are complete.\n\n"
        "With --folds (cross-validation), each training leaves out another part of the pictures, and the\n"
        "result is the accuracy over all pictures, each classified by the network that did not see it.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=textwrap.dedent("""\
            examples:
              %(prog)s pictures/ --seeds 5 --out study
              %(prog)s pictures/ --vary augment.cutout=0,8 --val-fraction 0.1 --split val --out study
              %(prog)s pictures/ --seeds 5 --vary augment.cutout=0,8 --vary training.loss=a:f,b:g --out study
              %(prog)s pictures/ --seeds 3,7,11 --vary 'augment.scale=[1,1],[0.8,1.2]' --out study
              %(prog)s pictures/ --folds 5 --out study"""),
    )
    parser.add_argument("data", metavar="DATA", help=DATA_HELP)
    parser.add_argument(
        "--seeds",
        type=seeds,
        metavar="N",
        help="N for the seeds 0 to N-1, or a list such as 3,7,11; 7, is the single seed 7 (default: 3, or 1 "
        "with --folds)",
    )
    parser.add_argument(
        "--folds",
        type=folds,
        default=0,
        metavar="K",
        help="divide the training pictures into K parts, 2 to 20, and train K times, each time with another "
        "part as test pictures. A test split of the data is not used",
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
    add_split(parser)
    parser.add_argument("--out", metavar="DIR", help="the folder for the runs (required)")
    add_training(parser)
    add_outcome(parser, "the runs' folders")
    add_recipe_options(parser, seed=False)
    add_common(parser)
    parser.set_defaults(command=execute)


def seeds(text: str) -> tuple[int, ...]:
    """Parse a number of seeds, or a list of seeds, for argparse.

    >>> seeds("2"), seeds("3,7"), seeds("7,")
    ((0, 1), (3, 7), (7,))
    """
    expected = "expected a number such as 5, or different seeds such as 3,7,11"
    try:
        found = tuple(int(part) for part in text.removesuffix(",").split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: {expected}") from None
    if "," not in text:
        (number,) = found
        if number > MOST_SEEDS:
            single = f"For the single seed {number}: --seeds {number},"
            raise argparse.ArgumentTypeError(f"{text}: expected at most {MOST_SEEDS:,} seeds. {single}")
        found = tuple(range(number))
    if not found or min(found) < 0 or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text}: {expected}")
    return found


def folds(text: str) -> int:
    """Parse a number of folds, for argparse."""
    from thumbnet.recipes.settings import MOST_FOLDS

    if not text.isascii() or not text.isdigit() or not 2 <= int(text) <= MOST_FOLDS:
        raise argparse.ArgumentTypeError(f"{text}: expected a number from 2 to {MOST_FOLDS}")
    return int(text)


def execute(options: argparse.Namespace) -> int:
    if options.out is None:
        again = command(*options.words, "--out", "study")
        raise ThumbnetError(f"name a folder for the runs. The same command goes on there: {again}")
    if options.folds and options.split:
        raise UsageError(
            "with --folds, the result is that on the pictures of all folds, so there is no split to choose: "
            "leave out --split"
        )
    if processes() > 1:
        raise ThumbnetError("repeat trains in one process: start it without torchrun")

    with importing():
        from thumbnet.cli.compare import compare_runs, show
        from thumbnet.cli.console import note, say
        from thumbnet.files import check_inside, user_path
        from thumbnet.training.repeat import check_unchanged, plan
        from thumbnet.training.stopping import Terminated

    planned = plan(
        options.out,
        options.recipe,
        overrides(options),
        options.vary,
        options.seeds or ((0,) if options.folds else SEEDS),
        options.minutes,
        options.folds,
        options.labels,
    )
    for path in (user_path(options.out) / RESULT, *(one.path for one in planned)):
        check_inside(path)
    if not options.quiet:
        note(f"{len(planned)} training(s) in {options.out}")
    try:
        if options.folds:
            check_unchanged(planned, options.data, options.data_dir)
        runs, failed = _train_all(options, planned)
        measured = _measure_folds(options, planned, runs) if options.folds else []
    except (KeyboardInterrupt, Terminated):
        note(f"\nto go on: {command(*options.words)}")
        raise
    if runs and options.quiet and not options.json:
        for run in runs:
            say(str(run.path))
    elif options.folds:
        _show_folds(measured, as_json=options.json)
    elif runs:
        show(compare_runs([run.path for run in runs], split=options.split), as_json=options.json)
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
            note(finished(runs, number, len(planned), options.split))
    return runs, failed


def _train(options: argparse.Namespace, planned: Planned, shown: set[str]) -> Run:
    """One training, or the rest of it; lines in ``shown`` are not shown again."""
    from thumbnet.cli.console import note
    from thumbnet.cli.progress import RepeatedDisplay
    from thumbnet.training.listener import Listeners, StoppableListener
    from thumbnet.training.repeat import ComparedSplit, varied_settings
    from thumbnet.training.stopping import stopping
    from thumbnet.training.tracking import tracked
    from thumbnet.training.train import train

    varied = {} if options.folds else varied_settings(options.vary)  # each division is measured as a whole
    displayed = nullcontext(StoppableListener()) if options.quiet else RepeatedDisplay(shown)
    with displayed as display, ExitStack() as stack, stopping(display, note, ends_process=True):
        return train(
            options.data,
            options.recipe,
            overrides=planned.overrides,
            out=planned.path,
            device=options.device,
            data_dir=options.data_dir,
            listener=Listeners(
                ComparedSplit(options.split, varied),
                stack.enter_context(tracked(trackers(options), display)),
            ),
            auto_resume=True,
            minutes=options.minutes,
            labels=options.labels,
        )


def _measure_folds(
    options: argparse.Namespace, planned: list[Planned], runs: list[Run]
) -> list[tuple[tuple[str, ...], CrossValidation]]:
    """Measure each combination and seed over all of its folds, and write the results into ``RESULT``.

    A note names those that lack a fold.

    Args:
        options: those of the command.
        planned: all trainings of the study.
        runs: those that are complete.

    Returns:
        the settings that vary, with the result.
    """
    from thumbnet.cli.console import note
    from thumbnet.cli.progress import counting
    from thumbnet.files import user_path, write_json
    from thumbnet.reports.cross_validation import cross_validate

    complete = {run.path: run for run in runs}
    sets: dict[tuple[str, ...], list[Path]] = {}
    for one in planned:
        sets.setdefault(one.settings, []).append(one.path)
    measured = []
    for settings, paths in sets.items():
        found = [complete[path] for path in paths if path in complete]
        if len(found) < len(paths):
            note(f"thumbnet: {', '.join(settings)} has no result, because a fold is missing")
            continue
        with counting("measuring") as count:
            result = cross_validate(
                found, options.data, data_dir=options.data_dir, device=options.device, progress=count
            )
        measured.append((settings, result))
    if measured:
        write_json(user_path(options.out) / RESULT, _as_json(measured))
    return measured


def _as_json(measured: list[tuple[tuple[str, ...], CrossValidation]]) -> dict[str, Any]:
    """The results over all folds as plain values."""
    return {"results": [{"settings": list(key), **found.to_dict()} for key, found in measured]}


def _show_folds(measured: list[tuple[tuple[str, ...], CrossValidation]], *, as_json: bool) -> None:
    """Print the results over all folds: each with its folds, and all of them in one table."""
    from thumbnet.cli.console import json_line, say
    from thumbnet.cli.views import show_cross_validation, show_cross_validations

    if as_json:
        say(json_line(_as_json(measured)))
        return
    for settings, found in measured:
        if len(measured) > 1:
            say(f"{', '.join(settings)}\n")
        show_cross_validation(found)
        if len(measured) > 1:
            say()
    if len(measured) > 1:
        show_cross_validations(measured)


def finished(runs: list[Run], number: int, total: int, split: str | None = None) -> str:
    """The line about the newest of ``runs``: its position, its accuracy, and the time that the others take.

    Args:
        runs: the complete runs; the last one is the newest.
        number: the position of the newest in the study, from 1.
        total: all trainings of the study.
        split: the split of the accuracy; by default the one that the run reports.
    """
    from thumbnet.cli.console import duration
    from thumbnet.reports.summary import of_split, percent
    from thumbnet.runs.summaries import headline_key, headline_name

    summary = of_split(runs[-1].summary, split) or {**runs[-1].summary, "accuracy": None, "map": None}
    value = summary[headline_key(summary)]
    measured = "" if value is None else f"  {summary['split']} {headline_name(summary)} {percent(value)}"
    seconds = [float(run.summary["seconds_total"]) for run in runs]
    left = (total - number) * sum(seconds) / len(seconds)
    time_left = f"  about {duration(left)} left" if number < total else ""
    return f"{number} of {total}  {runs[-1].path}{measured}{time_left}"
