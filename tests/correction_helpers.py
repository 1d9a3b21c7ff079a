"""Corrections, and the labels of a data set by name."""

from __future__ import annotations

from thumbnet.data.corrections import Correction
from thumbnet.data.splits import Data

HEADER = "picture,label,split,was,decision\n"


def relabel(name: str, label: str, was: str, split: str = "train") -> Correction:
    return Correction(name, split, was, label, "relabel")


def drop(name: str, was: str, split: str = "train") -> Correction:
    return Correction(name, split, was, "", "drop")


def unsure(name: str, was: str, split: str = "train") -> Correction:
    return Correction(name, split, was, "", "unsure")


def labels_by_name(data: Data, split: str) -> dict[str, str]:
    one = data.splits[split]
    return {one.name(index): data.class_names[label] for index, label in enumerate(one.labels)}
