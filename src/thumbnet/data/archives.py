"""Unpack an archive into the cache folder, safely and once."""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO

from thumbnet.errors import DataError
from thumbnet.files import clear_leftovers

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".zip")
MAX_EXPANSION = 200  # how many times its own size an archive may unpack to: more is a bomb


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
    total = 0
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isdir():
                continue
            if not member.isreg():  # links and devices have no place among pictures
                raise DataError(f"{archive}: the member {member.name!r} is not an ordinary file: refused")
            # tar itself strips leading slashes, too.
            target = _place(archive, folder, member.name.lstrip("/"))
            source = tar.extractfile(member)
            assert source is not None  # of ordinary files only
            total = _write(source, target, archive, total, limit)


def _unpack_zip(archive: Path, folder: Path, limit: int) -> None:
    total = 0
    with zipfile.ZipFile(archive) as zipped:
        for info in zipped.infolist():
            target = _place(archive, folder, info.filename)
            if stat.S_ISLNK(info.external_attr >> 16):
                raise DataError(f"{archive}: the member {info.filename!r} is a link: refused")
            if info.flag_bits & 1:
                raise DataError(f"{archive} is encrypted: unpack it yourself and name the folder")
            if not info.is_dir():
                with zipped.open(info) as source:
                    total = _write(source, target, archive, total, limit)


def _place(archive: Path, folder: Path, name: str) -> Path:
    """Where in ``folder`` a member goes.

    Raises:
        DataError: outside.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or not path.parts or ":" in path.parts[0]:
        raise DataError(f"{archive}: the member {name!r} would land outside: refused")
    return folder / path


def _write(source: IO[bytes], target: Path, archive: Path, total: int, limit: int) -> int:
    """Copy a member; ``total`` bytes are unpacked already, and with its own are returned."""
    try:
        file = target.open("wb")
    except FileNotFoundError:  # asked for beforehand, 60,000 times, it takes two seconds
        target.parent.mkdir(parents=True, exist_ok=True)
        file = target.open("wb")
    with file:
        while block := source.read(1 << 20):  # what comes out counts, not what is declared
            total += len(block)
            _check_size(archive, total, limit)
            file.write(block)
    return total


def _check_size(archive: Path, total: int, limit: int) -> None:
    if total > limit:
        raise DataError(
            f"{archive} unpacks to more than {MAX_EXPANSION} times its {os.path.getsize(archive):,} bytes: "
            "refused as a bomb. If it is right, unpack it yourself and name the folder."
        )
