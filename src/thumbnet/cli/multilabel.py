"""Print the results of networks that give a picture several labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from thumbnet.cli.console import json_line, say, say_sentence, table, write_row
from thumbnet.data.listings import safe_name, safe_text
from thumbnet.errors import printable
from thumbnet.reports.summary import count_pictures, describe_groups, percent
from thumbnet.runs.summaries import headline_name

if TYPE_CHECKING:
    from thumbnet.classifiers.base import Prediction
    from thumbnet.data.splits import Data
    from thumbnet.multilabel import Decisions, LabelEvaluation

PAIRS = 10  # pairs of labels that `thumbnet evaluate` lists


def show_label_summary(summary: dict[str, Any], optimistic: Mapping[str, str]) -> None:
    """Print the measures of a training.

    Args:
        summary: that of the run.
        optimistic: what :func:`~thumbnet.reports.summary.optimism` returns for it.
    """
    if summary["map"] is None:
        say(f"no {summary['split']} picture has a label, so mAP is not defined")
        return
    tta = "" if summary["tta"] == "none" else f", test-time augmentation {summary['tta']}"
    low, high = summary["map_interval"]
    say(
        f"{summary['split']} mAP {percent(summary['map'])} (95 % interval {100 * low:.2f} to "
        f"{100 * high:.2f}; epoch {summary['kept_epoch']}, {summary['kept_by']}{tta})"
    )
    why = optimistic.get(headline_name(summary))
    if why:
        say(f"  {why}: measure it on other pictures too")
    if summary["tta"] != "none" and summary["map_plain"] is not None:
        say(f"  without test-time augmentation {percent(summary['map_plain'])}")
    say(
        f"  micro F1 {percent(summary['micro_f1'])}, macro F1 {percent(summary['macro_f1'])}; "
        f"{percent(summary['accuracy'])} of the pictures have exactly the right labels"
    )
    if "F1" in optimistic:
        say(f"  these are {optimistic['F1']}")


def show_label_counts(data: Data) -> None:
    """Print how many labels the pictures have."""
    counts = [split.targets.sum(axis=1) for split in data.splits.values()]
    total = sum(map(len, counts))
    mean = sum(int(one.sum()) for one in counts) / max(1, total)
    without, most = sum(int((one == 0).sum()) for one in counts), max(int(one.max()) for one in counts)
    say(
        f"labels     several per picture (multi-label): {mean:.2f} on average, up to {most}; "
        f"{without:,} picture(s) without a label"
    )


def show_label_evaluation(
    result: LabelEvaluation, where: str, tta: str, plain: float | None = None, lines: Sequence[str] = ()
) -> None:
    """Print measures, labels, and the labels that occur together most often.

    Args:
        result: the measures, with the test-time augmentation ``tta``.
        where: names the data and the split.
        tta: name of the test-time augmentation.
        plain: mAP without test-time augmentation.
        lines: notes about the data, such as leaks.
    """
    with_tta = "" if tta == "none" else f" (test-time augmentation: {tta})"
    say(f"{where}: {count_pictures(result.pictures, result.groups)}{with_tta}")
    if result.map_interval is None:
        say("mAP                undefined: no picture has a label")
    else:
        low, high = result.map_interval
        say(f"mAP                {percent(result.map)}  (95 % interval {100 * low:.2f} to {100 * high:.2f})")
        if grouped := describe_groups(result.pictures, result.groups):
            say_sentence(f"  {grouped}")
    if tta != "none" and plain is not None:
        say(f"  without tta      {percent(plain)}  (each picture seen once, unchanged)")
    say(f"loss               {result.loss:.4f}  (summed over the labels)")
    say(f"calibration error  {percent(result.calibration_error)}")
    for text in lines:
        say(text)
    say()
    rows = [
        _decision_row("0.5 for all labels", result.at_half),
        _decision_row("the label's own", result.at_thresholds),
    ]
    say(table(["threshold", "micro F1", "macro F1", "precision", "recall", "exact match", "wrong"], rows))
    say("\nexact match: all labels of a picture are right. wrong: share of wrong decisions (Hamming loss).\n")
    rows = [
        [
            printable(one.name),
            f"{one.pictures:,}",
            share(one.average_precision),
            f"{one.threshold:.3f}",
            *map(share, one.defined),
        ]
        for one in result.labels
    ]
    say(table(["label", "pictures", "AP", "threshold", "precision", "recall", "F1", "F1 at 0.5"], rows))
    pairs = result.pairs()[:PAIRS]
    if pairs:
        say("\nmost often together")
        for count, one, other in pairs:
            say(f"  {printable(one)} and {printable(other)}: {count:,}")


def share(value: float | None) -> str:
    """Format a share as a percentage; "-" if it is undefined (None or nan)."""
    return "-" if value is None or math.isnan(value) else percent(value)


def _decision_row(name: str, found: Decisions) -> list[str]:
    measures = (found.micro_f1, found.macro_f1, found.precision, found.recall, found.exact_match)
    return [name, *map(percent, (*measures, found.hamming_loss))]


def label_printer(
    shape: Literal["table", "json", "csv"],
) -> Callable[[list[tuple[str, Prediction | str]]], None]:
    """Return a function that prints pictures' labels, or why a picture could not be read.

    Args:
        shape: an aligned table, one JSON object per line, or comma-separated values (prints the header now).
    """

    def pairs(result: Prediction) -> list[tuple[str, float]]:
        probability = dict(zip(result.labels, result.probabilities, strict=True))
        return [(label, probability[label]) for label in result.found or ()]

    def as_json(results: list[tuple[str, Prediction | str]]) -> None:
        for name, result in results:
            if isinstance(result, str):
                line: dict[str, Any] = {"path": name, "error": result}
            else:
                labels = [{"label": label, "probability": round(p, 6)} for label, p in pairs(result)]
                line = {"path": name, "labels": labels}
            say(json_line(line))

    def as_table(results: list[tuple[str, Prediction | str]]) -> None:
        rows = []
        for name, result in results:
            if isinstance(result, str):
                text = f"cannot be read: {result}"
            else:
                text = ", ".join(f"{printable(label)} {100 * p:.1f} %" for label, p in pairs(result)) or "-"
            rows.append([printable(name), text])
        if rows:
            say(table(["picture", "labels"], rows, left=2))

    if shape == "json":
        return as_json
    if shape == "table":
        return as_table

    write_row("path", "labels", "probabilities", "error")

    def as_csv(results: list[tuple[str, Prediction | str]]) -> None:
        for name, result in results:
            if isinstance(result, str):
                write_row(safe_name(name), "", "", safe_text(result))
                continue
            found = pairs(result)
            labels, probabilities = (label for label, _ in found), (f"{p:.6f}" for _, p in found)
            write_row(safe_name(name), safe_text(";".join(labels)), ";".join(probabilities), "")

    return as_csv
