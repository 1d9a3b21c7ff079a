"""A review of a few made pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from helpers import coloured
from thumbnet.data.corrections import Correction
from thumbnet.reviewing.session import Item, Key, Review, Selection

CLASSES = ("red", "green", "blue")


def item(number: int, given: int | None = 0, suggested: int = 1, **more: Any) -> Item:
    likely = ((suggested, 0.75), *((label, 0.125) for label in range(3) if label != suggested))
    values = {"split": "train" if number % 2 == 0 else "test", "reasons": ("label",), **more}
    return Item(index=number, name=f"{number}.png", given=given, suggested=suggested, likely=likely, **values)


def made_review(
    folder: Path,
    items: Sequence[Item] | None = None,
    *,
    classes: Sequence[str] = CLASSES,
    shown: int | None = None,
    beyond: Sequence[Key] = (),
    inherited: Sequence[Correction] = (),
) -> Review:
    """A review of six red pictures, of which the fourth is a copy of the first."""
    if items is None:
        items = [item(number, copies={0: (3,), 3: (0,)}.get(number, ())) for number in range(6)]
    shown = len(items) if shown is None else shown
    selection = Selection(tuple(items), shown, tuple(beyond), shown + len(beyond), "without a label")
    return Review(selection, classes, folder / "labels.csv", inherited=inherited)


def load(one: Item) -> np.ndarray:
    return coloured(one.suggested, one.index)


def correction(
    name: str, label: str, was: str = "red", decision: str = "relabel", split: str = "train"
) -> Correction:
    return Correction(name, split, was, label, decision)
