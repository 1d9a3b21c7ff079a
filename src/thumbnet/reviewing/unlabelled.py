"""Which pictures without a label are worth labelling first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from thumbnet.batches.decoding import find_unreadable
from thumbnet.classifiers.base import Classifier
from thumbnet.classifiers.torch_classifier import Predictor
from thumbnet.data.splits import FileSplit, Progress
from thumbnet.errors import DataError, printable
from thumbnet.evaluation import log_softmax
from thumbnet.sources.index import Index

NO_LABEL = -1
_SEED = 0


@dataclass(frozen=True)
class Unlabelled:
    """The pictures of a folder, and what a classifier says about them.

    Attributes:
        split: the readable pictures; their labels are -1.
        probabilities: float32 [N, classes], columns in the order of the classifier's class names.
        features: float32 [N, features], the input of the network's last layer; None for a classifier that
            does not run in torch.
        skipped: name and reason of each picture that cannot be read.
    """

    split: FileSplit
    probabilities: np.ndarray
    features: np.ndarray | None
    skipped: tuple[tuple[str, str], ...]


def read_unlabelled(folder: str | Path) -> FileSplit:
    """The pictures in a folder and below it, sorted by path, with the label -1.

    Raises:
        DataError: there is no such folder, it cannot be listed, or it has no pictures.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f"there is no folder {printable(str(folder))}")
    paths = Index(root).pictures_below("")
    if not paths:
        raise DataError(f"there are no pictures in the folder {printable(str(folder))}")
    return FileSplit(root, paths, np.full(len(paths), NO_LABEL))


def score_unlabelled(
    classifier: Classifier, split: FileSplit, progress: Progress | None = None
) -> Unlabelled:
    """Classify pictures without labels. Pictures that cannot be read are skipped.

    Args:
        classifier: a trained network.
        split: the pictures, from :func:`read_unlabelled`.
        progress: called with the number of pictures done and their total.

    Raises:
        DataError: no picture can be read.
        OutOfMemoryError: a batch does not fit the device's memory.
    """
    bad = find_unreadable(split)
    kept = split.subset(np.setdiff1d(np.arange(len(split)), list(bad)))
    found = classifier.classify_split(kept, classifier.class_names, progress=progress)
    features = classifier.features(kept) if isinstance(classifier, Predictor) else None
    probabilities = np.exp(log_softmax(found.logits)).astype(np.float32)
    skipped = tuple((error.name, error.reason) for error in bad.values())
    return Unlabelled(kept, probabilities, features, skipped)


def order_unlabelled(probabilities: np.ndarray, features: np.ndarray | None) -> np.ndarray:
    """Order pictures by how useful their labels would be, most useful first: int64 [N].

    Args:
        probabilities: float [N, classes].
        features: float [N, features]; None to compare pictures by their probabilities.
    """
    raise NotImplementedError
