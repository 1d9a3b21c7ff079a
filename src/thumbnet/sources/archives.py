"""Unpack an archive into the cache folder. Safe for hostile archives, and done only once per archive."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shutil
import stat
import struct
import threading
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from thumbnet.data import plugins
from thumbnet.data.reading import is_folder, reads, version_of
from thumbnet.errors import DataError, printable
from thumbnet.files import check_reads, new_folder, open_whole, open_zip, sync_below
from thumbnet.sources.index import is_picture_name, is_picture_start
from thumbnet.sources.packed import Pack, PackWriter, Unpacked
from thumbnet.sources.tar import DAMAGED, Readable, members

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".tbz", ".zip")
MAX_EXPANSION = 200  # an archive that unpacks to more than this many times its size is refused as a bomb

_BLOCK = 1 << 20  # bytes read and written at a time
_PER_MEMBER = 2048  # bytes that a member counts beyond its content: empty files fill a disk as well
_HEADERS = 4  # a tar may decompress to this many times the limit: headers and padding come on top of content
_SIP = 4096
# What damage may raise. zipfile adds RuntimeError (encryption, unknown methods), struct.error and IndexError.
_DAMAGED = (*DAMAGED, zipfile.BadZipFile, RuntimeError, struct.error, IndexError, OverflowError)
_READ_IN_SIPS = (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, *_READ_IN_SIPS)
_FILES = "files"  # the folder for files that are not pictures
_UTF_8 = 0x800  # the flag of a zip member whose name is UTF-8
_VERSION = f"4 {plugins.fingerprint()}"  # of the unpacked form; the plug-ins decide which files are pictures


def is_archive_name(name: str) -> bool:
    """Whether a file name has the suffix of a supported archive."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


_unpacking = threading.Lock()
_ahead: dict[Path, Unpacked] = {}


def unpack(archive: Path, cache: Path, *, ahead: threading.Event | None = None) -> Unpacked:
    """Unpack an archive into a folder below ``cache``, unless an earlier call has done so.

    If another thread is unpacking, wait for it. With ``ahead``, the next call gets the same result without
    opening it again, and once ``ahead`` is set, unpacking ends with a :class:`DataError` and leaves nothing.

    The folder's name depends on the archive's path, size and times. The archive is unpacked into a temporary
    folder, which is then renamed, so a folder with the final name is always complete.

    Raises:
        DataError: the archive is damaged, encrypted or a bomb, has a member that would be written outside the
            folder or is not a plain file, or cannot be read or unpacked.
    """
    with _unpacking:
        with reads(archive):
            state = archive.stat()
        depends = f"{_VERSION}\0{archive.resolve()}\0{version_of(state)}"
        key = hashlib.blake2b(os.fsencode(depends), digest_size=8).hexdigest()
        target = cache / "unpacked" / f"{archive.name.split('.')[0]}-{key}"
        limit = MAX_EXPANSION * state.st_size + (1 << 20)
        unpacked = _ahead.pop(target, None)
        if unpacked is None or not is_folder(unpacked.folder):
            unpacked = _open(target, key) or _unpack(archive, target, key, limit, ahead)
        if ahead is not None:
            _ahead[target] = unpacked
        return unpacked


def _unpack(
    archive: Path, target: Path, key: str, limit: int, stop: threading.Event | None = None
) -> Unpacked:
    """Unpack an archive of at most ``limit`` bytes into the folder ``target``, unless ``stop`` is set."""
    try:
        with new_folder(target, ".unpacking-") as whole:
            with PackWriter(whole) as pictures:
                writer = _Writer(archive, whole / _FILES, pictures, limit, stop)
                if _is_zip(archive):
                    _unpack_zip(archive, writer)
                else:
                    _unpack_tar(archive, writer)
            sync_below(whole)
            if _open(target, key) is None:  # otherwise another process has unpacked it in the meantime
                shutil.rmtree(target, ignore_errors=True)  # a damaged earlier result
                with contextlib.suppress(OSError):
                    whole.rename(target)
        return Unpacked(target / _FILES, Pack(target, key))
    except _DAMAGED as error:
        raise DataError(f"cannot unpack {printable(str(archive))}: {printable(str(error))}") from None
    except OSError as error:
        raise DataError(
            f"cannot unpack {printable(str(archive))} into {target.parent}: {printable(str(error))}. "
            "Another folder: --data-dir, or the variable THUMBNET_CACHE"
        ) from None


def _is_zip(archive: Path) -> bool:
    with open_whole(archive) as file:
        found = zipfile.is_zipfile(file)  # False, too, if a read has failed
        check_reads(file)
        return found


def _open(target: Path, key: str) -> Unpacked | None:
    """The result of an earlier call; None if it does not exist or is damaged.

    Raises:
        DataError: another user's result may not be read.
    """
    try:
        return Unpacked(target / _FILES, Pack(target, key)) if (target / _FILES).is_dir() else None
    except PermissionError:
        raise DataError(
            f"the archive is unpacked in {printable(str(target))}, which you may not read. Ask the owner for "
            "permission, or unpack it into another folder with --data-dir"
        ) from None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _unpack_tar(archive: Path, writer: _Writer) -> None:
    for name, content in members(archive, _HEADERS * writer.limit):
        if content is None:
            raise DataError(
                f"{printable(str(archive))} is refused: the member {name!r} is not a plain file. If it is a "
                "link, pack what it leads to (tar --dereference --hard-dereference), or unpack the archive "
                "and pass the folder"
            )
        writer.write(name.lstrip("/"), content)  # tar strips leading slashes too


