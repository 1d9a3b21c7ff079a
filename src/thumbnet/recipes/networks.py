"""Keep track of which networks a recipe may name, and whose code the user has allowed. Imports no torch.

``model.name`` is the name of a registered network (``resnet18``), a network of timm (``timm:resnet18``), or
an import path (``mypackage.nets:TinyNet``). Importing a module runs its code, so thumbnet imports only what
the user has named: on the command line, in a call from Python, or in a recipe file that the user passed. A
run's folder and a weights file also contain such a name, but they may come from a stranger: reading them
allows nothing. ``timm:NAME`` is safe in such a file, because it runs only the code of the installed timm.
timm's names for repositories and folders, such as ``hf-hub:OWNER/NAME``, are refused.
"""

from __future__ import annotations

import re

from thumbnet.errors import RecipeError, nearest

MODEL_NAMES = ("resnet18", "resnet34", "resnet20", "resnet32", "resnet44", "resnet56", "fastnet")
TIMM = "timm:"
ANY_MODULE = "MODULE"  # stands for the name of a module that only the user knows
_LONGEST = 200  # characters

_known = set(MODEL_NAMES)
_allowed: set[str] = set()


def is_import_path(name: str) -> bool:
    """Whether ``name`` is ``MODULE:NAME``, as in ``mypackage.nets:TinyNet``."""
    module, colon, attribute = name.partition(":")
    return bool(colon) and attribute.isidentifier() and is_module(module) and not name.startswith(TIMM)


def is_timm(name: str) -> bool:
    """Whether ``name`` is ``timm:NAME`` or ``timm:NAME.TAG``, as in ``timm:resnet18.a1_in1k``."""
    return bool(re.fullmatch(r"timm:[a-z0-9_]+(\.[a-z0-9_]+)?", name, re.ASCII))


def is_module(name: str) -> bool:
    """Whether ``name`` could be a Python module's, as in ``mypackage.nets``."""
    return all(part.isidentifier() for part in name.split("."))


def is_name(name: object) -> bool:
    """Whether ``name`` has the form of what a user registers or names by its import path."""
    if not isinstance(name, str) or len(name) > _LONGEST:
        return False
    return bool(re.fullmatch(r"\w[\w.-]*", name)) or is_import_path(name)


def check_name(name: str) -> None:
    """Check that ``name`` has the form of a network's name; :func:`accept` checks that the network is known.

    Raises:
        RecipeError: it does not have that form.
    """
    if is_name(name):
        return
    if not isinstance(name, str) or len(name) > _LONGEST:
        raise unknown(str(name))
    if is_timm(name):
        return
    if name.startswith(TIMM):
        raise RecipeError(
            f"recipe key 'model.name' is {name!r}: expected timm:NAME or timm:NAME.TAG, such as timm:resnet18"
            ". thumbnet takes only the networks that come with timm, and neither a repository (hf-hub:) nor "
            "a folder (local-dir:)"
        )
    raise unknown(name)


def accept(name: str) -> None:
    """Accept a ``name`` from the user. An import path is allowed from now on.

    Any other name must be known, except that timm itself knows its networks.

    Raises:
        RecipeError: no network has this name.
    """
    check_name(name)
    if is_import_path(name):
        allow(name)
    elif not is_timm(name) and name not in _known:
        raise unknown(name)


def allow(path: str) -> None:
    """Let this import path be imported, because the user has named it."""
    _allowed.add(path)


def is_allowed(path: str) -> bool:
    """Whether the user has named this import path."""
    return path in _allowed


def code_options(name: str) -> tuple[str, ...]:
    """The options that allow a command to use the network ``name``; empty for those of thumbnet and timm."""
    if name in MODEL_NAMES or is_timm(name):
        return ()
    return ("--model-code", name if is_import_path(name) else ANY_MODULE)


def add_known(name: str) -> None:
    """Note that a network has been registered under ``name``."""
    _known.add(name)


def unknown(name: str) -> RecipeError:
    """The error for an unknown ``name``; it suggests the nearest known name."""
    module, _, attribute = name.rpartition(".")
    example = f"{module}:{attribute}"
    own = example if is_import_path(example) else "mypackage.nets:TinyNet"
    return RecipeError(
        f"recipe key 'model.name' is {name!r}. {nearest(name, _known)} "
        f"Name a network of timm as timm:NAME, and one of your own as MODULE:NAME, such as {own}."
    )
