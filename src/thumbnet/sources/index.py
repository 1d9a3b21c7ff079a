"""List the pictures below a folder once, and remember them for the next time.

Of an unpacked archive the folder has only the folders and other files, and the pictures are in a pack
(:mod:`thumbnet.sources.packed`).

What was found is kept in the folder ``index`` of :func:`thumbnet.files.cache_folder`, each folder with its
time of change: the system sets that anew whenever a name in it comes or goes. A folder is listed again if its
time is another, or so recent that a change might have been missed. Sizes and times of the files themselves
are looked up every time (:class:`thumbnet.data.splits.FileSplit`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np

from thumbnet.data import plugins
from thumbnet.data.images import PICTURE_SUFFIXES
from thumbnet.data.splits import FileSplit, Split
from thumbnet.errors import DataError, RunError, printable
from thumbnet.files import cache_folder, write_file
from thumbnet.sources.packed import PackedSplit, Unpacked
from thumbnet.sources.tree import Folder, is_tool_folder, join

WORTH_KEEPING = 10_000  # pictures; fewer are listed in no time
_SURE_AFTER = 2_000_000_000  # nanoseconds: clocks of file systems are this coarse
_VERSION = f"3 {plugins.fingerprint()}"  # what is a picture depends on the plug-ins
_MAX_LINKS = 3  # links to folders that are followed one after the other

HEAD_BYTES = 16
_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*")
_NEVER_CLASSES = frozenset([".git", ".svn", ".hg", ".venv"])  # not even searched for pictures


def is_picture_name(name: str) -> bool:
    """Whether a file's name says that it is a picture."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES


class _Listing(NamedTuple):
    changed: int
    pictures: list[str]
    ignored: list[str]
    folders: list[str]
    links: list[str]


