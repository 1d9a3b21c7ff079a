"""Which pictures without a label are worth labelling first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from thumbnet.classifiers.base import Classifier
from thumbnet.data.splits import FileSplit, Progress


@dataclass(frozen=True)
class Unlabelled:
    """The pictures of a folder, and what a classifier says about them.

    Attributes:
        split: the readable pictures; their labels are -1.
        probabilities: float32 [N, classes], columns in the order of the classifier's class names.
        features: float32 [N, features], what the last layer of the network sees; None for a classifier that
            does not run in torch.
        skipped: name and reason of each picture that cannot be read.
    """

    split: FileSplit
    probabilities: np.ndarray
    features: np.ndarray | None
    skipped: tuple[tuple[str, str], ...]


def read_unlabelled(folder: Path) -> FileSplit:
    """The pictures in and below ``folder``, sorted by path, with the label -1."""
    raise NotImplementedError


def score_unlabelled(
    classifier: Classifier, split: FileSplit, progress: Progress | None = None
) -> Unlabelled:
    """Classify pictures without labels."""
    raise NotImplementedError


def order_unlabelled(probabilities: np.ndarray, features: np.ndarray | None) -> np.ndarray:
    """Order pictures by how useful their labels would be, most useful first: int64 [N]."""
    raise NotImplementedError
