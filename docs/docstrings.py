"""Turns docstrings into Markdown for the documentation site. griffe loads this extension."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|data):`~?([^`]+)`")
EXAMPLE = re.compile(r"^(>>> .*(?:\n\S.*)*)", re.MULTILINE)
FENCED = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)


class AsMarkdown(griffe.Extension):
    """Turns Sphinx roles into code, and doctest examples into fenced blocks."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """The Markdown of a docstring without its indentation. What is fenced already stays as it is."""
    parts = FENCED.split(text)
    return "".join(part if FENCED.match(part) else _converted(part) for part in parts)


def _converted(text: str) -> str:
    text = ROLE.sub(lambda found: f"`{found[1].rpartition('.')[2]}`", text)
    return EXAMPLE.sub(r"```pycon\n\1\n```", text)
