"""One door to every trained network: a run, a file of weights, an exported model, the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from thumbnet.classifiers.base import Classifier

if TYPE_CHECKING:
    from thumbnet.classifiers.torch_classifier import Predictor


def load_classifier(path: str | Path, device: str = "auto") -> Classifier:
    """A classifier from a ``MODEL.onnx``, or from what :func:`load_run` takes.

    Raises:
        RunError: no such run or model, not complete, or damaged.
        MissingExtraError: what computes it is not installed.
    """
    if Path(path).suffix.lower() == ".onnx":
        from thumbnet.classifiers.onnx_classifier import OnnxClassifier

        return OnnxClassifier(path)
    return load_run(path, device)


def load_run(path: str | Path, device: str = "auto") -> Predictor:
    """A predictor from a run's folder, a ``model.safetensors``, or ``hf:OWNER/NAME[@REVISION]`` of the Hub.

    >>> load_run(run.path).class_names[:3]
    ('0', '1', '2')

    Raises:
        RunError: no such run, not complete, or damaged.
    """
    from thumbnet.classifiers.torch_classifier import Predictor
    from thumbnet.runs.weights import find_weights, read_weights

    weights, info = read_weights(find_weights(path))
    return Predictor(weights, info, device)
