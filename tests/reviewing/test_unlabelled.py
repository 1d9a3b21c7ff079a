"""Pictures without labels: read, classified, and put into a useful order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers import coloured, write_picture
from thumbnet.classifiers.load import load_classifier
from thumbnet.classifiers.torch_classifier import Predictor
from thumbnet.errors import DataError, RunError
from thumbnet.reviewing.unlabelled import CLUSTERS, order_unlabelled, read_unlabelled, score_unlabelled
from thumbnet.runs.folder import Run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(12):
        write_picture(
            tmp_path / ("a" if number % 2 else "b/c") / f"{number:02}.png", coloured(number, number)
        )
    (tmp_path / "a" / "notes.txt").write_text("not a picture")
    (tmp_path / "a" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    return tmp_path


def test_all_pictures_below_a_folder_are_found_and_have_no_label(folder: Path) -> None:
    split = read_unlabelled(folder)
    names = [split.name(index) for index in range(len(split))]
    assert names == sorted(names)
    assert len(names) == 13
    assert set(split.labels.tolist()) == {-1}


def test_a_missing_or_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        read_unlabelled(tmp_path / "none")
    with pytest.raises(DataError, match="there are no pictures in the folder"):
        read_unlabelled(tmp_path)


def test_readable_pictures_are_classified_and_the_others_are_named(folder: Path, tiny_run: Run) -> None:
    network = load_classifier(tiny_run.path, "cpu")
    assert isinstance(network, Predictor)
    found = score_unlabelled(network, read_unlabelled(folder))
    assert len(found.split) == 12
    assert [Path(name).as_posix() for name, _ in found.skipped] == ["a/broken.png"]
    paths = [found.split.file(index) for index in range(12)]
    expected = [one.probability for one in network.predict(paths)]
    assert found.probabilities.max(axis=1) == pytest.approx(expected, abs=1e-5)
    assert found.probabilities.dtype == np.float32
    assert found.features is not None
    assert found.features.shape[0] == 12


def test_pictures_are_classified_in_batches_of_the_given_size(
    folder: Path, tiny_run: Run, batch_sizes: list[int]
) -> None:
    score_unlabelled(load_classifier(tiny_run.path, "cpu"), read_unlabelled(folder), batch_size=5)
    assert batch_sizes == [5, 5]  # for the logits, and for the features


def test_a_network_that_gives_several_labels_is_refused(folder: Path, label_run: Run) -> None:
    network = load_classifier(label_run.path, "cpu")
    with pytest.raises(RunError, match="several labels: review works only with one class per picture"):
        score_unlabelled(network, read_unlabelled(folder))


def test_the_features_are_what_the_last_layer_sees(folder: Path, tiny_run: Run) -> None:
    network = load_classifier(tiny_run.path, "cpu")
    assert isinstance(network, Predictor)
    kept = score_unlabelled(network, read_unlabelled(folder)).split
    features = network.features(kept, batch_size=5)
    state = network.model.state_dict()
    logits = features @ state["head.weight"].numpy().T + state["head.bias"].numpy()
    found = network.classify_split(kept, network.class_names, tta="none").logits
    assert logits / network.info.temperature == pytest.approx(found, rel=0.02, abs=0.02)


def test_an_exported_model_has_no_features(folder: Path, onnx_file: Path) -> None:
    pytest.importorskip("onnxruntime")
    found = score_unlabelled(load_classifier(onnx_file), read_unlabelled(folder))
    assert found.features is None
    assert len(found.probabilities) == 12
    assert sorted(order_unlabelled(found.probabilities, None).tolist()) == list(range(12))


def certain_and_uncertain(count: int, seed: int = 0) -> np.ndarray:
    """Probabilities of three classes; the first tenth of the pictures are uncertain."""
    rng = np.random.default_rng(seed)
    probabilities = np.tile([0.9, 0.06, 0.04], (count, 1))
    uncertain = count // 10
    probabilities[:uncertain] = [0.4, 0.35, 0.25]
    return rng.permuted(probabilities, axis=1)


def test_the_order_has_every_picture_once_and_is_always_the_same() -> None:
    probabilities = certain_and_uncertain(300)
    features = np.random.default_rng(1).normal(size=(300, 8)).astype(np.float32)
    order = order_unlabelled(probabilities, features)
    assert sorted(order.tolist()) == list(range(300))
    assert np.array_equal(order, order_unlabelled(probabilities, features))
    assert sorted(order_unlabelled(probabilities, None).tolist()) == list(range(300))


def test_the_predicted_classes_take_turns() -> None:
    """Of 1,000 pictures, 10 look like the rare class: among the first 20, they are every other one."""
    probabilities = np.tile([0.8, 0.2], (1000, 1))
    rare = np.arange(500, 510)
    probabilities[rare] = [0.45, 0.55]
    features = np.random.default_rng(1).normal(size=(1000, 8))
    order = order_unlabelled(probabilities, features)
    assert set(order[:20:2].tolist()) == set(rare.tolist())


def test_the_first_pictures_are_typical_of_their_kind_and_of_different_kinds() -> None:
    """Two kinds of pictures in a class: the larger one's most typical picture is first, then the other's."""
    rng = np.random.default_rng(0)
    features = np.tile([1.0, 0, 0, 0], (2000, 1))
    small = np.arange(1990, 2000)
    features[small] = [0, 1.0, 0, 0]
    outliers = np.arange(100)
    features += 0.01 * rng.normal(size=features.shape)
    features[outliers] += 0.3 * rng.normal(size=(100, 4))
    first = order_unlabelled(np.tile([0.7, 0.3], (2000, 1)), features)[:CLUSTERS]
    assert np.isin(first, small).any()
    assert not np.isin(first[0], outliers)


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_few_pictures_are_ordered_too(count: int) -> None:
    probabilities = np.full((count, 3), 1 / 3)
    features = np.zeros((count, 5), dtype=np.float32)
    assert sorted(order_unlabelled(probabilities, features).tolist()) == list(range(count))
