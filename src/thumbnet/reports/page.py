"""Write a run's report: a single self-contained HTML file, and lists of mistakes and suspects next to it.

Needs the extra ``report``. Each section of the page has a function here that returns what the template shows.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from thumbnet.batches.leaks import IN_TRAINING
from thumbnet.classifiers.base import Classifier, SplitLogits
from thumbnet.classifiers.explain import doubts
from thumbnet.classifiers.load import load_run
from thumbnet.classifiers.torch_classifier import Predictor
from thumbnet.data.correct import describe_corrections
from thumbnet.data.listings import as_csv, safe_name, safe_text
from thumbnet.data.splits import Data, Progress, Split
from thumbnet.errors import FallbackWarning, needs_extra, printable
from thumbnet.evaluation import (
    CALIBRATION_BINS,
    GroupScore,
    at_precision,
    best_f1,
    group_scores,
    micro_average,
    one_against_rest,
    reliability_bins,
)
from thumbnet.files import check_output, inline_source, write_file
from thumbnet.invocation import command
from thumbnet.reports import charts
from thumbnet.reports.pictures import MATRIX_CLASSES, SHOWN_CLASSES, Album, Answers
from thumbnet.reports.summary import (
    NOTHING_MEASURED,
    are_own_data,
    describe_calibration,
    describe_continued,
    describe_groups,
    describe_stop,
    lines_for_run,
    optimism,
    short_epochs,
)
from thumbnet.runs.folder import Run
from thumbnet.runs.provenance import batch_size_of
from thumbnet.version import __version__

MISTAKES, SUSPECTS = "mistakes.csv", "suspects.csv"
LISTED = 24  # pictures in the list of mistakes, and in the list of doubtful labels
LISTED_GROUPS = 10
FEWEST_GROUPS = 5  # with fewer groups of several pictures, they are not listed
PRECISION = 0.95  # the table of thresholds says where each class reaches this precision
SECTIONS = {
    "curves": "Learning curves",
    "confusion": "Confusion",
    "classes": "Classes",
    "groups": "Groups",
    "thresholds": "ROC and thresholds",
    "calibration": "Calibration",
    "mistakes": "Mistakes",
    "labels": "Doubtful labels",
    "looks": "Where it looks",
    "data": "Data",
    "recipe": "Recipe",
    "environment": "Environment",
}
"""The page's sections and their names in the navigation. The template leaves out those that are not here."""


def write_report(
    run: Run,
    data: Data,
    split: str,
    out: Path,
    *,
    device: str = "auto",
    progress: Progress | None = None,
) -> tuple[Path, ...]:
    """Write the report of a run: the page, and CSV files of all mistakes and suspects.

    Each file is written completely or not at all.

    Args:
        run: a complete run.
        data: the run's data, with the run's splits, or others with the same classes.
        split: the name of the split to report on.
        out: the HTML file to write. If it is ``report.html``, the lists are ``mistakes.csv`` and
            ``suspects.csv`` in the same folder; for another ``NAME.html``, ``NAME-mistakes.csv`` and
            ``NAME-suspects.csv``.
        device: where the network computes, see :func:`thumbnet.load_classifier`.
        progress: called with the number of heat maps done and their total.

    Returns:
        The written files, the page first.

    Raises:
        RunError: the run is not complete, or a file cannot be written.
        MissingExtraError: jinja2 or matplotlib is not installed.
        ThumbnetError: the device is not available.
    """
    check_jinja()
    prefix = "" if out.name == "report.html" else f"{out.stem}-"
    check_output(out)
    for name in (MISTAKES, SUSPECTS):
        check_output(out.with_name(f"{prefix}{name}"), named=False)
    summary = run.summary
    predictor = load_run(run.path, device)
    album = Album(predictor.info.preprocessing, out.parent)
    batch_size = batch_size_of(run.recipe)
    found = predictor.classify_split(
        data.split(split),
        data.class_names,
        tta=summary["tta"],
        batch_size=batch_size,
        on_bad_image="skip",
    )
    groups = data.groups_of(split, found.split)
    answers = Answers(predictor, found, album, groups)
    lists = _lists(answers, split, prefix)
    parts = {
        **_thresholds(answers),
        **_calibration(answers, summary),
        # The most useful pictures come first, because pictures are left out once the room is used up.
        **_pictures(answers, progress, batch_size),
        **_data(data, album, predictor.info.preprocessing),
        **_confusion(answers),
        "worst_groups": _worst_groups(answers.right, groups),
    }
    sections = dict(SECTIONS)
    if not parts["worst_groups"]:
        sections.pop("groups", None)
    page = render(
        "report.html",
        run,
        sections=sections,
        summary=summary,
        data=data,
        split=split,
        names=answers.names,
        evaluation=answers.evaluation,
        lists=[(printable(name), quote(os.fsencode(name))) for name in lists],
        **head(run, predictor, data, split, found, left_out(data, split, found.split, album)),
        accuracy_plain=float((found.plain.argmax(axis=1) == found.labels).mean()),
        corrections=describe_corrections(summary["labels"]) if summary.get("labels") else None,
        grouped=describe_groups(answers.evaluation.pictures, answers.evaluation.groups),
        tta=found.tta,
        epochs=short_epochs(run),
        **parts,
        review=command("review", run.path),
    )
    for name, content in lists.items():
        write_file(out.with_name(name), content)
    write_file(out, page)
    return (out, *(out.with_name(name) for name in lists))


