"""``thumbnet predict``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from thumbnet.cli.options import add_device, add_run, add_tta, positive
from thumbnet.errors import ThumbnetError, printable

if TYPE_CHECKING:
    import numpy as np

    from thumbnet.data.images import Preprocessing

PREDICT_BATCH = 256  # pictures that are classified and printed at a time


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
    shape.add_argument("--csv", action="store_true", help="print comma-separated values with a header")
    add_device(parser)
    parser.set_defaults(command=execute)


def execute(options: argparse.Namespace) -> int:
    import numpy as np

    from thumbnet.classifiers.load import load_classifier
    from thumbnet.cli.multilabel import label_printer
    from thumbnet.cli.views import prediction_printer

    classifier = load_classifier(options.run, options.device)
    shape: Literal["json", "csv", "table"] = "json" if options.json else "csv" if options.csv else "table"
    if classifier.info.multilabel:
        show = label_printer(shape)
    else:
        show = prediction_printer(shape, min(options.top, len(classifier.class_names)))
    failures = 0
    for pictures in _decoded(_expand(options.paths), classifier.info.preprocessing):
        good = [pixels for _, pixels in pictures if not isinstance(pixels, str)]
        results = iter(classifier.predict_pixels(np.stack(good), tta=options.tta) if good else [])
        show([(name, found if isinstance(found, str) else next(results)) for name, found in pictures])
        failures += len(pictures) - len(good)
    if failures:
        print(f"thumbnet: {failures} picture(s) could not be read", file=sys.stderr)
    return 1 if failures else 0


def _decoded(
    names: Iterable[str], preprocessing: Preprocessing
) -> Iterator[list[tuple[str, np.ndarray | str]]]:
    """Yield batches of names, each with its pixels or the reason why it cannot be read.

    Threads decode the next batch while the network classifies this one.
    """
    from concurrent.futures import ThreadPoolExecutor

    from thumbnet.data.images import load_picture
    from thumbnet.errors import UnreadableImageError

    def pixels_of(name: str) -> np.ndarray | str:
        try:
            source = sys.stdin.buffer.read() if name == "-" else name
            return preprocessing.pixels(load_picture(source, "stdin" if name == "-" else name))
        except UnreadableImageError as error:
            return error.reason

    remaining = iter(names)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        chunk = list(islice(remaining, PREDICT_BATCH))
        work = [pool.submit(pixels_of, name) for name in chunk]
        while chunk:
            next_chunk = list(islice(remaining, PREDICT_BATCH))
            next_work = [pool.submit(pixels_of, name) for name in next_chunk]
            yield [(name, task.result()) for name, task in zip(chunk, work, strict=True)]
            chunk, work = next_chunk, next_work


def _expand(paths: Sequence[str]) -> Iterator[str]:
    """Yield the named files, the pictures in the named folders, and the matches of globs."""
    import glob

    for path in paths:
        if path == "-" or os.path.isfile(path):
            yield path
        elif os.path.isdir(path):
            yield from _pictures_in(path)
        elif glob.has_magic(path):
            matches = sorted(glob.glob(path, recursive=True))
            if not matches:
                raise ThumbnetError(f"no file matches {printable(path)}")
            yield from _expand(matches)
        else:
            yield path  # reported as unreadable, in its place in the output


def _pictures_in(folder: str) -> list[str]:
    """List the pictures below a folder, sorted. Tell the user on stderr about files that need a plug-in."""
    from pathlib import Path

    from thumbnet.data import plugins
    from thumbnet.sources.index import Index
    from thumbnet.sources.place import Place
    from thumbnet.sources.unknown import explain_folder

    index = Index(Path(folder))
    found = index.pictures_below("")
    if not found:
        what = explain_folder(Place(Path(folder)))
        because = f": {what.splitlines()[0]}" if what else ""
        raise ThumbnetError(f"there are no pictures in the folder {printable(folder)}{because}")
    for note in plugins.notes_on(index.ignored):
        print(f"thumbnet: {note}", file=sys.stderr)
    return [os.path.join(folder, path) for path in found]
