"""``thumbnet predict``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from thumbnet.cli.options import add_device, add_run, add_tta, positive
from thumbnet.errors import ThumbnetError, printable

PREDICT_BATCH = 256  # pictures to classify and show at a time


def add(commands: Any) -> None:
    """Add the command's parser to ``commands``."""
    parser = commands.add_parser(
        "predict",
        help="classify pictures",
        description="Classify pictures with RUN. The exit status is 1 if some pictures could not be read.",
    )
    add_run(parser, or_onnx=True)
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="files, folders, globs, or - for one picture on stdin"
    )
    parser.add_argument(
        "--top", type=positive, default=3, metavar="K", help="classes per picture (default: 3)"
    )
    add_tta(parser)
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="print one JSON object per line")
    shape.add_argument("--csv", action="store_true", help="print comma-separated values with a header")
    add_device(parser)
    parser.set_defaults(command=execute)


def execute(options: argparse.Namespace) -> int:
    """Run the command; return the exit status."""
    import numpy as np

    from thumbnet.classifiers.load import load_classifier
    from thumbnet.cli.views import prediction_printer
    from thumbnet.data.images import load_picture
    from thumbnet.errors import UnreadableImageError

    predictor = load_classifier(options.run, options.device)
    shape: Literal["json", "csv", "table"] = "json" if options.json else "csv" if options.csv else "table"
    show = prediction_printer(shape, min(options.top, len(predictor.class_names)))
    failures = 0
    pending: list[tuple[str, np.ndarray | str]] = []  # pixels, or why they could not be read

    def flush() -> None:
        good = [pixels for _, pixels in pending if not isinstance(pixels, str)]
        results = iter(predictor.predict_pixels(np.stack(good), tta=options.tta) if good else [])
        show([(name, found if isinstance(found, str) else next(results)) for name, found in pending])
        pending.clear()

    for name in _expand(options.paths):
        try:
            source = sys.stdin.buffer.read() if name == "-" else name
            picture = load_picture(source, "stdin" if name == "-" else name)
            pending.append((name, predictor.info.preprocessing.pixels(picture)))
        except UnreadableImageError as error:
            failures += 1
            pending.append((name, error.reason))
        if len(pending) == PREDICT_BATCH:
            flush()
    flush()
    if failures:
        print(f"thumbnet: {failures} picture(s) could not be read", file=sys.stderr)
    return 1 if failures else 0


def _expand(paths: Sequence[str]) -> Iterator[str]:
    """Yield files as they are, the pictures of folders, and the matches of globs."""
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
            yield path  # will be reported as unreadable, at its place in the output


def _pictures_in(folder: str) -> list[str]:
    """List the pictures below a folder, sorted; name files that need a plug-in on standard error."""
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
