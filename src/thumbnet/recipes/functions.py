"""The functions that a recipe may name: a loss (``training.loss``) or an augmentation (``augment.custom``).

A user registers a function under a short name, or the recipe names its import path ``MODULE:NAME``. The rules
are those for networks, see :mod:`thumbnet.recipes.networks`: only what the user names is imported, and a
file that may come from a stranger allows nothing. Imports no torch.

    @thumbnet.register_loss("focal")
    def focal(logits, targets):
        probability = logits.softmax(dim=1).gather(1, targets[:, None])[:, 0]
        return -((1 - probability) ** 2) * probability.log()
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from thumbnet.errors import ModelCodeError, OwnCodeError, RecipeError, nearest
from thumbnet.recipes import networks
from thumbnet.recipes.networks import is_import_path, is_name
from thumbnet.recipes.own_code import import_object, path_of

Function = Callable[..., Any]
F = TypeVar("F", bound=Function)

CROSS_ENTROPY = "cross-entropy"


class Functions:
    """The functions of one kind that users have registered in this process.

    Args:
        kind: ``loss`` or ``augmentation``, for messages. The decorator is called ``register_KIND``.
        key: the recipe's key that names such a function.
        built_in: the value of this key for what thumbnet does by itself.
        arguments: names of the arguments that thumbnet passes, by position.
    """

    def __init__(self, kind: str, key: str, built_in: str, arguments: tuple[str, ...]) -> None:
        self.kind, self.key = kind, key
        self._built_in = built_in
        self._arguments = arguments
        self._functions: dict[str, Function] = {}

    def is_own(self, name: str) -> bool:
        """Whether ``name`` is a function of the user's own."""
        return name != self._built_in

    def check_name(self, name: str) -> None:
        """Check that ``name`` has the form of a function's name; :meth:`accept` checks that it is known.

        Raises:
            RecipeError: it does not have that form.
        """
        if self.is_own(name) and not is_name(name):
            raise self._unknown(str(name))

    def accept(self, name: str) -> None:
        """Accept a ``name`` from the user. An import path is allowed from now on; another must be known.

        Raises:
            RecipeError: no function has this name.
        """
        self.check_name(name)
        if is_import_path(name):
            networks.allow(name)
        elif self.is_own(name) and name not in self._functions:
            raise self._unknown(name)

    def register(self, name: str) -> Callable[[F], F]:
        """A decorator that registers a function; see :func:`register_loss`."""
        self.check_name(name)
        if not self.is_own(name) or is_import_path(name):
            raise OwnCodeError(f"the name {name!r} cannot be that of your own {self.kind}: choose another")

        def register(function: F) -> F:
            self._check(function, name)
            path, holder = path_of(function), self._functions.get(name)
            if holder is not None and path_of(holder) != path:
                raise OwnCodeError(
                    f"the name {name!r} already belongs to the {self.kind} {path_of(holder)}: choose another"
                )
            self._functions[name] = function
            if is_import_path(path):
                self._functions[path] = function
            return function

        return register

    def find(self, name: str) -> Function | None:
        """The function called ``name``, or None if that is what thumbnet does by itself.

        Raises:
            ModelCodeError: it is not registered, and the user has not allowed its import path.
            OwnCodeError: its module cannot be imported, or does not contain such a function.
        """
        if not self.is_own(name):
            return None
        if is_import_path(name) and networks.is_allowed(name):
            found: Function = import_object(name)
            self._check(found, name)
            return found
        if name not in self._functions:
            raise ModelCodeError(name, self.kind)
        return self._functions[name]

    def code(self, name: str) -> str | None:
        """What ``--model-code`` needs to allow this function; None if it needs nothing."""
        if not self.is_own(name):
            return None
        return name if is_import_path(name) else networks.ANY_MODULE

    def _check(self, function: object, name: str) -> None:
        """Check that ``function`` can be called with the arguments that thumbnet passes.

        Raises:
            OwnCodeError: it cannot.
        """
        wanted = f"a function of ({', '.join(self._arguments)})"
        if isinstance(function, type) or not callable(function):
            what = "class" if isinstance(function, type) else type(function).__name__
            raise OwnCodeError(f"the {self.kind} {name} is a {what}: expected {wanted}")
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):
            return  # written in C: found out when it is called
        try:
            signature.bind(*self._arguments)
        except TypeError as error:
            raise OwnCodeError(
                f"thumbnet cannot call the {self.kind} {name}{signature}: {error}. Expected {wanted}; every "
                "other argument needs a default"
            ) from None

    def _unknown(self, name: str) -> RecipeError:
        names = [one for one in self._functions if not is_import_path(one)]
        choices = [one for one in (self._built_in, *names) if one]
        known = f" {nearest(name, choices)}" if choices else ""
        return RecipeError(
            f"recipe key {self.key!r} is {name!r}.{known} "
            f"Register your own {self.kind} with thumbnet.register_{self.kind} (on the command line, name "
            "its module: --model-code MODULE), or name it as MODULE:NAME, such as mypackage.own:function."
        )


LOSSES = Functions("loss", "training.loss", CROSS_ENTROPY, ("logits", "targets"))
AUGMENTATIONS = Functions("augmentation", "augment.custom", "", ("images", "generator"))


def register_loss(name: str) -> Callable[[F], F]:
    """A decorator that registers a loss, so that a recipe can name it: ``training.loss = "focal"``.

    The function gets ``logits``, float32 [B, classes], and ``targets``: int64 [B], or float32 [B, classes] of
    0 and 1 for several labels per picture. It returns the loss of each picture, a float tensor [B] that
    depends on the logits. thumbnet takes the mean over the batch. docs/howto/own-loss.md says what class
    weights, label smoothing and mixing mean with it.

    >>> @register_loss("squared")
    ... def squared(logits, targets):
    ...     return (logits.softmax(1) - torch.eye(logits.shape[1])[targets]).square().sum(1)

    Raises:
        RecipeError: ``name`` cannot be a loss's name.
        OwnCodeError: another loss has this name, or the function takes other arguments.
    """
    return LOSSES.register(name)


def register_augmentation(name: str) -> Callable[[F], F]:
    """A decorator that registers an augmentation, so that a recipe can name it: ``augment.custom = "grey"``.

    The function gets ``images``, uint8 [B, 3, H, W] on the training's device, and ``generator``, a
    ``torch.Generator`` on the CPU with a seed for this step. It returns images of the same shape and type. It
    follows the augmentation of uint8 pictures and precedes the normalisation, see docs/howto/own-loss.md.

    >>> @register_augmentation("inverted")
    ... def inverted(images, generator):
    ...     chosen = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    ...     return torch.where(chosen.to(images.device), 255 - images, images)

    Raises:
        RecipeError: ``name`` cannot be an augmentation's name.
        OwnCodeError: another augmentation has this name, or the function takes other arguments.
    """
    return AUGMENTATIONS.register(name)
