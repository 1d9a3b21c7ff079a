"""Unpack an archive into the cache folder, safely and once."""

from __future__ import annotations

import contextlib
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
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from thumbnet.data import plugins
from thumbnet.errors import DataError, printable
from thumbnet.files import clear_leftovers
from thumbnet.sources.index import is_picture_name, is_picture_start
from thumbnet.sources.packed import Pack, PackWriter, Unpacked

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".tbz", ".zip")
MAX_EXPANSION = 200  # how many times its own size an archive may unpack to: more is a bomb

_BLOCK = 1 << 20  # bytes read and written at a time
_FILES = "files"  # the folder of what is no picture
_VERSION = f"3 {plugins.fingerprint()}"  # of what an archive becomes: plug-ins decide what is a picture


def is_archive_name(name: str) -> bool:
    """Whether a file's name says that it is an archive known here."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def unpack(archive: Path, cache: Path) -> Unpacked:
    """Unpack an archive into a folder below ``cache``, unless it is there already.

    Keyed by the archive's path, size and time. Unpacked elsewhere and renamed, so that the folder
    is whole whenever it exists.

    Raises:
        DataError: damaged, a bomb, or with members that would land outside the folder.
    """
    try:
        state = archive.stat()
    except OSError as error:
        raise DataError(f"cannot read {printable(str(archive))}: {error.strerror}") from None
    depends = f"{_VERSION}\0{archive.resolve()}\0{state.st_size}\0{state.st_mtime_ns}"
    key = hashlib.blake2b(os.fsencode(depends), digest_size=8).hexdigest()
    target = cache / "unpacked" / f"{archive.name.split('.')[0]}-{key}"
    kept = _open(target, key)
    if kept is not None:
        return kept
    limit = MAX_EXPANSION * state.st_size + (1 << 20)
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(target.parent, ".unpacking-")
        temporary = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=target.parent))
        with PackWriter(temporary) as pictures:
            writer = _Writer(archive, temporary / _FILES, pictures, limit)
            if zipfile.is_zipfile(archive):
                _unpack_zip(archive, writer)
            else:
                _unpack_tar(archive, writer)
        if _open(target, key) is None:  # else another process was faster with the same archive
            shutil.rmtree(target, ignore_errors=True)  # a damaged one
            with contextlib.suppress(OSError):
                temporary.rename(target)
        return Unpacked(target / _FILES, Pack(target, key))
    except (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError) as error:
        raise DataError(f"cannot unpack {printable(str(archive))}: {printable(str(error))}") from None
    except OSError as error:
        raise DataError(
            f"cannot unpack {printable(str(archive))} into {target.parent}: {printable(str(error))}"
        ) from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _open(target: Path, key: str) -> Unpacked | None:
    """The result of an earlier unpacking; None if there is none, or it is not complete."""
    try:
        return Unpacked(target / _FILES, Pack(target, key)) if (target / _FILES).is_dir() else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _unpack_tar(archive: Path, writer: _Writer) -> None:
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isdir():
                continue
            if not member.isreg():  # links and devices have no place among pictures
                raise DataError(
                    f"{printable(str(archive))}: the member {member.name!r} is not an ordinary file: refused"
                )
            source = tar.extractfile(member)
            assert source is not None  # of ordinary files only
            writer.write(member.name.lstrip("/"), source)  # tar itself strips leading slashes, too


def _unpack_zip(archive: Path, writer: _Writer) -> None:
    with zipfile.ZipFile(archive) as zipped:
        for info in zipped.infolist():
            if stat.S_ISLNK(info.external_attr >> 16):
                raise DataError(f"{printable(str(archive))}: the member {info.filename!r} is a link: refused")
            if info.flag_bits & 1:
                raise DataError(
                    f"{printable(str(archive))} is encrypted: unpack it yourself and name the folder"
                )
            if not info.is_dir():
                with zipped.open(info) as source:
                    writer.write(info.filename, source)


class _Writer:
    """Write an archive's members: pictures to a pack, other files and all folders to ``folder``."""

    def __init__(self, archive: Path, folder: Path, pictures: PackWriter, limit: int) -> None:
        self._archive, self._folder, self._pictures = archive, folder, pictures
        self._limit, self._total = limit, 0
        self._parents: set[PurePosixPath] = set()
        folder.mkdir()

    def write(self, name: str, source: IO[bytes]) -> None:
        """Write the content of ``source``.

        Raises:
            DataError: it would land outside, or more comes out than ``limit`` bytes.
            OSError: it cannot be written.
        """
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or not path.parts or ":" in path.parts[0] or "\0" in name:
            raise DataError(
                f"{printable(str(self._archive))}: the member {name!r} would land outside: refused"
            )
        if path.parent not in self._parents:
            (self._folder / path.parent).mkdir(parents=True, exist_ok=True)
            self._parents.add(path.parent)
        blocks = self._blocks(source)
        head = next(blocks, b"")
        blocks = itertools.chain([head], blocks) if head else blocks
        if is_picture_name(path.name) or ("." not in path.name and is_picture_start(head)):
            self._pictures.add(str(path), blocks)
        else:
            with (self._folder / path).open("wb") as file:
                file.writelines(blocks)

    def _blocks(self, source: IO[bytes]) -> Iterator[bytes]:
        while block := source.read(_BLOCK):
            self._total += len(block)  # what comes out counts, not what is declared
            if self._total > self._limit:
                raise DataError(
                    f"{printable(str(self._archive))} unpacks to more than {MAX_EXPANSION} times its "
                    f"{os.path.getsize(self._archive):,} bytes: refused as a bomb. If it is right, unpack it "
                    "yourself and name the folder."
                )
            yield block
