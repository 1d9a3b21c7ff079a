"""``GET /model`` says which network is served, and nothing that is private."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydantic", reason="the extra 'serve' is not installed")

from thumbnet.classifiers.base import Classifier
from thumbnet.classifiers.load import load_classifier
from thumbnet.errors import RunError
from thumbnet.runs.folder import Run
from thumbnet.runs.weights_info import WeightsInfo
from thumbnet.serving.identity import Identity, describe, identify
from thumbnet.version import __version__


@pytest.fixture(scope="module")
def classifier(tiny_run: Run) -> Classifier:
    return load_classifier(tiny_run.path, "cpu")


def sha256(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def test_a_run_is_described_completely(tiny_run: Run, classifier: Classifier) -> None:
    found = describe(identify(classifier, tiny_run.path))
    assert found.run == tiny_run.path.name
    assert found.format == "run"
    assert found.digest == sha256(tiny_run.weights_path)
    assert found.accuracy is not None
    assert found.accuracy.model_dump() == {
        "value": tiny_run.summary["accuracy"],
        "split": "test",
        "pictures": 60,
    }
    assert found.fingerprint == tiny_run.settings["fingerprint"]
    assert found.calibrated == (tiny_run.summary["temperature"] != 1.0)
    assert (found.network, found.classes) == ("resnet20", ["red", "green", "blue"])
    assert (found.height, found.width) == (16, 16)
    assert found.thumbnet == found.served_by == __version__
    for when in (found.started, found.loaded):
        assert timedelta(0) <= datetime.now(UTC) - when < timedelta(minutes=1)


class Export(Classifier):
    """Stands for an exported model."""

    def __init__(self, info: WeightsInfo, any_size: bool) -> None:
        super().__init__(info)
        self.any_size = any_size

    def _forward(self, pixels: np.ndarray) -> np.ndarray:
        raise NotImplementedError


def test_an_export_is_described_by_what_it_carries(classifier: Classifier, tmp_path: Path) -> None:
    path = tmp_path / "cats.ONNX"
    path.write_bytes(b"a graph")
    info = replace(classifier.info, run="cats", exported="onnx-int8")
    found = describe(identify(Export(info, False), path))
    assert (found.run, found.format, found.digest) == ("cats", "onnx-int8", sha256(path))
    assert found.accuracy is not None
    assert found.fingerprint == info.fingerprint


@pytest.mark.parametrize(("any_size", "kind"), [(False, "onnx"), (True, "onnx-any-size")])
def test_an_export_of_an_older_version_names_its_format_by_its_graph(
    classifier: Classifier, tmp_path: Path, any_size: bool, kind: str
) -> None:
    path = tmp_path / "cats.onnx"
    path.write_bytes(b"a graph")
    info = replace(classifier.info, accuracy=None)
    found = describe(identify(Export(info, any_size), path))
    assert (found.format, found.run, found.accuracy) == (kind, None, None)


def test_a_weights_file_outside_its_run_keeps_all_but_the_name(
    tiny_run: Run, classifier: Classifier, tmp_path: Path
) -> None:
    path = Path(shutil.copy(tiny_run.weights_path, tmp_path / "cats.safetensors"))
    found = describe(identify(classifier, path))
    assert (found.run, found.format) == (None, "safetensors")
    assert found.accuracy is not None
    assert found.digest == sha256(path)


def test_what_is_not_known_is_null(classifier: Classifier) -> None:
    bare = replace(
        classifier.info,
        accuracy=None,
        accuracy_split="",
        accuracy_pictures=None,
        fingerprint="",
        thumbnet="",
    )
    found = json.loads(describe(Identity(bare)).model_dump_json())
    assert {key for key, value in found.items() if value is None} == {
        "run", "format", "digest", "accuracy", "fingerprint", "thumbnet", "keeps_below",
    }  # fmt: skip
    partly = describe(Identity(replace(bare, accuracy=0.5)))
    assert partly.accuracy is not None
    assert partly.accuracy.model_dump() == {"value": 0.5, "split": None, "pictures": None}


def test_no_path_of_this_machine_is_in_the_description(
    tiny_run: Run, classifier: Classifier, tmp_path: Path
) -> None:
    for path in (tiny_run.path, tiny_run.weights_path):
        identity = identify(classifier, path)
        private = replace(identity.info, source=str(tmp_path / "pictures"))
        text = describe(replace(identity, info=private)).model_dump_json()
        for folder in (tiny_run.path.parent, tmp_path):
            assert str(folder) not in text


def test_a_file_that_has_disappeared_is_an_error(classifier: Classifier, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no file"):
        identify(classifier, tmp_path / "gone.onnx")
