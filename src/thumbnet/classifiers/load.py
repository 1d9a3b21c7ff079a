"""Load a trained network: a run, a file of weights, an exported model, or one on the Hugging Face Hub."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from thumbnet.batches.cores import check_threads, quota_threads
from thumbnet.classifiers.base import Classifier
from thumbnet.errors import ThumbnetError

if TYPE_CHECKING:
    import torch
    from torch import nn


def load_classifier(
    path: str | os.PathLike[str],
    device: str | torch.device = "auto",
    *,
    model: Callable[..., nn.Module] | None = None,
    threads: int = 0,
) -> Classifier:
    """Load a trained network. ``load_run`` is another name for this function.

    A file or folder never makes thumbnet import the code of a network that it names.

    >>> load_classifier(run.path).class_names[:3]
    ('0', '1', '2')

    Args:
        path: a run or its folder, a ``model.safetensors``, a ``MODEL.onnx`` that ``thumbnet export`` wrote,
            or ``hf:OWNER/NAME[@REVISION]`` on the Hub.
        device: ``auto``, ``cpu``, ``cuda``, ..., or a ``torch.device``. An exported model runs only on the
            CPU.
        model: the class or function that builds the network, if it is one of your own. It is not needed once
            the code that registers the network has been imported (:func:`thumbnet.register_model`), nor for
            an exported model.
        threads: CPU threads for the network's computation; 0 for the default of its library, but no more than
            the cores that this process may use. With PyTorch, the number holds for everything that the
            process computes.

    Raises:
        RunError: the run or model does not exist, is incomplete or damaged, or needs a network that is not
            part of thumbnet.
        NetworkError: the network's own code fails.
        MissingExtraError: the library that computes its logits is not installed.
        ThumbnetError: the device is not available, or ``threads`` is not a whole number from 0.
    """
    path = os.fspath(path)
    check_threads(threads)
    if Path(path).suffix.lower() == ".onnx":
        if str(device) not in ("auto", "cpu"):
            raise ThumbnetError(
                f"--device {device}: an exported model runs only on the CPU. Leave --device out, or use the "
                "run that it was exported from"
            )
        from thumbnet.classifiers.onnx_classifier import OnnxClassifier

        return OnnxClassifier(path, threads)
    from thumbnet.classifiers.torch_classifier import Predictor
    from thumbnet.hardware import limit_threads, use_threads

    if threads:
        use_threads(threads)
    elif most := quota_threads():
        limit_threads(most)
    return Predictor.load(path, device, model=model)


load_run = load_classifier
