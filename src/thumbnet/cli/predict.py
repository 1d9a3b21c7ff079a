"""``thumbnet predict``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from thumbnet.cli.importing import importing
from thumbnet.cli.options import add_device, add_run, add_tta, positive
from thumbnet.errors import ThumbnetError, printable

if TYPE_CHECKING:
    import numpy as np


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
    from thumbnet.classifiers.reading import read_ahead
    from thumbnet.cli.console import note
    from thumbnet.cli.multilabel import label_printer
    from thumbnet.cli.views import prediction_printer
    from thumbnet.data.images import load_picture

    with importing():
        classifier = load_classifier(options.run, options.device)

    def read(name: str) -> np.ndarray:
        source = sys.stdin.buffer.read() if name == "-" else name
        picture = load_picture(source, "stdin" if name == "-" else name)
        return classifier.info.preprocessing.pixels(picture)

    shape: Literal["json", "csv", "table"] = "json" if options.json else "csv" if options.csv else "table"
    if classifier.info.multilabel:
        show = label_printer(shape)
    else:
        top = min(options.top, len(classifier.class_names))
        show = prediction_printer(shape, top, tells_unlike=classifier.info.unlike is not None)
    failures = 0
    for pictures in read_ahead(_expand(options.paths), read):
        good = [pixels for _, pixels in pictures if not isinstance(pixels, str)]
        results = iter(classifier.predict_pixels(np.stack(good), tta=options.tta) if good else [])
        show([(name, found if isinstance(found, str) else next(results)) for name, found in pictures])
        failures += len(pictures) - len(good)
    if failures:
        note(f"thumbnet: {failures} picture(s) could not be read")
    return 1 if failures else 0


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
    from thumbnet.cli.console import note
    from thumbnet.sources.unlabelled import find_pictures

    found, notes = find_pictures(folder)
    for text in notes:
        note(f"thumbnet: {text}")
    return [os.path.join(folder, path) for path in found]
