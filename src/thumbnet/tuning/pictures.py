"""The charts of a search's page, as inline SVG in the page's text colour."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from thumbnet.reports.charts import BLUE, ORANGE, WIDTH, finished
from thumbnet.reports.figures import INK, new_figure
from thumbnet.tuning.space import Knob
from thumbnet.tuning.study import Record, best_of

GREY = "#7d8794"
DRAWN = 0.8  # charts end above about this part of the complete trials, so that differences show


def history(records: Sequence[Record]) -> str:
    """Draw every trial, and the best one so far, over the minutes of the search."""
    figure, axes = _axes(WIDTH, 3.4)
    complete, stopped = _by_state(records)
    for some, style in ((complete, _COMPLETE), (stopped, _STOPPED)):
        axes.plot([one.elapsed / 60 for one in some], [one.loss for one in some], **style)
    best = [best_of(complete[:number]).loss for number in range(1, len(complete) + 1)]
    ends = [one.elapsed / 60 for one in complete]
    axes.step([*ends, records[-1].elapsed / 60], [*best, best[-1]], where="post", color=ORANGE, label="best")
    axes.set_xlabel("minutes")
    _finish_losses(axes, complete)
    return finished(figure, f"Loss of {len(records)} trials over time")


def importances(shares: Mapping[str, float]) -> str:
    """Draw the share of each knob, the largest at the top."""
    figure, axes = _axes(WIDTH, 0.8 + 0.32 * len(shares))
    names = list(shares)[::-1]
    axes.barh(names, [100 * shares[name] for name in names], color=BLUE)
    axes.set_xlabel("importance, %")
    return finished(figure, "Importance of each setting")


def slices(knob: Knob, records: Sequence[Record], best: Record) -> str:
    """Draw the loss of every trial against one knob."""
    figure, axes = _axes(WIDTH, 3.0)
    complete, stopped = _by_state(records)
    for some, style in ((complete, _COMPLETE), (stopped, _STOPPED)):
        axes.plot([knob.at(one.point) for one in some], [one.loss for one in some], **style)
    axes.plot([knob.at(best.point)], [best.loss], "D", color=ORANGE, label="best", markersize=7)
    axes.axvline(knob.start, color=INK, linestyle=":", linewidth=1)
    if knob.log:
        axes.set_xscale("log")
        ticks = np.geomspace(knob.low, knob.high, 5)
        ticks = np.unique(ticks.round()) if knob.kind == "int" else ticks
        axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
        axes.minorticks_off()
    elif knob.kind == "choice":
        axes.set_xticks(range(len(knob.options)), knob.options)
        axes.set_xlim(-0.5, len(knob.options) - 0.5)
    axes.set_xlabel(_label(knob))
    _finish_losses(axes, complete)
    return finished(figure, f"Loss by {knob.name}")


def parallel(varied: Sequence[Knob], records: Sequence[Record], best: Record) -> str:
    """Draw each complete trial as a line through its values; the better, the darker."""
    figure, axes = _axes(2 * WIDTH, 3.6)
    complete, _ = _by_state(records)
    ranked = sorted(complete, key=lambda one: -one.loss)
    for place, one in enumerate(ranked):
        heights = [_height(knob, knob.at(one.point)) for knob in varied]
        chosen = one.number == best.number
        strength = 0.1 + 0.6 * (place + 1) / len(ranked)
        axes.plot(
            range(len(varied)),
            heights,
            color=ORANGE if chosen else BLUE,
            alpha=1 if chosen else strength,
            linewidth=2.5 if chosen else 1,
            zorder=3 if chosen else 2,
        )
    axes.set_xticks(range(len(varied)), [knob.name for knob in varied], rotation=20)
    axes.set_yticks([])
    axes.set_ylim(-0.12, 1.12)
    for place, knob in enumerate(varied):
        axes.axvline(place, color=INK, linewidth=0.8, alpha=0.5)
        axes.text(place, -0.02, knob.shown(knob.low), ha="center", va="top", fontsize=8)
        axes.text(place, 1.02, knob.shown(knob.high), ha="center", va="bottom", fontsize=8)
    return finished(figure, "All complete trials, the best in orange")


_COMPLETE: dict[str, Any] = {
    "marker": "o",
    "linestyle": "",
    "color": BLUE,
    "markersize": 5,
    "label": "complete",
}
_STOPPED: dict[str, Any] = {
    "marker": "x",
    "linestyle": "",
    "color": GREY,
    "markersize": 4,
    "label": "stopped early",
}


def _axes(width: float, height: float) -> tuple[Any, Any]:
    figure = new_figure(width, height)
    axes: Any = figure.add_subplot()
    return figure, axes


def _by_state(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """The complete trials, and those that were stopped early."""
    complete = [one for one in records if one.state == "complete"]
    return complete, [one for one in records if one.state == "stopped"]


def _finish_losses(axes: Any, complete: Sequence[Record]) -> None:
    """Label the losses, and leave out how high those of the worst trials are."""
    losses = np.array([one.loss for one in complete])
    low, high = float(losses.min()), float(np.quantile(losses, DRAWN))
    room = max(0.01 * low, 0.25 * (high - low))
    axes.set_ylim(max(0.0, low - room), high + 2 * room)
    axes.set_ylabel("loss")
    axes.legend(
        frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2
    )


def _height(knob: Knob, value: float) -> float:
    """Where a value lies between the knob's limits, 0 to 1."""
    low, high, at = (math.log(one) if knob.log else one for one in (knob.low, knob.high, value))
    return (at - low) / (high - low)


def _label(knob: Knob) -> str:
    """The name of a knob with its unit."""
    units = {
        "learning rate": "times the recipe's",
        "weight decay": "times the recipe's",
        "shift": "pixels",
        "cutout": "pixels",
        "size": "pixels",
    }
    return f"{knob.name}, {units[knob.name]}" if knob.name in units else knob.name
