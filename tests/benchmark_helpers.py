"""Shared by the tests of the benchmarks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def interrupt_and_continue(
    benchmark: ModuleType,
    name: str,
    measure: Callable[..., dict[str, Any]],
    words: Sequence[str],
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> int:
    """Run a benchmark that is interrupted in its sixth measurement, and then run it again to its end.

    Nothing may be measured twice.

    Args:
        benchmark: the program.
        name: its function that measures one thing, which ``measure`` replaces.
        words: its arguments.
        file: where it keeps its results.

    Returns:
        The number of measurements.
    """
    measured: list[str] = []
    first = True

    def noted(*arguments: Any) -> dict[str, Any]:
        if first and len(measured) == 5:
            raise KeyboardInterrupt
        measured.append(str(arguments))
        return measure(*arguments)

    monkeypatch.setattr(benchmark, name, noted)
    monkeypatch.setattr(sys, "argv", [f"{benchmark.__name__}.py", *words, "--json", str(file)])
    with pytest.raises(KeyboardInterrupt):
        benchmark.main()
    first = False
    benchmark.main()
    assert len(set(measured)) == len(measured)
    return len(measured)