class Index:
    """The pictures below ``root``.

    Args:
        unpacked: the archive that ``root`` is in.

    Attributes:
        ignored: paths, relative to ``root``, of the files that :meth:`pictures_below` passed over so far.
    """

    def __init__(self, root: Path, unpacked: Unpacked | None = None) -> None:
        self.root = str(root)
        self._pack = unpacked and unpacked.pictures
        self._in_pack = "/".join(root.relative_to(unpacked.folder).parts) if unpacked else ""
        self._listed: dict[str, _Listing] = {}
        self.ignored: list[str] = []

    def pictures_below(self, folder: str) -> list[str]:
        """Sorted paths, relative to ``root``, of the pictures below one of its folders.

        Raises:
            DataError: a folder cannot be listed.
        """
        if not os.path.isdir(os.path.join(self.root, folder)):
            return []
        tree = self.tree("" if folder == "." else folder.replace(os.sep, "/"))
        self.ignored += tree.ignored_below()
        return sorted(tree.pictures_below())

    def tree(self, folder: str = "") -> Folder:
        """All folders below ``folder`` with the names in them, but not the folders of systems and tools.

        A link to a folder is followed where no pictures lie beside it, and ignored elsewhere.

        Raises:
            DataError: a folder cannot be listed, or a link leads to a folder that it is in.
        """
        tree = Folder(folder)
        order: list[Folder] = []
        pending: list[tuple[Folder, tuple[str, ...]]] = [(tree, ())]
        while pending:
            parent, followed = pending.pop()
            order.append(parent)
            listing = self._list(parent.path)
            packed = self._packed(parent.path)
            parent.pictures = listing.pictures + packed if packed else listing.pictures
            parent.ignored = list(listing.ignored)
            inner = [(name, followed) for name in listing.folders]
            for name in listing.links:
                link = os.path.join(self.root, parent.path, name)
                if parent.pictures or len(followed) == _MAX_LINKS or not os.path.isdir(link):
                    parent.ignored.append(name)
                else:
                    inner.append((name, (*followed, _target(link, followed))))
            for name, links in sorted(inner):
                child = Folder(join(parent.path, name))
                if is_tool_folder(name):
                    parent.skipped.append((child.path, self._count(child.path)))
                else:
                    parent.folders.append(child)
                    pending.append((child, links))
        for each in reversed(order):  # inner folders come after those that they are in
            each.count = len(each.pictures) + sum(child.count for child in each.folders)
        return tree

    def _count(self, folder: str) -> int:
        """How many pictures are in a folder of a tool, and below."""
        count, pending = 0, [] if folder.rpartition("/")[2] in _NEVER_CLASSES else [folder]
        while pending:
            parent = pending.pop()
            try:
                listing = self._list(parent)
            except DataError:  # nobody wants what is in there
                continue
            count += len(listing.pictures) + len(self._packed(parent))
            pending += [join(parent, name) for name in listing.folders]
        return count

    def _packed(self, folder: str) -> list[str]:
        """The names of the pictures of a folder that are in the pack."""
        if self._pack is None:
            return []
        return self._pack.by_folder.get("/".join(PurePath(self._in_pack, folder).parts), [])

    def split(self, paths: Sequence[str], labels: np.ndarray) -> Split:
        """The pictures at ``paths``, with ``labels`` (int [N])."""
        if self._pack is not None:
            return PackedSplit(self._pack, self._in_pack, list(paths), labels)
        return FileSplit(Path(self.root), paths, labels)

    def keep(self) -> None:
        """Remember what was listed, where that saves time."""
        pictures = sum(len(listing.pictures) for listing in self._listed.values())
        if self._listed == self._kept or pictures < WORTH_KEEPING:
            return
        content = json.dumps({"version": _VERSION, "folders": self._listed})
        with contextlib.suppress(OSError, RunError):  # a cache that cannot be written is none
            self._kept_at.parent.mkdir(parents=True, exist_ok=True)
            write_file(self._kept_at, content)

    @cached_property
    def _kept_at(self) -> Path:
        digest = hashlib.blake2b(os.fsencode(os.path.realpath(self.root)), digest_size=16).hexdigest()
        return cache_folder() / "index" / f"{digest}.json"

    @cached_property
    def _kept(self) -> dict[str, _Listing]:
        """What was listed before."""
        return self._read()

    def _read(self) -> dict[str, _Listing]:
        try:
            kept = json.loads(self._kept_at.read_text("utf-8"))
            if kept["version"] != _VERSION:
                return {}
            return {folder: _Listing(*listing) for folder, listing in kept["folders"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}

    def _list(self, folder: str) -> _Listing:
        path = os.path.join(self.root, folder)
        try:
            changed = os.stat(path).st_mtime_ns
            listing = self._kept.get(folder)
            if listing is None or listing.changed != changed:
                if time.time_ns() - changed < _SURE_AFTER:
                    changed = -1  # a change from now on might not show
                listing = _Listing(changed, *_scan(path))
        except OSError as error:
            raise DataError(
                f"cannot list {printable(str(error.filename or path))}: {error.strerror}"
            ) from None
        self._listed[folder] = listing
        return listing


def _scan(path: str) -> tuple[list[str], list[str], list[str], list[str]]:
    """Names of pictures, of other things, of folders, and of links to folders in a folder."""
    pictures: list[str] = []
    ignored: list[str] = []
    folders: list[str] = []
    links: list[str] = []
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            elif entry.is_symlink() and _leads_to_folder(entry):
                links.append(entry.name)
            elif (is_picture_name(entry.name) and _may_be_read(entry)) or (
                "." not in entry.name and _begins_as_picture(entry)
            ):
                pictures.append(entry.name)
            elif not entry.name.startswith("."):
                ignored.append(entry.name)
    return pictures, ignored, folders, links


def _begins_as_picture(entry: os.DirEntry[str]) -> bool:
    """Whether a file without a suffix, as browsers and buckets leave them, has a picture's first bytes."""
    try:
        if not entry.is_file():
            return False
        with open(entry.path, "rb") as file:
            return is_picture_start(file.read(HEAD_BYTES))
    except OSError:
        return False


def is_picture_start(head: bytes) -> bool:
    """Whether a file that begins with ``head`` is a picture of a common format."""
    return head.startswith(_STARTS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def _target(link: str, followed: tuple[str, ...]) -> str:
    """Where a link leads to.

    Raises:
        DataError: to a folder that it is in, or where another link on the way led to.
    """
    target, here = os.path.realpath(link), os.path.realpath(os.path.dirname(link))
    if target in followed or Path(here).is_relative_to(target):
        raise DataError(f"{printable(link)} is a link to a folder that it is in itself: remove it")
    return target


def _leads_to_folder(link: os.DirEntry[str]) -> bool:
    try:
        return link.is_dir()
    except OSError:  # links in a circle
        return False


def _may_be_read(entry: os.DirEntry[str]) -> bool:
    """Not so of pipes, sockets and devices. A link to nothing is a picture that cannot be read."""
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:  # links in a circle
        return True
