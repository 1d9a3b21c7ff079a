"""Start a training from a trained network's weights instead of random ones."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from thumbnet.errors import RunError
from thumbnet.models.registry import is_of_head, same_network
from thumbnet.recipes.settings import ModelSettings
from thumbnet.runs.weights import find_weights, read_weights


def begin_from(
    model: nn.Module,
    settings: ModelSettings,
    source: str,
    class_names: Sequence[str],
    *,
    multilabel: bool = False,
) -> None:
    """Copy a run's weights into ``model``, in place.

    The last layer has a row per class. It takes the rows of the classes that the run knows by the same name,
    and keeps its other rows. It keeps all of them if one of the two networks gives a picture several labels
    and the other does not, because their logits mean different things. Only weights are read: code that
    ``source`` names is not imported.

    Args:
        model: the network that ``settings`` describe, with one row in its last layer per class.
        settings: the recipe's model settings.
        source: a run's folder, a ``model.safetensors``, or ``hf:OWNER/NAME``.
        class_names: class names of the new data.
        multilabel: whether the new data have several labels per picture.

    Raises:
        RunError: there is no such run, or it has another network.
    """
    weights, info = read_weights(find_weights(source))
    if not same_network(info.model.name, settings.name) or info.model.width != settings.width:
        raise RunError(
            f"{source} has the network {info.model.name} of width {info.model.width:g}, but the recipe asks "
            f"for {settings.name} of width {settings.width:g}: add --set model.name={info.model.name} "
            f"--set model.width={info.model.width:g}"
        )
    state = model.state_dict()
    _check_shapes(model, state, weights, source, settings.name)
    same = info.multilabel == multilabel
    known = {name: row for row, name in enumerate(info.class_names)} if same else {}
    rows = [(new, known[name]) for new, name in enumerate(class_names) if name in known]
    for name, tensor in state.items():
        if is_of_head(model, name):
            for new, old in rows:
                tensor[new] = weights[name][old]
        else:
            tensor.copy_(weights[name])


def _check_shapes(
    model: nn.Module, state: dict[str, Tensor], weights: dict[str, Tensor], source: str, network: str
) -> None:
    """Check that ``weights`` are those of the same network: its code may have changed since.

    Raises:
        RunError: a tensor is missing, or has another shape.
    """
    for name, tensor in state.items():
        rows = int(is_of_head(model, name))  # the numbers of classes may differ
        if name not in weights or weights[name].shape[rows:] != tensor.shape[rows:]:
            there = f"the shape {list(weights[name].shape)}" if name in weights else "no such tensor"
            raise RunError(
                f"the weights in {source} do not fit the network {network}: {name} has the shape "
                f"{list(tensor.shape)} in the network, and {there} in the weights"
            )
