"""What a network says about each picture of a split, as a table. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from thumbnet.classifiers.base import SplitLogits
from thumbnet.classifiers.labels import labels_above, log_probabilities
from thumbnet.data.listings import csv_text, safe_name, safe_text
from thumbnet.data.splits import group_name
from thumbnet.files import check_new, user_path, write_with
from thumbnet.runs.weights_info import WeightsInfo

ROWS = 1000  # that are computed and written at once


def write_answers(
    found: SplitLogits,
    info: WeightsInfo,
    split: str,
    file: str | Path,
    groups: np.ndarray | None = None,
) -> None:
    """Write a table with a row per picture of a split: its class, the network's answer, all probabilities.

    The table is CSV in UTF-8, written whole or not at all. Its columns are ``path`` (the picture's name in
    the data), ``split``, ``true_class``, ``class_1`` (the answer), ``probability_1``, and ``p(NAME)`` for
    each class, in the network's order. For several labels per picture they are ``path``, ``split``,
    ``true_labels``, ``labels`` (those that reach their thresholds, most probable first) and ``p(NAME)`` for
    each label; labels that share a cell are separated by ``;``. If the pictures have groups, ``group`` comes
    after ``split``; it is empty for a picture that is a group of its own. No cell begins like a formula, see
    :mod:`thumbnet.data.listings`.

    Args:
        found: from :meth:`thumbnet.classifiers.base.Classifier.classify_split`. Pictures that were skipped
            because they cannot be read have no row.
        info: the network's description, :attr:`Classifier.info`.
        split: the name of the split.
        file: the table, a new file.
        groups: the group of each picture of ``found``, str [N], see
            :meth:`thumbnet.data.splits.Data.groups_of`.

    Raises:
        RunError: ``file`` exists or cannot be written.
    """
    place = user_path(file)
    check_new(place)
    answer = ["true_labels", "labels"] if info.multilabel else ["true_class", "class_1", "probability_1"]
    grouped = [] if groups is None else ["group"]
    head = ["path", "split", *grouped, *answer, *(safe_text(f"p({name})") for name in info.class_names)]
    cells_of = _labels if info.multilabel else _classes

    def write(stream: IO[bytes]) -> None:
        stream.write(_as_lines([head]))
        for start in range(0, len(found.labels), ROWS):
            stop = min(start + ROWS, len(found.labels))
            names = [[safe_name(found.split.name(index)), safe_text(split)] for index in range(start, stop)]
            if groups is not None:
                for name, group in zip(names, groups[start:stop].tolist(), strict=True):
                    name.append(safe_text(group_name(str(group))))
            cells = cells_of(found, info, start, stop)
            stream.write(_as_lines([[*name, *row] for name, row in zip(names, cells, strict=True)]))

    write_with(place, write)


def _classes(found: SplitLogits, info: WeightsInfo, start: int, stop: int) -> Iterator[list[str]]:
    """For each picture its true class, the answer, its probability, and all probabilities."""
    probabilities = np.exp(log_probabilities(found.logits[start:stop], info))
    for true, values in zip(found.labels[start:stop].tolist(), probabilities, strict=True):
        best = int(values.argmax())
        shown = [f"{value:.6f}" for value in values]
        yield [safe_text(info.class_names[true]), safe_text(info.class_names[best]), shown[best], *shown]


def _labels(found: SplitLogits, info: WeightsInfo, start: int, stop: int) -> Iterator[list[str]]:
    """For each picture its true labels, those that the network gives, and all probabilities."""
    probabilities = np.exp(log_probabilities(found.logits[start:stop], info))
    above = labels_above(probabilities, info)
    for true, given, values in zip(found.labels[start:stop], above, probabilities, strict=True):
        order = np.argsort(-values, kind="stable")
        cells = [_joined(info, np.flatnonzero(true)), _joined(info, order[given[order]])]
        yield [*cells, *(f"{value:.6f}" for value in values)]


def _joined(info: WeightsInfo, places: np.ndarray) -> str:
    return safe_text(";".join(info.class_names[place] for place in places.tolist()))


def _as_lines(rows: Sequence[Sequence[str]]) -> bytes:
    return csv_text(rows).encode(errors="backslashreplace")
