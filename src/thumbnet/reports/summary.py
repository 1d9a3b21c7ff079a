"""Sentences about a run's summary, shared by the terminal, the report and the model card."""

from __future__ import annotations

from typing import Any

NOTHING_MEASURED = "nothing was measured: all pictures were used for training"
OPTIMISTIC = "optimistic, because the same pictures chose the epoch"


def headline_key(summary: dict[str, Any]) -> str:
    """The key of a run's main measure: ``map`` for several labels per picture, else ``accuracy``."""
    return "map" if summary.get("multilabel") else "accuracy"


def headline_name(summary: dict[str, Any]) -> str:
    """The name of a run's main measure: ``mAP`` or ``accuracy``."""
    return "mAP" if summary.get("multilabel") else "accuracy"


def interval_of(summary: dict[str, Any]) -> tuple[float, float] | None:
    """The 95 % confidence interval of a run's main measure; None if nothing was measured."""
    found = summary.get(f"{headline_key(summary)}_interval")
    return None if found is None else (float(found[0]), float(found[1]))


def percent(share: float) -> str:
    """Format a share as a percentage: 0.9312 gives ``93.12 %``."""
    return f"{100 * share:.2f} %"


def is_optimistic(summary: dict[str, Any]) -> bool:
    """Whether the accuracy was measured on the pictures that also chose the epoch."""
    chosen = summary["kept_by"] == "best on val" or summary.get("stopped_early") is not None
    return bool(summary["split"] == "val" and chosen)


def describe_stop(summary: dict[str, Any]) -> str | None:
    """Say when and why a training stopped early; None if it did not."""
    stop = summary.get("stopped_early")
    if stop is None:
        return None
    return (
        f"stopped after epoch {stop['epoch']} of {stop['planned_epochs']}: {stop['why']} "
        f"(patience {stop['patience']})"
    )


def describe_calibration(summary: dict[str, Any]) -> str | None:
    """Say how a run's probabilities were calibrated; None for runs of older versions, which did not."""
    if "temperature" not in summary:
        return None
    if summary["calibrated_on"] is None:
        count = summary["calibration_pictures"]
        why = f"{count} pictures are too few" if count else "no pictures were set aside for it"
        return f"probabilities are not calibrated: {why}"
    text = (
        f"calibrated on {summary['calibration_pictures']:,} pictures "
        f"({'val' if summary['calibrated_on'] == 'val' else 'set aside from train'}): "
        f"temperature {summary['temperature']:.2f}"
    )
    if summary["calibration_error"] is None:
        return text
    before, after = summary["calibration_error_before"], summary["calibration_error"]
    return f"{text}, {summary['split']} calibration error {percent(before)} before, {percent(after)} after"
