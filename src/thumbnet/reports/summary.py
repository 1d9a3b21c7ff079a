"""Sentences about a run's summary, shared by the terminal, the report and the model card."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from thumbnet.runs.summaries import by_user, chosen_on, headline_key, headline_name

if TYPE_CHECKING:
    from thumbnet.classifiers.base import Classifier, SplitLogits
    from thumbnet.data.splits import Data
    from thumbnet.runs.folder import Run

NOTHING_MEASURED = "nothing was measured: the data have no test or val split"
FEW_GROUPS = 20  # with fewer groups of pictures, an interval that allows for them is rough
_GROUPED = ("measured_pictures", "measured_groups")  # in the summary only if the pictures have groups


def interval_of(summary: dict[str, Any]) -> tuple[float, float] | None:
    """The 95 % confidence interval of a run's main measure; None if nothing was measured."""
    found = summary.get(f"{headline_key(summary)}_interval")
    return None if found is None else (float(found[0]), float(found[1]))


def count_pictures(pictures: int, groups: int | None) -> str:
    """Say how many pictures there are, and in how many groups if they have groups."""
    return f"{pictures:,} pictures" if groups is None else f"{pictures:,} pictures in {groups:,} groups"


def describe_groups(pictures: int | None, groups: int | None) -> str | None:
    """Say that an interval allows for groups of pictures; None without groups.

    Args:
        pictures, groups: the numbers of pictures and of groups that were measured.
    """
    if pictures is None or groups is None:
        return None
    if groups == 1:
        return f"all {pictures:,} pictures are in one group, which says nothing about other groups"
    rough = "; with so few groups it is rough" if groups < FEW_GROUPS else ""
    return (
        f"the interval allows for {count_pictures(pictures, groups)}, because pictures of one group are not "
        f"independent{rough}"
    )


def describe_measured_groups(summary: dict[str, Any]) -> str | None:
    """Say that a run's interval allows for groups of pictures; None without groups."""
    return describe_groups(summary.get("measured_pictures"), summary.get("measured_groups"))


def of_split(summary: dict[str, Any], split: str | None) -> dict[str, Any] | None:
    """A run's summary with the measures of ``split`` in place of those that it reports.

    A run reports its ``test`` split if it has one, and keeps the measures of ``val`` in the entry ``val``.

    Args:
        summary: a summary.
        split: ``test`` or ``val``; None for the split that the run reports.

    Returns:
        The summary; None if the run was not measured on ``split``.
    """
    if split in (None, summary["split"]):
        return summary
    own = summary.get("val") if split == "val" else None
    if own is None:
        return None
    rest = {key: value for key, value in summary.items() if key not in _GROUPED}  # val may have no groups
    return {**rest, **own, "split": split}


def percent(share: float) -> str:
    """Format a share as a percentage: 0.9312 gives ``93.12 %``."""
    return f"{100 * share:.2f} %"


def optimism(run: Run, split: str | None = None) -> dict[str, str]:
    """Which results of a run on one of its splits are optimistic, because its pictures also chose something.

    Args:
        run: a complete run.
        split: the split; by default the one that the run reports.

    Returns:
        For each such result, ``optimistic, because the same pictures chose`` and what they chose. Keys are
        the name of the run's main measure (the epoch or L2, and the settings of a search), ``F1`` for several
        labels (the thresholds) and ``calibration error`` (the temperature).
    """
    summary, searched = run.summary, run.settings.get("search") or {}
    split = summary["split"] if split is None else split
    found: dict[str, str] = {}
    if split is None:
        return found
    chosen = chosen_on(split, summary["kept_by"], summary.get("stopped_early"), searched.get("judged_on"))
    if chosen:
        found[headline_name(summary)] = chosen
    if summary.get("calibrated_on") == split:
        if summary.get("multilabel"):
            found["F1"] = "the thresholds"
        found["calibration error"] = "the temperature"
    return {measure: f"optimistic, because the same pictures chose {what}" for measure, what in found.items()}


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
    return stop if stop and by_user(stop) else None


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
        return f"probabilities are not calibrated: {_why_not_calibrated(summary)}"
    text = (
        f"calibrated on {summary['calibration_pictures']:,} pictures "
        f"({'val' if summary['calibrated_on'] == 'val' else 'set aside from train'}): "
        f"temperature {summary['temperature']:.2f}"
    )
    if summary["calibration_error"] is None:
        return text
    before, after = summary["calibration_error_before"], summary["calibration_error"]
    text += f", {summary['split']} calibration error {percent(before)} before, {percent(after)} after"
    same = summary["calibrated_on"] == summary["split"]
    return f"{text} (on the same pictures, so it is optimistic)" if same else text


def _why_not_calibrated(summary: dict[str, Any]) -> str:
    count = summary["calibration_pictures"]
    known, copied, wrong = (summary.get(f"calibration_{key}", 0) for key in ("known", "copied", "not_finite"))
    if wrong:
        return f"the network answers {wrong:,} of the {count:,} pictures for it with nan or infinity"
    total = f"{count + known + copied:,} pictures for it"
    reasons: list[str] = []
    if known:
        reasons.append(f"the initial weights were trained on {known:,} of the {total}")
    if copied:
        reasons.append(f"{copied:,} of the {total} are copies of training pictures or in their groups")
    if summary.get("calibration_unsure"):
        reasons.append("the initial weights may have been trained on some of the pictures for it")
    few = f"{count} pictures are too few" if count else "no pictures were set aside for it"
    return " and ".join(reasons) or few


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
