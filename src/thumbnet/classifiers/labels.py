"""What a network says about pictures, from its logits: one class, or several labels. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from thumbnet.data.spelling import places_in
from thumbnet.data.splits import Split
from thumbnet.errors import DataError
from thumbnet.evaluation import log_softmax
from thumbnet.multilabel import as_thresholds, log_sigmoid
from thumbnet.runs.weights_info import WeightsInfo


def log_probabilities(logits: np.ndarray, info: WeightsInfo) -> np.ndarray:
    """The logarithms of the probabilities, float64 [N, classes].

    A network of several labels has a probability for each of them, by the sigmoid; any other network has
    probabilities that add up to 1, by the softmax.
    """
    return log_sigmoid(logits) if info.multilabel else log_softmax(logits)


def labels_above(probabilities: np.ndarray, info: WeightsInfo) -> np.ndarray:
    """Which labels a network gives, because they reach their thresholds: bool [N, labels]."""
    given: np.ndarray = probabilities >= as_thresholds(info.label_thresholds, len(info.class_names))
    return given


def check_fits(split: Split, class_names: Sequence[str], info: WeightsInfo) -> None:
    """Check that a network knows all classes of a split, and gives its pictures one class or several labels.

    Args:
        split: the pictures.
        class_names: the classes of the split's labels.
        info: the network's description.

    Raises:
        DataError: that is not so.
    """
    places = places_in(info.class_names, class_names)
    unknown = [name for name, place in zip(class_names, places, strict=True) if place is None]
    if unknown:
        known = f"{', '.join(info.class_names[:10])}{', ...' if len(info.class_names) > 10 else ''}"
        raise DataError(
            f"the data have classes that the network does not know: {', '.join(unknown[:10])}. "
            f"It knows {known}"
        )
    if split.multilabel and not info.multilabel:
        raise DataError(
            "these pictures have several labels each, and the network gives a picture one class. If each "
            "cell of the table is one class, read it so: --set data.multilabel=false"
        )
    if info.multilabel and not split.multilabel:
        raise DataError(
            "the network gives a picture several labels, and these pictures have one class each. Name data "
            "with all labels of each picture, such as a table with the columns path and labels"
        )


def targets_for(split: Split, class_names: Sequence[str], info: WeightsInfo) -> np.ndarray:
    """A split's classes as positions in the network's, int64 [N]; or its labels, bool [N, labels].

    Args:
        split: the pictures, for which :func:`check_fits` raises no error.
        class_names: the names of the split's classes, all of which the network knows.
        info: the network's description.
    """
    position = np.array(places_in(info.class_names, class_names), dtype=np.int64)
    if not info.multilabel:
        classes: np.ndarray = position[split.labels]
        return classes
    targets = np.zeros((len(split), len(info.class_names)), dtype=bool)
    for label, place in enumerate(position.tolist()):
        targets[:, place] |= split.targets[:, label]  # two labels of the data may be one of the network's
    return targets
