"""Load a trained network: a run, a file of weights, an exported model, or one on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from thumbnet.classifiers.base import Classifier


def load_classifier(path: str | Path, device: str = "auto") -> Classifier:
    """Load a trained network. ``load_run`` is another name for this function.

    >>> load_classifier(run.path).class_names[:3]
    ('0', '1', '2')

    Args:
        path: a run's folder, a ``model.safetensors``, a ``MODEL.onnx`` that ``thumbnet export`` wrote, or
            ``hf:OWNER/NAME[@REVISION]`` on the Hub.
        device: ``auto``, ``cpu``, ``cuda``, ... An exported model runs on the CPU.

    Raises:
        RunError: there is no such run or model, it is not complete, or it is damaged.
        MissingExtraError: the library that computes it is not installed.
    """
    if Path(path).suffix.lower() == ".onnx":
        from thumbnet.classifiers.onnx_classifier import OnnxClassifier

        return OnnxClassifier(path)
    from thumbnet.classifiers.torch_classifier import Predictor

    return Predictor.load(path, device)


load_run = load_classifier
