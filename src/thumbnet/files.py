"""Write files completely or not at all, find the cache folder, and compute digests."""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import io
import json
import math
import os
import secrets
import shutil
import stat
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import platformdirs

from thumbnet.errors import RunError

DAY = 24 * 3600  # seconds
LEFTOVERS = ".*.tmp"  # what write_with leaves if its process is killed
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP)  # how a file system says that it cannot sync a folder


def cache_folder() -> Path:
    """The folder for files that thumbnet can recreate: ``THUMBNET_CACHE``, else the user's cache folder."""
    named = os.environ.get("THUMBNET_CACHE")
    return Path(named) if named else platformdirs.user_cache_path("thumbnet")


def user_path(name: str | Path) -> Path:
    """The path that a user typed, with the home folder for ``~``.

    Unlike ``Path.expanduser``, this takes ``~name`` for a file if there is no such user.
    """
    return Path(os.path.expanduser(name))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RunError: the file cannot be read, or does not hold one.
    """
    try:
        values = json.loads(read_whole(path).decode())
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"cannot read {path}: {reason(error)}") from None
    if not isinstance(values, dict):
        raise RunError(f"{path} does not hold a JSON object")
    return values


def reason(error: BaseException) -> str:
    """What went wrong: of an error of the system its words, without number and path.

    Libraries replace such errors: torch.save reports a full disk as a wrong position in the file.
    """
    one: BaseException | None = error
    while one is not None:
        if isinstance(one, OSError) and one.strerror:
            return one.strerror
        one = one.__context__
    return str(error)


def read_whole(path: str | Path, limit: int = -1) -> bytes:
    """Read a file, or its first ``limit`` bytes.

    Raises:
        OSError: it cannot be read, or it ended early; the error names the file.
    """
    with open_whole(path) as file:
        return file.read(limit)


def open_whole(path: str | Path) -> io.BufferedReader:
    """Open a file for reading. Errors name the file; a read that ends before the file does is one, too.

    A failing disk or network drive may end a file early without an error. What is left can be valid: half
    of a recipe is a recipe.

    Raises:
        OSError: from this call or from a later read.
    """
    return io.BufferedReader(WholeFile(path))


class WholeFile(io.FileIO):
    """A file whose reads fail by name, and also if they end too early. ``failure`` is the first error."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(os.fspath(path))
        self.failure: OSError | None = None

    def readinto(self, buffer: Any, /) -> int:
        try:
            count = super().readinto(buffer)
            if not count and len(buffer):
                self._check_end()
        except OSError as error:
            raise self._failed(error) from None
        return count

    def readall(self) -> bytes:
        try:
            content = super().readall()
            self._check_end()
        except OSError as error:
            raise self._failed(error) from None
        return content

    def _failed(self, error: OSError) -> OSError:
        named = OSError(error.errno, error.strerror, self.name)
        self.failure = self.failure or named
        return named

    def _check_end(self) -> None:
        size = os.fstat(self.fileno()).st_size  # 0 for a pipe, which has no position
        if size and (at := self.tell()) < size:
            raise OSError(errno.EIO, f"only {at:,} of its {size:,} bytes could be read")


def check_reads(file: io.BufferedReader) -> None:
    """Check that no read of a file from :func:`open_whole` has failed: some libraries go on after a failure.

    Raises:
        OSError: the first failure.
    """
    if isinstance(file.raw, WholeFile) and file.raw.failure is not None:
        raise file.raw.failure


