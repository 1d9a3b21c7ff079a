"""What the n-th-failure tests break on purpose, to see that they notice it. The fork server calls these in a child."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


def write_in_place() -> None:
    """Files are not written under another name first."""

    def write_with(path: Path, write: Callable[[IO[bytes]], object]) -> None:
        with path.open("wb") as file:
            write(file)

    _replace("write_with", write_with)


def swallow_errors() -> None:
    """A file that cannot be written is no error."""
    from thumbnet import files

    write_with = files.write_with

    def trying(path: Path, write: Callable[[IO[bytes]], object]) -> None:
        with contextlib.suppress(Exception):
            write_with(path, write)

    _replace("write_with", trying)


def believe_short_files() -> None:
    """What a read returns is taken for the whole file."""
    _replace("read_whole", lambda path, limit=-1: path.open("rb").read(limit))


def _replace(name: str, new: Any) -> None:
    """Replace a function of thumbnet.files in each module that has imported it."""
    from thumbnet import files

    old = getattr(files, name)
    for module in [files, *(one for key, one in sys.modules.items() if key.startswith("thumbnet."))]:
        if getattr(module, name, None) is old:
            setattr(module, name, new)
