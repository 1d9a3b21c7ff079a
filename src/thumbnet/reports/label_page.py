"""Write the report of a run whose network gives pictures several labels, a single self-contained HTML file.

Needs the extra ``report``. The page looks like the report for one class per picture, whose style it uses.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from thumbnet.classifiers.base import SplitLogits
from thumbnet.classifiers.labels import labels_above
from thumbnet.classifiers.load import load_run
from thumbnet.data.images import as_data_address
from thumbnet.data.splits import Data
from thumbnet.errors import MissingExtraError, printable
from thumbnet.files import write_file
from thumbnet.models import count_parameters
from thumbnet.multilabel import LabelEvaluation, evaluate_labels, sigmoid
from thumbnet.reports.comparison import read_metrics
from thumbnet.reports.figures import INK, as_svg, draw_accuracies, new_figure
from thumbnet.reports.summary import (
    NOTHING_MEASURED,
    OPTIMISTIC,
    describe_calibration,
    is_optimistic,
    percent,
)
from thumbnet.runs.folder import Run
from thumbnet.runs.weights import read_weights
from thumbnet.runs.weights_info import WeightsInfo
from thumbnet.training.schedules import learning_rates
from thumbnet.version import __version__

MATRIX_LABELS = 20  # with at most this many labels, the page shows all pairs of them
LISTED_PAIRS = 60  # with more labels, the page lists this many of the most frequent pairs
SHOWN_LABELS = 60  # labels whose mistakes are shown
SHOWN_MISTAKES = 6  # pictures of each kind of mistake, per label
PICTURE_BYTES = 3_500_000  # for all pictures together; once they are used up, pictures are left out
BLUE, ORANGE = "#3b82c4", "#d97706"  # visible on white and on black


@dataclass(frozen=True)
class _Shown:
    """A picture on the page, as a data URL, with its caption and its name."""

    source: str
    text: str
    name: str


@dataclass(frozen=True)
class _Mistakes:
    """The mistakes in one label: how many there are, and some of the pictures."""

    name: str
    wrong_count: int
    wrong: list[_Shown]
    missed_count: int
    missed: list[_Shown]


class _Album:
    """Encodes pictures as data URLs, until ``PICTURE_BYTES`` are used up."""

    def __init__(self, found: SplitLogits, info: WeightsInfo) -> None:
        self._split, self._truth, self._info = found.split, found.labels, info
        self._encoded: dict[int, str] = {}
        self._room = PICTURE_BYTES

    def show(self, indices: np.ndarray, probabilities: np.ndarray) -> list[_Shown]:
        """Return pictures with the label's probability (float [N]) and their true labels as captions."""
        shown = []
        for index in indices.tolist():
            if self._room < 0:
                break
            if index not in self._encoded:
                pixels = self._info.preprocessing.pixels(self._split.load(index))
                self._encoded[index] = as_data_address(pixels)
            source = self._encoded[index]
            self._room -= len(source)
            names = [self._info.class_names[i] for i in np.flatnonzero(self._truth[index]).tolist()]
            text = f"{100 * probabilities[index]:.0f}\u00a0%; {', '.join(names) or 'no label'}"
            shown.append(_Shown(source, text, printable(self._split.name(index))))
        return shown


