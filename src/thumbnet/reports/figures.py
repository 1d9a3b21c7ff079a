"""Draw the commands' figures with matplotlib (an extra), as PNG, SVG or PDF.

An SVG has a transparent background, dark text on a light page, and light text on a dark page.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from thumbnet.errors import ThumbnetError, needs_extra
from thumbnet.evaluation import Evaluation
from thumbnet.files import check_output, user_path, write_file
from thumbnet.multilabel import LabelEvaluation
from thumbnet.recipes.recipe import Recipe
from thumbnet.reports.augmented import AugmentedRow
from thumbnet.reports.comparison import Group
from thumbnet.runs.summaries import headline_key, headline_name
from thumbnet.training.range_test import RangeTest
from thumbnet.training.schedules import learning_rates

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SUFFIXES = (".png", ".svg", ".pdf")
INK, _ACCENT = "#1b3a57", "#d1495b"
_LIGHT_INK = "#dbe5ee"  # the ink of an SVG on a dark page
_CELL = (0.184, 0.435, 0.69)  # red, green, blue of a full cell; white text is readable on it
# Okabe and Ito's colours, which colour-blind people can tell apart.
_COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#f0e442"]


def new_figure(width: float, height: float) -> Figure:
    """Create an empty figure; ``width`` and ``height`` are in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    with needs_extra("drawing", "plot"):
        from matplotlib.figure import Figure

    class ShownFigure(Figure):
        """A figure that notebooks display even if pyplot was never imported."""

        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png")
            return buffer.getvalue()

    return ShownFigure(figsize=(width, height), dpi=120, layout="constrained")


def check_plot_path(path: str | Path, option: str = "--plot") -> Path:
    """Return ``path``, the value of ``option``, if a plot can be written there. Call this before long work.

    Raises:
        ThumbnetError: the suffix is unknown, or the file cannot be written; see :func:`check_output`.
        MissingExtraError: matplotlib is not installed.
    """
    target = user_path(path)
    if target.suffix.lower() not in _SUFFIXES:
        raise ThumbnetError(f"{option} {path}: the name must end in {', '.join(_SUFFIXES)}")
    check_output(target)
    new_figure(1, 1)
    return target


def save(figure: Figure, path: Path) -> None:
    """Write a figure atomically, in the format that the suffix of ``path`` names."""
    kind = path.suffix.lower().lstrip(".")
    if kind == "svg":
        write_file(path, _standalone(as_svg(figure)))
        return
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind)
    write_file(path, buffer.getvalue())


