"""Options and arguments in any order, in commands too."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any


class IntermixedParser(argparse.ArgumentParser):
    """A command's parser that takes ``RUN --json DATA`` as well as ``RUN DATA --json``.

    argparse fills optional arguments such as ``[DATA]`` as soon as it meets the first one, and calls later
    ones unrecognised. Its ``parse_intermixed_args`` does better, but not for commands: they are parsed by
    ``parse_known_args``, which this class makes intermixed.
    """

    _intermixing = False

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """As argparse's, but the order of options and arguments is free."""
        nested = any(action.nargs in (argparse.PARSER, argparse.REMAINDER) for action in self._actions)
        if self._intermixing or nested:
            return super().parse_known_args(args, namespace)
        self._intermixing = True
        try:
            namespace, extras = super().parse_known_intermixed_args(args, namespace)
        finally:
            self._intermixing = False
        # An unknown option separates arguments, so that known ones are left over too: it alone is the error.
        unknown = [text for text in extras if text.startswith("-") and text != "-"]
        return namespace, unknown or extras
