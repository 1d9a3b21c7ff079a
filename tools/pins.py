"""Reads files of pins: constraints.txt and the locks."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
LOCKS = ROOT / "locks"


@dataclass
class Pin:
    """One exact version of a package, as ``NAME==VERSION ; MARKER`` with hashes says it.

    Attributes:
        name: the normalised name: ``tomli-w``.
        version: the version.
        marker: for which platforms and Pythons; empty for all.
        hashes: the files that are accepted, each as ``sha256:...``.
    """

    name: str
    version: str
    marker: str = ""
    hashes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        head = f"{self.name}=={self.version}" + (f" ; {self.marker}" if self.marker else "")
        return " \\\n    --hash=".join([head, *self.hashes])


def normalised(name: str) -> str:
    """The name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_pins(path: Path) -> dict[str, Pin]:
    """The pins of a file by name; no pins if there is no such file.

    Raises:
        ValueError: a line is not a pin, or a package has two versions.
    """
    pins: dict[str, Pin] = {}
    text = path.read_text("utf-8") if path.exists() else ""
    for line in re.sub(r"(?m)^#.*\n?", "", text).replace("\\\n", "").splitlines():
        head, *hashes = re.split(r"\s+--hash=", line.strip())
        requirement, _, marker = head.partition(";")
        name, equals, version = requirement.strip().partition("==")
        if not head:
            continue
        if not equals or not re.fullmatch(r"[\w.!+-]+", version):
            raise ValueError(f"{path}: expected NAME==VERSION, got {head!r}")
        if normalised(name) in pins:
            raise ValueError(f"{path}: two versions of {name}")
        pins[normalised(name)] = Pin(normalised(name), version, marker.strip(), hashes)
    return pins


def write_pins(path: Path, comment: str, pins: dict[str, Pin]) -> None:
    """Write pins in alphabetical order below a comment."""
    lines = [f"# {line}" for line in comment.splitlines()] + [str(pins[name]) for name in sorted(pins)]
    path.write_text("\n".join(lines) + "\n", "utf-8")
