"""Start from a trained network's weights instead of random ones."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from thumbnet.errors import RunError
from thumbnet.recipes.settings import ModelSettings
from thumbnet.runs.weights import find_weights, read_weights

HEAD = "head."  # the last layer of every network here, with one row per class


def begin_from(model: nn.Module, settings: ModelSettings, source: str, class_names: Sequence[str]) -> None:
    """Copy a run's weights into ``model``, in place.

    In the last layer, only the rows of classes that the run knows by the same name are copied. The others
    keep their random weights.

    Args:
        model: the network that ``settings`` describe, with one row in its last layer per class.
        settings: the recipe's model settings.
        source: a run's folder, a ``model.safetensors``, or ``hf:OWNER/NAME``.
        class_names: class names of the new data.

    Raises:
        RunError: there is no such run, or it has another network.
    """
    weights, info = read_weights(find_weights(source))
    if info.model != settings:
        raise RunError(
            f"{source} has the network {info.model.name} of width {info.model.width:g}, but the recipe asks "
            f"for {settings.name} of width {settings.width:g}: add --set model.name={info.model.name} "
            f"--set model.width={info.model.width:g}"
        )
    known = {name: row for row, name in enumerate(info.class_names)}
    rows = [(new, known[name]) for new, name in enumerate(class_names) if name in known]
    for name, tensor in model.state_dict().items():
        if name.startswith(HEAD):
            for new, old in rows:
                tensor[new] = weights[name][old]
        else:
            tensor.copy_(weights[name])
