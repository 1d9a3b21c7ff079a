"""Generates the site's reference of commands from the code, and keeps options in one piece.

MkDocs calls :func:`on_files` and :func:`on_page_content`.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

COMMANDS = "reference/commands.md"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page of commands to the site's files."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, COMMANDS, content=commands_page()))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Mark short options, so that the style can keep them from being broken after a hyphen."""
    return re.sub(r"<code>(-[^<]{1,28})</code>", r'<code class="option">\1</code>', html)


def commands_page() -> str:
    """The page of commands: every command with its options, as Markdown."""
    from thumbnet.cli import build_parser

    lines = ["# Commands", "", "Generated from the program. `thumbnet COMMAND --help` prints the same.", ""]
    for name, help_, parser in _commands(build_parser()):
        lines += [
            f"## {name}",
            "",
            (parser.description or "").replace("%(prog)s", parser.prog) or f"{help_[:1].upper()}{help_[1:]}.",
            "",
        ]
        parser.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=80)  # on any terminal
        usage = parser.format_usage().removeprefix("usage: ").strip().splitlines()
        lines += ["```text", usage[0], *(f"    {line.strip()}" for line in usage[1:]), "```", ""]
        rows = [row for row in map(_row, parser._actions) if row]
        if rows:
            lines += ["| option | what it does |", "| --- | --- |", *rows, ""]
        if parser.epilog:
            lines += ["```text", *_examples(parser.epilog.replace("%(prog)s", parser.prog)), "```", ""]
    return "\n".join(lines)


def _commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, inner in action.choices.items():
                yield inner.prog, helps.get(name, ""), inner
                yield from _commands(inner)


def _examples(epilog: str) -> list[str]:
    """The lines that a command's help prints below the options; backslashes break those that are too long."""
    indent = 6 * " "
    return [
        " \\\n".join(textwrap.wrap(line, 88, subsequent_indent=indent, break_on_hyphens=False))
        for line in epilog.splitlines()
    ]


def _row(action: argparse.Action) -> str | None:
    if isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
        return None
    words = action.metavar or (
        f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.dest.upper()
    )
    name = ", ".join(action.option_strings)
    takes = "" if action.nargs == 0 else f" {words}"
    label = f"{name}{takes}" if name else str(words)
    help_ = (action.help or "").replace("|", "\\|").replace("%%", "%")
    return f"| `{label}` | {help_} |"