@contextlib.contextmanager
def open_zip(path: str | Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip for reading. A failed read is an error of the system: zipfile would call the file damaged.

    Raises:
        OSError: from this call or in the block; see :func:`open_whole`.
        zipfile.BadZipFile: it is not a zip, or is damaged.
    """
    with open_whole(path) as file:
        try:
            with zipfile.ZipFile(file) as zipped:
                yield zipped
        except Exception:
            check_reads(file)
            raise


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object for people to read; see :func:`as_json` and :func:`write_with`."""
    write_file(path, as_json(values))


def as_json(values: Mapping[str, Any]) -> str:
    """A JSON object for people to read; see :func:`finite`."""
    return json.dumps(finite(values), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """``value`` with None in place of numbers that are not finite, which JSON cannot express."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    return [finite(each) for each in value] if isinstance(value, list | tuple) else value


def inline_source(text: str) -> str:
    """Return what a Content-Security-Policy calls an inline script or style: its SHA-256, quoted.

    Source: the hash-source of Content Security Policy Level 3.
    """
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """The digest of a file's content, in hexadecimal.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def write_file(path: Path, content: bytes | str) -> None:
    """Write ``content`` to ``path``; see :func:`write_with`.

    Text is written as UTF-8. Bytes of a file name that are not UTF-8 become escapes such as ``\\udcff``, as
    in JSON.
    """
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    write_with(path, lambda file: file.write(data))


def write_private(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` so that only this user can read it; see :func:`write_with`."""
    write_with(path, lambda file: file.write(content), private=True)


def check_output(path: Path, *, named: bool = True) -> None:
    """Check that a file can be written at ``path``. Call this before long work.

    Args:
        path: the file.
        named: whether the user named it. Otherwise, see :func:`check_inside`.

    Raises:
        RunError: there is no such folder, it is not writable, or ``path`` is no file, or a link that is not
            followed.
    """
    if not named:
        check_inside(path)
    folder = _to_replace(path).parent
    if not folder.is_dir():
        raise RunError(f"cannot write {path}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise RunError(f"cannot write {path}: the folder {folder} is not writable")


def check_inside(path: Path) -> None:
    """Check that ``path`` is not a symbolic link that leads out of its folder.

    A folder may come from a stranger, who knows which files thumbnet writes in it. A link in place of one of
    them could lead to any file of the user's. Links that the user names are followed.

    Raises:
        RunError: it is such a link.
    """
    target = Path(os.path.realpath(path))
    if not target.is_relative_to(os.path.realpath(path.parent)):
        raise RunError(
            f"cannot write {path}: it is a link that leads out of its folder, to {target}. Remove the link, "
            "or put what it leads to in its place"
        )


def check_links(folder: Path) -> None:
    """Check that no symbolic link in ``folder`` leads out of it; see :func:`check_inside`.

    Only links directly in the folder count: deeper down, W&B makes links to its logs. The folder may be
    missing.

    Raises:
        RunError: there is such a link, or the folder cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            links = [Path(entry.path) for entry in entries if entry.is_symlink()]
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise RunError(f"cannot look into {folder}: {reason(error)}") from None
    for link in links:
        check_inside(link)


def check_folder(path: Path) -> None:
    """Check that files can be written in the folder ``path``, which may be missing.

    Call this before long work.

    Raises:
        RunError: it, or the nearest of its parents that exists, is no folder or not writable.
    """
    nearest = next((one for one in (path, *path.parents) if os.path.lexists(one)), path)
    if not os.path.isdir(nearest):
        what = "a file" if os.path.exists(nearest) else "a link to nothing"
        raise RunError(f"cannot write in {path}: {nearest} is {what}")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise RunError(f"cannot write in {path}: the folder {nearest} is not writable")


def check_new(path: Path) -> None:
    """Check that nothing is at ``path`` and that a file can be written there. Call this before long work.

    Raises:
        RunError: that is not so.
    """
    if os.path.lexists(path):
        raise RunError(f"{path} already exists: choose another name, or remove it")
    check_output(path)


def _to_replace(path: Path) -> Path:
    """The file that is replaced by one at ``path``: if this is a symbolic link, the one that it leads to.

    Raises:
        RunError: ``path`` is a folder, a device or a pipe.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise RunError(f"cannot write {path}: it is a folder. Name a file in it")
        if not stat.S_ISREG(mode):
            raise RunError(f"cannot write {path}: it is a device or a pipe. Name a file")
        return Path(os.path.realpath(path, strict=True))
    except FileNotFoundError:  # a new file, or a link to one
        return Path(os.path.realpath(path))
    except OSError as error:
        raise RunError(f"cannot write {path}: {reason(error)}") from None


def write_with(path: Path, write: Callable[[IO[bytes]], object], *, private: bool = False) -> None:
    """Let ``write`` fill a temporary file in the same folder, sync it to disk, and rename it to ``path``.

    If anything fails before the rename, ``path`` keeps its former content. A symbolic link stays one: its
    file is replaced. Only this user can read a ``private`` file.

    Raises:
        RunError: the file cannot be written: no space, no permission, no such folder, or ``path`` is no file.
    """
    real = _to_replace(path)
    temporary: Path | None = None
    renamed = False
    try:
        # The system applies the umask. A file from tempfile is private: opening it to others takes the umask,
        # and a process can read its umask only by changing it for a moment, for all of its threads.
        name = real.with_name(f".{real.name}.{secrets.token_hex(4)}.tmp")
        with open(name, "x+b", opener=_private_opener if private else None) as file:
            temporary = name
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(real)
        temporary, renamed = None, True
        sync_folder(real.parent)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        kept = ""
        if renamed:
            kept = ". The new file is in its place, but a power cut may undo that."
        elif os.path.exists(real):
            kept = ". The former file is kept."
        raise RunError(f"cannot write {path}: {reason(error)}{kept}") from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):  # the folder may have become read-only; the first error counts
                temporary.unlink()


def make_folder(path: Path, exist_ok: bool = True) -> None:
    """Create a folder and its parents, so that they survive a power cut along with the files in them.

    Syncing a file, or the folder that it is in, does not make that folder's own name last (fsync(2)).

    Raises:
        OSError: it cannot be created, or it exists and may not (``exist_ok``).
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=exist_ok)
    for folder in made or [path]:  # an earlier process may have been killed before it synced the name
        sync_folder(folder.parent)


def sync_below(folder: Path) -> None:
    """Sync every file and folder below ``folder`` to disk, and ``folder`` itself.

    A folder that is filled under a temporary name and then renamed needs this before the rename. Otherwise,
    after a power cut, the final name may lead to files of zeros.

    Raises:
        OSError: something cannot be read or synced.
    """
    for parent, _, files in os.walk(folder):
        for name in files:
            sync_file(Path(parent, name))
        sync_folder(Path(parent))


def sync_file(path: Path) -> None:
    """Sync the content of a file to disk.

    Raises:
        OSError: it cannot be opened or synced.
    """
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def remove_file(path: Path) -> None:
    """Remove a file, which may be missing.

    Raises:
        RunError: the file cannot be removed, for lack of permission for example.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"cannot remove {path}: {error.strerror or error}") from None


@contextlib.contextmanager
def locked(path: Path, busy: str, wait: float = 0.0) -> Iterator[None]:
    """Hold the operating system's lock on the file ``path``. It is released when its process ends.

    On a file system without locks, the file's existence is the lock, and a process that is killed leaves it.

    Args:
        path: the file; it is created if needed.
        busy: the error if another process holds the lock.
        wait: seconds to wait for another process to release the lock.

    Raises:
        RunError: another process holds the lock, or the file's folder is not writable.
    """
    from filelock import FileLock, SoftFileLock, Timeout

    lock = FileLock(path, timeout=wait)
    try:
        lock.acquire()
    except Timeout:
        if isinstance(lock, SoftFileLock):  # what filelock makes of it on a file system without locks
            busy += f". If there is none, a process that was killed left {path}: remove it"
        raise RunError(busy) from None
    except NotImplementedError:  # an older filelock
        raise RunError(f"cannot lock {path}: the file system has no locks") from None
    except OSError as error:
        raise RunError(f"cannot write in {path.parent}: {error.strerror or error}") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # a network drive that is gone; the lock ends with the process
            lock.release()


def remove_partial(folder: Path) -> None:
    """Remove the files in ``folder`` that killed processes had begun to write. No other may write there."""
    with contextlib.suppress(OSError):  # the next process tries again
        for leftover in folder.glob(LEFTOVERS):
            leftover.unlink()


def clear_leftovers(folder: Path, prefix: str) -> None:
    """Remove folders in ``folder`` whose names begin with ``prefix`` and that are more than a day old.

    Processes that were killed leave them behind.
    """
    for path in folder.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > DAY:
                shutil.rmtree(path)


@contextlib.contextmanager
def new_folder(final: Path, prefix: str) -> Iterator[Path]:
    """A new, empty folder, to be filled and renamed to ``final``. Otherwise it is removed at the end.

    Its mode follows the umask, so that others may read it if that allows it.

    Args:
        final: its folder is made if it is missing. What killed processes have left there is removed.
        prefix: of the name of the temporary folder around the new one.

    Raises:
        OSError: it cannot be made.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(final.parent, prefix)
    temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=final.parent))
    try:
        whole = temporary / "whole"
        whole.mkdir()  # not mkdtemp's folder itself, which is private
        yield whole
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _private_opener(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def sync_folder(folder: Path) -> None:
    """Sync a folder so that a rename in it survives a power cut, where the system can do that.

    Some file systems (network drives, FUSE) cannot sync a folder, and in a folder that a user may not list,
    new files can be written all the same. There, a file is written, but nothing promises that its name lasts.

    Raises:
        OSError: opening or syncing the folder fails for another reason, such as an I/O error.
    """
    if not hasattr(os, "O_DIRECTORY"):
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        if os.access(folder, os.R_OK):
            raise
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)
