"""Docstrings for the site: what is written for Python's help() as Markdown (griffe calls this)."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|data):`~?([^`]+)`")
EXAMPLE = re.compile(r"^(>>> .*(?:\n\S.*)*)", re.MULTILINE)


class AsMarkdown(griffe.Extension):
    """Turns roles into code, and examples into fenced blocks."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """A docstring's text, without its indentation."""
    text = ROLE.sub(lambda found: f"`{found[1].rpartition('.')[2]}`", text)
    return EXAMPLE.sub(r"```pycon\n\1\n```", text)
