"""``thumbnet predict``."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, Literal

from thumbnet.cli.importing import load_network
from thumbnet.cli.options import add_device, add_run, add_threads, add_tta, positive
from thumbnet.cli.usage import UsageError
from thumbnet.errors import printable
from thumbnet.invocation import command, quoted


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "predict",
        help="classify pictures",
        description="Classify pictures with RUN. The exit status is 1 if some pictures could not be read.",
    )
    add_run(parser, or_onnx=True)
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="files, folders, globs, or - to read one picture from stdin"
    )
    parser.add_argument(
        "--top",
        type=positive,
        default=3,
        metavar="K",
        help="number of classes to print per picture (default: 3); of a network that gives several labels, "
        "all that reach their thresholds are printed",
    )
    add_tta(parser)
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="print one JSON object per line")
    shape.add_argument(
        "--csv",
        action="store_true",
        help="print comma-separated values with a header, to stdout: add > FILE to keep them",
    )
    add_device(parser)
    add_threads(parser)
    parser.set_defaults(command=execute)


def execute(options: argparse.Namespace) -> int:
    from thumbnet.classifiers.reading import Unread, classify_ahead
    from thumbnet.cli.console import note
    from thumbnet.cli.predictions import label_printer, prediction_printer
    from thumbnet.data.images import Picture, load_picture

    _check_table(options)
    names, given = _pictures(options)
    classifier = load_network(options)

    def load(name: str) -> Picture:
        return load_picture(given[name], "stdin") if name in given else load_picture(name, name)

    shape: Literal["json", "csv", "table"] = "json" if options.json else "csv" if options.csv else "table"
    if classifier.info.multilabel:
        show = label_printer(shape)
    else:
        top = min(options.top, len(classifier.class_names))
        show = prediction_printer(shape, top, tells_unlike=classifier.info.unlike is not None)
    failures = 0
    for batch in classify_ahead(classifier, names, load, tta=options.tta):
        show([(name, found.reason if isinstance(found, Unread) else found) for name, found in batch])
        failures += sum(isinstance(found, Unread) for _, found in batch)
    if failures:
        note(f"thumbnet: {failures} picture(s) could not be read")
    return 1 if failures else 0


def _check_table(options: argparse.Namespace) -> None:
    """Check that no PATH is meant as the file for the table of ``--csv``, which other commands take.

    Raises:
        UsageError: one is.
    """
    for path in options.paths if options.csv else ():
        if path.lower().endswith(".csv") and not os.path.isdir(path):
            words = [word for word in options.words if word != path]
            words += [] if len(options.paths) > 1 else ["PATH"]
            raise UsageError(
                f"expected pictures, got {printable(path)}. --csv takes no file: it prints to stdout. To "
                f"write a file: {command(*words)} > {quoted(path)}"
            )


def _pictures(options: argparse.Namespace) -> tuple[list[str], dict[str, bytes]]:
    """The names of all pictures, and what came on standard input by its name ``-``.

    They are listed before the network is loaded: a wrong path is reported at once, and no answers are lost.

    Raises:
        DataError, FailedReadError, ThumbnetError: as for :func:`~thumbnet.classifiers.reading.pictures_at`.
    """
    from thumbnet.classifiers.reading import pictures_at
    from thumbnet.cli.console import note

    names: list[str] = []
    given: dict[str, bytes] = {}
    for path in options.paths:
        if path == "-":
            # Read here, in the main thread: Ctrl-C would wait for another thread until the input ends.
            given.setdefault(path, sys.stdin.buffer.read())
            names.append(path)
        else:
            names += pictures_at([path], lambda text: note(f"thumbnet: {text}"))
    return names, given
