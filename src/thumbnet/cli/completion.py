"""``thumbnet completion``."""

from __future__ import annotations

import argparse
from typing import Any

_FILES = frozenset({"DATA", "RUN", "PATH", "FILE", "DIR", "OUT"})  # metavars of paths, for the shell


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "completion",
        help="print a shell completion script",
        description="Print a completion script for your shell. For bash:\n"
        "  %(prog)s bash > ~/.local/share/bash-completion/completions/thumbnet",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", metavar="SHELL", choices=["bash", "zsh", "tcsh"], help="bash, zsh or tcsh")
    parser.set_defaults(command=execute)


def execute(options: argparse.Namespace) -> int:
    from thumbnet.cli.console import say
    from thumbnet.cli.usage import with_subparsers
    from thumbnet.errors import needs_extra

    with needs_extra("a completion script", "completion"):
        import shtab
    parser = options.build_parser()
    for each in with_subparsers(parser):
        for action in each._actions:
            if action.metavar in _FILES:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    say(shtab.complete(parser, options.shell))
    return 0
