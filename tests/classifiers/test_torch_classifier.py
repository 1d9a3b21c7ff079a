from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import coloured, coloured_data, write_picture
from thumbnet.classifiers.given import Picture
from thumbnet.classifiers.torch_classifier import Predictor
from thumbnet.data.splits import ArraySplit, Data, Split
from thumbnet.errors import DataError, UnreadableImageError
from thumbnet.runs.folder import Run


@pytest.fixture(scope="module")
def predictor(tiny_run: Run) -> Predictor:
    return Predictor.load(tiny_run.path, "cpu")


def test_a_picture_gives_the_same_prediction_in_every_form(predictor: Predictor, tmp_path: Path) -> None:
    pixels = coloured(1, 5)
    path = write_picture(tmp_path / "x.png", pixels)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    forms: list[Picture] = [str(path), path, Image.fromarray(pixels), pixels, tensor, tensor.float() / 255]
    predictions = predictor.predict(forms)
    assert len(predictions) == 6
    assert all(prediction == predictions[0] for prediction in predictions)
    # With another batch size, sums may be computed in another order.
    for form in (path, pixels[None], tensor[None].repeat(2, 1, 1, 1)):
        for prediction in predictor.predict(form):
            assert prediction.labels == predictions[0].labels
            assert prediction.probabilities == pytest.approx(predictions[0].probabilities, abs=1e-6)


def test_classes_are_ranked_and_probabilities_sum_to_one(predictor: Predictor) -> None:
    images = [coloured(i % 3, 500 + i) for i in range(30)]
    predictions = predictor.predict(images, batch_size=7)
    right = sum(p.label == ("red", "green", "blue")[i % 3] for i, p in enumerate(predictions))
    assert right >= 24  # chance would give 10
    for prediction in predictions:
        assert sum(prediction.probabilities) == pytest.approx(1, abs=1e-5)
        assert list(prediction.probabilities) == sorted(prediction.probabilities, reverse=True)
        assert set(prediction.labels) == {"red", "green", "blue"}


def test_pictures_of_other_sizes_and_modes_are_accepted(predictor: Predictor) -> None:
    grey = Image.fromarray(coloured(0, 1, side=50)[..., 0])
    assert len(predictor.predict([grey, Image.new("RGBA", (3, 90)), coloured(0, 1)[..., :1]])) == 3


def test_anything_that_is_not_a_picture_is_refused(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match="nowhere"):
        predictor.predict("nowhere.png")
    for bad in (
        np.zeros((4, 4, 7), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        5,
        None,
    ):
        with pytest.raises(DataError, match="not a picture|expected a picture"):
            predictor.predict([bad])  # type: ignore[list-item]
    assert predictor.predict([]) == []


def test_evaluating_matches_classes_by_name(predictor: Predictor) -> None:
    data = coloured_data()
    split = data.splits["test"]
    assert isinstance(split, ArraySplit)
    # The same pictures with the classes in another order, and without one class.
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


def tensors() -> torch.Tensor:
    return torch.from_numpy(coloured(1, 5)).permute(2, 0, 1)


@pytest.mark.parametrize(
    "form",
    [
        lambda t: t.double() / 255, lambda t: (t / 255).half(), lambda t: (t / 255).bfloat16(), lambda t: t.long(),
        lambda t: t.short(), lambda t: t.float(), lambda t: (t / 255).permute(1, 2, 0).numpy(), lambda t: t.permute(1, 2, 0).int().numpy(),
        lambda t: (t.permute(1, 2, 0).int().numpy() * 257).astype(np.uint16), lambda t: t / 255 * 1.0005 - 0.0002,
    ],
)  # fmt: skip
def test_values_on_a_known_scale_give_the_same_prediction(predictor: Predictor, form: Any) -> None:
    expected, found = (predictor.predict(one)[0] for one in (tensors(), form(tensors())))
    assert found.labels == expected.labels
    assert found.probabilities == pytest.approx(expected.probabilities, abs=0.02)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (lambda t: t.float() + 0.5, r"values from 0\.5 to 2\d\d.*floats in \[0, 1\]"),
        (lambda t: (t / 255 - 0.5) / 0.25, r"values from -2 to .*floats in \[0, 1\]"),
        (lambda t: torch.full((3, 8, 8), float("nan")), "not finite"),
        (lambda t: torch.full((3, 8, 8), float("inf")), "not finite"),
        (lambda t: t.long() * 257, "0 to 255"),
        (lambda t: t.long() - 300, "0 to 255"),
        (lambda t: t.permute(1, 2, 0).numpy().astype(np.uint16), "uint16 from 0 to 65535"),
        (lambda t: t.permute(1, 2, 0).numpy() + np.float32(0.5), r"floats in \[0, 1\]"),
        (lambda t: torch.zeros(2, 8, 8, 3).unbind()[0], r"channels, which must come first"),
        (lambda t: torch.zeros(1, 5, 8, 8), r"\[C, H, W\]"),
        (lambda t: torch.zeros(1, 1, 1, 8, 8), "not a picture"),
        (lambda t: torch.zeros(8), "not a picture"),
        (lambda t: torch.zeros(3, 8, 8, dtype=torch.complex64), "not a picture"),
        (lambda t: np.zeros((3, 8, 8)), r"move the channels to the end"),
        (lambda t: np.zeros((2, 3, 8, 8)), r"not a picture"),
    ],
)
def test_values_and_shapes_out_of_range_are_refused_with_the_expected_ones(
    predictor: Predictor, form: Any, words: str
) -> None:
    for given in (form(tensors()), [form(tensors())]):
        if isinstance(given, list) and "end" in words:
            continue  # in a list, it can only be one picture
        with pytest.raises(DataError, match=words):
            predictor.predict(given)


