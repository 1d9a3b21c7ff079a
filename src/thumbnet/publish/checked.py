"""Export a network to a file that appears only once it has been compared with the run.

The export is made in a temporary folder, and its probabilities are compared with those of the run. Only then
does it replace a former file of that name. In 8 bits, probabilities change; there the accuracy is compared.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from thumbnet.classifiers.labels import check_fits
from thumbnet.data.splits import Data, Progress
from thumbnet.errors import RunError, ThumbnetError, nearest
from thumbnet.files import check_output, read_whole, user_path, write_file
from thumbnet.publish.export import (
    LOST_IN_8_BITS,
    SUFFIXES,
    ExportCheck,
    check_export,
    export,
    has_half_weights,
    loses_accuracy,
    random_pictures,
    tolerance,
)
from thumbnet.reports.summary import percent
from thumbnet.runs.weights import find_weights, read_weights
from thumbnet.runs.weights_info import WeightsInfo
from thumbnet.sources.known_names import HUB


@dataclass(frozen=True)
class Target:
    """What is to be exported, and to which file.

    Attributes:
        run: a run's folder, a file of weights, or ``hf:OWNER/NAME``.
        kind: the format, as in :func:`thumbnet.publish.export.export`.
        out: the file to write.
        info: the description of the run's network.
    """

    run: str
    kind: str
    out: Path
    info: WeightsInfo


@dataclass(frozen=True)
class Exported:
    """A file that was exported, and how it compares with its run.

    Attributes:
        path: the file.
        format: its format, such as ``onnx``.
        bytes: its size.
        source: the data that both classified; "" for pictures of random pixels.
        split: their split.
        half: whether the weights are stored in 16 bits.
        check: the comparison.
    """

    path: Path
    format: str
    bytes: int
    source: str
    split: str
    half: bool
    check: ExportCheck


def target(run: str, kind: str, out: str | Path | None) -> Target:
    """Check that ``run`` can be exported to ``out``, before its data are loaded.

    Args:
        run: a run's folder, a file of weights, or ``hf:OWNER/NAME``.
        kind: the format.
        out: the file to write; by default ``model.onnx``, ``model.int8.onnx``, ... in the run's folder. A
            network on the Hub has no such folder, so its file has to be named.

    Raises:
        ThumbnetError: there is no such format, the name ``out`` does not end as the format's files do, or
            ``run`` is on the Hub and no ``out`` is given.
        RunError: the run does not exist or is damaged, or ``out`` is its own file or cannot be written.
    """
    if kind not in SUFFIXES:
        raise ThumbnetError(f"there is no format {kind!r}. {nearest(kind, SUFFIXES)}")
    if out is None and run.startswith(HUB):  # checked before the download
        name = run.removeprefix(HUB).partition("@")[0].rpartition("/")[2]
        raise ThumbnetError(
            f"{run} is on the Hub: name the file to write, such as --out {name}{SUFFIXES[kind]}"
        )
    place = user_path(run)
    folder = place if place.is_dir() else place.parent
    file = user_path(out) if out is not None else folder / f"model{SUFFIXES[kind]}"
    ending = Path(f"model{SUFFIXES[kind]}").suffix
    if file.suffix != ending:
        raise ThumbnetError(f"--out {file}: with --format {kind}, the name must end in {ending}")
    weights = find_weights(run)
    if file.exists() and file.samefile(weights):
        raise ThumbnetError(f"{file} is the run's own file: choose another name with --out FILE")
    check_output(file, named=out is not None)
    _, info = read_weights(weights)
    return Target(run, kind, file, info)


def export_checked(
    target: Target, data: Data | None, counting: Callable[[str], AbstractContextManager[Progress]]
) -> Exported:
    """Export a network, compare the export with the run, and write the file if they agree.

    Args:
        target: what to export, from :func:`target`.
        data: the data for calibration and for the comparison, on the split that a training measures; None
            compares on pictures of random pixels.
        counting: opens a display for work on many pictures, such as ``"checking"``.

    Raises:
        RunError: the export gives other probabilities than the run or, in 8 bits, loses too much of its
            accuracy. Nothing is written.
        ThumbnetError: the data have other classes; and as :func:`thumbnet.publish.export.export`.
    """
    if data is not None:
        check_fits(data.splits[data.measured_split()], data.class_names, target.info)
    checked_on = random_pictures(target.info) if data is None else data
    split = checked_on.measured_split()
    with tempfile.TemporaryDirectory() as temporary:  # the former file stays until the new one is checked
        made = Path(temporary) / target.out.name
        with counting("calibrating") as count:
            export(target.run, target.kind, made, data, progress=count)
        with counting("checking") as count:
            check = check_export(target.run, made, checked_on, split, progress=count)
        half = target.kind == "web" and has_half_weights(made)
        allowed = tolerance(target.kind, half)
        if not check.largest_plain <= allowed:  # also if it is NaN
            raise RunError(
                "the export gives other probabilities than the run: they differ by "
                f"{check.largest_plain:.2g}, and at most {allowed:g} is allowed. {target.out} was not written"
            )
        if target.kind == "onnx-int8" and loses_accuracy(check):
            raise RunError(
                f"in 8 bits, the {check.measure} falls from {percent(check.accuracy_run)} to "
                f"{percent(check.accuracy_export)}, and at most {100 * LOST_IN_8_BITS:g} points may be lost. "
                f"{target.out} was not written. Use --format onnx"
            )
        content = read_whole(made)
    write_file(target.out, content)
    source = "" if data is None else data.source
    return Exported(target.out, target.kind, len(content), source, split, half, check)
