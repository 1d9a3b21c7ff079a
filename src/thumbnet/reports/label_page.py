"""Write the report of a run whose network gives pictures several labels, a single self-contained HTML file.

Needs the extra ``report``. The page looks like the report for one class per picture, whose style it uses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thumbnet.classifiers.base import SplitLogits
from thumbnet.classifiers.labels import labels_above
from thumbnet.classifiers.load import load_run
from thumbnet.data.splits import Data
from thumbnet.files import check_output, write_file
from thumbnet.multilabel import LabelEvaluation, evaluate_labels, sigmoid
from thumbnet.reports.page import check_jinja, head, left_out, render, shown_splits
from thumbnet.reports.pictures import Album, Shown
from thumbnet.reports.summary import (
    describe_calibration,
    describe_groups,
    percent,
)
from thumbnet.runs.folder import Run
from thumbnet.runs.provenance import batch_size_of
from thumbnet.runs.weights_info import WeightsInfo

MATRIX_LABELS = 20  # with at most this many labels, the page shows all pairs of them
LISTED_PAIRS = 60  # with more labels, the page lists this many of the most frequent pairs
SHOWN_LABELS = 60  # labels whose mistakes are shown
SHOWN_MISTAKES = 6  # pictures of each kind of mistake, per label


@dataclass(frozen=True)
class _Mistakes:
    """The mistakes in one label: how many there are, and some of the pictures."""

    name: str
    wrong_count: int
    wrong: list[Shown]
    missed_count: int
    missed: list[Shown]


def write_label_report(
    run: Run, data: Data, split: str, out: Path, *, device: str = "auto"
) -> tuple[Path, ...]:
    """Write the report of a run atomically.

    Args:
        run: a complete run on pictures with several labels.
        data: the run's data, with the run's splits, or others with the same labels.
        split: the name of the split to report on.
        out: the HTML file to write.
        device: where the network computes, see :func:`thumbnet.load_classifier`.

    Returns:
        The files that were written.

    Raises:
        RunError: the run is not complete, or the file cannot be written.
        MissingExtraError: jinja2 or matplotlib is not installed.
        ThumbnetError: the device is not available.
    """
    check_jinja()
    check_output(out)
    summary = run.summary
    classifier = load_run(run.path, device)
    info, splits = classifier.info, shown_splits(data)
    found = classifier.classify_split(
        data.split(split),
        data.class_names,
        tta=summary["tta"],
        batch_size=batch_size_of(run.recipe),
        on_bad_image="skip",
    )
    groups = data.groups_of(split, found.split)
    evaluation = evaluate_labels(found.logits, found.labels, info.class_names, info.label_thresholds, groups)
    album = Album(info.preprocessing, out.parent)
    above = head(run, classifier, data, split, found, left_out(data, split, found.split, album))
    page = render(
        "label_report.html",
        run,
        summary=summary,
        data=data,
        split=split,
        tta=found.tta,
        **above,
        facts=_facts(evaluation, found, split, summary, above["parameters"]),
        evaluation=evaluation,
        grouped=describe_groups(evaluation.pictures, evaluation.groups),
        calibration=describe_calibration(summary),
        chosen=_how_chosen(info, summary, above["own_data"] and split == summary["calibrated_on"]),
        matrix=len(info.class_names) <= MATRIX_LABELS,
        pairs=evaluation.pairs()[:LISTED_PAIRS],
        mistakes=_mistakes(found, info, data, album),
        counts={name: one.class_counts(len(data.class_names)).tolist() for name, one in splits.items()},
        means={name: float(one.targets.sum(axis=1).mean()) for name, one in splits.items()},
    )
    write_file(out, page)
    return (out,)


def _facts(
    evaluation: LabelEvaluation, found: SplitLogits, split: str, summary: dict[str, Any], parameters: int
) -> list[tuple[str, str]]:
    """Names and values of the most important numbers."""
    tta = "" if found.tta == "none" else f" ({found.tta})"
    seconds = summary["seconds_total"]
    count = f"{evaluation.pictures:,}"
    if evaluation.groups is not None:
        count += f" in {evaluation.groups:,} groups"
    facts = [(f"{split} mAP{tta}", "–" if math.isnan(evaluation.map) else percent(evaluation.map))]
    if evaluation.map_interval is not None:
        low, high = evaluation.map_interval
        facts.append(("95 % interval", f"{100 * low:.2f}–{100 * high:.2f} %"))
    decisions = evaluation.at_thresholds
    return [
        *facts,
        ("micro F1", percent(decisions.micro_f1)),
        ("macro F1", percent(decisions.macro_f1)),
        ("all labels right", percent(decisions.exact_match)),
        ("wrong decisions", percent(decisions.hamming_loss)),
        ("calibration error", percent(evaluation.calibration_error)),
        ("pictures", count),
        ("parameters", f"{parameters:,}"),
        ("total time", f"{int(seconds // 60)}:{int(seconds % 60):02} min"),
    ]


def _how_chosen(info: WeightsInfo, summary: dict[str, Any], here: bool) -> str:
    """Say how the thresholds were chosen. ``here`` says whether that was on the pictures of the report."""
    if not info.label_thresholds:
        return "No thresholds were chosen, because there were too few held-out pictures: all are 0.5."
    source = "val" if summary["calibrated_on"] == "val" else "pictures set aside from train"
    how = "the pictures measured here" if here else "not on the pictures measured here"
    return f"Thresholds were chosen for the highest F1 on {source}, {how}."


def _mistakes(found: SplitLogits, info: WeightsInfo, data: Data, album: Album) -> list[_Mistakes]:
    """The mistakes in each label, with the probability and the true labels as captions."""
    probabilities, truth = sigmoid(found.logits), found.labels.astype(bool)
    given = labels_above(probabilities, info)

    def show(indices: np.ndarray, label: int) -> list[Shown]:
        shown = []
        for index in indices[:SHOWN_MISTAKES].tolist():
            text = f"{100 * probabilities[index, label]:.0f}\u00a0%; "
            text += found.split.label_text(index, data.class_names)
            shown.append(album.show(found.split, index, text))
        return [picture for picture in shown if picture]

    rows = []
    for label, name in enumerate(info.class_names[:SHOWN_LABELS]):
        own = probabilities[:, label]
        wrong = np.flatnonzero(given[:, label] & ~truth[:, label])
        missed = np.flatnonzero(~given[:, label] & truth[:, label])
        wrong = wrong[np.argsort(-own[wrong], kind="stable")]
        missed = missed[np.argsort(own[missed], kind="stable")]
        rows.append(
            _Mistakes(
                name,
                len(wrong),
                show(wrong, label),
                len(missed),
                show(missed, label),
            )
        )
    return rows
