"""Which pictures without a label are worth labelling first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from thumbnet.batches.decoding import find_unreadable
from thumbnet.classifiers.base import Classifier
from thumbnet.classifiers.torch_classifier import Predictor
from thumbnet.data.splits import FileSplit, Progress
from thumbnet.errors import RunError
from thumbnet.evaluation import log_softmax
from thumbnet.files import user_path
from thumbnet.sources.unlabelled import find_pictures

NO_LABEL = -1
CLUSTERS = 20  # per class
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
    root = user_path(folder)
    paths, _ = find_pictures(root)
    return FileSplit(root, paths, np.full(len(paths), NO_LABEL))


def score_unlabelled(
    classifier: Classifier, split: FileSplit, progress: Progress | None = None, *, batch_size: int = 500
) -> Unlabelled:
    """Classify pictures without labels. Damaged pictures are skipped.

    Args:
        classifier: a trained network.
        split: the pictures, from :func:`read_unlabelled`.
        progress: called with the number of pictures done and their total.
        batch_size: pictures per forward pass.

    Raises:
        RunError: the network gives a picture several labels.
        DataError: no picture can be read.
        FailedReadError, UnreadableFilesError: the system failed to read a picture, or several.
        OutOfMemoryError: a batch does not fit the device's memory.
    """
    if classifier.info.multilabel:
        raise RunError(
            "the network gives a picture several labels: review works only with one class per picture. "
            "Name such a run with --run"
        )
    bad = find_unreadable(split)
    kept = split.subset(np.setdiff1d(np.arange(len(split)), list(bad)))
    found = classifier.classify_split(kept, classifier.class_names, batch_size=batch_size, progress=progress)
    features = classifier.features(kept, batch_size=batch_size) if isinstance(classifier, Predictor) else None
    probabilities = np.exp(log_softmax(found.logits)).astype(np.float32)
    skipped = tuple((error.name, error.reason) for error in bad.values())
    return Unlabelled(kept, probabilities, features, skipped)


def order_unlabelled(probabilities: np.ndarray, features: np.ndarray | None) -> np.ndarray:
    """Order pictures by how useful their labels would be, most useful first: int64 [N].

    The predicted classes take turns, so pictures of rare classes come as early as others. Within a class,
    clusters of similar pictures take turns, the largest first, and each gives its most typical picture first.
    Typical pictures of all kinds are what a network with few labels learns most from (Hacohen et al. 2022,
    https://arxiv.org/abs/2202.02794).

    Where some classes are rare, 200 labels chosen this way raised the accuracy on CIFAR-10 twice as much as
    200 random ones; where all are equally frequent, by 0.3 points less (docs/notebook/labels.md).

    Args:
        probabilities: float [N, classes].
        features: float [N, features], see :class:`Unlabelled`; None to cluster the probabilities instead.
    """
    if not len(probabilities):
        return np.empty(0, dtype=np.int64)
    points = (probabilities if features is None else features).astype(np.float64)
    units = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
    predicted = probabilities.argmax(axis=1)
    rounds = np.empty(len(units), dtype=np.int64)
    for one in np.unique(predicted):
        members = np.flatnonzero(predicted == one)
        rounds[members[_varied(units[members])]] = np.arange(len(members))
    sizes = np.bincount(predicted)
    return np.lexsort((predicted, sizes[predicted], rounds))


def _varied(units: np.ndarray) -> np.ndarray:
    """The order of pictures of one class (unit vectors, float [N, D]), such that similar ones are apart."""
    clusters = _clusters(units, CLUSTERS)
    rounds = np.empty(len(units), dtype=np.int64)
    sizes = np.bincount(clusters)
    for one in np.unique(clusters):
        members = np.flatnonzero(clusters == one)
        distances = ((units[members] - units[members].mean(axis=0)) ** 2).sum(axis=1)
        rounds[members[np.argsort(distances, kind="stable")]] = np.arange(len(members))
    return np.lexsort((clusters, -sizes[clusters], rounds))


def _clusters(units: np.ndarray, count: int) -> np.ndarray:
    """The cluster of each of ``units`` (unit vectors, float [N, D]), with k-means: int64 [N].

    The centres are found on up to ``SAMPLE`` of the vectors. The result is always the same.
    """
    rng = np.random.default_rng(0)
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