def write_label_report(run: Run, data: Data, split: str, out: Path) -> tuple[Path, ...]:
    """Write the report of a run atomically.

    Args:
        run: a complete run on pictures with several labels.
        data: the run's data, with the run's splits.
        split: the split to report on: ``test`` or ``val``.
        out: the HTML file to write.

    Returns:
        The files that were written.

    Raises:
        RunError: the run is not complete, or the file cannot be written.
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    try:
        import jinja2
    except ImportError:
        raise MissingExtraError("writing a report", "report") from None
    summary = run.summary
    weights, info = read_weights(run.weights_path)
    found = load_run(run.path).classify_split(
        data.split(split), data.class_names, tta=summary["tta"], on_bad_image="skip"
    )
    evaluation = evaluate_labels(found.logits, found.labels, info.class_names, info.label_thresholds)
    parameters = summary["parameters"] or count_parameters(weights, info.model, len(info.class_names))
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    folder = resources.files("thumbnet.reports")
    template = environment.from_string((folder / "label_report.html").read_text("utf-8"))
    style = re.search(r"<style>\n(.*?)</style>", (folder / "report.html").read_text("utf-8"), re.DOTALL)
    splits = {name: one for name, one in data.splits.items() if name != "train" or "all" not in data.splits}
    page = template.render(
        version=__version__,
        style=style[1] if style else "",
        run=run.path.resolve().name,
        summary=summary,
        recipe=run.recipe,
        environment=json.dumps(run.environment, indent=2, ensure_ascii=False),
        data=data,
        split=split,
        tta=found.tta,
        facts=_facts(evaluation, found, split, summary, parameters),
        evaluation=evaluation,
        optimistic=OPTIMISTIC if is_optimistic({**summary, "split": split}) else None,
        nothing_measured=NOTHING_MEASURED if summary["accuracy"] is None else None,
        calibration=describe_calibration(summary),
        chosen=_how_chosen(info, summary),
        notes=[*(summary.get("repeats") or {}).get("lines", ()), *summary.get("warnings", ())],
        curves=_curves(run),
        schedule=_schedule(run),
        matrix=len(info.class_names) <= MATRIX_LABELS,
        pairs=_pairs(evaluation),
        mistakes=_mistakes(found, info),
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
        ("pictures", f"{evaluation.pictures:,}"),
        ("parameters", f"{parameters:,}"),
        ("total time", f"{int(seconds // 60)}:{int(seconds % 60):02} min"),
    ]


def _how_chosen(info: WeightsInfo, summary: dict[str, Any]) -> str:
    if not info.label_thresholds:
        return "No thresholds were chosen, because there were too few held-out pictures: all are 0.5."
    source = "val" if summary["calibrated_on"] == "val" else "pictures set aside from train"
    return f"Thresholds were chosen for the highest F1 on {source}, not on the pictures measured here."


def _pairs(evaluation: LabelEvaluation) -> list[tuple[int, str, str]]:
    """The most frequent pairs of labels: pictures, and the two names."""
    names = [one.name for one in evaluation.labels]
    pairs = [
        (count, names[first], names[second])
        for first, row in enumerate(evaluation.together)
        for second, count in enumerate(row)
        if first < second and count
    ]
    return sorted(pairs, reverse=True)[:LISTED_PAIRS]


def _mistakes(found: SplitLogits, info: WeightsInfo) -> list[_Mistakes]:
    probabilities, truth = sigmoid(found.logits), found.labels.astype(bool)
    given = labels_above(probabilities, info)
    album = _Album(found, info)
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
                album.show(wrong[:SHOWN_MISTAKES], own),
                len(missed),
                album.show(missed[:SHOWN_MISTAKES], own),
            )
        )
    return rows


def _curves(run: Run) -> str:
    metrics = read_metrics(run)
    figure = new_figure(4.4, 5.4)
    axes: Any = figure.subplots(2, 1, sharex=True)
    for split in ("val", "test"):
        scored = [line for line in metrics if f"{split}_map" in line]
        if scored:
            at = [line["epoch"] for line in scored]
            values = [100 * line[f"{split}_map"] for line in scored]
            axes[0].plot(at, values, marker=".", color=BLUE, label=split)
            axes[1].plot(at, [line[f"{split}_loss"] for line in scored], marker=".", color=BLUE, label=split)
    draw_accuracies(axes[0], run.summary, metrics, ORANGE, BLUE)
    axes[0].set_ylabel("mAP, %")
    epochs = [line["epoch"] for line in metrics]
    axes[1].plot(epochs, [line["loss"] for line in metrics], marker=".", color=ORANGE, label="training")
    axes[1].set_ylabel("loss")
    axes[1].set_xlabel("epoch")
    axes[1].xaxis.get_major_locator().set_params(integer=True)
    for one in axes:
        if one.get_legend_handles_labels()[0]:
            one.legend(frameon=False, fontsize=9)
    return _finished(figure, f"Learning curves over {len(metrics)} epochs")


def _schedule(run: Run) -> str:
    times, rates = learning_rates(run.recipe, 400)
    figure = new_figure(4.4, 2.8)
    axes = figure.add_subplot()
    axes.plot(times, rates, color=BLUE)
    axes.set_xlabel("epoch")
    axes.set_ylabel("learning rate")
    return _finished(figure, f"Learning rate, {run.recipe.schedule.name}: at most {max(rates):.3g}")


def _finished(figure: Any, title: str) -> str:
    """Give a figure the look of the page."""
    for axes in figure.axes:
        axes.set_axisbelow(True)
        axes.grid(alpha=0.25, color=INK)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return as_svg(figure, title)
