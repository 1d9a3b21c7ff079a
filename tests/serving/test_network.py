"""The served network: loaded, tried, and compared with the one that it replaces."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pydantic", reason="the extra 'serve' is not installed")

from helpers import coloured_data
from thumbnet.classifiers.load import load_classifier
from thumbnet.data.rendering import Preprocessing
from thumbnet.errors import OutOfMemoryError, RunError
from thumbnet.recipes.settings import ModelSettings
from thumbnet.runs.folder import Run
from thumbnet.runs.weights_info import WeightsInfo
from thumbnet.serving import network
from thumbnet.serving.network import Source, check_memory, check_replaces

HALF = (0.5, 0.5, 0.5)
INFO = WeightsInfo(
    ModelSettings(), ("cat", "dog"), Preprocessing((8, 8), "squash", HALF, HALF), "fp32", "", ""
)


def test_a_source_loads_the_network_with_its_identity_and_its_data(tiny_run: Run) -> None:
    asked: list[str] = []

    def data_of(info: WeightsInfo) -> Any:
        asked.append(info.fingerprint)
        return data

    data = coloured_data()
    found = Source(str(tiny_run.path), "cpu", 0, data_of).load()
    assert found.classifier.class_names == ("red", "green", "blue")
    assert found.identity.info.run == tiny_run.path.name
    assert asked == []
    assert found.load_data() is data
    assert asked == [tiny_run.settings["fingerprint"]]


def test_a_file_with_the_known_digest_is_not_loaded_again(
    tiny_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(str(tiny_run.path), "cpu")
    known = source.load().identity.digest
    with monkeypatch.context() as patch:
        patch.setattr(network, "load_classifier", None)
        assert source.load_unless(known) is None
    for other in ("0" * 64, None):
        found = source.load_unless(other)
        assert found is not None
        assert found.identity.digest == known


def test_a_file_that_changes_while_it_is_read_is_refused(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copy(tiny_run.weights_path, tmp_path / "cats.safetensors"))

    def slow(*given: Any, **named: Any) -> Any:
        found = load_classifier(*given, **named)
        path.write_bytes(path.read_bytes() + b"more")
        return found

    monkeypatch.setattr(network, "load_classifier", slow)
    with pytest.raises(RunError, match=r"cats\.safetensors changed while it was being read.*then rename"):
        Source(str(path), "cpu").load()


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="there is no file"):
        Source(str(tmp_path / "cats.safetensors")).load_unless("0" * 64)


@pytest.mark.parametrize("error", [MemoryError(), OutOfMemoryError("cpu", "classifying", "x")])
def test_a_batch_that_does_not_fit_into_memory_names_the_option(error: Exception) -> None:
    def logits(pixels: np.ndarray, tta: str) -> np.ndarray:
        assert (pixels.shape, tta) == ((60, 8, 8, 3), "none")
        raise error

    classifier: Any = SimpleNamespace(info=INFO, logits=logits)
    with pytest.raises(OutOfMemoryError, match="60 pictures at a time.\nUse smaller batches: --max-batch 30"):
        check_memory(classifier, 60, "none")


def test_a_network_with_the_same_classes_replaces_another_also_in_another_order_or_size() -> None:
    larger = replace(INFO.preprocessing, size=(16, 16))
    check_replaces(replace(INFO, class_names=("dog", "cat"), preprocessing=larger, temperature=2.0), INFO)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"class_names": ("cat", "kite")}, "new classes: kite; missing classes: dog. To serve it"),
        ({"class_names": ("cat", "dog", "kite")}, "network: new classes: kite. To serve it"),
        ({"class_names": ("cat",)}, "network: missing classes: dog. To serve it nevertheless, restart"),
        ({"multilabel": True}, "it gives a picture several labels, not one class. To serve it"),
    ],
)
def test_a_network_with_other_classes_or_kinds_of_answers_does_not(
    changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(RunError, match=says):
        check_replaces(replace(INFO, **changes), INFO)


def test_only_some_of_many_new_classes_are_listed() -> None:
    names = (*INFO.class_names, *(f"n{n}" for n in range(11)))
    with pytest.raises(RunError, match=r"new classes: n0, .*, n9, \.\.\.\. To serve"):
        check_replaces(replace(INFO, class_names=names), INFO)


def test_an_exported_file_is_loaded_again_once_another_has_replaced_it(
    onnx_file: Path, any_size_file: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copy(onnx_file, tmp_path / "cats.onnx"))
    source = Source(str(path))
    old = source.load()
    assert source.load_unless(old.identity.digest) is None
    Path(shutil.copy(any_size_file, tmp_path / "new")).replace(path)
    new = source.load_unless(old.identity.digest)
    assert new is not None
    assert (old.identity.format, new.identity.format) == ("onnx", "onnx-any-size")
    check_replaces(new.identity.info, old.identity.info)
