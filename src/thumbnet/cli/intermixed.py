"""Accept options and arguments in any order, also after a command's name."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any


class IntermixedParser(argparse.ArgumentParser):
    """A parser that accepts ``RUN --json DATA`` as well as ``RUN DATA --json``.

    argparse fills optional arguments such as ``[DATA]`` when it meets the first argument, and reports later
    arguments as unrecognised. Its ``parse_intermixed_args`` avoids this, but argparse parses commands with
    ``parse_known_args``. So this class makes ``parse_known_args`` accept intermixed arguments.
    """

    _intermixing = False

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse like argparse's method, but accept options and arguments in any order."""
        nested = any(action.nargs in (argparse.PARSER, argparse.REMAINDER) for action in self._actions)
        if self._intermixing or nested:
            return super().parse_known_args(args, namespace)
        self._intermixing = True
        try:
            namespace, extras = super().parse_known_intermixed_args(args, namespace)
        finally:
            self._intermixing = False
        # After an unknown option, argparse leaves valid arguments over too. Only the option is the error.
        unknown = [text for text in extras if text.startswith("-") and text != "-"]
        return namespace, unknown or extras
