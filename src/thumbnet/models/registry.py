"""The registry of networks: those of thumbnet, and those that users write.

A network is registered as a builder: an ``nn.Module`` class, or a function that returns a module. Its
contract:

- It takes ``num_classes`` as a keyword argument. It may also take ``in_channels`` (3 in thumbnet) and
  ``width`` (a factor on the number of channels). thumbnet passes only the arguments in its signature.
- ``forward`` takes pictures, float32 [B, in_channels, H, W], normalised, and returns logits [B, num_classes].
- The last layer is called ``head``, or the module gives its name: ``head_name = "fc"``. Every tensor of that
  layer has a row per class. ``--init`` uses this to transfer the rows of classes with the same name.
- Anything that a training step changes, other than parameters, is a buffer, so that checkpoints contain it.

    @thumbnet.register_model("tiny")
    class TinyNet(nn.Module):
        def __init__(self, num_classes: int) -> None: ...

Once this code has been imported, a recipe can name the network ``tiny``. It can also name the import path
``mypackage.nets:TinyNet``. :func:`find_builder` imports it if the user has allowed that, see
:mod:`thumbnet.recipes.networks`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from thumbnet.errors import ModelCodeError, NetworkError, OwnCodeError
from thumbnet.models.from_timm import timm_builder
from thumbnet.recipes.networks import (
    MODEL_NAMES,
    add_known,
    allow,
    check_name,
    is_allowed,
    is_import_path,
    is_module,
    is_timm,
)
from thumbnet.recipes.own_code import failing, import_module, import_object, layout_hint, path_of
from thumbnet.recipes.settings import ModelSettings

Builder = Callable[..., nn.Module]
B = TypeVar("B", bound=Builder)

_BUILDERS: dict[str, Builder] = {}


def register_model(name: str) -> Callable[[B], B]:
    """A decorator that registers a network, so that recipes can name it ``name``.

    It decorates an ``nn.Module`` class, or a function that builds a module. The contract of such a builder is
    in :mod:`thumbnet.models.registry`. Running the same notebook cell or module again replaces the network.

    >>> @register_model("linear")
    ... class Linear(torch.nn.Module):
    ...     def __init__(self, num_classes: int) -> None:
    ...         super().__init__()
    ...         self.head = torch.nn.LazyLinear(num_classes)
    ...     def forward(self, x: torch.Tensor) -> torch.Tensor:
    ...         return self.head(x.flatten(1))
    >>> find_builder("linear") is Linear
    True

    Raises:
        RecipeError: ``name`` cannot be a network's name.
        NetworkError: another network has this name, or the decorated object does not build a network.
    """
    check_name(name)
    if is_timm(name):
        raise NetworkError(f"the name {name!r} belongs to timm: choose another")

    def register(builder: B) -> B:
        check_builder(builder, name)
        path = _path_of(builder)
        holder = _BUILDERS.get(name)
        if holder is not None and (is_built_in(name) or _path_of(holder) != path):
            raise NetworkError(
                f"the name {name!r} already belongs to the network {_path_of(holder) or name}: choose another"
            )
        _BUILDERS[name] = builder
        add_known(name)
        if path is not None:
            _BUILDERS[path] = builder
        return builder

    return register


def provide(name: str, builder: Builder) -> None:
    """Use ``builder``, which the user passed, for the network that a run calls ``name``, in this process.

    Raises:
        NetworkError: it does not build a network, or ``name`` is one of thumbnet's or timm's networks.
    """
    check_builder(builder, name)
    if is_built_in(name) or is_timm(name):
        source = "timm" if is_timm(name) else "thumbnet"
        raise NetworkError(f"the run's network is {name}, which comes with {source}: leave out model=")
    _BUILDERS[name] = builder
    add_known(name)


def name_of(builder: Builder) -> str:
    """The name by which a recipe can name the user's ``builder``, which is registered if it is not yet.

    This is the name that it was registered by, else its import path. In a script or a notebook, whose import
    path holds only in this process, it is the name of the class or function. So it is for a function that
    ``functools.wraps`` has given the import path of another one.

    Raises:
        NetworkError: it does not build a network, it has no name, or another network has this name.
    """
    check_builder(builder, getattr(builder, "__name__", "model"))
    for name, one in _BUILDERS.items():
        if one is builder and not is_import_path(name):
            return name
    path = _path_of(builder)
    if path is not None and not path.startswith("__main__:") and _is_at(path, builder):
        return path
    name = getattr(builder, "__name__", "")
    if not name.isidentifier():
        raise NetworkError('model has no name: decorate a function with thumbnet.register_model("NAME")')
    holder = _BUILDERS.get(path) if path is not None else None
    register_model(name)(builder)
    if path is not None and not path.startswith("__main__:"):  # this path is that of another network
        del _BUILDERS[path]
        if holder is not None:
            _BUILDERS[path] = holder
    return name


def _path_of(builder: Builder) -> str | None:
    """The import path ``MODULE:NAME`` of a class or function; None if it has no import path."""
    path = path_of(builder)
    return path if is_import_path(path) else None


def _is_at(path: str, builder: Builder) -> bool:
    """Whether ``builder`` itself is what ``MODULE:NAME`` names in this process."""
    module, _, name = path.partition(":")
    return getattr(sys.modules.get(module), name, None) is builder


def is_built_in(name: str) -> bool:
    """Whether the network ``name`` comes with thumbnet."""
    return name in MODEL_NAMES


def find_builder(name: str) -> Builder:
    """The builder of a network: a registered one, timm's, or one that the user has allowed to be imported.

    Raises:
        ModelCodeError: it is not registered, and the user has not allowed its import path.
        NetworkError: its module cannot be imported, or does not contain the network; or timm does not.
        MissingExtraError: it is a network of timm, and timm is not installed.
    """
    if is_timm(name):
        return timm_builder(ModelSettings(name))
    if is_allowed(name):
        return _load(name)
    if name not in _BUILDERS:
        raise ModelCodeError(name)
    return _BUILDERS[name]


def same_network(first: str, second: str) -> bool:
    """Whether two names stand for the same network. This imports nothing."""
    if is_timm(first) and is_timm(second):
        return first.partition(".")[0] == second.partition(".")[0]  # the tag names only pretrained weights
    return first == second or (first in _BUILDERS and _BUILDERS[first] is _BUILDERS.get(second))


def import_code(name: str) -> None:
    """Import the ``MODULE:NAME`` or ``MODULE`` that the user gave as ``--model-code``.

    The module is imported immediately, so the networks, losses and augmentations that it registers are known.
    With ``MODULE:NAME``, a run may also name that path.

    Raises:
        OwnCodeError: ``name`` has another form, the module cannot be imported, or it has no such object.
    """
    if is_import_path(name):
        allow(name)
        import_object(name)
    elif is_module(name):
        import_module(name)
    else:
        raise OwnCodeError(
            f"--model-code {name}: expected MODULE:NAME or MODULE, such as mypackage.nets:TinyNet"
        )


def _load(path: str) -> Builder:
    """The builder at ``MODULE:NAME``."""
    builder: Builder = import_object(path, NetworkError)
    check_builder(builder, path)
    return builder


def check_builder(builder: object, name: str) -> None:
    """Check that ``builder`` is a class or a function that takes ``num_classes``.

    Raises:
        NetworkError: it is not.
    """
    other_class = isinstance(builder, type) and not issubclass(builder, nn.Module)
    if other_class or isinstance(builder, nn.Module) or not callable(builder):
        kind = "class of another kind" if other_class else type(builder).__name__
        raise NetworkError(
            f"{name} is a {kind}: expected an nn.Module class, or a function that builds a module"
        )
    arguments_for(builder, name, num_classes=2, in_channels=3, width=1.0)


def arguments_for(
    builder: Builder, name: str, num_classes: int, in_channels: int, width: float
) -> dict[str, Any]:
    """The keyword arguments to pass to a builder, according to its signature.

    Raises:
        NetworkError: it does not take ``num_classes``, it requires other arguments, or it does not support
            this number of channels or this width.
    """
    try:
        signature = inspect.signature(builder)
    except (TypeError, ValueError):
        raise NetworkError(f"{name} has no signature that thumbnet can read: wrap it in a function") from None
    named = {
        key
        for key, one in signature.parameters.items()
        if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    }
    given: dict[str, Any] = {"num_classes": num_classes}
    given |= {"in_channels": in_channels} if "in_channels" in named else {}
    given |= {"width": width} if "width" in named else {}
    try:
        signature.bind(**given)
    except TypeError as error:
        raise NetworkError(
            f"thumbnet cannot build {name}{signature}: {error}. It passes num_classes as a keyword argument, "
            "and in_channels and width if the network takes them; every other argument needs a default"
        ) from None
    if "in_channels" not in named and in_channels != 3:
        raise NetworkError(f"{name} does not take in_channels: it cannot be built for {in_channels} channels")
    if "width" not in named and width != 1:
        raise NetworkError(f"{name} does not take width: set model.width to 1 (it is {width:g})")
    return given


def build(
    builder: Builder,
    name: str,
    num_classes: int,
    in_channels: int,
    width: float,
    sizes: Sequence[tuple[int, int]],
) -> nn.Module:
    """Build a user's network, and check that it fulfils the contract.

    Args:
        builder: from :func:`find_builder`, or from the user.
        name: the network's name, for errors.
        num_classes, in_channels, width: see the contract.
        sizes: (height, width) in pixels of the pictures that it has to classify. It is tried on each size.

    Raises:
        NetworkError: the code fails, or it breaks the contract.
    """
    check_builder(builder, name)
    arguments = arguments_for(builder, name, num_classes, in_channels, width)
    with failing(f"cannot build the network {name}", NetworkError, _hint):
        model = builder(**arguments)
    if not isinstance(model, nn.Module):
        raise NetworkError(f"{name} builds a {type(model).__name__}: expected an nn.Module")
    _check_forward(model, name, num_classes, in_channels, sizes)
    _check_head(model, name, num_classes)
    return model


def head_name(model: nn.Module) -> str:
    """The name of the last layer of ``model``: its ``head_name``, or ``head`` if it has none."""
    return str(getattr(model, "head_name", "head"))


def is_of_head(model: nn.Module, tensor: str) -> bool:
    """Whether the tensor with this name in ``model.state_dict()`` belongs to the last layer."""
    return f"{tensor}.".startswith(f"{head_name(model)}.")


def _check_head(model: nn.Module, name: str, num_classes: int) -> None:
    """Check the last layer's name, and that each of its tensors has a row per class."""
    head = head_name(model)
    tensors = {key: tensor for key, tensor in model.state_dict().items() if is_of_head(model, key)}
    if not tensors:
        layers = dict.fromkeys(key.rpartition(".")[0] for key, _ in model.named_parameters())
        last = next(reversed(layers), "fc") or "fc"
        raise NetworkError(
            f"{name} has no layer called {head!r} with weights, but thumbnet must know the last layer. Call "
            f'it self.head, or give its name in the class: head_name = "{last}"'
        )
    for key, tensor in tensors.items():
        if not is_lazy(tensor) and tensor.shape[:1] != (num_classes,):
            raise NetworkError(
                f"{name}: {key} of the last layer has the shape {list(tensor.shape)}: expected a row per "
                f"class, {num_classes}. If another layer is the last one, give its name as head_name"
            )


@torch.no_grad()
def _check_forward(
    model: nn.Module, name: str, num_classes: int, in_channels: int, sizes: Sequence[tuple[int, int]]
) -> None:
    """Check the logits of a batch of two pictures, and of a single one, for each size."""
    training = model.training
    model.eval()
    for height, width in sizes:
        for count in (2, 1):
            shape = [count, in_channels, height, width]
            pictures = torch.zeros(shape).contiguous(memory_format=torch.channels_last)
            with failing(f"the network {name} fails on pictures of shape {shape}", NetworkError, _hint):
                logits = model(pictures)
            found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            if found != [count, num_classes]:
                raise NetworkError(
                    f"the network {name} returns {found} for pictures of shape {shape}: expected logits of "
                    f"shape {[count, num_classes]}, a row per picture and a column per class"
                )
    model.train(training)


def _hint(text: str) -> str:
    """What may help against an exception with the message ``text`` in the code of a network."""
    if "shapes cannot be multiplied" in text or "size mismatch" in text:
        return (
            ". If the network accepts only one size, train at that size (--image-size), and never at a "
            "smaller one (--set schedule.small_until=0)"
        )
    return layout_hint(text)
