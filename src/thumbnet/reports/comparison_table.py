"""The groups of a comparison as a table for a paper: CSV with shares, or Markdown with percentages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from thumbnet.data import listings
from thumbnet.errors import printable
from thumbnet.reports.comparison import Group, Spread, optimistic_lines

_NAMES = {"map": "mAP", "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy"}
_WHAT = "Mean ± standard deviation over the runs (95 % confidence interval of the mean, Student's t)."


def as_csv(groups: Sequence[Group], measures: Sequence[Mapping[str, Spread]]) -> str:
    """One row per group: name, settings that differ, number of runs, split, and the measures.

    A measure has four columns: mean, standard deviation (``_sd``), and the ends of the mean's 95 % interval
    (``_low``, ``_high``), as shares. A cell is empty if a single run leaves it unknown.

    Args:
        groups: as :func:`~thumbnet.reports.comparison.group_runs` returns them.
        measures: what :func:`~thumbnet.reports.comparison.spreads` returns for each group.
    """
    keys, names = _columns(groups, measures)
    parts = ("mean", "sd", "low", "high")
    head = ["group", *keys, "runs", "split", *(f"{name}_{part}" for name in names for part in parts)]
    rows: list[list[str | float]] = []
    for group, measured in zip(groups, measures, strict=True):
        row: list[str | float] = [listings.safe_text(group.name)]
        row += [_cell(group.settings.get(key)) for key in keys]
        row += [len(group.runs), _split(group)]
        for name in names:
            row += _numbers(measured.get(name))
        rows.append(row)
    return listings.as_csv([listings.safe_text(name) for name in head], rows)


def as_markdown(groups: Sequence[Group], measures: Sequence[Mapping[str, Spread]]) -> str:
    """The same table in Markdown: ``91.00 ± 1.00 (88.52 to 93.48)`` in per cent.

    Below it stands what that means, if any group has several runs, and whether the results are optimistic.

    Args:
        groups, measures: as for :func:`as_csv`.
    """
    keys, names = _columns(groups, measures)
    split = _split(groups[0])
    heads = ["recipe", *keys, "runs", *(f"{split} {_NAMES[name]} (%)" for name in names)]
    rows = []
    for group, measured in zip(groups, measures, strict=True):
        settings = [str(_cell(group.settings.get(key))) for key in keys]
        rows.append(
            [group.name, *settings, str(len(group.runs)), *(_percents(measured.get(n)) for n in names)]
        )
    lines = [
        _line(heads),
        _line([*["---"] * (1 + len(keys)), *["--:"] * (1 + len(names))]),
        *map(_line, rows),
    ]
    notes = [_WHAT] if any(one.interval for measured in measures for one in measured.values()) else []
    notes += optimistic_lines(groups)
    return "\n".join([*lines, *(["", " ".join(notes)] if notes else [])]) + "\n"


def _split(group: Group) -> str:
    """The split that the measures of a group are of; empty if nothing was measured."""
    return str(group.summary_of(group.runs[0])["split"] or "")


def _columns(
    groups: Sequence[Group], measures: Sequence[Mapping[str, Spread]]
) -> tuple[list[str], list[str]]:
    """The settings that differ between the groups, and the measures that any group has."""
    names = dict.fromkeys(name for measured in measures for name in measured)
    return list(groups[0].settings), list(names)


def _cell(value: Any) -> str | float:
    """A setting's value: a number as it is, anything else as text."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value)
    return listings.safe_text(text)


def _numbers(spread: Spread | None) -> list[str | float]:
    """Mean, standard deviation and interval, as cells."""
    if spread is None:
        return [""] * 4
    low, high = spread.interval or (None, None)
    return ["" if value is None else round(value, 6) for value in (spread.mean, spread.deviation, low, high)]


def _percents(spread: Spread | None) -> str:
    if spread is None:
        return ""
    text = f"{100 * spread.mean:.2f}"
    text += "" if spread.deviation is None else f" ± {100 * spread.deviation:.2f}"
    if spread.interval is None:
        return text
    low, high = spread.interval
    return f"{text} ({100 * low:.2f} to {100 * high:.2f})"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(printable(cell).replace('|', chr(92) + '|') for cell in cells)} |"
