"""Print the results of networks that give a picture several labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from thumbnet.cli.console import say, say_sentence, table
from thumbnet.errors import printable
from thumbnet.reports.summary import count_pictures, describe_groups, percent

if TYPE_CHECKING:
    from thumbnet.data.splits import Data
    from thumbnet.multilabel import Decisions, LabelEvaluation

PAIRS = 10  # pairs of labels that `thumbnet evaluate` lists


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