def check_jinja() -> None:
    """Check that reports can be written, before long work.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    with needs_extra("writing a report", "report"):
        import jinja2  # noqa: F401


def render(template: str, run: Run, **values: Any) -> str:
    """Fill a template of this folder for a run. It escapes everything that is not marked as safe."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    folder = resources.files("thumbnet.reports")
    return environment.from_string((folder / template).read_text("utf-8")).render(
        values,
        style=(folder / "report.css").read_text("utf-8"),
        inline_source=inline_source,
        version=__version__,
        run=run.path.resolve().name,
        recipe=run.recipe,
        environment=json.dumps(run.environment, indent=2, ensure_ascii=False),
        curves=charts.learning_curves(run),
    )


def _lists(answers: Answers, split: str, prefix: str) -> dict[str, str]:
    """The CSV files of all mistakes and of all suspects, by their names."""
    names, doubt = answers.names, doubts(answers.probabilities, answers.labels)

    def rows(indices: np.ndarray, other: np.ndarray, value: np.ndarray) -> list[list[str | float]]:
        return [
            [
                safe_name(answers.split.name(index)),
                split,
                safe_text(names[answers.labels[index]]),
                safe_text(names[other[index]]),
                round(float(value[index]), 6),
            ]
            for index in indices.tolist()
        ]

    mistakes = rows(answers.mistakes, answers.predicted, answers.confidence)
    suspects = rows(answers.doubted, answers.suggested, doubt)
    return {
        f"{prefix}{MISTAKES}": as_csv(["picture", "split", "label", "predicted", "probability"], mistakes),
        f"{prefix}{SUSPECTS}": as_csv(["picture", "split", "label", "suggested", "doubt"], suspects),
    }


def left_out(data: Data, split: str, measured: Split, album: Album) -> list[str]:
    """What to say about pictures that could not be read, if there are any; also warns of them."""
    lines = []
    missing = len(data.split(split)) - len(measured)
    if missing:
        lines.append(
            f"{missing:,} of {len(data.split(split)):,} pictures in {split} could not be read: "
            "all measures are those of the others"
        )
    if album.unreadable:
        kind = "" if "all" in data.splits else "training "
        lines.append(f"{album.unreadable:,} {kind}picture(s) could not be read, so others are shown")
    for line in lines:
        warnings.warn(f"the report is not of all pictures: {line}", FallbackWarning, stacklevel=3)
    return lines


def head(
    run: Run, predictor: Classifier, data: Data, split: str, found: SplitLogits, more_notes: Sequence[str]
) -> dict[str, Any]:
    """What stands above the sections, and whether the run knows the pictures."""
    summary, own = run.summary, are_own_data(run, data)
    lines = lines_for_run(run, predictor, data, split, found)
    continued = describe_continued(run)
    return {
        "parameters": _parameters(summary, predictor),
        "nothing_measured": NOTHING_MEASURED if summary["accuracy"] is None else None,
        "stopped": describe_stop(summary),
        "optimistic": optimism(run, split) if own else {},
        "own_data": own,
        "trained_on": (own and split == "train") or any(IN_TRAINING in line for line in lines),
        "notes": [*([continued] if continued else []), *more_notes, *lines, *summary.get("warnings", ())],
    }


