"""The charts of a report, as inline SVG in the page's text colour. Needs matplotlib (an extra)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from thumbnet.evaluation import Curve, ReliabilityBin
from thumbnet.reports.figures import INK, as_svg, draw_accuracies, new_figure
from thumbnet.runs.folder import Run
from thumbnet.runs.summaries import headline_key, headline_name
from thumbnet.training.schedules import learning_rates

WIDTH = 4.4  # inches; all charts are equally wide, so their text has the same size on the page
BLUE, ORANGE = "#3b82c4", "#d97706"
# Visible on white and on black. Each colour serves twice, the second time for a dashed line.
COLOURS = (BLUE, ORANGE, "#1f9d6b", "#c2558f", "#7d8794")
DASHES = (4.0, 2.0)
DRAWN_CLASSES = 2 * len(COLOURS)  # with more classes, the curves of their averages are drawn
GRID = np.linspace(0, 1, 201)  # where curves have points


def learning_curves(run: Run) -> list[tuple[str, str]]:
    """Draw the main measure, loss and learning rate by epoch; return titles and charts."""
    metrics, name = run.metrics, headline_name(run.summary)
    return [
        (_title(name), _headline(run, metrics)),
        ("Loss", _losses(metrics)),
        ("Learning rate", _rates(run)),
    ]


def _headline(run: Run, metrics: Sequence[dict[str, Any]]) -> str:
    name, key = headline_name(run.summary), headline_key(run.summary)
    figure, axes = _by_epoch(f"{name}, %")
    for split in ("val", "test"):
        _plot_known(axes, metrics, f"{split}_{key}", 100, color=BLUE, label=split)
    draw_accuracies(axes, run.summary, metrics, ORANGE, BLUE, skips=run.recipe.data.skip_easy > 0)
    _add_legend(axes)
    return finished(figure, f"{_title(name)} over {len(metrics)} epochs")


def _title(name: str) -> str:
    """A name at the start of a line: ``Accuracy``, but ``mAP``."""
    return name.capitalize() if name.islower() else name


def _losses(metrics: Sequence[dict[str, Any]]) -> str:
    figure, axes = _by_epoch("loss")
    for split in ("val", "test"):
        _plot_known(axes, metrics, f"{split}_loss", 1, color=BLUE, label=split)
    _plot_known(axes, metrics, "loss", 1, color=ORANGE, label="training")
    _add_legend(axes)
    return finished(figure, f"Loss over {len(metrics)} epochs")


def _rates(run: Run) -> str:
    times, rates = learning_rates(run.recipe, 400)
    figure, axes = _by_epoch("learning rate")
    axes.plot(times, rates, color=BLUE)
    return finished(figure, f"Learning rate, {run.recipe.schedule.name}: at most {max(rates):.3g}")


def _by_epoch(label: str) -> tuple[Any, Any]:
    """Return a figure and its axes, which have whole epochs on the x axis."""
    figure = new_figure(WIDTH, 3.4)
    axes: Any = figure.add_subplot()
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    return figure, axes


def _plot_known(axes: Any, metrics: Sequence[dict[str, Any]], key: str, scale: float, **style: Any) -> None:
    """Plot a measure by epoch, at the epochs that have it."""
    known = [line for line in metrics if line.get(key) is not None]
    if known:
        axes.plot(
            [line["epoch"] for line in known], [scale * line[key] for line in known], marker=".", **style
        )


def _add_legend(axes: Any) -> None:
    """Write the legend above the axes, where it covers no line."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)


def reliability(bins: Sequence[ReliabilityBin]) -> str:
    """Draw accuracy and mean confidence by bin of confidence, and the number of pictures in each bin."""
    figure = new_figure(WIDTH, 5.0)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[5, 2])
    width = 1 / len(bins)
    for number, one in enumerate(bins):
        if one.pictures:
            middle, ends = (number + 0.5) * width, [number * width, (number + 1) * width]
            upper.bar(middle, one.accuracy, width * 0.92, color=BLUE, label="_")
            upper.plot(ends, [one.confidence] * 2, color=ORANGE, linewidth=2, label="_")
            lower.bar(middle, one.pictures, width * 0.92, color=BLUE)
            text = f" {one.pictures:,}"
            lower.text(middle, one.pictures, text, rotation=90, ha="center", va="bottom", fontsize=8)
    upper.plot([0, 1], [0, 1], color=INK, linestyle=":", linewidth=1)
    upper.bar(0, 0, color=BLUE, label="accuracy")
    upper.plot([], [], color=ORANGE, linewidth=2, label="mean confidence")
    _add_legend(upper)
    upper.set_xlim(0, 1)
    upper.set_ylim(0, 1)
    upper.set_ylabel("accuracy")
    lower.set_ylim(0, 1.6 * max(one.pictures for one in bins))  # with room for the numbers
    lower.set_ylabel("pictures")
    lower.set_xlabel("confidence")
    return finished(figure, "Reliability diagram: accuracy of the predictions by their confidence")


