from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import thumbnet
from helpers import coloured_data
from kernel_helpers import on_threads
from thumbnet.batches import cores
from thumbnet.classifiers.load import load_classifier
from thumbnet.classifiers.onnx_classifier import OnnxClassifier
from thumbnet.errors import RunError, ThumbnetError
from thumbnet.runs.folder import Run


def test_one_function_loads_a_run_its_weights_and_an_exported_model(tiny_run: Run, onnx_file: Path) -> None:
    data = coloured_data()
    expected = load_classifier(tiny_run.path, "cpu").evaluate(data, "test").accuracy
    for path in (tiny_run, tiny_run.path, tiny_run.weights_path, onnx_file, str(onnx_file)):
        classifier = thumbnet.load_classifier(path, "cpu")
        assert classifier.class_names == ("red", "green", "blue")
        assert classifier.evaluate(data, "test").accuracy == expected
        assert thumbnet.load_classifier(path, torch.device("cpu")).class_names == classifier.class_names


def test_load_run_is_the_same_function() -> None:
    assert thumbnet.load_run is thumbnet.load_classifier


@pytest.mark.parametrize("name", ["x.safetensors", "x.bin", "x.onnx"])
def test_a_file_that_is_not_a_model_is_explained(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"\x08\x09\x12\x07pytorch" * 100)
    with pytest.raises(RunError, match="cannot read") as caught:
        load_classifier(path)
    if name != "x.onnx":
        assert "expected a run's folder, its model.safetensors, or an exported MODEL.onnx" in str(
            caught.value
        )


def test_an_exported_model_without_its_suffix_is_explained(onnx_file: Path, tmp_path: Path) -> None:
    renamed = shutil.copy(onnx_file, tmp_path / "model")
    with pytest.raises(RunError, match=r"exported MODEL\.onnx"):
        load_classifier(renamed)


@pytest.mark.parametrize("device", ["cuda", "gpu", "cuda:1", "mps"])
def test_an_exported_model_refuses_a_device_that_it_cannot_use(device: str, tmp_path: Path) -> None:
    with pytest.raises(ThumbnetError, match=f"--device {device}: an exported model runs only on the CPU"):
        load_classifier(tmp_path / "model.onnx", device)


def test_without_a_number_a_network_computes_on_no_more_threads_than_the_quota(
    tiny_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(cores, "cpu_quota", lambda: 1.5)
    for threads, used in ((8, 2), (1, 1)):
        with on_threads(threads):
            load_classifier(tiny_run.path, "cpu")
            assert torch.get_num_threads() == used
    with on_threads(1):
        load_classifier(tiny_run.path, "cpu", threads=3)
        assert torch.get_num_threads() == 3
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        load_classifier(tiny_run.path, "cpu")
        assert torch.get_num_threads() == 3


def test_threads_can_be_chosen_for_both_kinds_of_model(
    tiny_run: Run, onnx_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "cpu_quota", lambda: None)
    with on_threads(torch.get_num_threads()):
        load_classifier(tiny_run.path, "cpu", threads=3)
        assert torch.get_num_threads() == 3
        load_classifier(tiny_run.path, "cpu")
        assert torch.get_num_threads() == 3
    exported = load_classifier(onnx_file, "cpu", threads=3)
    assert isinstance(exported, OnnxClassifier)
    assert exported.threads == 3
    for path in (tiny_run.path, onnx_file):
        with pytest.raises(ThumbnetError, match="threads: expected a whole number"):
            load_classifier(path, threads=-1)
