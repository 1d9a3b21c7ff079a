"""Pictures whose label is probably wrong, most suspicious first."""

from __future__ import annotations

from dataclasses import dataclass

from thumbnet.data.splits import Data
from thumbnet.reviewing.scores import Scores


@dataclass(frozen=True)
class Suspect:
    """A picture and what speaks against its label.

    Attributes:
        split, index, name: where the picture is, and its name.
        given, suggested: the label in the data, and the most probable class: positions in the class names.
        doubt: how much speaks against the label, 0 to 1.
        reasons: ``label`` (the networks contradict the label), ``copy`` (the same picture is elsewhere too),
            ``conflict`` (the same picture has two different labels).
        copies: where the same picture is elsewhere, as (split, index).
    """

    split: str
    index: int
    name: str
    given: int
    suggested: int
    doubt: float
    reasons: tuple[str, ...]
    copies: tuple[tuple[str, int], ...]


def find_suspects(data: Data, scores: Scores) -> list[Suspect]:
    """Rank every readable picture by how much speaks against its label, most suspicious first."""
    raise NotImplementedError
