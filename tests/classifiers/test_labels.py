from __future__ import annotations

import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers import coloured_data, coloured_labels, write_label_table
from thumbnet.classifiers.labels import check_fits, labels_above, log_probabilities, targets_for
from thumbnet.classifiers.load import load_classifier
from thumbnet.classifiers.temperature import fit_sigmoid_temperature, fit_temperature
from thumbnet.errors import DataError, UnreadableImagesError
from thumbnet.runs.folder import Run
from thumbnet.runs.weights import read_weights

TEST = coloured_labels().splits["test"]


def test_predictions_name_the_labels_that_reach_their_thresholds(label_run: Run) -> None:
    classifier = load_classifier(label_run.path, "cpu")
    predictions = classifier.predict([np.asarray(TEST.load(i)) for i in range(20)])
    thresholds = dict(zip(classifier.class_names, classifier.info.label_thresholds, strict=True))
    for prediction in predictions:
        assert list(prediction.probabilities) == sorted(prediction.probabilities, reverse=True)
        above = [
            label
            for label, p in zip(prediction.labels, prediction.probabilities, strict=True)
            if p >= thresholds[label]
        ]
        assert list(prediction.found or ()) == above
    assert any(sum(one.probabilities) > 1.2 for one in predictions)  # they need not add up to 1
    assert any(len(one.found or ()) > 1 for one in predictions)


def test_a_network_of_one_class_names_no_labels(tiny_run: Run) -> None:
    (prediction,) = load_classifier(tiny_run.path, "cpu").predict(np.zeros((16, 16, 3), dtype=np.uint8))
    assert prediction.found is None
    assert sum(prediction.probabilities) == pytest.approx(1)


def test_test_time_augmentation_averages_the_logits_of_all_views(label_run: Run) -> None:
    classifier = load_classifier(label_run.path, "cpu")
    pixels = np.stack([np.asarray(TEST.load(i)) for i in range(4)])
    views = [classifier.logits(one, tta="none") for one in (pixels, pixels[:, :, ::-1].copy())]
    np.testing.assert_allclose(classifier.logits(pixels, tta="mirror"), np.mean(views, axis=0), atol=1e-5)
    all_views = classifier.logits(pixels, tta="mirror-shift")
    assert np.array_equal(classifier.logits(pixels, tta="adaptive"), all_views)


def test_labels_are_matched_by_name(label_run: Run) -> None:
    _, info = read_weights(label_run.weights_path)
    found = targets_for(TEST, ("green", "blue", "red"), info)
    assert np.array_equal(found, TEST.targets[:, [2, 0, 1]])


def test_classes_are_the_same_in_both_unicode_forms(tiny_run: Run) -> None:
    names = ("café", "thé", "noël")
    network = replace(read_weights(tiny_run.weights_path)[1], class_names=names)
    other = [unicodedata.normalize("NFD", name) for name in reversed(names)]
    split = coloured_data(6).splits["test"]
    check_fits(split, other, network)
    assert targets_for(split, other, network).tolist() == (2 - split.labels).tolist()
    with pytest.raises(DataError, match="does not know: CAFÉ"):
        check_fits(split, ("thé", "CAFÉ"), network)


def test_a_label_in_both_unicode_forms_is_one_label_of_the_network(label_run: Run) -> None:
    network = replace(read_weights(label_run.weights_path)[1], class_names=("blue", "thé", "red"))
    names = [unicodedata.normalize("NFD", "thé"), "thé", "red"]
    check_fits(TEST, names, network)
    found = targets_for(TEST, names, network)
    assert found[:, 0].tolist() == [False] * len(TEST)
    assert np.array_equal(found[:, 1], TEST.targets[:, :2].any(axis=1))
    assert np.array_equal(found[:, 2], TEST.targets[:, 2])


def test_data_of_the_other_kind_are_refused(label_run: Run, tiny_run: Run) -> None:
    with pytest.raises(DataError, match="these pictures have one class each"):
        load_classifier(label_run.path, "cpu").evaluate_labels(coloured_data(6), "test")
    with pytest.raises(DataError, match="the network gives a picture one class"):
        load_classifier(tiny_run.path, "cpu").evaluate(coloured_labels(6), "test")
    with pytest.raises(DataError, match="measure it with evaluate_labels"):
        load_classifier(label_run.path, "cpu").evaluate(coloured_labels(6), "test")
    with pytest.raises(DataError, match="measure it with evaluate"):
        load_classifier(tiny_run.path, "cpu").evaluate_labels(coloured_data(6), "test")


