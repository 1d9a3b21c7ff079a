"""One door to every trained network: a run, a file of weights, an exported model, the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from thumbnet.classifiers.base import Classifier

if TYPE_CHECKING:
    from torch import nn

    from thumbnet.classifiers.torch_classifier import Predictor


def load_classifier(
    path: str | Path, device: str = "auto", *, model: Callable[..., nn.Module] | None = None
) -> Classifier:
    """A classifier from a ``MODEL.onnx``, or from what :func:`load_run` takes.

    An exported model holds its network, so it needs no code: ``model`` counts for the others only.

    Raises:
        RunError: no such run or model, not complete, or damaged.
        MissingExtraError: what computes it is not installed.
    """
    if Path(path).suffix.lower() == ".onnx":
        from thumbnet.classifiers.onnx_classifier import OnnxClassifier

        return OnnxClassifier(path)
    return load_run(path, device, model=model)


def load_run(
    path: str | Path, device: str = "auto", *, model: Callable[..., nn.Module] | None = None
) -> Predictor:
    """A predictor from a run's folder, a ``model.safetensors``, or ``hf:OWNER/NAME[@REVISION]`` of the Hub.

    >>> load_run(run.path).class_names[:3]
    ('0', '1', '2')

    Args:
        path: see above. A file or folder never makes thumbnet import the code of a network that it names.
        device: ``auto``, ``cpu``, ``gpu``, ``cuda``, ``cuda:1``, ``mps``.
        model: the class or function that builds the network, where it is one of your own. It is not needed
            once the code that registers the network has been imported (:func:`thumbnet.register_model`).

    Raises:
        RunError: no such run, not complete, or damaged; or it needs a network of the user's own.
        NetworkError: the network's own code fails.
    """
    from thumbnet.classifiers.torch_classifier import Predictor
    from thumbnet.runs.weights import find_weights, read_weights

    weights, info = read_weights(find_weights(path))
    return Predictor(weights, info, device, model=model)
