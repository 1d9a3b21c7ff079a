"""Read files so that a failure of the system is not taken for a damaged file, or for one that is missing.

Any read may fail because of the disk, a network drive or a lack of permission. That says nothing about the
data and may pass, so it raises a :class:`FailedReadError`: nothing is skipped, decided or cached because of
it. ``os.path.isfile`` and the like answer False instead, and a file whose reads end too early looks damaged.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeGuard

from thumbnet.errors import DataError, FailedReadError, ThumbnetError, printable
from thumbnet.files import open_whole

# A name too long or a cycle of links leads to no file either.
_NOT_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP})
_NO_NAME_ON_WINDOWS = frozenset({123, 1921})  # a name that Windows does not allow, or a cycle of links


def is_not_there(error: OSError) -> bool:
    """Whether ``error`` says that there is no such file, as opposed to a read that failed."""
    return error.errno in _NOT_THERE or getattr(error, "winerror", None) in _NO_NAME_ON_WINDOWS


def is_of_the_system(error: Exception) -> TypeGuard[OSError]:
    """Whether an error that passed through a library is the system's: a library's own have no number."""
    return isinstance(error, OSError) and error.errno is not None


def read_error(error: OSError, path: str | Path) -> ThumbnetError:
    """The error to raise for ``error``, which names a file by itself or else happened at ``path``.

    It is a :class:`FailedReadError`; a :class:`DataError` if there is no such file, or if a library raised
    ``error`` for a reason of its own.
    """
    name = str(path if error.filename is None else os.fsdecode(error.filename))
    reason = error.strerror or str(error)
    if error.errno is None or is_not_there(error):
        return DataError(f"cannot read {printable(name)}: {reason}")
    return FailedReadError(name, reason)


@contextmanager
def reads(path: str | Path) -> Iterator[None]:
    """In this block, an :class:`OSError` becomes the error that :func:`read_error` gives."""
    try:
        yield
    except OSError as error:
        raise read_error(error, path) from None


@contextmanager
def damage_as_data_error(path: str | Path, what: str) -> Iterator[None]:
    """In this block, whatever a library raises because a file is damaged becomes a :class:`DataError`.

    A lack of memory stays a :class:`MemoryError`, and an error of the system becomes the one that
    :func:`read_error` gives.

    Args:
        path: the file that the library reads.
        what: what is wrong, before the library's own reason.
    """
    try:
        yield
    except (ThumbnetError, MemoryError):
        raise
    except Exception as error:  # for a damaged file, libraries raise almost any exception
        if is_of_the_system(error):
            raise read_error(error, path) from None
        raise DataError(f"{what}: {first_line(error)}") from None


def first_line(error: Exception) -> str:
    """The first line of what a library says, or the name of its exception if it says nothing."""
    return printable(str(error).strip().split("\n")[0]) or type(error).__name__


def is_file(path: str | Path) -> bool:
    """Whether there is a file, or a link to one.

    Raises:
        FailedReadError: the system cannot tell.
    """
    state = _state(path)
    return state is not None and stat.S_ISREG(state.st_mode)


def is_folder(path: str | Path) -> bool:
    """Whether there is a folder, or a link to one; see :func:`is_file`."""
    state = _state(path)
    return state is not None and stat.S_ISDIR(state.st_mode)


def exists(path: str | Path) -> bool:
    """Whether there is anything at ``path``; see :func:`is_file`."""
    return _state(path) is not None


def _state(path: str | Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError as error:
        if is_not_there(error):
            return None
        raise read_error(error, path) from None
    except ValueError:  # a NUL in the name
        return None


def version_of(state: os.stat_result) -> tuple[int, int, int]:
    """What changes with a file's content: its size (the first number), and two times in nanoseconds.

    Size and modification time may stay the same: ``rsync -t`` and tar restore times, and archives that are
    built reproducibly have the same time for all files. No program can set the second time (ctime), when the
    file last changed on this computer. So a copied data set counts as a new one.
    """
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns


def inside(folder: str | Path) -> list[Path]:
    """The files and folders in a folder, sorted; none if there is no such folder.

    Raises:
        FailedReadError: it cannot be listed.
    """
    try:
        return [Path(folder, name) for name in sorted(os.listdir(folder))]
    except OSError as error:
        if is_not_there(error):
            return []
        raise read_error(error, folder) from None


def folders_in(folder: str | Path) -> list[Path]:
    """The folders in a folder, and the links to folders, sorted; none if there is no such folder.

    The listing itself tells which names are folders, so a million files next to them cost no look-up each.

    Raises:
        FailedReadError: it cannot be listed, or the system cannot tell where a link in it leads.
    """
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if leads_to_folder(entry)]
    except OSError as error:
        if is_not_there(error):
            return []
        raise read_error(error, folder) from None
    return [Path(folder, name) for name in sorted(names)]


def leads_to_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry of a listing is a folder, or a link to one.

    Raises:
        OSError: the system cannot tell.
    """
    try:
        return entry.is_dir()
    except OSError as error:
        if not is_not_there(error):
            raise
        return False  # a cycle of links


def open_text(path: str | Path, encoding: str, newline: str | None = None) -> io.TextIOWrapper:
    """Open a text file for reading; see :func:`~thumbnet.files.open_whole`."""
    return io.TextIOWrapper(open_whole(path), encoding, newline=newline)


def read_text(path: str | Path, encoding: str = "utf-8") -> str:
    """All text of a file, with ``\\n`` at the ends of lines.

    Raises:
        OSError: as for :func:`~thumbnet.files.read_whole`.
        UnicodeDecodeError: it is not text in that encoding.
    """
    with open_text(path, encoding) as file:
        return file.read()