def test_an_array_of_grey_pictures_gives_a_prediction_per_picture(predictor: Predictor) -> None:
    grey = np.stack([coloured(i % 3, i)[..., 0] for i in range(7)])
    alone = [predictor.predict(one)[0] for one in grey]
    for form in (grey, torch.from_numpy(grey), grey[..., None], torch.from_numpy(grey)[:, None]):
        found = predictor.predict(form)
        assert [one.labels for one in found] == [one.labels for one in alone]


@pytest.fixture(scope="module")
def deep_predictor(predictor: Predictor) -> Predictor:
    """A network that appears to have been trained on 12-bit pictures."""
    info = replace(predictor.info, preprocessing=replace(predictor.info.preprocessing, range=(500.0, 1500.0)))
    return Predictor(predictor.model.state_dict(), info, "cpu")


def test_a_network_for_deep_pictures_accepts_arrays_on_their_scale(
    deep_predictor: Predictor, tmp_path: Path
) -> None:
    values = np.random.default_rng(0).integers(500, 1500, (16, 16), dtype=np.uint16)
    path = tmp_path / "x.tif"
    Image.fromarray(values).save(path)
    expected = deep_predictor.predict(path)
    for form in (values, values.astype(np.int32), values.astype(np.int64), values.astype(np.float32),
                 torch.from_numpy(values.astype(np.float64))[None], Image.fromarray(values)):  # fmt: skip
        assert deep_predictor.predict(form) == expected
    for bad in (values / 1500, values.astype(np.int64) + 10_000, values.astype(np.float32) * np.nan):
        with pytest.raises(DataError, match=r"500 is black and 1500 white"):
            deep_predictor.predict(bad)
    bright = coloured(1, 3)
    assert np.array_equal(deep_predictor.info.preprocessing.pixels(bright), bright)


def test_evaluate_and_predict_agree_on_deep_arrays(deep_predictor: Predictor) -> None:
    images = np.random.default_rng(1).integers(400, 1600, (9, 16, 16), dtype=np.uint16)
    splits: dict[str, Split] = {
        name: ArraySplit(images, np.zeros(9, dtype=np.int64), name) for name in ("train", "test")
    }
    data = Data("deep", "made by the tests", ("red", "green", "blue"), splits)
    logits = deep_predictor.classify_split(data.splits["test"], data.class_names).logits
    predicted = [one.label for one in deep_predictor.predict(images[..., None])]
    assert predicted == [deep_predictor.class_names[i] for i in logits.argmax(axis=1)]
