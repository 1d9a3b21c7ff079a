"""Which processor this is, as Linux describes it. Imports no torch, and nothing of the kernels."""

from __future__ import annotations

from pathlib import Path


def instructions() -> set[str]:
    """The instruction sets of the first processor, as Linux calls them; empty on other systems."""
    return {name for line in description() if line.startswith("flags") for name in line.split()}


def description() -> list[str]:
    """The lines with the model and the instruction sets of the first processor, from Linux; or none."""
    try:
        first = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").split("\n\n")[0]
    except OSError:  # a container may hide it
        return []
    return [line for line in first.splitlines() if line.startswith(("model name", "flags"))]