@dataclass(frozen=True)
class Line:
    """A curve in the charts and their legend.

    Attributes:
        name: the class, or the kind of average.
        colour: its colour.
        dashes: the lengths of dash and gap as SVG has them; empty for a solid line.
        auroc, average_precision: the areas; nan if there is nothing to measure.
        recalls: recall at the false positive rates ``GRID``; None if there is nothing to measure.
        precisions: precision at the recalls ``GRID``; None if there is nothing to measure.
    """

    name: str
    colour: str
    dashes: str
    auroc: float
    average_precision: float
    recalls: np.ndarray | None
    precisions: np.ndarray | None


def lines(names: Sequence[str], curves: Sequence[Curve], micro: Curve) -> list[Line]:
    """Choose what to draw: each class, or the averages if there are more than ``DRAWN_CLASSES``."""
    if len(names) > DRAWN_CLASSES:
        return [_line(0, "micro average", [micro]), _line(1, "macro average", curves)]
    return [_line(number, name, [curves[number]]) for number, name in enumerate(names)]


def _line(number: int, name: str, curves: Sequence[Curve]) -> Line:
    """Return the mean of the curves that can be measured, as line ``number`` of a chart."""
    with_roc = [curve for curve in curves if curve.positives and curve.negatives]
    with_pr = [curve for curve in curves if curve.positives]
    return Line(
        name,
        COLOURS[number % len(COLOURS)],
        "" if number < len(COLOURS) else " ".join(f"{2 * one:g}" for one in DASHES),
        _mean([curve.auroc for curve in with_roc]),
        _mean([curve.average_precision for curve in with_pr]),
        np.mean([_recalls(curve) for curve in with_roc], axis=0) if with_roc else None,
        np.mean([_precisions(curve) for curve in with_pr], axis=0) if with_pr else None,
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else np.nan


def _recalls(curve: Curve) -> np.ndarray:
    """The recall at the lowest threshold whose false positive rate is at most each of ``GRID``."""
    reached = np.searchsorted(curve.false_positive_rate, GRID, side="right")
    return np.append(0.0, curve.recall)[reached]


def _precisions(curve: Curve) -> np.ndarray:
    """The precision at the highest threshold that finds any and has at least each recall of ``GRID``."""
    return curve.precision[np.searchsorted(curve.recall, np.maximum(GRID, 1 / curve.positives))]


def roc(drawn: Sequence[Line]) -> str:
    """Draw recall against the false positive rate."""
    figure = new_figure(WIDTH, 4.0)
    axes = figure.add_subplot()
    for line in drawn:
        if line.recalls is not None:
            axes.plot(np.append(0, GRID), np.append(0, line.recalls), **_style(line))
    axes.plot([0, 1], [0, 1], color=INK, linestyle=":", linewidth=1)
    axes.set_xlabel("false positive rate")
    axes.set_ylabel("recall (true positive rate)")
    return _unit_square(figure, axes, "ROC curves")


def precision_recall(drawn: Sequence[Line]) -> str:
    """Draw precision against recall."""
    figure = new_figure(WIDTH, 4.0)
    axes = figure.add_subplot()
    for line in drawn:
        if line.precisions is not None:
            axes.plot(GRID, line.precisions, **_style(line))
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    return _unit_square(figure, axes, "Precision-recall curves")


def _style(line: Line) -> dict[str, Any]:
    return {"color": line.colour, "linestyle": (0, DASHES) if line.dashes else "-", "linewidth": 1.6}


def _unit_square(figure: Any, axes: Any, title: str) -> str:
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    return finished(figure, title)


def finished(figure: Any, title: str) -> str:
    """Give a figure the look of the page."""
    for axes in figure.axes:
        axes.set_axisbelow(True)
        axes.grid(alpha=0.25, color=INK)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return as_svg(figure, title)
