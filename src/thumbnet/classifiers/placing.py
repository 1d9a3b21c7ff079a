"""Put pictures into class folders: safe names, whole copies, and nothing replaced. Imports no torch."""

from __future__ import annotations

import contextlib
import filecmp
import itertools
import os
import secrets
import shutil
import sys
import time
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from thumbnet.errors import DataError, RunError, is_printable, printable
from thumbnet.files import open_whole

UNSURE, UNLIKE = "unsure", "unlike"
PART = ".thumbnet-part"  # the end of the names of unfinished copies
DEAD_AFTER = 600  # seconds after which an unfinished copy counts as abandoned if folders cannot be locked
LONGEST = 120  # bytes of a folder's name; systems allow 255, and some programs fewer
_FORBIDDEN = frozenset('/\\:*?"<>|')  # in names on Windows; on other systems only the slash
_DEVICES = frozenset(
    ["con", "prn", "aux", "nul", "conin$", "conout$"]
    + [f"{name}{digit}" for name in ("com", "lpt") for digit in "0123456789¹²³"]
)


def folder_names(class_names: Sequence[str]) -> dict[str, str]:
    """Choose a folder name for each class that every system accepts and takes for no other class.

    Characters that are not allowed on Windows, or not printable, become ``_``. Names of devices on Windows
    and hidden names get a ``_`` in front. Names that differ only in case count as the same. The second of two
    equal names gets a number, and a class called ``unsure`` or ``unlike`` gets ``unsure-class``.
    """
    taken = {UNSURE, UNLIKE}
    chosen: dict[str, str] = {}
    for name in class_names:
        safe = _safe(name)
        if _key(safe) in (UNSURE, UNLIKE):
            safe += "-class"
        choice = next(one for one in _numbered(safe) if _key(one) not in taken)
        taken.add(_key(choice))
        chosen[name] = choice
    return chosen


def _safe(name: str) -> str:
    hides = not is_printable(name)  # spellings of some scripts have invisible joiners
    clean = "".join("_" if c in _FORBIDDEN or (hides and not c.isprintable()) else c for c in name)
    while len(clean.encode()) > LONGEST:
        clean = clean[:-1]
    clean = clean.rstrip(" .").lstrip(" ")  # Windows drops spaces and dots at the end
    if not clean or clean.startswith(".") or clean.partition(".")[0].rstrip().casefold() in _DEVICES:
        clean = f"_{clean}"
    return clean


