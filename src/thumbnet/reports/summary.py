"""Sentences about a run's summary, shared by the terminal, the report and the model card."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thumbnet.classifiers.base import Classifier, SplitLogits
    from thumbnet.data.splits import Data
    from thumbnet.runs.folder import Run

NOTHING_MEASURED = "nothing was measured: the data have no test or val split"
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
    by_val = summary.get("stopped_early") is not None and ended_early(summary) is None
    chosen = summary["kept_by"] == "best on val" or by_val
    return bool(summary["split"] == "val" and chosen)


def are_own_data(run: Run, data: Data) -> bool:
    """Tell whether a run was trained on ``data``, by their place or by the pictures that it measured."""
    from thumbnet.sources.load import where_again

    settings = run.settings
    place = settings.get("data")
    if place is not None and place == where_again(data.source):
        return True
    return bool(settings.get("measured_fingerprint") == data.fingerprint(data.measured_split()))


def epochs_before(run: Run) -> int:
    """The number of epochs before a run that continues a finished one (``--more-epochs``); 0 for others."""
    continued = run.settings.get("continues")
    return int(continued["epochs"]) if isinstance(continued, dict) else 0


def short_epochs(run: Run) -> str:
    """A run's epochs: ``10``; ``30+10`` if it continues one of 30; ``3 of 10`` if the user ended it early."""
    before, own = epochs_before(run), own_epochs(run.summary)
    return f"{before}+{own}" if before else own


def own_epochs(summary: dict[str, Any]) -> str:
    """The number of epochs in a summary; that of the plan as well if the user ended the training early."""
    stop = ended_early(summary)
    return f"{summary['epochs']} of {stop['planned_epochs']}" if stop else str(summary["epochs"])


def ended_early(summary: dict[str, Any]) -> dict[str, Any] | None:
    """Where the user ended a training (``--finish``), as in the summary; None for any other end."""
    stop = summary.get("stopped_early")
    return stop if stop and stop.get("watched", "val") is None else None


def describe_continued(run: Run) -> str | None:
    """Say how long the network was trained before this run; None if the run continues no other."""
    before = epochs_before(run)
    if not before:
        return None
    return f"the network had been trained for {before} epoch(s) in the run that this one continues"


def describe_stop(summary: dict[str, Any]) -> str | None:
    """Say when and why a training stopped early; None if it did not."""
    stop = summary.get("stopped_early")
    if stop is None:
        return None
    if ended_early(summary):
        return (
            f"ended on request at step {stop['step']:,} of {stop['planned_steps']:,} (epoch {stop['epoch']} "
            f"of {stop['planned_epochs']}), without the last part of its schedule"
        )
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


def lines_for_run(run: Run, predictor: Classifier, data: Data, split: str, found: SplitLogits) -> list[str]:
    """Sentences about the repeated pictures in a split that a run is measured on.

    They are those of the training if it measured the same split of the same data. Anything else is compared
    with the pictures that the run was trained on: a split that was set aside is another one as soon as
    pictures were added or removed.

    Args:
        run: the run.
        predictor: its network.
        data: its own data or others.
        split: the name of the split.
        found: the pictures that could be read, with their labels as positions in the run's classes.
    """
    if run.is_complete and run.settings.get("measured_fingerprint") == data.fingerprint(split):
        return list((run.summary.get("repeats") or {}).get("lines", ()))
    from thumbnet.batches.leaks import lines_about, training_digests
    from thumbnet.classifiers.torch_classifier import Predictor

    assert isinstance(predictor, Predictor)
    return lines_about(
        predictor.engine(found.split),
        found.split,
        split,
        labels=found.labels if found.labels.ndim == 1 else found.split.single_classes(),
        class_names=predictor.class_names,
        trained_on=training_digests(run.path),
    )
