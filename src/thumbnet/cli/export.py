"""``thumbnet export``."""

from __future__ import annotations

import argparse
import json
import tempfile
import textwrap
from typing import TYPE_CHECKING, Any

from thumbnet.cli.importing import importing
from thumbnet.cli.options import add_data_dir, add_run
from thumbnet.cli.run_data import known_data_of_run
from thumbnet.errors import ThumbnetError
from thumbnet.invocation import command

if TYPE_CHECKING:
    pass


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "export",
        help="export a run's network to another format and check it",
        description="Export RUN's network to another format, and compare the file with RUN on real pictures.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=textwrap.dedent(f"""\
            formats:
              onnx           for ONNX Runtime and others; normalises its input; any batch size
              onnx-any-size  like onnx, but takes one picture of any size and resizes it
              onnx-int8      like onnx, in 8 bits, calibrated with training pictures
              torch-export   a .pt2 file for torch.export.load
              safetensors    the weights and their description
              web            one HTML file that classifies pictures in a browser, without network

            example:
              {command("export", "RUN", "--format", "onnx", "--out", "cats.onnx")}
              {command("predict", "cats.onnx")} new/*.jpg"""),
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
        help="file to write; needed for safetensors (default: model.onnx, model.int8.onnx, ... in RUN)",
    )
    parser.add_argument(
        "--data", metavar="DATA", help="data for calibration and the check (default: the run's data)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_data_dir(parser)
    parser.set_defaults(command=execute)


def execute(options: argparse.Namespace) -> int:
    from dataclasses import asdict
    from pathlib import Path

    with importing():
        from thumbnet.classifiers.labels import check_fits
        from thumbnet.cli.console import say
        from thumbnet.cli.progress import counting
        from thumbnet.errors import RunError
        from thumbnet.files import check_output, read_whole, user_path, write_file
        from thumbnet.publish.export import (
            SUFFIXES,
            check_export,
            export,
            has_half_weights,
            random_pictures,
            tolerance,
        )
        from thumbnet.reports.summary import percent
        from thumbnet.runs.weights import find_weights, read_weights

    suffix = SUFFIXES[options.format]
    place = user_path(options.run)
    folder = place if place.is_dir() else place.parent
    out = user_path(options.out) if options.out else folder / f"model{suffix}"
    ending = Path(f"model{suffix}").suffix
    if out.suffix != ending:
        raise ThumbnetError(f"--out {out}: with --format {options.format}, the name must end in {ending}")
    weights = find_weights(options.run)
    if out.exists() and out.samefile(weights):
        raise ThumbnetError(f"{out} is the run's own file: choose another name with --out FILE")
    check_output(out)
    _, info = read_weights(weights)
    data = known_data_of_run(options, info.fingerprint)
    if data is not None:
        check_fits(data.splits[data.measured_split()], data.class_names, info)
    if options.format == "web":
        _fetch_runtime()
    on_random = data is None
    checked_on = data or random_pictures(options.run)
    split = checked_on.measured_split()
    with tempfile.TemporaryDirectory() as temporary:  # the former file stays until the new one is checked
        made = Path(temporary) / out.name
        with counting("calibrating") as count:
            export(options.run, options.format, made, data, progress=count)
        with counting("checking") as count:
            check = check_export(options.run, made, checked_on, split, progress=count)
        half = options.format == "web" and has_half_weights(made)
        allowed = tolerance(options.format, half)
        if not check.largest_plain <= allowed:  # also if it is NaN
            raise RunError(
                "the export gives other probabilities than the run: they differ by "
                f"{check.largest_plain:.2g}, and at most {allowed:g} is allowed. {out} was not written"
            )
        content = read_whole(made)
    write_file(out, content)
    size = len(content)
    if options.json:
        described = {
            "path": str(out),
            "format": options.format,
            "bytes": size,
            "split": split,
            **asdict(check),
        }
        say(json.dumps(described))
    else:
        say(f"written: {out}  ({size / 1e6:.2f} MB)")
        if half:
            say("the weights are stored in 16 bits, to keep the page below 15 MB")
        what = "pictures of random pixels" if on_random else f"pictures from {checked_on.source}, {split}"
        say(f"checked against the run in float32 on {check.pictures:,} {what}")
        say(f"largest difference  {check.largest_difference:.2g}  (between two probabilities)")
        if (half or options.format == "onnx-any-size") and check.tta != "none":
            say(f"  in one view       {check.largest_plain:.2g}  (without test-time augmentation)")
        same = "same class" if check.measure == "accuracy" else "same labels"
        say(f"{same:18}  {percent(check.same_class)}")
    if not (options.json or on_random):
        both = f"run {percent(check.accuracy_run)}, export {percent(check.accuracy_export)}"
        with_tta = "" if check.tta == "none" else f" (test-time augmentation {check.tta})"
        say(f"{check.measure:18}  {both}{with_tta}")
        if check.tta != "none" and options.format not in ("safetensors", "web"):
            alone = f"{percent(check.accuracy_plain)}, without test-time augmentation"
            say(f"  the graph alone   {alone} (the file does not contain it; thumbnet adds it)")
    return 0


def _fetch_runtime() -> None:
    """Fetch the runtime that a page contains, unless it is there."""
    from thumbnet.cli.console import note
    from thumbnet.publish.web_runtime import cached_folder, fetch_runtime, find_runtime

    if find_runtime() is None:
        note("thumbnet: npm fetches ONNX Runtime Web (33 MB, once)")
        fetch_runtime(cached_folder())
