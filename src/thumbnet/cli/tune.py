"""``thumbnet tune``."""

from __future__ import annotations

import argparse
import json
import textwrap
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from thumbnet.cli.importing import importing
from thumbnet.cli.options import (
    DATA_HELP,
    SHORTCUTS,
    add_common,
    add_labels,
    add_outcome,
    add_recipe_options,
    as_flags,
    overrides,
    positive,
    resuming_words,
)
from thumbnet.errors import InterruptedTuneError, ThumbnetError
from thumbnet.invocation import command

if TYPE_CHECKING:
    from thumbnet.tuning.search import Tuned

# The options that a search takes from its folder when it goes on.
OF_NEW_SEARCHES = ("recipe", "minutes", "trials", "out", "labels")


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "tune",
        help="find the settings that suit the data, and train with them",
        description="Search for the learning rate, weight decay, augmentation, width and length that suit\n"
        "DATA, then train a network with the best ones. What you set by an option stays as it is.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=textwrap.dedent("""\
            examples:
              %(prog)s pictures/ --minutes 20
              %(prog)s digits --trials 30 --set model.width=0.5
              %(prog)s --resume runs/2026-11-23-pictures-tune-1"""),
    )
    parser.add_argument("data", nargs="?", metavar="DATA", help=DATA_HELP)
    parser.add_argument("--resume", metavar="DIR", help="go on with the search in this folder")
    parser.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help="time for everything; at least a third of it is kept for the final training",
    )
    parser.add_argument(
        "--trials",
        type=positive,
        metavar="N",
        help="end the search after N trials; without --minutes, exactly N, which can be repeated exactly",
    )
    parser.add_argument("--out", metavar="DIR", help="the folder (default: a new name under runs/)")
    add_labels(parser)
    add_outcome(parser, "the folder")
    add_recipe_options(parser)
    add_common(parser)
    parser.set_defaults(command=execute)


def execute(options: argparse.Namespace) -> int:
    started = time.perf_counter()  # the imports below take a second, which counts
    _check_asked(options)
    try:
        found = _search(options, started)
    except InterruptedTuneError as error:
        error.continue_with(*resuming_words(options))
        raise
    if options.json or options.quiet:
        from thumbnet.cli.console import say

        say(json.dumps({"path": str(found.path), **found.summary}) if options.json else str(found.path))
    else:
        _show(found)
    return 0


def _search(options: argparse.Namespace, started: float) -> Tuned:
    """Search, or go on with a search. ``started`` is when the clock started."""
    with importing():
        from thumbnet.cli.console import note
        from thumbnet.cli.tune_display import QuietTuning, TuneDisplay
        from thumbnet.training.stopping import stopping
        from thumbnet.tuning.tune import resume_tuning, tune

    shown = nullcontext(QuietTuning()) if options.quiet else TuneDisplay()
    with shown as display, stopping(display, note, ends_process=True):
        if options.resume is not None:
            return resume_tuning(
                options.resume,
                device=options.device,
                data_dir=options.data_dir,
                listener=display,
                started=started,
            )
        return tune(
            options.data,
            options.recipe,
            minutes=options.minutes,
            trials=options.trials,
            overrides=overrides(options),
            out=options.out,
            device=options.device,
            data_dir=options.data_dir,
            listener=display,
            labels=options.labels,
            started=started,
        )


def _check_asked(options: argparse.Namespace) -> None:
    """Check that DATA or a search to go on with is named, and a length for a new search."""
    example = command("tune", options.data or "DATA", "--minutes", "20")
    if options.resume is None:
        if options.data is None:
            raise ThumbnetError(
                f"name the data, for example: {example}\n"
                f"DATA is {DATA_HELP}. To go on with a search: {command('tune', '--resume', 'DIR')}"
            )
        if options.minutes is None and options.trials is None:
            raise ThumbnetError(f"say how long to search: {example}, or --trials 30")
        return
    if options.data is not None:
        raise ThumbnetError("name either DATA or --resume DIR: a search that goes on has its own data")
    given = [flag for flag in (*OF_NEW_SEARCHES, *SHORTCUTS) if getattr(options, flag, None) is not None]
    given += ["set"] if options.overrides else []
    if given:
        raise ThumbnetError(
            f"--resume takes everything from the search's folder: leave out {as_flags(given)}"
        )


def _show(found: Tuned) -> None:
    """Print what was found."""
    from thumbnet.cli.console import say, say_sentence
    from thumbnet.cli.views import show_summary
    from thumbnet.reports.summary import percent
    from thumbnet.tuning.page import changed_settings

    summary = found.summary
    measure = "mAP" if summary["measure"] == "map" else "accuracy"
    changes = changed_settings(found.start, found.trial)
    changed = [f"{key} {before} → {after}" for key, before, after in changes]
    say_sentence(
        f"best of {summary['trials']} trials: held-out loss {summary['best_loss']:.3f} "
        f"({measure} {percent(summary['best'])}), {summary['start_loss']:.3f} ({percent(summary['start'])}) "
        f"for {summary['start_recipe']} as it is; judged by {summary['judged_by']}"
    )
    say_sentence(f"changed: {', '.join(changed)}" if changed else f"{summary['start_recipe']} stays as it is")
    say(f"recipe  {found.path / 'recipe.toml'}")
    say(f"page    {found.path / 'tune.html'}")
    show_summary(found.run)
