"""Pictures without labels: read, classified, and put into a useful order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers import coloured, write_picture
from thumbnet.classifiers.load import load_classifier
from thumbnet.classifiers.torch_classifier import Predictor
from thumbnet.errors import DataError
from thumbnet.reviewing.unlabelled import order_unlabelled, read_unlabelled, score_unlabelled
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
    paths = [found.split.path(index) for index in range(12)]
    expected = [one.probability for one in network.predict(paths)]
    assert found.probabilities.max(axis=1) == pytest.approx(expected, abs=1e-5)
    assert found.probabilities.dtype == np.float32
    assert found.features is not None
    assert found.features.shape[0] == 12


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
