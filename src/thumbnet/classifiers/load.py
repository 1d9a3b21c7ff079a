"""Load a trained network: a run, a file of weights, an exported model, or one on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from thumbnet.classifiers.base import Classifier

if TYPE_CHECKING:
    from torch import nn


def load_classifier(
    path: str | Path, device: str = "auto", *, model: Callable[..., nn.Module] | None = None
) -> Classifier:
    """Load a trained network. ``load_run`` is another name for this function.

    A file or folder never makes thumbnet import the code of a network that it names.

    >>> load_classifier(run.path).class_names[:3]
    ('0', '1', '2')

    Args:
        path: a run's folder, a ``model.safetensors``, a ``MODEL.onnx`` that ``thumbnet export`` wrote, or
            ``hf:OWNER/NAME[@REVISION]`` on the Hub.
        device: ``auto``, ``cpu``, ``cuda``, ... An exported model runs on the CPU.
        model: the class or function that builds the network, if it is one of your own. It is not needed once
            the code that registers the network has been imported (:func:`thumbnet.register_model`), nor for
            an exported model.

    Raises:
        RunError: the run or model does not exist, is incomplete or damaged, or needs a network that is not
            part of thumbnet.
        NetworkError: the network's own code fails.
        MissingExtraError: the library that computes its logits is not installed.
    """
    if Path(path).suffix.lower() == ".onnx":
        from thumbnet.classifiers.onnx_classifier import OnnxClassifier

        return OnnxClassifier(path)
    from thumbnet.classifiers.torch_classifier import Predictor

    return Predictor.load(path, device, model=model)


load_run = load_classifier
