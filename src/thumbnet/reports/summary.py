"""A run's summary in words, as the terminal, the report and the Hub's card say it."""

from __future__ import annotations

from typing import Any

NOTHING_MEASURED = "nothing was measured: all pictures were trained on"
OPTIMISTIC = "the epoch was chosen by it, so it is optimistic"


def percent(share: float) -> str:
    """0.9312 → ``93.12 %``."""
    return f"{100 * share:.2f} %"


def is_optimistic(summary: dict[str, Any]) -> bool:
    """Whether a run's accuracy is of the pictures by which its epoch was chosen."""
    return bool(summary["split"] == "val" and summary["kept_by"] == "best on val")


def describe_calibration(summary: dict[str, Any]) -> str | None:
    """How a run's probabilities were calibrated; None for runs of versions that did not."""
    if "temperature" not in summary:
        return None
    if summary["calibrated_on"] is None:
        count = summary["calibration_pictures"]
        why = f"{count} pictures are too few for it" if count else "no pictures were set aside for it"
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
