"""Train classifiers of small pictures from scratch, on the computer that you have.

    import thumbnet

    run = thumbnet.train("cifar10", "fast")
    print(run.summary["accuracy"])
    print(thumbnet.load_classifier(run).predict("cat.png"))

Public names are loaded on first use, so ``import thumbnet`` does not import torch.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from thumbnet.version import __version__

# Without this, importing onnxruntime stores an identifier of the computer and reports to its makers.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_PUBLIC = {
    "Data": "thumbnet.data.splits",
    "ImageDataset": "thumbnet.batches.dataset",
    "InterruptedRunError": "thumbnet.errors",
    "Predictor": "thumbnet.classifiers.torch_classifier",
    "Recipe": "thumbnet.recipes.recipe",
    "ResNet": "thumbnet.models.resnet",
    "ResidualBlock": "thumbnet.models.resnet",
    "Run": "thumbnet.runs.folder",
    "ThumbnetError": "thumbnet.errors",
    "build_model": "thumbnet.models",
    "export": "thumbnet.api",
    "fit": "thumbnet.training.fit",
    "load_classifier": "thumbnet.classifiers.load",
    "load_data": "thumbnet.sources.load",
    "load_recipe": "thumbnet.recipes.recipe",
    "load_run": "thumbnet.classifiers.load",
    "register_augmentation": "thumbnet.recipes.functions",
    "register_loss": "thumbnet.recipes.functions",
    "register_model": "thumbnet.models.registry",
    "resume": "thumbnet.api",
    "resume_tuning": "thumbnet.api",
    "train": "thumbnet.api",
    "tune": "thumbnet.api",
}

__all__ = [
    "Data",
    "ImageDataset",
    "InterruptedRunError",
    "Predictor",
    "Recipe",
    "ResNet",
    "ResidualBlock",
    "Run",
    "ThumbnetError",
    "__version__",
    "build_model",
    "export",
    "fit",
    "load_classifier",
    "load_data",
    "load_recipe",
    "load_run",
    "register_augmentation",
    "register_loss",
    "register_model",
    "resume",
    "resume_tuning",
    "train",
    "tune",
]

if TYPE_CHECKING:
    from thumbnet.api import export, resume, resume_tuning, train, tune
    from thumbnet.batches.dataset import ImageDataset
    from thumbnet.classifiers.load import load_classifier, load_run
    from thumbnet.classifiers.torch_classifier import Predictor
    from thumbnet.data.splits import Data
    from thumbnet.errors import InterruptedRunError, ThumbnetError
    from thumbnet.models import build_model
    from thumbnet.models.registry import register_model
    from thumbnet.models.resnet import ResidualBlock, ResNet
    from thumbnet.recipes.functions import register_augmentation, register_loss
    from thumbnet.recipes.recipe import Recipe, load_recipe
    from thumbnet.runs.folder import Run
    from thumbnet.sources.load import load_data
    from thumbnet.training.fit import fit


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'thumbnet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