def as_svg(figure: Figure, title: str = "") -> str:
    """Return a figure as a transparent SVG element. Black and ``INK`` become the colour of the page's text.

    Args:
        figure: the figure. Two figures on one page need different titles, because their ids begin with them.
        title: what screen readers say.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(f"{INK}|#000000", "currentColor", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    if not title:
        return text.replace("<svg", '<svg fill="currentColor"', 1)
    prefix = re.sub(r"\W", "", title)
    text = re.sub(r'(id="|"#|url\(#)(?=[^"]*["\)])', rf"\g<1>{prefix}-", text)
    label = f'role="img" aria-label="{escape(title)}"'
    return text.replace("<svg", f'<svg {label} fill="currentColor"', 1)


def _standalone(svg: str) -> str:
    """Make an SVG element a file, whose text is light where the page around it is dark."""
    style = (
        f"<style>svg {{ color: {INK} }} "
        f"@media (prefers-color-scheme: dark) {{ svg {{ color: {_LIGHT_INK} }} }}</style>"
    )
    head, bracket, rest = svg.partition(">")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{head}{bracket}\n {style}{rest}'


def plain(text: str) -> str:
    """Return ``text`` so that matplotlib draws it as it is: otherwise two dollar signs enclose a formula."""
    return text.replace("$", r"\$")


def confusion_figure(evaluation: Evaluation, title: str) -> Figure:
    """Draw the confusion matrix: colours show shares of each true class, numbers show counts if they fit."""
    counts = np.array(evaluation.confusion)
    names = [plain(score.name) for score in evaluation.classes]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(14.0, max(4.5, 0.55 * len(names) + 1.5))
    figure = new_figure(side, side)
    axes = figure.add_subplot()
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("shares", [(*_CELL, 0.0), (*_CELL, 1.0)])
    axes.imshow(shares, cmap=colours, vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(plain(title))
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    step = max(1, len(names) // 40)
    ticks = range(0, len(names), step)
    axes.set_xticks(ticks, [names[i] for i in ticks], rotation=90)
    axes.set_yticks(ticks, [names[i] for i in ticks])
    if len(names) <= 25:
        for row, column in np.argwhere(counts):
            colour = "white" if shares[row, column] > 0.75 else INK
            text = str(counts[row, column])
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    return figure


def draw_accuracies(
    axes: Any,
    summary: dict[str, Any],
    metrics: Sequence[dict[str, Any]],
    train: str,
    headline: str,
    *,
    skips: bool = False,
) -> None:
    """Draw the training accuracy by epoch, and the run's final accuracy as a star at the kept epoch.

    Args:
        axes: the matplotlib axes to draw on; the y axis is in per cent.
        summary, metrics: the run's own; runs of older versions have no training accuracy.
        train, headline: the colours of the curve and the star.
        skips: whether epochs skipped easy pictures, so that the training accuracy is that of the others.
    """
    several = bool(summary.get("multilabel"))
    known = [line for line in metrics if line.get("train_accuracy") is not None and not several]
    if known:
        at, values = [line["epoch"] for line in known], [100 * line["train_accuracy"] for line in known]
        which = "augmented pictures not skipped" if skips else "augmented pictures"
        label = _once(axes, f"training, on {which}")
        axes.plot(at, values, marker=".", color=train, alpha=0.8, linestyle="--", label=label)
    final = summary[headline_key(summary)]
    if final is not None:
        tta = "" if summary["tta"] == "none" else f" ({summary['tta']})"
        label = f"final {summary['split']} {headline_name(summary)}{tta}: {100 * final:.2f} %"
        axes.plot(
            [summary["kept_epoch"]],
            [100 * final],
            marker="*",
            markersize=11,
            linestyle="none",
            color=headline,
            label=label,
        )


def _once(axes: Any, label: str) -> str:
    """Return ``label``, or "_" if the legend already has it: matplotlib leaves "_" out of the legend."""
    return "_" if label in axes.get_legend_handles_labels()[1] else label


def curves_figure(groups: Sequence[Group]) -> Figure:
    """Draw accuracies and losses by epoch, one colour per group and one line per run.

    Dashed lines were measured on training pictures. A star marks a run's final accuracy.
    """
    figure = new_figure(8, 6.4)
    axes: Any = figure.subplots(2, 1, sharex=True)
    for group, colour in zip(groups, itertools.cycle(_COLOURS), strict=False):
        count = len(group.runs)
        style = {"color": colour, "alpha": 0.9 if count == 1 else 0.6}
        label = plain(group.name) + (f" (n = {count})" if count > 1 else "")
        for run in group.runs:
            summary, metrics = group.summary_of(run), run.metrics
            key = headline_key(summary)
            split = "val" if any("val_accuracy" in line for line in metrics) else "test"
            scored = [line for line in metrics if line.get(f"{split}_{key}") is not None]
            epochs, values = [s["epoch"] for s in scored], [100 * s[f"{split}_{key}"] for s in scored]
            axes[0].plot(epochs, values, marker=".", label=label, **style)
            axes[0].set_ylabel(f"{split} {headline_name(summary)}, %")
            skips = run.recipe.data.skip_easy > 0
            draw_accuracies(axes[0], summary, metrics, colour, colour, skips=skips)
            axes[1].plot(
                epochs, [s.get(f"{split}_loss") for s in scored], label=_once(axes[1], split), **style
            )
            at, losses = [line["epoch"] for line in metrics], [line.get("loss") for line in metrics]
            axes[1].plot(at, losses, linestyle="--", label=_once(axes[1], "training"), **style)
            label = "_"  # one legend entry per group
    axes[1].set_ylabel("loss")
    axes[1].legend(loc="upper right", fontsize=8, frameon=False)
    axes[1].set_xlabel("epoch")
    axes[1].xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes[0].legend(loc="lower right", fontsize=8, frameon=False)
    for one in axes:
        one.grid(alpha=0.3)
    return figure


def range_test_figure(test: RangeTest) -> Figure:
    """Draw the loss against the learning rate, and mark the suggested rate."""
    figure = new_figure(7, 4.2)
    axes = figure.add_subplot()
    axes.plot(test.rates, test.losses, color=INK)
    axes.axvline(test.suggestion, color=_ACCENT, linestyle="--")
    label = f" suggestion: {test.suggestion:.2g}"
    axes.text(test.suggestion, 0.96, label, color=_ACCENT, va="top", transform=axes.get_xaxis_transform())
    axes.set_xscale("log")
    axes.set_ylim(top=min(max(test.losses), 1.5 * test.losses[0]))
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss, smoothed")
    axes.set_title("Learning-rate range test")
    axes.grid(alpha=0.3)
    return figure


def schedule_figure(recipe: Recipe) -> Figure:
    """Draw the learning rate over the epochs."""
    epochs = recipe.training.epochs
    times, rates = learning_rates(recipe, 2000)
    figure = new_figure(7, 3.8)
    axes = figure.add_subplot()
    axes.plot(times, rates, color=INK)
    axes.set_xlim(0, epochs)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("epoch")
    axes.set_ylabel("learning rate")
    axes.set_title(plain(f"{recipe.name}: {recipe.schedule.name}, {epochs} epochs"))
    axes.grid(alpha=0.3)
    return figure


def grid_figure(grid: dict[str, list[np.ndarray]], title: str) -> Figure:
    """Draw sample pictures, one row per class."""
    columns = max((len(cells) for cells in grid.values()), default=1) or 1
    figure = new_figure(1.6 + 0.62 * columns, 0.7 + 0.62 * len(grid))
    rows: Any = figure.subplots(len(grid), columns, squeeze=False)
    for row, (name, cells) in zip(rows, grid.items(), strict=True):
        for position, axes in enumerate(row):
            axes.set_xticks([])
            axes.set_yticks([])
            if position < len(cells):
                axes.imshow(cells[position], interpolation="none")  # an SVG keeps its own pixels
            else:
                axes.axis("off")
        row[0].axis("on")
        row[0].set_ylabel(plain(_short(name)), rotation=0, ha="right", va="center", fontsize=9)
    figure.suptitle(plain(title), fontsize=10)
    return figure


def augmented_figure(rows: Sequence[AugmentedRow], title: str) -> Figure:
    """Draw training pictures as they are and, to the right, as augmentation changes them.

    Below a mixed picture stand the classes in it and their shares.
    """
    columns = 1 + max(len(row.views) for row in rows)
    mixed = any(mixture is not None for row in rows for mixture in row.mixtures)
    figure = new_figure(1.6 + 1.1 * columns, 0.9 + (1.4 if mixed else 1.1) * len(rows))
    grid: Any = figure.subplots(len(rows), columns, squeeze=False)
    for row, cells in zip(rows, grid, strict=True):
        for axes, pixels in zip(cells, [row.pixels, *row.views], strict=True):
            axes.set_xticks([])
            axes.set_yticks([])
            axes.imshow(pixels, interpolation="none")  # nearest in a PNG; an SVG keeps its own pixels
        cells[0].set_ylabel(plain(_short(row.label)), rotation=0, ha="right", va="center", fontsize=10)
        for axes, mixture in zip(cells[1:], row.mixtures, strict=True):
            if mixture is not None:
                axes.set_xlabel(plain(_mixture(row.label, *mixture)), fontsize=7)
    for number, axes in enumerate(grid[0]):
        axes.set_title("as it is" if number == 0 else f"epoch {number}", fontsize=9)
    figure.suptitle(plain(title), fontsize=11)
    return figure


def _mixture(own: str, other: str, share: float) -> str:
    """What is in a mixed picture, in two lines."""
    parts = ((share, own), (1 - share, other))
    return "\n".join(f"{_short(name, 14)}: {100 * part:.0f} %" for part, name in parts)


def _short(name: str, length: int = 20) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def label_figure(evaluation: LabelEvaluation, title: str) -> Figure:
    """Draw each label's average precision as a bar, and its F1 at the network's threshold as a dot."""
    known = [one for one in evaluation.labels if one.average_precision is not None]
    figure = new_figure(7, min(14.0, max(2.5, 0.28 * len(known) + 1.5)))
    axes = figure.add_subplot()
    places = range(len(known))
    axes.barh(places, [one.average_precision or 0.0 for one in known], color=INK, label="average precision")
    axes.plot([one.f1 for one in known], places, "o", color=_ACCENT, label="F1 at its threshold")
    axes.set_yticks(places, [plain(_short(one.name)) for one in known])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_title(plain(title))
    axes.legend(loc="lower left", fontsize=8)
    axes.grid(alpha=0.3, axis="x")
    return figure
