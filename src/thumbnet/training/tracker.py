"""What every tracker can do, and the file in which a run's folder remembers a tracker's name for it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from thumbnet.files import write_file

How = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class Facts:
    """What a tracker is told when a training begins.

    Attributes:
        folder: the run's folder. The tracker remembers its own name for the run there, for a resume.
        parameters: the recipe, by key: ``optimizer.lr``.
        tags: the data's name and fingerprint, the git commit, versions and the device.
    """

    folder: Path
    parameters: Mapping[str, str | int | float]
    tags: Mapping[str, str]


class Tracker(Protocol):
    """A program that keeps the numbers of many trainings. Everything may raise any exception."""

    name: str
    where: str  # after `begin`: what the user should know to find the entry; may be empty

    def begin(self, facts: Facts) -> int:
        """Open the training's entry, the same one after a resume; return the last step in it, or -1."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add the values of an epoch that ended with ``step``."""

    def finish(self, values: Mapping[str, float], tags: Mapping[str, str], files: Sequence[Path]) -> None:
        """Add the final values and files."""

    def close(self, how: How) -> None:
        """Close the entry. A stopped training may be resumed later."""


def remembered(path: Path) -> str | None:
    """The name under which a tracker knows the run, from a file in its folder; None if there is none."""
    with suppress(OSError, ValueError, RecursionError):
        values = json.loads(path.read_text("utf-8"))
        name = values.get("id") if isinstance(values, dict) else None
        if isinstance(name, str) and re.fullmatch(r"[\w-]{1,64}", name, re.ASCII):
            return name
    return None


def remember(path: Path, name: str) -> None:
    """Write the file that :func:`remembered` reads."""
    write_file(path, json.dumps({"id": name}) + "\n")
