from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pytest

from helpers import coloured
from thumbnet.classifiers.base import Classifier
from thumbnet.data.images import Preprocessing
from thumbnet.data.splits import ArraySplit, BytesSplit, Data
from thumbnet.errors import DataError, UnreadableImagesError
from thumbnet.recipes.settings import ModelSettings
from thumbnet.runs.weights_info import WeightsInfo

NAMES = ("red", "green", "blue")


class ByColour(Classifier):
    """Says which channel is the strongest; notes how many pictures each forward pass had."""

    def __init__(self) -> None:
        pre = Preprocessing((16, 16), "pad", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        super().__init__(WeightsInfo(ModelSettings(), NAMES, pre, "fp32", "", ""))
        self.passes: list[int] = []

    def _forward(self, pixels: np.ndarray) -> np.ndarray:
        self.passes.append(len(pixels))
        logits: np.ndarray = pixels.mean(axis=(1, 2)).astype(np.float32)
        return logits


def split_of(labels: Sequence[int]) -> ArraySplit:
    images = np.stack([coloured(label, number) for number, label in enumerate(labels)])
    return ArraySplit(images, np.array(labels), "x")


def test_a_split_is_classified_in_batches_and_progress_is_told() -> None:
    classifier, told = ByColour(), []
    found = classifier.classify_split(
        split_of([0, 1, 2, 0, 1]),
        NAMES,
        batch_size=2,
        progress=lambda done, total: told.append((done, total)),
    )
    assert classifier.passes == [2, 2, 1]
    assert told == [(2, 5), (4, 5), (5, 5)]
    assert found.logits.argmax(axis=1).tolist() == found.labels.tolist() == [0, 1, 2, 0, 1]
    assert found.tta == "none"
    assert np.array_equal(found.plain, found.logits)


def test_labels_are_matched_by_the_names_of_their_classes() -> None:
    found = ByColour().classify_split(split_of([0, 1, 2]), ("blue", "red", "green"))
    assert found.labels.tolist() == [2, 0, 1]


def test_classes_that_the_network_does_not_know_are_named() -> None:
    with pytest.raises(DataError, match="does not know: fork. It knows red, green, blue"):
        ByColour().classify_split(split_of([0, 1]), ("red", "fork"))


def broken() -> BytesSplit:
    good = split_of([0, 1, 2])
    encoded = []
    for index in range(3):
        stream = io.BytesIO()
        good.read(index).save(stream, "PNG")
        encoded.append(b"rubbish" if index == 1 else stream.getvalue())
    return BytesSplit(encoded, np.array([0, 1, 2]), ["a.png", "b.png", "c.png"])


def test_pictures_that_cannot_be_read_stop_it_with_a_list_or_are_skipped() -> None:
    with pytest.raises(UnreadableImagesError, match=r"1 picture\(s\) cannot be read:\n  b\.png"):
        ByColour().classify_split(broken(), NAMES)
    found = ByColour().classify_split(broken(), NAMES, on_bad_image="skip", batch_size=1)
    assert found.labels.tolist() == [0, 2]
    assert [found.split.name(index) for index in range(2)] == ["a.png", "c.png"]


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(DataError, match="no pictures to classify"):
        ByColour().classify_split(split_of([0]).subset(np.array([], dtype=np.int64)), NAMES)


def test_evaluating_takes_a_data_set_or_arrays_and_chooses_the_split() -> None:
    data = Data("x", "x", NAMES, {"train": split_of([0, 0, 0]), "test": split_of([0, 1, 2, 2])})
    assert ByColour().evaluate(data).pictures == 4
    assert ByColour().evaluate(data, "train").accuracy == 1
    images = np.stack([coloured(label, 1) for label in (0, 1, 2)])
    assert ByColour().evaluate((images, ["red", "green", "red"])).accuracy == pytest.approx(2 / 3)


def test_predictions_are_ranked_probabilities() -> None:
    (prediction,) = ByColour().predict(coloured(1, 3))
    assert prediction.label == prediction.labels[0] == "green"
    assert sorted(prediction.probabilities, reverse=True) == list(prediction.probabilities)
    assert sum(prediction.probabilities) == pytest.approx(1)
