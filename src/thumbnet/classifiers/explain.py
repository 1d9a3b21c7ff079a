"""Explain predictions: where a network looks, and which labels are probably wrong.

Both need only logits or probabilities, so they work for runs and exported models alike.
"""

from __future__ import annotations

from collections.abc import Generator

import numpy as np

from thumbnet.classifiers.base import Classifier
from thumbnet.errors import SeveralLabelsError
from thumbnet.evaluation import log_softmax
from thumbnet.multilabel import log_sigmoid

BATCH = 512  # covered pictures per forward pass


def occlusion_map(
    classifier: Classifier,
    pixels: np.ndarray,
    label: int,
    *,
    multilabel: bool = False,
    batch_size: int | None = None,
) -> np.ndarray:
    """Map where the network looks: how much covering each place costs the class (Zeiler & Fergus 2014).

    A patch in the picture's mean colour, a quarter as wide and high as the picture, covers each place of a
    grid in turn. The drop in the class's log-probability is averaged over all patches that cover a pixel.

    Args:
        classifier: the classifier; only its logits are used.
        pixels: uint8 [height, width, 3], preprocessed.
        label: the class, an index into the class names.
        multilabel: whether the network gives a picture several labels, so that a probability is the sigmoid
            of its logit.
        batch_size: the most pictures per forward pass, if that is less than ``BATCH``.

    Returns:
        float32 [height, width] from 0 (covering the pixel costs nothing, or helps) to 1 (it costs most).
    """
    parts = occlusion_parts(classifier, pixels, label, multilabel=multilabel, batch_size=batch_size)
    while True:
        try:
            next(parts)
        except StopIteration as end:
            return end.value


def occlusion_parts(
    classifier: Classifier,
    pixels: np.ndarray,
    label: int,
    *,
    multilabel: bool = False,
    batch_size: int | None = None,
) -> Generator[None, None, np.ndarray]:
    """Compute :func:`occlusion_map` in parts, so that others may use the network between two of them.

    Yields after each forward pass, and returns the map.
    """
    height, width = pixels.shape[:2]
    patch = (max(2, height // 4), max(2, width // 4))
    step = (max(1, height // 16), max(1, width // 16))
    grey = pixels.reshape(-1, 3).mean(axis=0).round().astype(np.uint8)
    corners = [
        (y, x)
        for y in range(-patch[0] // 2, height - patch[0] // 2, step[0])
        for x in range(-patch[1] // 2, width - patch[1] // 2, step[1])
    ]
    places = [(slice(max(0, y), y + patch[0]), slice(max(0, x), x + patch[1])) for y, x in corners]
    in_logs = log_sigmoid if multilabel else log_softmax
    before = in_logs(classifier.logits(pixels[None], tta="none"))[0, label]
    cost, covered = np.zeros((height, width)), np.zeros((height, width))
    yield
    size = min(BATCH, batch_size or BATCH)
    for start in range(0, len(places), size):
        chosen = places[start : start + size]
        views = np.repeat(pixels[None], len(chosen), axis=0)
        for view, place in zip(views, chosen, strict=True):
            view[place] = grey
        after = in_logs(classifier.logits(views, tta="none"))[:, label]
        for place, value in zip(chosen, after, strict=True):
            cost[place] += before - value
            covered[place] += 1
        yield
    heat = np.clip(cost / covered, 0, None)
    return (heat / max(heat.max(), 1e-9)).astype(np.float32)


def highlight(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Darken a picture (uint8 [H, W, 3]) except where ``heat`` (float [H, W], 0 to 1) is high."""
    return (pixels * (0.12 + 0.88 * heat[..., None])).round().astype(np.uint8)


def confident_classes(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Find the class that each picture most probably shows, by confident learning.

    A class's threshold is its mean probability on the pictures with that label. A picture's confident class
    is the most probable of the classes whose thresholds its probabilities reach. The probabilities must come
    from a network that was not trained on these pictures. Northcutt et al. 2021,
    https://arxiv.org/abs/1911.00068

    Args:
        probabilities: float [N, classes].
        labels: int64 [N].

    Returns:
        int64 [N]; a picture that reaches no threshold keeps its label.

    Raises:
        SeveralLabelsError: the labels are a matrix.
    """
    if labels.ndim == 2:
        raise SeveralLabelsError
    classes = probabilities.shape[1]
    own = probabilities[np.arange(len(labels)), labels]
    counts = np.bincount(labels, minlength=classes)
    thresholds = np.where(
        counts > 0, np.bincount(labels, own, minlength=classes) / np.maximum(counts, 1), np.inf
    )
    sure = np.where(probabilities >= thresholds, probabilities, -1.0)
    return np.where(sure.max(axis=1) >= 0, sure.argmax(axis=1), labels)


def likely_label_errors(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Find pictures whose label is probably wrong, most likely errors first.

    A label is doubted if it is not the picture's confident class (see :func:`confident_classes`, also for
    the arguments). Doubted labels are ranked by :func:`doubts`.

    Returns:
        The indices of these pictures, int64 [M].
    """
    doubted = np.flatnonzero(confident_classes(probabilities, labels) != labels)
    return doubted[np.argsort(-doubts(probabilities, labels)[doubted], kind="stable")]


def doubts(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How much a network's probabilities speak against the labels: float64 [N], 0 to 1.

    It is 1 minus the label's probability. Of all scores that were tried, the library cleanlab's among them,
    this simplest one finds the most wrong labels (docs/notebook/labels.md). For the arguments, see
    :func:`confident_classes`.
    """
    own = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return np.clip(1 - own, 0, 1)