def test_data_in_memory_are_measured(label_run: Run) -> None:
    classifier = load_classifier(label_run.path, "cpu")
    images = np.stack([np.asarray(TEST.load(i)) for i in range(len(TEST))])
    given = classifier.evaluate_labels((images, TEST.targets))
    assert given.map == pytest.approx(label_run.summary["map"])


def test_pictures_that_cannot_be_read_can_be_left_out_of_the_measurement(
    label_run: Run, tmp_path: Path
) -> None:
    table = write_label_table(tmp_path, coloured_labels(30))
    (tmp_path / "test-0.png").write_bytes(b"no picture")
    classifier, seen = load_classifier(label_run.path, "cpu"), list[tuple[int, int]]()
    with pytest.raises(UnreadableImagesError, match=r"test-0\.png"):
        classifier.evaluate_labels(table)
    found = classifier.evaluate_labels(
        table, on_bad_image="skip", progress=lambda done, total: seen.append((done, total))
    )
    assert found.pictures == 29
    assert seen


def test_probabilities_are_sigmoids_or_a_softmax(label_run: Run, tiny_run: Run) -> None:
    several, one = (read_weights(run.weights_path)[1] for run in (label_run, tiny_run))
    logits = np.zeros((1, 3), dtype=np.float32)
    assert np.exp(log_probabilities(logits, several))[0].tolist() == pytest.approx([0.5] * 3)
    assert np.exp(log_probabilities(logits, one))[0].tolist() == pytest.approx([1 / 3] * 3)
    half = replace(several, label_thresholds=())
    assert labels_above(np.array([[0.5, 0.4, 0.6]]), half).tolist() == [[True, False, True]]
    check_fits(TEST, several.class_names, several)


def test_one_temperature_makes_overconfident_labels_honest() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(2000, 4))
    targets = generator.random((2000, 4)) < 1 / (1 + np.exp(-logits))
    assert fit_sigmoid_temperature(3 * logits, targets) == pytest.approx(3, rel=0.1)
    assert fit_sigmoid_temperature(logits[:5], targets[:5]) == 1.0
    assert fit_sigmoid_temperature(logits[:5], targets[:5], fewest=5) != 1.0
    one = np.stack([np.zeros(2000), logits[:, 0]], axis=1)
    same = fit_temperature(one, targets[:, 0].astype(np.int64))
    assert fit_sigmoid_temperature(logits[:, :1], targets[:, :1]) == pytest.approx(same, rel=1e-4)


def test_an_export_is_compared_by_labels_and_map(label_run: Run, tmp_path: Path) -> None:
    from thumbnet.publish.export import check_export, export, random_pictures

    out = tmp_path / "labels.safetensors"
    export(label_run.path, "safetensors", out)
    check = check_export(label_run.path, out, coloured_labels(), "test")
    assert check.measure == "mAP"
    assert (check.largest_difference, check.same_class) == (0, 1)
    assert check.accuracy_run == check.accuracy_export == pytest.approx(label_run.summary["map"], abs=1e-3)
    assert check.accuracy_plain == pytest.approx(label_run.summary["map_plain"], abs=1e-3)
    made = random_pictures(read_weights(out)[1])
    assert check_export(label_run.path, out, made, "train").same_class == 1


def test_an_onnx_model_gives_several_labels_if_its_description_says_so(
    onnx_file: Path, tmp_path: Path
) -> None:
    """The graph gives logits for either kind."""
    onnx = pytest.importorskip("onnx", reason="the extra 'export' is not installed")
    before = load_classifier(onnx_file)
    model = onnx.load(onnx_file)
    several = replace(before.info, multilabel=True, label_thresholds=(0.4, 0.5, 0.6))
    onnx.helper.set_model_props(model, {"thumbnet": several.to_json()})
    onnx.save(model, tmp_path / "labels.onnx")
    classifier = load_classifier(tmp_path / "labels.onnx")
    assert classifier.info == several
    pixels = np.stack([np.asarray(TEST.load(i)) for i in range(8)])
    expected = 1 / (1 + np.exp(-before.logits(pixels).astype(np.float64))) >= several.label_thresholds
    found = [set(one.found or ()) for one in classifier.predict_pixels(pixels)]
    names = np.array(classifier.class_names)
    assert found == [set(names[row].tolist()) for row in expected]
    assert 0 < classifier.evaluate_labels(coloured_labels(), "test").map <= 1
