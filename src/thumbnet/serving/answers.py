"""What the service answers about a picture: its classes, words for them, and where the network looked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from thumbnet.classifiers.base import Classifier, Prediction
from thumbnet.classifiers.explain import highlight, occlusion_parts
from thumbnet.classifiers.words import certainty, in_words
from thumbnet.data.images import as_data_address
from thumbnet.serving.schemas import ClassProbability, Explanation


def answer(prediction: Prediction, top: int) -> dict[str, Any]:
    """The fields that every answer about a picture has, with its ``top`` most probable classes."""
    return {
        "classes": _classes(prediction, top),
        "words": in_words(
            prediction.labels,
            prediction.probabilities,
            unlike=bool(prediction.unlike),
            found=prediction.found,
        ),
        "certainty": certainty(prediction.probability),
        "unlike": prediction.unlike,
        "unlikeness": prediction.unlikeness,
        "labels": None if prediction.found is None else list(prediction.found),
    }


def explained(
    classifier: Classifier, pixels: np.ndarray, top: int, *, tta: str | None, max_batch: int
) -> Iterator[tuple[Prediction, Explanation] | None]:
    """Classify a picture, and show where the network looked.

    Yields None after each forward pass, and at last the answer.

    Args:
        classifier: the network.
        pixels: the picture, preprocessed for it, uint8 [height, width, 3].
        top: the number of classes in the explanation.
        tta: test-time augmentation, see :meth:`Classifier.logits`.
        max_batch: the most pictures in a forward pass.
    """
    (prediction,) = classifier.predict_pixels(pixels[None], tta=tta)
    yield None
    heat = yield from occlusion_parts(
        classifier,
        pixels,
        classifier.class_names.index(prediction.label),
        multilabel=classifier.info.multilabel,
        batch_size=max_batch,
    )
    explanation = Explanation(
        **answer(prediction, top),
        picture=as_data_address(pixels),
        lit=as_data_address(highlight(pixels, heat)),
    )
    yield prediction, explanation


def _classes(prediction: Prediction, top: int) -> list[ClassProbability]:
    pairs = zip(prediction.labels[:top], prediction.probabilities[:top], strict=True)
    return [ClassProbability(name=name, probability=min(value, 1.0)) for name, value in pairs]
