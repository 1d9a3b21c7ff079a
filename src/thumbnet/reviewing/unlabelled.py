"""Which pictures without a label are worth labelling first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from thumbnet.batches.decoding import find_unreadable
from thumbnet.classifiers.base import Classifier
from thumbnet.classifiers.torch_classifier import Predictor
from thumbnet.data.splits import FileSplit, Progress
from thumbnet.evaluation import log_softmax
from thumbnet.sources.unlabelled import find_pictures

NO_LABEL = -1
CLUSTERS = 50
ROUNDS = 15  # of k-means
SAMPLE = 10_000  # points on which the centres are found


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
    paths, _ = find_pictures(root)
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

    A label is useful if the network is uncertain and the picture is unlike those before it. So the pictures
    are divided into clusters, and each round takes the most uncertain picture that is left in every cluster.
    Uncertain means a small margin between the two largest probabilities. Citovsky et al. 2021 choose in a
    similar way, https://arxiv.org/abs/2107.14263

    With few labels this did not beat chance: 200 pictures that it added to 500 of CIFAR-10 gave 0.7 points
    less than 200 random ones (n = 3, docs/notebook/labels.md). For a network that classifies well, it has not
    been measured.

    Args:
        probabilities: float [N, classes].
        features: float [N, features], see :class:`Unlabelled`; None to cluster the probabilities instead.
    """
    if not len(probabilities):
        return np.empty(0, dtype=np.int64)
    margins = _margins(probabilities)
    points = probabilities if features is None else features
    clusters = _clusters(points.astype(np.float64), CLUSTERS)
    rounds = np.empty(len(margins), dtype=np.int64)
    for cluster in np.unique(clusters):
        members = np.flatnonzero(clusters == cluster)
        rounds[members[np.argsort(margins[members], kind="stable")]] = np.arange(len(members))
    return np.lexsort((margins, rounds))


def _margins(probabilities: np.ndarray) -> np.ndarray:
    """The largest probability minus the second largest: float [N]."""
    if probabilities.shape[1] < 2:
        return np.zeros(len(probabilities))
    ranked = np.sort(probabilities, axis=1)
    return ranked[:, -1] - ranked[:, -2]


def _clusters(points: np.ndarray, count: int) -> np.ndarray:
    """The cluster of each of ``points`` (float [N, D]) by direction, with k-means: int64 [N].

    The centres are found on up to ``SAMPLE`` of the points. The result is always the same.
    """
    rng = np.random.default_rng(0)
    units = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
    sample = units[rng.permutation(len(units))[:SAMPLE]]
    centres = sample[:count].copy()
    for _ in range(ROUNDS):
        nearest = _nearest(sample, centres)
        for cluster in np.unique(nearest):
            centres[cluster] = sample[nearest == cluster].mean(axis=0)
    return _nearest(units, centres)


def _nearest(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The nearest of ``centres`` (float [K, D]) to each point (float [N, D]): int64 [N]."""
    distances: np.ndarray = (centres**2).sum(axis=1) - 2 * points @ centres.T
    return distances.argmin(axis=1)
