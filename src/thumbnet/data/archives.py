"""Unpack an archive into the cache folder, safely and once."""

from __future__ import annotations

import hashlib
import itertools
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import IO, Self

from thumbnet.errors import DataError
from thumbnet.files import clear_leftovers

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".zip")
MAX_EXPANSION = 200  # how many times its own size an archive may unpack to: more is a bomb

_BLOCK = 1 << 20  # bytes read and written at a time
_AHEAD = 256  # small files unpacked, but not yet written


def is_archive_name(name: str) -> bool:
    """Whether a file's name says that it is an archive known here."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def unpack(archive: Path, cache: Path) -> Path:
    """The folder, below ``cache``, that holds the archive's files; unpacked if it is not yet there.

    Keyed by the archive's path, size and time. Unpacked elsewhere and renamed, so that the folder
    is whole whenever it exists.

    Raises:
        DataError: damaged, a bomb, or with members that would land outside the folder.
    """
    try:
        state = archive.stat()
    except OSError as error:
        raise DataError(f"cannot read {archive}: {error.strerror}") from None
    key = hashlib.blake2b(
        f"{archive.resolve()}\0{state.st_size}\0{state.st_mtime_ns}".encode(), digest_size=8
    ).hexdigest()
    target = cache / "unpacked" / f"{archive.name.split('.')[0]}-{key}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    limit = MAX_EXPANSION * state.st_size + (1 << 20)
    clear_leftovers(target.parent, ".unpacking-")
    temporary = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=target.parent))
    try:
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, temporary, limit)
        else:
            _unpack_tar(archive, temporary, limit)
        try:
            temporary.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was faster with the same archive
                raise
        return target
    except (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError) as error:
        raise DataError(f"cannot unpack {archive}: {error}") from None
    except OSError as error:
        raise DataError(f"cannot unpack {archive} into {target.parent}: {error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _unpack_tar(archive: Path, folder: Path, limit: int) -> None:
    with _Writer(archive, limit) as writer, tarfile.open(archive) as tar:
        for member in tar:
            if member.isdir():
                continue
            if not member.isreg():  # links and devices have no place among pictures
                raise DataError(f"{archive}: the member {member.name!r} is not an ordinary file: refused")
            # tar itself strips leading slashes, too.
            target = _place(archive, folder, member.name.lstrip("/"))
            source = tar.extractfile(member)
            assert source is not None  # of ordinary files only
            writer.copy(source, target)


def _unpack_zip(archive: Path, folder: Path, limit: int) -> None:
    with _Writer(archive, limit) as writer, zipfile.ZipFile(archive) as zipped:
        for info in zipped.infolist():
            target = _place(archive, folder, info.filename)
            if stat.S_ISLNK(info.external_attr >> 16):
                raise DataError(f"{archive}: the member {info.filename!r} is a link: refused")
            if info.flag_bits & 1:
                raise DataError(f"{archive} is encrypted: unpack it yourself and name the folder")
            if not info.is_dir():
                with zipped.open(info) as source:
                    writer.copy(source, target)


def _place(archive: Path, folder: Path, name: str) -> Path:
    """Where in ``folder`` a member goes.

    Raises:
        DataError: outside.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.parts or ":" in path.parts[0]:
        raise DataError(f"{archive}: the member {name!r} would land outside: refused")
    return folder / path


class _Writer:
    """Writes members in a thread of its own, while others are being unpacked: making 60,000 small files
    takes longer than unpacking them.

    Raises, in whatever it is asked and at the end of its ``with``:
        DataError: more comes out than ``limit`` bytes.
        OSError: a file cannot be written.
    """

    def __init__(self, archive: Path, limit: int) -> None:
        self.archive, self.limit, self.total = archive, limit, 0
        self._thread = ThreadPoolExecutor(1)
        self._pending: deque[Future[None]] = deque()

    def copy(self, source: IO[bytes], target: Path) -> None:
        """Write what ``source`` gives to ``target``, now or soon."""
        block = self._read(source)
        if len(block) < _BLOCK:
            self._pending.append(self._thread.submit(_write, target, [block]))
            self._wait(_AHEAD)
            return
        self._wait(0)
        rest = iter(lambda: self._read(source), b"")
        _write(target, itertools.chain([block], rest))

    def _read(self, source: IO[bytes]) -> bytes:
        block = source.read(_BLOCK)
        self.total += len(block)  # what comes out counts, not what is declared
        _check_size(self.archive, self.total, self.limit)
        return block

    def _wait(self, count: int) -> None:
        """Until no more than ``count`` files are still to be written."""
        while len(self._pending) > count:
            self._pending.popleft().result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown(cancel_futures=error[0] is not None)
        if error[0] is None:
            self._wait(0)


def _write(target: Path, blocks: Iterable[bytes]) -> None:
    try:
        file = target.open("wb")
    except FileNotFoundError:  # asked for beforehand, 60,000 times, it takes two seconds
        target.parent.mkdir(parents=True, exist_ok=True)
        file = target.open("wb")
    with file:
        for block in blocks:
            file.write(block)


def _check_size(archive: Path, total: int, limit: int) -> None:
    if total > limit:
        raise DataError(
            f"{archive} unpacks to more than {MAX_EXPANSION} times its {os.path.getsize(archive):,} bytes: "
            "refused as a bomb. If it is right, unpack it yourself and name the folder."
        )
