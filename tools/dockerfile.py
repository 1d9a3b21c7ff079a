"""Reads a Dockerfile, as far as ours goes: stages of instructions."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Stage:
    """One stage: its name, and its instructions as pairs of keyword and arguments."""

    name: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def last(self, keyword: str) -> str:
        """The arguments of the last instruction with this keyword.

        Raises:
            KeyError: the stage has none.
        """
        for found, arguments in reversed(self.instructions):
            if found == keyword:
                return arguments
        raise KeyError(keyword)

    def words(self, keyword: str) -> list[str]:
        """The words of the last instruction with this keyword, in exec form.

        Raises:
            ValueError: it is not in exec form, so a shell would come between.
        """
        words: list[str] = json.loads(re.sub(r"^[^\[]*CMD ", "", self.last(keyword)))
        return words

    def environment(self) -> dict[str, str]:
        """What ENV sets."""
        values = [
            word for keyword, text in self.instructions if keyword == "ENV" for word in shlex.split(text)
        ]
        return dict(value.split("=", 1) for value in values)


def read_stages(path: Path) -> dict[str, Stage]:
    """The stages of a Dockerfile by name."""
    text = re.sub(r"(?m)^\s*#.*\n?", "", path.read_text("utf-8")).replace("\\\n", " ")
    stages: dict[str, Stage] = {}
    current = None
    for line in text.splitlines():
        keyword, _, arguments = line.strip().partition(" ")
        if keyword == "FROM":
            current = Stage(arguments.split(" AS ")[1])
            stages[current.name] = current
        elif keyword and current is not None:
            current.instructions.append((keyword, arguments.strip()))
    return stages
