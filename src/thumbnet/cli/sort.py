"""``thumbnet sort``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from thumbnet.cli.importing import load_network
from thumbnet.cli.options import add_device, add_run, add_threads, add_tta

if TYPE_CHECKING:
    from thumbnet.classifiers.sorting import Sorted


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "sort",
        help="sort a folder of pictures into one folder per class",
        description="Copy the pictures below DIR into one folder per class. Pictures of uncertain class go "
        "into unsure/, pictures unlike the training pictures into unlike/. The originals stay as they are, "
        "and no file is replaced. Repeat the command to go on after it was stopped, or to sort new "
        "pictures. The exit status is 1 if some pictures could not be read.",
    )
    add_run(parser, or_onnx=True)
    parser.add_argument("folder", metavar="DIR", help="folder of pictures; folders below it are searched too")
    parser.add_argument("--into", metavar="OUT", help="folder for the class folders")
    least = parser.add_mutually_exclusive_group()
    least.add_argument(
        "--threshold", type=float, metavar="P", help="accept a class with this probability or more"
    )
    least.add_argument(
        "--precision",
        type=float,
        metavar="P",
        help="accept a class from the probability at which this share of the accepted pictures is right. "
        "The run has thresholds for 0.9, 0.95, 0.98, 0.99 and 0.995, as far as its held-out pictures "
        "support them (default: 0.95, or the highest below it)",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--copy", action="store_true", help="copy the pictures (default)")
    how.add_argument("--link", action="store_true", help="make symbolic links instead of copies")
    how.add_argument(
        "--csv", metavar="FILE", help="copy nothing; write a table of the pictures and their folders"
    )
    add_tta(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_device(parser)
    add_threads(parser)
    parser.set_defaults(command=execute)


def execute(options: argparse.Namespace) -> int:
    from thumbnet.classifiers.sorting import list_folder, sort_folder
    from thumbnet.cli.console import json_line, say
    from thumbnet.cli.progress import counting
    from thumbnet.cli.usage import UsageError

    if (options.into is None) == (options.csv is None):
        raise UsageError(
            "say where the pictures go: --into OUT for one folder per class, or --csv FILE for a table"
        )
    classifier = load_network(options)
    how = {"threshold": options.threshold, "precision": options.precision, "tta": options.tta}
    with counting("sorting", plain=True) as progress:
        if options.csv is not None:
            found = list_folder(classifier, options.folder, options.csv, **how, progress=progress)
        else:
            found = sort_folder(
                classifier, options.folder, options.into, **how, link=options.link, progress=progress
            )
    if options.json:
        say(json_line(found.to_dict()))
    else:
        _show(found)
    _warn(found)
    return 1 if found.unreadable else 0


def _show(found: Sorted) -> None:
    """Print how many pictures went into which folder, and how fast."""
    from thumbnet.classifiers.placing import UNLIKE, UNSURE
    from thumbnet.cli.console import duration, say, table
    from thumbnet.errors import printable

    say(found.criterion.text)
    before = sum(found.present.values())
    rows = []
    for name, folder in [*found.folders.items(), (UNSURE, UNSURE), (UNLIKE, UNLIKE)]:
        count = found.counts[folder]
        share = f"{100 * count / found.pictures:.1f} %" if found.pictures else "-"
        there = [f"{found.present[folder]:,}"] if before else []
        shown = folder if folder == name else f"{folder} (class {name})"
        rows.append([printable(shown), f"{count:,}", share, *there])
    say(table(["folder", "pictures", "share", *(["there before"] if before else [])], rows))
    rate = "" if found.rate is None else f", {found.rate:,.0f} pictures/s"
    say(f"{found.pictures:,} pictures sorted in {duration(found.seconds)}{rate}")
    if before:
        say(f"{before:,} pictures were there before and stayed where they were")


def _warn(found: Sorted) -> None:
    """Print notes, and the pictures that could not be read, on stderr."""
    from thumbnet.cli.console import note
    from thumbnet.errors import printable

    for text in found.notes:
        note(f"thumbnet: {printable(text)}")
    for path, reason in found.unreadable:
        note(f"thumbnet: cannot read {printable(path)}: {printable(reason)}")
    if found.unreadable:
        note(f"thumbnet: {len(found.unreadable)} picture(s) could not be read and were left where they are")