def _unpack_zip(archive: Path, writer: _Writer) -> None:
    with open_zip(archive) as zipped:
        names = _utf_8_names(zipped.infolist())
        for info in zipped.infolist():
            if stat.S_ISLNK(info.external_attr >> 16):
                raise DataError(f"{printable(str(archive))} is refused: {info.filename!r} in it is a link")
            if info.flag_bits & 1:
                raise DataError(
                    f"{printable(str(archive))} is encrypted: unpack it yourself and pass the folder"
                )
            if info.compress_type not in _METHODS:
                raise DataError(
                    f"{printable(str(archive))} is compressed by method {info.compress_type}, which thumbnet "
                    "does not read: unpack it yourself and pass the folder"
                )
            # Some archivers of Windows write backslashes, with which zipfile knows no folder.
            if info.is_dir() or (info.filename.endswith("\\") and not info.file_size):
                continue
            with zipped.open(info) as source:
                writer.write(
                    names.get(info.filename, info.filename),
                    _Sips(source) if info.compress_type in _READ_IN_SIPS else source,
                )


def _utf_8_names(infos: Sequence[zipfile.ZipInfo]) -> dict[str, str]:
    """The names of members that are UTF-8 without a flag that says so; empty unless all such names are.

    zipfile reads names without the flag as code page 437.
    """
    names = [info.filename for info in infos if not info.flag_bits & _UTF_8 and not info.filename.isascii()]
    try:
        return {name: name.encode("cp437").decode("utf-8") for name in names}
    except UnicodeError:
        return {}


def note_on_names(archive: Path, class_names: Iterable[str]) -> list[str]:
    """A warning if class names come from a zip that does not say how its names are encoded."""
    odd = [name for name in class_names if not name.isascii()]
    if not odd or not _is_zip(archive):
        return []
    with open_zip(archive) as zipped:
        infos = zipped.infolist()
    names = _utf_8_names(infos)
    if any(ord(letter) > 0x7FF for name in names.values() for letter in name):
        return []  # two bytes that make a letter in UTF-8 may be one of GBK, but three hardly by chance
    unknown = [names.get(info.filename, info.filename) for info in infos if not info.flag_bits & _UTF_8]
    wrong = next((name for name in odd if any(name in path for path in unknown)), None)
    if wrong is None:
        return []
    return [
        f"warning: {printable(archive.name)} does not say how its file names are encoded, so class names such"
        f" as {printable(wrong)!r} may be wrong. If they are, unpack it yourself, for example with "
        "unzip -O gbk, and name the folder"
    ]


class _Sips:
    """A member of a zip that is read a little at a time.

    zipfile decompresses all that it has read with bzip2 or LZMA at once, without a limit: a megabyte may
    become gigabytes. Four kilobytes become 90 MB at most.
    """

    def __init__(self, source: Readable) -> None:
        self._source = source

    def read(self, size: int = _SIP) -> bytes:
        """The next bytes, ``_SIP`` at most."""
        return self._source.read(min(size, _SIP))


class _Writer:
    """Writes the members of an archive: pictures to a pack, other files and all folders to ``folder``."""

    def __init__(
        self, archive: Path, folder: Path, pictures: PackWriter, limit: int, stop: threading.Event | None
    ) -> None:
        self._archive, self._folder, self._pictures, self._stop = archive, folder, pictures, stop
        self.limit, self._total = limit, 0
        self._folders: dict[str, str] = {}  # as in the archive: as written
        folder.mkdir()

    def write(self, name: str, source: Readable) -> None:
        """Write the content of ``source`` under ``name``.

        Raises:
            DataError: ``name`` is outside the folder or has no file's name at its end, or the archive unpacks
                to more than ``limit`` bytes.
            OSError: the file cannot be written.
        """
        folder, slash, base = name.replace("\\", "/").rpartition("/")
        folder = folder or slash  # "/" for a file in the root
        if folder not in self._folders:
            self._folders[folder] = self._make(folder, name)
        if not base:
            raise DataError(
                f"{printable(str(self._archive))} is refused: its member {name!r} has content but no name"
            )
        if base in (".", "..") or "\0" in base or (not folder and ":" in base):
            raise self._outside(name)
        path = self._folders[folder] + base
        self._count(_PER_MEMBER)
        blocks = self._blocks(source)
        head = next(blocks, b"")
        blocks = itertools.chain([head], blocks) if head else blocks
        if is_picture_name(base) or ("." not in base and is_picture_start(head)):
            self._pictures.add(path, blocks)
        else:
            with (self._folder / path).open("wb") as file:
                file.writelines(blocks)

    def _make(self, folder: str, member: str) -> str:
        """Make a member's folder, and return its path with a slash at the end; ``""`` for the outermost."""
        path = PurePosixPath(folder)
        first = path.parts[0] if path.parts else ""
        if path.is_absolute() or ".." in path.parts or ":" in first or "\0" in folder:
            raise self._outside(member)
        (self._folder / path).mkdir(parents=True, exist_ok=True)
        return f"{path}/" if path.parts else ""

    def _outside(self, member: str) -> DataError:
        return DataError(
            f"{printable(str(self._archive))} is refused: the member {member!r} would be written outside "
            "the target folder"
        )

    def _blocks(self, source: Readable) -> Iterator[bytes]:
        """The content of ``source`` in blocks, counted against the limit: declared sizes may be false."""
        while block := source.read(_BLOCK):
            self._count(len(block))
            yield block

    def _count(self, size: int) -> None:
        if self._stop is not None and self._stop.is_set():
            raise DataError("unpacking was stopped")
        self._total += size
        if self._total > self.limit:
            raise DataError(
                f"{printable(str(self._archive))} unpacks to more than {MAX_EXPANSION} times its "
                f"{os.path.getsize(self._archive):,} bytes: refused as a bomb. If you trust it, unpack "
                "it yourself and pass the folder."
            )
