"""``thumbnet export``."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from thumbnet.cli.importing import importing
from thumbnet.cli.options import add_data_dir, add_reading_of_run, add_run
from thumbnet.cli.run_data import known_data_of_run

if TYPE_CHECKING:
    from thumbnet.data.splits import Progress

MB = 1_000_000  # bytes


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "export",
        help="export a run's network to another format and check it",
        description="Export RUN's network to another format, and compare the file with RUN on real pictures.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=textwrap.dedent("""\
            formats:
              onnx           for ONNX Runtime and others; normalises its input; any batch size
              onnx-any-size  like onnx, but takes one picture of any size and resizes it
              onnx-int8      like onnx, in 8 bits, calibrated with training pictures
              torch-export   a .pt2 file for torch.export.load
              safetensors    the weights and their description
              web            one HTML file that classifies pictures in a browser, without network

            example:
              %(prog)s RUN --format onnx --out cats.onnx"""),
    )
    add_run(parser)
    parser.add_argument(
        "--format",
        default="onnx",
        help="one of the formats below (default: onnx)",
        choices=["onnx", "onnx-any-size", "onnx-int8", "torch-export", "safetensors", "web"],
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="file to write; needed for safetensors and for a network on the Hub (default: model.onnx, "
        "model.int8.onnx, ... in RUN)",
    )
    parser.add_argument(
        "--data", metavar="DATA", help="data for calibration and the check (default: the run's data)"
    )
    add_reading_of_run(parser, "skip damaged ones; for missing ones the run's setting")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_data_dir(parser)
    parser.set_defaults(command=execute)


def execute(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    with importing():
        from thumbnet.cli.console import say
        from thumbnet.cli.progress import counting
        from thumbnet.publish.checked import export_checked, target
        from thumbnet.reports.summary import percent

    wanted = target(options.run, options.format, options.out)
    data = known_data_of_run(options, wanted.info)
    if options.format == "web":
        fetch_web_runtime(counting)
    found = export_checked(wanted, data, counting)
    check = found.check
    if options.json:
        described = {
            "path": str(found.path),
            "format": found.format,
            "bytes": found.bytes,
            "split": found.split,
            **asdict(check),
        }
        say(json.dumps(described))
    else:
        say(f"written: {found.path}  ({found.bytes / 1e6:.2f} MB)")
        if found.half:
            say("the weights are stored in 16 bits, to keep the page below 15 MB")
        on = f"pictures from {found.source}, {found.split}" if found.source else "pictures of random pixels"
        say(f"checked against the run in float32 on {check.pictures:,} {on}")
        say(f"largest difference  {check.largest_difference:.2g}  (between two probabilities)")
        if (found.half or options.format == "onnx-any-size") and check.tta != "none":
            say(f"  in one view       {check.largest_plain:.2g}  (without test-time augmentation)")
        same = "same class" if check.measure == "accuracy" else "same labels"
        say(f"{same:18}  {percent(check.same_class)}")
    if found.source and not options.json:
        both = f"run {percent(check.accuracy_run)}, export {percent(check.accuracy_export)}"
        with_tta = "" if check.tta == "none" else f" (test-time augmentation {check.tta})"
        say(f"{check.measure:18}  {both}{with_tta}")
        if check.tta != "none" and options.format not in ("safetensors", "web"):
            alone = f"{percent(check.accuracy_plain)}, without test-time augmentation"
            say(f"  the graph alone   {alone} (the file does not contain it; thumbnet adds it)")
    return 0


def fetch_web_runtime(counting: Callable[[str], AbstractContextManager[Progress]]) -> None:
    """Fetch the runtime that a page contains, unless it is there.

    Args:
        counting: opens a display of the download, in megabytes.

    Raises:
        RunError: it cannot be fetched.
    """
    from thumbnet.cli.console import note
    from thumbnet.publish.web_runtime import cached_folder, fetch_runtime, find_runtime

    if find_runtime() is not None:
        return
    note("thumbnet: downloading ONNX Runtime Web (33 MB, once)")
    with counting("downloading (MB)") as count:
        fetch_runtime(cached_folder(), lambda done, total: count(done // MB, (total or done) // MB))
