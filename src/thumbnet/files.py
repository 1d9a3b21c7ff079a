"""Files written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import platformdirs

from thumbnet.errors import RunError


def cache_folder() -> Path:
    """Where thumbnet keeps what it can make again: ``THUMBNET_CACHE``, or the user's cache folder."""
    named = os.environ.get("THUMBNET_CACHE")
    return Path(named) if named else platformdirs.user_cache_path("thumbnet")


def write_file(path: Path, content: bytes | str) -> None:
    """Write ``content`` to ``path``; see :func:`write_with`.

    Text as UTF-8; the bytes of a file name that are no text as ``\\udcff``, which is what JSON has for them.
    """
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    write_with(path, lambda file: file.write(data))


def write_with(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Have ``write`` fill a new file in the same folder, sync it to the disk, and rename it to ``path``.

    Whatever happens, ``path`` is either as it was or complete.

    Raises:
        RunError: the file cannot be written: no space, no permission, no such folder.
    """
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False
        ) as file:
            temporary = Path(file.name)
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise RunError(
            f"cannot write {path}: {error.strerror or error}. What was there before is kept."
        ) from None
    except RuntimeError as error:  # torch reports a full disk as one
        raise RunError(f"cannot write {path}: {error}. What was there before is kept.") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def clear_leftovers(folder: Path, prefix: str) -> None:
    """Remove what processes killed a day ago or longer left in ``folder``, by its names' ``prefix``."""
    for path in folder.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > 24 * 3600:
                shutil.rmtree(path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """So that the rename itself survives a power cut, where the system can do that."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
