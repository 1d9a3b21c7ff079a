"""Pictures whose label is probably wrong, most suspicious first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from thumbnet.classifiers.explain import doubts, likely_label_errors
from thumbnet.data.repeats import number_pictures
from thumbnet.data.splits import Data
from thumbnet.reviewing.scores import Scores

LABEL, COPY, CONFLICT = "label", "copy", "conflict"


@dataclass(frozen=True)
class Suspect:
    """A picture and what speaks against its label.

    Attributes:
        split, index, name: where the picture is, and its name.
        given, suggested: the label in the data, and the most probable class: positions in the class names.
        reasons: ``label`` (the network contradicts the label), ``copy`` (the same picture is elsewhere too),
            ``conflict`` (the same picture has another label elsewhere).
        copies: where the same picture is elsewhere, as (split, index).
    """

    split: str
    index: int
    name: str
    given: int
    suggested: int
    reasons: tuple[str, ...]
    copies: tuple[tuple[str, int], ...]

    @property
    def is_doubtful(self) -> bool:
        """Whether the label may be wrong. A copy with the same label is no reason to think so."""
        return LABEL in self.reasons or CONFLICT in self.reasons


def find_suspects(data: Data, scores: Scores) -> list[Suspect]:
    """Rank every readable picture by how much speaks against its label, most suspicious first.

    The order is that of :func:`~thumbnet.classifiers.explain.doubts`, except for pictures with two labels. At
    least one of these labels is wrong, so such pictures have a doubt of at least 1/2.

    Args:
        data: the data that were scored.
        scores: the result of :func:`thumbnet.reviewing.scores.score_pictures`.
    """
    pictures = _Pictures(data, scores)
    probabilities, labels = pictures.probabilities, pictures.labels
    if not len(labels):
        return []
    doubt = doubts(probabilities, labels)
    suggested = probabilities.argmax(axis=1)
    doubted = _doubted(probabilities, labels, pictures.held_out)
    copies = pictures.copies()
    conflicts = np.zeros(len(labels), dtype=bool)
    for at, others in copies.items():
        conflicts[at] = any(labels[other] != labels[at] for other in others)
    doubt = np.where(conflicts, 0.5 + doubt / 2, doubt)
    found = []
    for at in np.argsort(-doubt, kind="stable").tolist():
        split, index = pictures.place(at)
        flags = ((LABEL, doubted[at]), (COPY, at in copies), (CONFLICT, conflicts[at]))
        found.append(
            Suspect(
                split,
                index,
                data.splits[split].name(index),
                int(labels[at]),
                int(suggested[at]),
                tuple(reason for reason, holds in flags if holds),
                tuple(pictures.place(other) for other in copies.get(at, ())),
            )
        )
    return found


def _doubted(probabilities: np.ndarray, labels: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Which labels are probably wrong: bool [N].

    Confident learning says how many, and the labels with the lowest probabilities are these. A network is
    surer of pictures that it was trained on, so they are counted on their own.
    """
    doubted = np.zeros(len(labels), dtype=bool)
    for group in (np.flatnonzero(held_out), np.flatnonzero(~held_out)):
        if len(group):
            count = len(likely_label_errors(probabilities[group], labels[group]))
            order = np.argsort(-doubts(probabilities[group], labels[group]), kind="stable")
            doubted[group[order[:count]]] = True
    return doubted


class _Pictures:
    """All readable pictures that have scores, as one sequence of N."""

    def __init__(self, data: Data, scores: Scores) -> None:
        self._names = [name for name in data.splits if name in scores.probabilities]
        self._kept = [np.flatnonzero(~np.isnan(scores.probabilities[n]).any(axis=1)) for n in self._names]
        self._ends = np.cumsum([len(kept) for kept in self._kept])
        self._compared = all(name in scores.digests for name in self._names)

        def together(values: list[np.ndarray]) -> np.ndarray:
            return np.concatenate([one[kept] for one, kept in zip(values, self._kept, strict=True)])

        names = self._names
        self.probabilities = together([scores.probabilities[name] for name in names])
        self.labels = together([data.splits[name].labels for name in names])
        everywhere = [np.ones(len(data.splits[name]), dtype=bool) for name in names]
        self.held_out = together(
            [scores.held_out.get(name, all_) for name, all_ in zip(names, everywhere, strict=True)]
        )
        self._digests = together([scores.digests[name] for name in names]) if self._compared else None

    def place(self, at: int) -> tuple[str, int]:
        """The split and the index of a picture."""
        number = int(np.searchsorted(self._ends, at, side="right"))
        before = int(self._ends[number - 1]) if number else 0
        return self._names[number], int(self._kept[number][at - before])

    def copies(self) -> dict[int, list[int]]:
        """The other pictures that equal a picture, for each picture that occurs more than once."""
        if self._digests is None:
            return {}
        numbers = number_pictures(self._digests)
        order = np.argsort(numbers, kind="stable")
        starts = np.flatnonzero(np.diff(numbers[order], prepend=-1))
        found: dict[int, list[int]] = {}
        for members in np.split(order, starts[1:]):
            if len(members) > 1:
                equal = members.tolist()
                found |= {at: [other for other in equal if other != at] for at in equal}
        return found