def _parameters(summary: dict[str, Any], predictor: Classifier) -> int:
    """How many parameters the network of a run has. Runs of older versions did not record it."""
    known: int | None = summary.get("parameters")
    if known is not None:
        return known
    assert isinstance(predictor, Predictor)
    return sum(parameter.numel() for parameter in predictor.model.parameters())


def shown_splits(data: Data) -> dict[str, Split]:
    """The splits that the page counts: without ``train`` if ``all`` holds the same pictures."""
    return {name: one for name, one in data.splits.items() if name != "train" or "all" not in data.splits}


def _thresholds(answers: Answers) -> dict[str, Any]:
    """ROC and precision-recall curves, their areas, and thresholds per class."""
    curves = one_against_rest(answers.probabilities, answers.labels)
    lines = charts.lines(answers.names, curves, micro_average(answers.probabilities, answers.labels))
    return {
        "roc": charts.roc(lines),
        "precision_recall": charts.precision_recall(lines),
        "lines": lines,
        "area": _area,
        "threshold": _threshold,
        "wanted_precision": PRECISION,
        "operating_points": [
            (name, curve, best_f1(curve), at_precision(curve, PRECISION))
            for name, curve in zip(answers.names, curves, strict=True)
        ],
    }


def _area(value: float) -> str:
    """An area below a curve, 0 to 1; a dash where there is nothing to measure."""
    return "–" if math.isnan(value) else f"{value:.4f}"


def _threshold(value: float) -> str:
    """A threshold in four decimals. It is rounded down, so that it keeps the pictures that it should."""
    return f"{math.floor(1e4 * value) / 1e4:.4f}"


def _calibration(answers: Answers, summary: dict[str, Any]) -> dict[str, Any]:
    """The reliability diagram, and its numbers."""
    bins = reliability_bins(answers.confidence, answers.right)
    edges = [f"{100 * number / CALIBRATION_BINS:.0f}" for number in range(CALIBRATION_BINS + 1)]
    ranges = [f"{low} to {high}\u00a0%" for low, high in itertools.pairwise(edges)]
    return {
        "calibration": describe_calibration(summary),
        "reliability": charts.reliability(bins),
        "bins": list(zip(ranges, bins, strict=True)),
    }


def _confusion(answers: Answers) -> dict[str, Any]:
    """The confusion matrix, or the most frequent confusions, with the pictures of each cell."""
    confusions = answers.confusions()
    return {
        "matrix": len(answers.names) <= MATRIX_CLASSES,
        "confusions": confusions,
        "cells": {f"{actual}-{guess}": answers.cell(actual, guess) for _, actual, guess in confusions},
    }


def _worst_groups(right: np.ndarray, groups: np.ndarray | None) -> list[GroupScore]:
    """The groups of several pictures that have the most mistakes beyond their share, worst first.

    None are listed with fewer than ``FEWEST_GROUPS`` such groups.

    Args:
        right: whether each picture is classified correctly, bool [N].
        groups: each picture's group, str [N]; None without groups.
    """
    if groups is None:
        return []
    several = [one for one in group_scores(right, groups) if one.pictures > 1]
    if len(several) < FEWEST_GROUPS:
        return []
    return [replace(one, name=printable(one.name)) for one in several if one.accuracy < right.mean()][
        :LISTED_GROUPS
    ]


def _pictures(answers: Answers, progress: Progress | None, batch_size: int) -> dict[str, Any]:
    """The mistakes, the doubtful labels, and where the network looks."""
    return {
        "mistakes": answers.gallery(answers.mistakes[:LISTED]),
        "mistakes_count": len(answers.mistakes),
        "doubted": answers.suspects(answers.doubted[:LISTED]),
        "doubted_count": len(answers.doubted),
        "heat_maps": answers.heat_maps(progress, batch_size),
    }


def _data(data: Data, album: Album, preprocessing: Any) -> dict[str, Any]:
    """The pictures per class and split, with samples."""
    return {
        "preprocessing": preprocessing,
        "tiny": max(preprocessing.size) <= 104,  # pictures are shown 104 pixels wide
        "counts": {
            name: one.class_counts(len(data.class_names)).tolist() for name, one in shown_splits(data).items()
        },
        "samples": album.samples(data),
        "shown_classes": SHOWN_CLASSES,
    }
