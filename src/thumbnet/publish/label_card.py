"""What the model card says about a network that gives a picture several labels."""

from __future__ import annotations

from typing import Any

LIMITS = """It gives each picture any number of these labels, also to pictures of something else."""
USE = 'print(classifier.predict("picture.jpg")[0].found)'


def what_it_does(size: str, labels: int) -> str:
    """The sentence that says what the network does; ``size`` is that of the pictures."""
    return f"that gives small pictures ({size} pixels)\nany number of {labels} labels"


def results_table(summary: dict[str, Any]) -> list[str]:
    """The lines of the table of results."""
    if summary["map"] is None:
        return [f"No picture of {summary['split']} has a label, so nothing was measured."]
    low, high = (100 * bound for bound in summary["map_interval"])
    lines = [
        "| split | mAP | 95 % interval | micro F1 | macro F1 | all labels right | test-time augmentation |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        f"| {summary['split']} | {100 * summary['map']:.2f} % | {low:.2f} to {high:.2f} "
        f"| {100 * summary['micro_f1']:.2f} % | {100 * summary['macro_f1']:.2f} % "
        f"| {100 * summary['accuracy']:.2f} % | {summary['tta']} |",
    ]
    if summary["tta"] != "none":
        lines.append(f"| {summary['split']} | {100 * summary['map_plain']:.2f} % | | | | | none |")
    return lines
