"""Convert nested tables, as read from TOML, to dataclasses, and check every value against its type hint."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from thumbnet.errors import RecipeError

T = TypeVar("T")

# PyTorch takes no numbers beyond these.
LARGEST_INTEGER = 2**63 - 1
LARGEST_FLOAT = 3.4e38


def plain(value: Any) -> Any:
    """Convert nested values to dictionaries and lists without None, which TOML cannot store."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value


def differences(settings: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    """The part of nested tables that differs from ``base``, which has the same keys."""
    different = {}
    for key, value in settings.items():
        under = base.get(key)
        if isinstance(value, dict) and isinstance(under, dict):
            inner = differences(value, under)
            if inner:
                different[key] = inner
        elif value != under:
            different[key] = value
    return different


def flattened(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, with dotted keys.

    >>> flattened({"model": {"width": 2}, "seed": 1})
    {'model.width': 2, 'seed': 1}
    """
    flat: dict[str, Any] = {}
    for key, value in table.items():
        inner = isinstance(value, Mapping)
        flat |= flattened(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat


def by_key(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of all sections by their whole key, such as ``optimizer.name``; values stay whole."""
    sections = {section: table for section, table in settings.items() if isinstance(table, dict)}
    return {f"{section}.{key}": value for section, table in sections.items() for key, value in table.items()}


def known_keys(cls: Any, prefix: str = "") -> list[str]:
    """All dotted keys of a dataclass of dataclasses."""
    keys = []
    for name, hint in typing.get_type_hints(cls).items():
        inner = known_keys(hint, f"{prefix}{name}.") if dataclasses.is_dataclass(hint) else []
        keys += inner or [prefix + name]
    return keys


def unknown_key(key: str, known: Sequence[str]) -> RecipeError:
    """The error for an unknown ``key``; it suggests the nearest of the ``known`` keys."""
    last = key.rpartition(".")[2]
    same_ending = [k for k in known if k.rpartition(".")[2] == last]
    close = same_ending or difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    if not close:
        endings = {k.rpartition(".")[2]: k for k in known}
        close = [endings[e] for e in difflib.get_close_matches(last, endings, n=1, cutoff=0.5)]
    hint = f": did you mean {' or '.join(repr(k) for k in close)}?" if close else "."
    section = key.rpartition(".")[0]
    siblings = [k for k in known if k.rpartition(".")[0] == section]
    listing = f" Known keys here: {', '.join(siblings)}." if siblings else ""
    return RecipeError(f"unknown recipe key '{key}'{hint}{listing}")


def build(cls: type[T], settings: object) -> T:
    """Build an instance of the dataclass ``cls`` from nested tables; missing keys get their defaults.

    Raises:
        RecipeError: a key is unknown or missing, or a value has the wrong type.
    """
    return _build(cls, settings, "", cls)


def _build(cls: Any, settings: object, path: str, root: Any) -> Any:
    """Build the part of ``root`` at ``path``."""
    if not isinstance(settings, Mapping):
        raise RecipeError(f"recipe key '{path}' is {settings!r}: expected a table, [{path}]")
    hints = typing.get_type_hints(cls)
    prefix = f"{path}." if path else ""
    for key in settings:
        if key not in hints:
            raise unknown_key(prefix + str(key), known_keys(root))
    for known in dataclasses.fields(cls):
        required = known.default is dataclasses.MISSING and known.default_factory is dataclasses.MISSING
        if required and known.name not in settings:
            raise RecipeError(f"recipe key '{prefix}{known.name}' is missing")
    return cls(**{key: _convert(value, hints[key], prefix + key, root) for key, value in settings.items()})


def _convert(value: Any, hint: Any, key: str, root: Any) -> Any:
    """Check that ``value`` has the type ``hint``, or raise RecipeError. Integers are accepted as floats."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, key, root)
    if origin is Literal:
        if value not in arguments:
            shown = ", ".join(repr(a) for a in arguments)
            raise RecipeError(f"recipe key '{key}' is {value!r}: expected one of {shown}")
        return value
    if origin in (typing.Union, types.UnionType):
        for argument in arguments:
            try:
                return _convert(value, argument, key, root)
            except RecipeError:
                continue
        raise _wrong_type(value, hint, key)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong_type(value, hint, key)
        return tuple(_convert(inner, arguments[0], key, root) for inner in value)
    if type(value) is int and abs(value) > LARGEST_INTEGER:
        raise RecipeError(f"recipe key '{key}' has {len(str(abs(value)))} digits: expected less than 2**63")
    if type(value) is float and LARGEST_FLOAT < abs(value) < math.inf:
        raise RecipeError(f"recipe key '{key}' is {value}: expected a number that fits into 32 bits")
    if hint is float and type(value) is int:
        return float(value)
    if hint is str and key == "data.image_size" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # image_size = 32 reads better than "32"
    if type(value) is not hint:
        raise _wrong_type(value, hint, key)
    return value


def _wrong_type(value: object, hint: Any, key: str) -> RecipeError:
    names = {float: "a number", int: "a whole number", bool: "true or false", str: "a string"}
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    parts = []
    for option in options:
        if typing.get_origin(option) is tuple:
            inner = typing.get_args(option)[0]
            parts.append("a list of " + ("numbers" if inner in (float, int) else "tables"))
        elif option is not type(None):
            parts.append(names.get(option, str(option)))
    return RecipeError(f"recipe key '{key}' is {value!r}: expected {' or '.join(parts)}")
