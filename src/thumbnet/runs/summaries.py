"""Check a run's JSON files, which may be damaged or come from a stranger. Imports no torch.

Also says which entry of a summary is the main measure, and what the pictures of a split chose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from thumbnet.runs.fields import flag, items, number, numbers, optional_text, table, text, whole, wrong

_MOST = 2**53
BEST_ON_VAL, L2_BY_VAL = "best on val", "L2 chosen on val"  # values of kept_by, besides "last"
_TEXTS = ("sha256",)  # of the corrections of labels; the rest is counts


def by_user(stop: Mapping[str, Any]) -> bool:
    """Whether the user ended a training early (``--finish``), by the summary's ``stopped_early``."""
    return stop.get("watched", "val") is None


def chosen_on(
    split: str, kept_by: str, stopped_early: Mapping[str, Any] | None, judged_on: str | None
) -> str:
    """What the pictures of a split chose, such as ``the epoch and the settings``; empty if nothing.

    A ``val`` split chooses the epoch that is kept or the one after which the training ends, or L2.

    Args:
        split: the split.
        kept_by, stopped_early: the entries of the summary.
        judged_on: the split by which a search chose the settings; None without a search.
    """
    chosen: list[str] = []
    if split == "val":
        by_val = stopped_early is not None and not by_user(stopped_early)
        if by_val or kept_by == BEST_ON_VAL:
            chosen.append("the epoch")
        elif kept_by == L2_BY_VAL:
            chosen.append("L2")
    if split == judged_on:
        chosen.append("the settings")
    return " and ".join(chosen)


def check_summary(summary: dict[str, Any]) -> None:
    """Check the entries that commands use.

    Raises:
        ValueError: an entry is missing or of a wrong kind; the message names it.
    """
    for key in _REQUIRED:
        if key not in summary:
            raise ValueError(f"the entry {key!r} is missing")
    for key, check in _CHECKS.items():
        if summary.get(key) is not None:
            check(summary[key], key)
        elif key in summary and key not in _MAY_BE_NONE:
            raise wrong(None, key, "a value")


def check_settings(settings: dict[str, Any]) -> None:
    """Check the entries of ``run.json`` that commands use.

    Raises:
        ValueError: an entry is of a wrong kind; the message names it.
    """
    for key in ("data", "data_dir", "fingerprint", "measured_fingerprint", "val_fingerprint"):
        optional_text(settings.get(key), key)
    asked = settings.get("asked")
    if asked is not None:
        found = table(asked, "asked", ("recipe", "settings"))
        text(found["recipe"], "asked.recipe")
        if not isinstance(found["settings"], dict):
            raise wrong(found["settings"], "asked.settings", "a JSON object")
    checks: dict[str, Callable[[object, str], object]] = {"code": text, "code_before": _lines}
    for key, check in checks.items():
        recorded = settings.get(key, {})
        if not isinstance(recorded, dict):
            raise wrong(recorded, key, "a JSON object")
        for name, value in recorded.items():
            check(value, f"{key}.{name}")
    searched = settings.get("search")
    if searched is not None:
        text(table(searched, "search", ("judged_on",))["judged_on"], "search.judged_on")
    continued = settings.get("continues")
    if continued is None:
        return
    if not isinstance(continued, dict):
        raise wrong(continued, "continues", "a JSON object")
    text(continued.get("run"), "continues.run")
    whole(continued.get("epochs"), "continues.epochs", 1, _MOST)


def check_metrics(row: dict[str, Any]) -> None:
    """Check a line of ``metrics.jsonl``: the epoch, and numbers or nothing for all that is drawn.

    Raises:
        ValueError: an entry is missing or of a wrong kind; the message names it.
    """
    whole(row.get("epoch"), "epoch", 0, _MOST)
    for key, value in row.items():
        drawn = key in ("loss", "lr") or key.endswith(("_loss", "_accuracy", "_map"))
        if drawn and value is not None and value not in (math.inf, -math.inf):
            number(value, key)


def headline_key(summary: dict[str, Any]) -> str:
    """The key of a run's main measure: ``map`` for several labels per picture, else ``accuracy``."""
    return "map" if summary.get("multilabel") else "accuracy"


def headline_name(summary: dict[str, Any]) -> str:
    """The name of a run's main measure: ``mAP`` or ``accuracy``."""
    return "mAP" if summary.get("multilabel") else "accuracy"


def _share(value: object, key: str) -> None:
    number(value, key, 0, 1)


def _positive(value: object, key: str) -> None:
    number(value, key, 0, _MOST)


def _count(value: object, key: str) -> None:
    whole(value, key, 0, _MOST)


def _interval(value: object, key: str) -> None:
    numbers(value, key, 2, 0, 1)


def _lines(value: object, key: str) -> None:
    for line in items(value, key):
        text(line, key)


def _val(value: object, key: str) -> None:
    if not isinstance(value, dict):
        raise wrong(value, key, "a JSON object")
    for name in (*_MEASURES, *_INTERVALS, *_GROUPED):
        if name == "accuracy" or value.get(name) is not None:
            _CHECKS[name](value.get(name), f"{key}.{name}")


def _repeats(value: object, key: str) -> None:
    if not isinstance(value, dict):
        raise wrong(value, key, "a JSON object")
    _lines(value.get("lines", ()), f"{key}.lines")


def _corrections(value: object, key: str) -> None:
    if not isinstance(value, dict):
        raise wrong(value, key, "a JSON object")
    for name, one in value.items():
        (text if name in _TEXTS else _count)(one, f"{key}.{name}")


def _stop(value: object, key: str) -> None:
    newer = ("step", "planned_steps", "watched")
    finished = isinstance(value, dict) and by_user(value)
    required = ("epoch", "planned_epochs", "patience", "why", *(newer if finished else ()))
    stop = table(value, key, required, newer)
    text(stop["why"], f"{key}.why")
    optional_text(stop.get("watched"), f"{key}.watched")
    for name in stop.keys() - {"why", "watched"}:
        _count(stop[name], f"{key}.{name}")


_REQUIRED = ("split", "accuracy", "tta", "epochs", "seconds_total", "kept_by")
_MEASURES = (
    "accuracy",
    "accuracy_plain",
    "balanced_accuracy",
    "map",
    "map_plain",
    "calibration_error",
    "calibration_error_before",
)
_INTERVALS = ("accuracy_interval", "map_interval")
_GROUPED = ("measured_pictures", "measured_groups")
_CALIBRATION = ("calibration_pictures", "calibration_known", "calibration_copied", "calibration_not_finite")
_CHECKS: dict[str, Callable[[object, str], object]] = {
    **dict.fromkeys(_MEASURES, _share),
    **dict.fromkeys(_INTERVALS, _interval),
    **dict.fromkeys(("split", "tta", "kept_by", "calibrated_on"), text),
    **dict.fromkeys(("temperature", "seconds_total", "seconds_training"), _positive),
    **dict.fromkeys(("epochs", "kept_epoch", "parameters"), _count),
    **dict.fromkeys((*_CALIBRATION, *_GROUPED), _count),
    "warnings": _lines,
    "multilabel": flag,
    "calibration_unsure": flag,
    "repeats": _repeats,
    "val": _val,
    "labels": _corrections,
    "stopped_early": _stop,
}
_MAY_BE_NONE = (
    *_MEASURES,
    *_INTERVALS,
    "split",
    "calibrated_on",
    "repeats",
    "val",
    "labels",
    "stopped_early",
)
