from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import coloured, coloured_data, write_picture
from thumbnet.classifier import Picture
from thumbnet.data.splits import ArraySplit, Data
from thumbnet.errors import DataError, UnreadableImageError
from thumbnet.predictor import Predictor, load_run
from thumbnet.runs import Run


@pytest.fixture(scope="module")
def predictor(tiny_run: Run) -> Predictor:
    return load_run(tiny_run.path, "cpu")


def test_a_picture_gives_the_same_in_every_form(predictor: Predictor, tmp_path: Path) -> None:
    pixels = coloured(1, 5)
    path = write_picture(tmp_path / "x.png", pixels)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    forms: list[Picture] = [str(path), path, Image.fromarray(pixels), pixels, tensor, tensor.float() / 255]
    predictions = predictor.predict(forms)
    assert len(predictions) == 6
    assert all(prediction == predictions[0] for prediction in predictions)
    # Another number of pictures may be added up in another order.
    for form in (path, pixels[None], tensor[None].repeat(2, 1, 1, 1)):
        for prediction in predictor.predict(form):
            assert prediction.labels == predictions[0].labels
            assert prediction.probabilities == pytest.approx(predictions[0].probabilities, abs=1e-6)


def test_classes_are_ranked_and_probabilities_sum_to_one(predictor: Predictor) -> None:
    images = [coloured(i % 3, 500 + i) for i in range(30)]
    predictions = predictor.predict(images, batch_size=7)
    right = sum(p.label == ("red", "green", "blue")[i % 3] for i, p in enumerate(predictions))
    assert right >= 24  # learnt: by chance 10
    for prediction in predictions:
        assert sum(prediction.probabilities) == pytest.approx(1, abs=1e-5)
        assert list(prediction.probabilities) == sorted(prediction.probabilities, reverse=True)
        assert set(prediction.labels) == {"red", "green", "blue"}


def test_other_sizes_and_modes_go_the_way_of_training(predictor: Predictor) -> None:
    grey = Image.fromarray(coloured(0, 1, side=50)[..., 0])
    assert len(predictor.predict([grey, Image.new("RGBA", (3, 90)), coloured(0, 1)[..., :1]])) == 3


def test_what_is_no_picture_is_refused(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match="nowhere"):
        predictor.predict("nowhere.png")
    for bad in (
        np.zeros((4, 4, 7), np.uint8),
        np.zeros((4, 4, 3), bool),
        np.zeros((0, 4, 3), np.uint8),
        5,
        None,
    ):
        with pytest.raises(DataError, match="no picture"):
            predictor.predict([bad])  # type: ignore[list-item]
    assert predictor.predict([]) == []


def test_evaluating_matches_classes_by_name(predictor: Predictor) -> None:
    data = coloured_data()
    split = data.splits["test"]
    assert isinstance(split, ArraySplit)
    # The same pictures, their classes in another order and one left out.
    keep = np.flatnonzero(split.labels != 1)
    renamed = Data(
        "x", "x", ("blue", "red"),
        {"train": ArraySplit(split.images[keep], np.where(split.labels[keep] == 2, 0, 1), "t")},
    )  # fmt: skip
    whole = predictor.evaluate(data, "test")
    part = predictor.evaluate(renamed, "train")
    assert [part.confusion[row] for row in (0, 2)] == [whole.confusion[row] for row in (0, 2)]
    assert part.confusion[1] == [0, 0, 0]


def test_unknown_classes_and_splits_are_named(predictor: Predictor) -> None:
    data = coloured_data()
    with pytest.raises(DataError, match="no split 'val'"):
        predictor.evaluate(data, "val")
    other = Data("x", "x", ("red", "mauve"), data.splits)
    with pytest.raises(DataError, match="mauve"):
        predictor.evaluate(other, "test")
