"""``thumbnet train``."""

from __future__ import annotations

import argparse
import json
import textwrap
import threading
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

from thumbnet.cli.importing import importing
from thumbnet.cli.options import (
    DATA_HELP,
    SHORTCUTS,
    add_common,
    add_outcome,
    add_recipe_options,
    add_training,
    as_flags,
    overrides,
    resuming_words,
    trackers,
)
from thumbnet.errors import InterruptedRunError, ThumbnetError
from thumbnet.invocation import command, rank


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        help="train a network and leave a run's folder",
        description="Train a network on DATA, or resume a run that was stopped.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=textwrap.dedent("""\
            examples:
              %(prog)s digits
              %(prog)s pictures/ --epochs 20 --val-fraction 0.1
              %(prog)s cifar10 --minutes 2
              %(prog)s pictures/ --labels runs/2026-11-23-pictures-small-1/labels.csv
              %(prog)s cifar10 --recipe one-cycle --set optimizer.lr=0.05
              %(prog)s pictures/ --recipe linear --init runs/2026-11-23-cifar10-fast-1
              %(prog)s --resume runs/2026-11-23-cifar10-resnet18-1
              %(prog)s --resume runs/2026-11-23-cifar10-resnet18-1 --finish
              %(prog)s --resume runs/2026-11-23-cifar10-resnet18-1 --more-epochs 10"""),
    )
    parser.add_argument("data", nargs="?", metavar="DATA", help=DATA_HELP)
    parser.add_argument("--resume", metavar="RUN", help="continue this run, to exactly the same result")
    parser.add_argument(
        "--more-epochs",
        type=int,
        metavar="N",
        help="with --resume: train a finished run for N more epochs, in a new folder; the learning rate "
        "starts where a training planned for that long would be",
    )
    parser.add_argument(
        "--finish",
        action="store_true",
        help="with --resume: end the training where its newest checkpoint is, and measure and write that "
        "network; the last part of the schedule is then missing",
    )
    parser.add_argument("--out", metavar="DIR", help="the run's folder (default: a new name under runs/)")
    parser.add_argument(
        "--auto-resume",
        action="store_true",
        help="resume the run in --out if there is one, for schedulers that repeat the same command; a "
        "command that asks for another result is an error",
    )
    add_training(parser)
    add_outcome(parser, "the run's folder")
    add_recipe_options(parser)
    add_common(parser)
    parser.set_defaults(command=execute)


def execute(options: argparse.Namespace) -> int:
    started = time.perf_counter()  # the imports below take a second, which counts
    _check_what_is_trained(options)
    with ExitStack() as ahead:
        try:
            return _train(options, ahead, started)
        except InterruptedRunError as error:
            error.continue_with(*resuming_words(options))
            raise


def _train(options: argparse.Namespace, ahead: ExitStack, started: float) -> int:
    with importing():
        if rank() == 0 and options.resume is None:
            from thumbnet.sources.load import unpacking_ahead

            # Both while torch is imported.
            ahead.enter_context(unpacking_ahead(options.data, options.data_dir))
            if options.device == "cpu" or (options.device == "auto" and not _may_have_gpu()):
                from thumbnet.kernels.library import compile_ahead

                threading.Thread(target=compile_ahead).start()

        from thumbnet.cli.console import note, say
        from thumbnet.cli.progress import TrainingDisplay
        from thumbnet.cli.views import show_summary
        from thumbnet.training.listener import StoppableListener
        from thumbnet.training.stopping import stopping
        from thumbnet.training.tracking import tracked
        from thumbnet.training.train import resume, train

    first = rank() == 0  # of several processes only the first shows anything
    shown = TrainingDisplay() if first and not options.quiet else nullcontext(StoppableListener())
    with shown as display, ExitStack() as stack, stopping(display, note, ends_process=True):
        listener = stack.enter_context(tracked(trackers(options), display))
        if options.resume is not None:
            run = resume(
                options.resume,
                device=options.device,
                listener=listener,
                more_epochs=options.more_epochs,
                out=options.out,
                overrides=overrides(options),
                data_dir=options.data_dir,
                finish=options.finish,
            )
        else:
            run = train(
                options.data,
                options.recipe,
                overrides=overrides(options),
                out=options.out,
                device=options.device,
                data_dir=options.data_dir,
                listener=listener,
                auto_resume=options.auto_resume,
                minutes=options.minutes,
                labels=options.labels,
                started=started,
            )
    if not first:
        return 0
    if options.json:
        say(json.dumps({"run": str(run.path), **run.summary}))
    elif options.quiet:
        say(str(run.path))
    else:
        show_summary(run)
    return 0


def _may_have_gpu() -> bool:
    """Whether Linux has the driver of a GPU, CUDA's or ROCm's. What PyTorch can use, only PyTorch knows."""
    return Path("/proc/driver/nvidia").exists() or Path("/dev/kfd").exists()


def _check_what_is_trained(options: argparse.Namespace) -> None:
    """Check that DATA or a run to resume is named, and nothing that would change a resumed run's result."""
    if options.data is None and options.resume is None:
        raise ThumbnetError(
            f"name the data, for example: {command('train', 'digits')}\n"
            f"DATA is {DATA_HELP}. To resume a run: {command('train', '--resume', 'RUN')}"
        )
    if options.data is not None and options.resume is not None:
        raise ThumbnetError(
            f"name either DATA or --resume RUN: a resumed run has its own data. To begin a new run from "
            f"the weights of one: {command('train', options.data, '--init', options.resume)}"
        )
    if options.minutes is not None and (options.resume is not None or options.epochs is not None):
        raise ThumbnetError(
            "--minutes plans the length of a new training: leave out --epochs, and --resume, which continues "
            "as planned"
        )
    if options.finish and options.resume is None:
        raise ThumbnetError("--finish goes with --resume RUN: it ends a run that has begun")
    if options.more_epochs is not None:
        if options.finish:
            raise ThumbnetError("--more-epochs continues a finished run, and --finish ends an unfinished one")
        if options.resume is None:
            raise ThumbnetError("--more-epochs goes with --resume RUN; for a new run it is --epochs")
        if options.epochs is not None or options.auto_resume or options.init:
            raise ThumbnetError("--more-epochs goes without --epochs, --init and --auto-resume")
        if options.labels is not None:
            raise ThumbnetError(_own_labels(options))
        from thumbnet.recipes.settings import READ_BY

        own = (name for name in READ_BY if name in SHORTCUTS and name != "on_bad_image")
        given = [name for name in own if getattr(options, name) is not None]
        if given:
            raise ThumbnetError(f"--more-epochs takes the run's own data: leave out {as_flags(given)}")
        if options.recipe is not None:
            raise ThumbnetError(
                "--more-epochs keeps the run's recipe; change single settings by --set KEY=VALUE"
            )
        return
    if options.resume is None:
        return
    if options.labels is not None:
        raise ThumbnetError(_own_labels(options))
    of_new_runs = ("recipe", "out", *SHORTCUTS)
    given = [flag for flag in of_new_runs if getattr(options, flag, None) is not None]
    given += ["auto_resume"] if options.auto_resume else []
    if given or options.overrides:
        from thumbnet.files import user_path
        from thumbnet.runs.finding import is_finished

        flags = as_flags(given or ["set"])
        message = f"--resume takes the run's own recipe and data: leave out {flags}"
        if options.epochs is not None:
            more = ["--more-epochs", str(options.epochs)]
            longer = command("train", "--resume", options.resume, *more)
            message += (
                f".\nThe run is finished. To train it for {options.epochs} epoch(s) more: {longer}"
                if is_finished(user_path(options.resume))
                else f".\nOnce it is finished, it can be trained for longer: {longer}"
            )
        raise ThumbnetError(message)


def _own_labels(options: argparse.Namespace) -> str:
    """Say how to train a run's network on corrected labels."""
    labels = [word for file in options.labels for word in ("--labels", file)]
    new = command("train", "DATA", *labels, "--init", options.resume)
    return (
        "--resume takes the run's own labels, with the corrections that it began with: leave out --labels.\n"
        f"To train on the corrected labels, starting from the run's weights: {new}"
    )