def _key(name: str) -> str:
    """A text that is the same for all names that some file system takes for one name."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _numbered(stem: str, suffix: str = "") -> Iterator[str]:
    """Yield ``stem``, ``stem-2``, ``stem-3``, ..., each with ``suffix``."""
    yield f"{stem}{suffix}"
    for number in itertools.count(2):
        yield f"{stem}-{number}{suffix}"


class Target:
    """The folder that holds the class folders.

    Args:
        root: the folder.
        names: the class folders in it.
        link: make symbolic links instead of copies.
    """

    def __init__(self, root: Path, names: Sequence[str], link: bool) -> None:
        self.root, self._names, self._link = root, tuple(names), link
        self._there: dict[str, list[str]] = {}  # a path → the class folders that have a file of that path
        self._alike: dict[
            tuple[str, int], list[tuple[str, str]]
        ] = {}  # file name and size → folders and paths

    def check_apart(self, folder: Path) -> None:
        """Check that sorting the pictures in ``folder`` cannot find its own results.

        Raises:
            DataError: the target is within ``folder``, or ``folder`` is within a class folder.
        """
        if _within(self.root, folder) is not None:
            raise DataError(
                f"{printable(str(self.root))} is within {printable(str(folder))}: the next sort would find "
                "its own results there. Choose a folder outside"
            )
        self._check_outside(folder, folder)

    def check_links(self, folder: Path, paths: Sequence[str]) -> None:
        """Check that no link below ``folder`` leads into a class folder.

        Raises:
            DataError: one does.
        """
        real = os.path.realpath(folder)
        for below in {os.path.dirname(path) for path in paths}:
            inner = os.path.realpath(os.path.join(folder, below))
            if inner != os.path.normpath(os.path.join(real, below)):
                self._check_outside(Path(inner), folder / below)

    def _check_outside(self, inner: Path, shown: Path) -> None:
        below = _within(inner, self.root)
        if below is not None and _key(below) in map(_key, self._names):
            raise DataError(
                f"{printable(str(shown))} is in the class folder {printable(below)} of "
                f"{printable(str(self.root))}. Choose another folder to sort into"
            )

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Create the folder, lock it, remove what killed processes left, and list the class folders.

        Raises:
            RunError: another process is sorting into it, or it cannot be created.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot create the folder {self.root}: {error.strerror or error}") from None
        with _locked(self.root) as locked:
            for name in self._names:
                for path in self._files_in(name, locked):
                    self._there.setdefault(path, []).append(name)
                    key = _name_and_size(os.path.join(self.root, name, path))
                    self._alike.setdefault(key, []).append((name, path))
            yield

    def _files_in(self, name: str, locked: bool) -> Iterator[str]:
        """Yield the paths of the files below a class folder, and remove unfinished copies."""
        top = os.path.join(self.root, name)
        for folder, _, files in os.walk(top):
            below = os.path.relpath(folder, top).replace(os.sep, "/")
            for file in files:
                if file.endswith(PART):
                    _remove_part(os.path.join(folder, file), locked)
                else:
                    yield file if below == "." else f"{below}/{file}"

    def find(self, folder: Path, path: str) -> str | None:
        """The class folder that has the picture ``folder/path`` already; None if there is none.

        The picture has the same path there or, if a person has moved it, at least the same file name.
        """
        source = os.path.join(folder, path)
        for candidate in _numbered(*os.path.splitext(path)):
            if candidate not in self._there:
                break
            for name in self._there[candidate]:
                if _same(source, os.path.join(self.root, name, candidate)):
                    return name
        for name, other in self._alike.get(_name_and_size(source), []):
            place = os.path.join(self.root, name, other)
            if other != path and _same(source, place) and not _same(os.path.join(folder, other), place):
                return name
        return None

    def put(self, source: str, name: str, path: str) -> None:
        """Put the picture ``source`` into the class folder ``name``, under ``path`` or its next free number.

        Raises:
            RunError: the file cannot be written, or the picture cannot be read.
        """
        make = _link if self._link else _copy
        for candidate in _numbered(*os.path.splitext(path)):
            place = os.path.join(self.root, name, candidate)
            try:
                os.makedirs(os.path.dirname(place), exist_ok=True)
                if make(source, place) or _same(source, place):
                    return
            except OSError as error:
                raise RunError(_failure(source, place, error, self._link)) from None


def _failure(source: str, place: str, error: OSError, link: bool) -> str:
    """What to say when ``source`` could not be put into ``place``."""
    failed = f"read {source}" if error.filename == source else f"write {place}"
    advice = "Copy the pictures instead of linking them, or repeat" if link else "Then repeat"
    return (
        f"cannot {failed}: {error.strerror or error}. Pictures that are sorted already stay. "
        f"{advice} the command to go on"
    )


def _copy(source: str, place: str) -> bool:
    """Copy a file and its modification time, whole or not at all; False if ``place`` exists.

    Raises:
        OSError: the copy cannot be written, or the file cannot be read to its end.
    """
    if os.path.lexists(place):
        return False
    part = os.path.join(os.path.dirname(place), f".{secrets.token_hex(8)}{PART}")
    try:
        with open_whole(source) as original, open(part, "xb") as copy:
            shutil.copyfileobj(original, copy, 2**20)
            copy.flush()
            os.fsync(copy.fileno())
            state = os.fstat(original.fileno())
        with contextlib.suppress(OSError):
            os.utime(part, ns=(state.st_atime_ns, state.st_mtime_ns))
        return _name(part, place)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(part)


def _name(part: str, place: str) -> bool:
    """Give a finished copy its name; False if that name is taken."""
    try:
        os.link(part, place)  # unlike a rename, this never replaces a file
    except FileExistsError:
        return False
    except OSError:  # no hard links here, as on exFAT
        if os.path.lexists(place):
            return False
        os.rename(part, place)
    return True


def _link(source: str, place: str) -> bool:
    """Make ``place`` a link to a file; False if ``place`` exists."""
    try:
        os.symlink(os.path.abspath(source), place)
    except FileExistsError:
        return False
    return True


def _name_and_size(path: str) -> tuple[str, int]:
    """A file's name and size in bytes; -1 for a broken link."""
    try:
        return os.path.basename(path), os.stat(path).st_size
    except OSError:
        return os.path.basename(path), -1


def _same(first: str, second: str) -> bool:
    """Whether two files have the same content."""
    try:
        return os.path.samefile(first, second) or filecmp.cmp(first, second, shallow=False)
    except OSError:
        return False


def _within(inner: Path, outer: Path) -> str | None:
    """The name that follows ``outer`` in ``inner``, "" for the same folder; None if ``inner`` is outside."""
    if not outer.exists():
        return None
    place = Path(os.path.realpath(inner))
    below = ""
    for each in (place, *place.parents):
        if each.exists() and os.path.samefile(each, outer):
            return below
        below = each.name
    return None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Lock a folder until the block or the process ends; yields False if the system cannot do that.

    Raises:
        RunError: another process holds the lock.
    """
    if sys.platform == "win32":
        yield False
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except BlockingIOError:
            raise RunError(f"another process is sorting into {folder}: wait for it") from None
        except OSError:  # some network file systems
            locked = False
        yield locked
    finally:
        os.close(descriptor)


def _remove_part(path: str, locked: bool) -> None:
    """Remove an unfinished copy. Without a lock, another process may still be writing a young one."""
    with contextlib.suppress(OSError):
        if locked or time.time() - os.stat(path).st_mtime > DEAD_AFTER:
            os.unlink(path)
