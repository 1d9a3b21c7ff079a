"""Check the fields of a description of weights, which may come from a stranger. Imports no torch.

Every function raises ValueError with a message that names the field and what it should be.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

_SHOWN = 60  # characters of a wrong value in a message


def table(
    value: object, where: str, required: Collection[str], optional: Collection[str] = ()
) -> dict[str, Any]:
    """Check that ``value`` is a JSON object with the ``required`` keys and no unknown ones."""
    if not isinstance(value, dict):
        raise wrong(value, where, "a JSON object")
    for key in value:
        if key not in required and key not in optional:
            raise ValueError(f"{where} has an unknown entry {shown(key)}")
    for key in required:
        if key not in value:
            raise ValueError(f"{where} lacks the entry {key!r}")
    return value


def text(value: object, where: str) -> str:
    """Check that ``value`` is a string."""
    if not isinstance(value, str):
        raise wrong(value, where, "text")
    return value


def optional_text(value: object, where: str) -> str | None:
    """Check that ``value`` is a string or missing."""
    return None if value is None else text(value, where)


def number(value: object, where: str, low: float = -math.inf, high: float = math.inf) -> float:
    """Check that ``value`` is a finite number from ``low`` to ``high``."""
    try:
        found = float(value) if type(value) in (int, float) else math.nan  # type: ignore[arg-type]
    except OverflowError:  # an integer that no float can hold
        found = math.nan
    if not (math.isfinite(found) and low <= found <= high):
        limits = "" if math.isinf(low) and math.isinf(high) else f" from {low:g} to {high:g}"
        raise wrong(value, where, f"a finite number{limits}")
    return found


def whole(value: object, where: str, low: int, high: int) -> int:
    """Check that ``value`` is a whole number from ``low`` to ``high``."""
    if type(value) is not int or not low <= value <= high:
        raise wrong(value, where, f"a whole number from {low:,} to {high:,}")
    return value


def flag(value: object, where: str) -> bool:
    """Check that ``value`` is true or false."""
    if not isinstance(value, bool):
        raise wrong(value, where, "true or false")
    return value


def items(value: object, where: str, count: int | None = None) -> list[Any]:
    """Check that ``value`` is a list, of ``count`` items if that is given."""
    if not isinstance(value, list | tuple) or count not in (None, len(value)):
        raise wrong(value, where, "a list" if count is None else f"a list of {count}")
    return list(value)


def numbers(
    value: object, where: str, count: int, low: float = -math.inf, high: float = math.inf
) -> tuple[float, ...]:
    """Check that ``value`` is a list of ``count`` finite numbers from ``low`` to ``high``."""
    return tuple(number(one, where, low, high) for one in items(value, where, count))


def wrong(value: object, where: str, expected: str) -> ValueError:
    """The error for a ``value`` that is not what its field expects."""
    return ValueError(f"{where} is {shown(value)}: expected {expected}")


def shown(value: object) -> str:
    """Format a value for a message, cut short."""
    try:
        whole_text = repr(value)
    except ValueError:  # an integer of more digits than Python converts
        return "a huge number"
    return whole_text if len(whole_text) <= _SHOWN else f"{whole_text[:_SHOWN]}..."
