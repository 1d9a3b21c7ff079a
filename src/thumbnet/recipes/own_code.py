"""Import the user's own code, and say what is wrong with it if it fails.

The code is a network, a loss or an augmentation, named by its import path ``MODULE:NAME``. Who may cause an
import is decided in :mod:`thumbnet.recipes.networks`. This module imports no torch itself.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from thumbnet.errors import OwnCodeError, is_out_of_memory, nearest

TEXT = "text:"  # begins a digest of a class or function alone, which no digest of a file can be compared with


def path_of(code: object) -> str:
    """The ``MODULE:NAME`` of a class or function. It is no import path if the object has no such name."""
    return f"{getattr(code, '__module__', '')}:{getattr(code, '__qualname__', '')}"


def source_digest(code: Any, name: str = "") -> str | None:
    """The SHA-256 of the file that defines a class or function, in hexadecimal; None if it cannot be read.

    In a script or a notebook, which also hold other things, it is that of the text of the class or function
    alone, after ``TEXT``. What the file imports is not covered.

    Args:
        code: the class or function, or an object that a call has made, such as a ``functools.partial``.
        name: how a recipe names it. An import path says in which file a call has made the object.
    """
    try:
        kind, content = _source(code, name)
        return kind + hashlib.sha256(content).hexdigest()
    except Exception:  # written in C, typed into an interpreter; or its file is gone, or was edited meanwhile
        return None


def _source(code: Any, name: str) -> tuple[str, bytes]:
    """The content of the file that defines ``code``, or ``TEXT`` and the text of ``code`` alone."""
    place, is_path, _ = name.partition(":")
    if _has_definition(code) or not is_path or place == "__main__":
        while isinstance(code, functools.partial):
            code = code.func
        code = inspect.unwrap(code)
        if not _has_definition(code):
            code = type(code)
        place = code.__module__
    module = sys.modules.get(place)
    file = getattr(module, "__file__", None)
    if file is None or place == "__main__":
        return TEXT, _text(code).encode(errors="backslashreplace")
    read = getattr(getattr(module, "__loader__", None), "get_data", None)  # it also reads from a zip file
    return "", read(file) if read else Path(file).read_bytes()


def _has_definition(code: Any) -> bool:
    """Whether ``code`` is a class or function, and not an object that a call has made."""
    return inspect.isclass(code) or inspect.isfunction(code) or inspect.ismethod(code)


def _text(code: Any) -> str:
    """The text of a class or function. In a notebook, Python finds only the methods of a class."""
    try:
        return inspect.getsource(code)
    except (OSError, TypeError):
        methods = [one for one in vars(code).values() if inspect.isfunction(one)]
        if not (inspect.isclass(code) and methods):
            raise
        return "".join(map(inspect.getsource, methods))


def import_object(path: str, fault: type[OwnCodeError] = OwnCodeError) -> Any:
    """The object at ``MODULE:NAME``.

    Raises:
        OwnCodeError: the module cannot be imported, or has no such object. It is of the class ``fault``.
    """
    name, _, attribute = path.partition(":")
    module = import_module(name, fault)
    if not hasattr(module, attribute):
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == name]
        there = f" {nearest(attribute, own)}" if own else ""
        place = getattr(module, "__file__", None) or "built in"
        raise fault(f"the module {name} ({place}) has no {attribute!r}.{there}")
    return getattr(module, attribute)


def import_module(name: str, fault: type[OwnCodeError] = OwnCodeError) -> ModuleType:
    """Import a module; it may be in the current folder.

    Raises:
        OwnCodeError: the module does not exist, or its code fails. It is of the class ``fault``.
    """
    here = os.getcwd() if os.path.isdir(".") else ""  # the current folder may have been deleted
    if here not in sys.path:
        sys.path.append(here)  # last, so that its files never hide an installed package
    importlib.invalidate_caches()  # in case the module was only just written
    try:
        return importlib.import_module(name)
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{name}.".startswith(f"{missing}."):
            raise fault(
                f"there is no Python module {missing}, neither in {here} nor among the installed packages"
            ) from None
        raise fault(f"cannot import the module {name}: {described(error)}") from error


@contextmanager
def failing(
    what: str,
    fault: type[OwnCodeError] = OwnCodeError,
    hint: Callable[[str], str] = lambda text: "",
) -> Iterator[None]:
    """Turn an exception in the user's code into a ``fault`` whose message begins with ``what``.

    The exception is its cause, so Python shows the traceback of the user's code as well. A failed allocation
    stays what it is.

    Args:
        what: what the code was to do.
        fault: the class of the error.
        hint: returns what to add to the message, given that of the exception.
    """
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise fault(f"{what}: {described(error)}{hint(str(error))}") from error


def described(error: BaseException) -> str:
    """An error's type, the first line of its message, and the line of the user's code that raised it."""
    text = (str(error).strip().splitlines() or [""])[0]
    where = ""
    if isinstance(error, SyntaxError):
        where = f" ({error.filename}, line {error.lineno})"
        text = error.msg
    else:
        modules = (importlib, sys.modules.get("torch"))
        libraries = tuple(os.path.dirname(module.__file__ or "") + os.sep for module in modules if module)
        ours = (os.path.dirname(os.path.dirname(__file__)) + os.sep, "<frozen")
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if not frame.filename.startswith((*libraries, *ours)):
                where = f" ({frame.filename}, line {frame.lineno})"
                break
    return f"{type(error).__name__}: {text}{where}"


def type_and_shape(tensor: Any) -> str:
    """A tensor's type and shape, such as ``float32 [8, 10]``."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def layout_hint(text: str) -> str:
    """A hint for :func:`failing` in code that sees pictures; empty if ``text`` is about something else."""
    if "view size is not compatible" not in text:
        return ""
    return ". Pictures are stored in channels_last order: use flatten or reshape instead of view"
