"""List the pictures below a folder, and cache the listing for the next run.

An unpacked archive keeps its pictures in a pack (:mod:`thumbnet.sources.packed`). Its folder holds only the
subfolders and the other files.

The cache is the folder ``index`` of :func:`thumbnet.files.cache_folder`. It stores each folder's listing with
the time of its last change, which the system updates whenever a name is added or removed. A folder is listed
again if that time has changed, or if it was so recent that a later change could have the same time, or if it
is on a FUSE file system: mounted buckets give all folders the time of the mount.
The sizes and times of the files themselves are not cached (:class:`thumbnet.data.splits.FileSplit`).
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
from thumbnet.data.reading import exists, inside, is_file, is_folder, is_not_there, leads_to_folder, reads
from thumbnet.data.splits import FileSplit, Split
from thumbnet.errors import DataError, FailedReadError, RunError, printable
from thumbnet.files import cache_folder, open_whole, write_file
from thumbnet.sources.packed import PackedSplit, Unpacked
from thumbnet.sources.tree import OUTPUTS, Folder, is_output, is_tool_folder, join

WORTH_KEEPING = 10_000  # pictures; listing fewer is so fast that a cache is not worth it
_SURE_AFTER = 2_000_000_000  # nanoseconds, the resolution of the coarsest file system clocks
_VERSION = f"4 {plugins.fingerprint()}"  # the plug-ins decide which files are pictures
_MAX_LINKS = 3  # links to folders on one path

HEAD_BYTES = 16
_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*")
_NEVER_CLASSES = frozenset([".git", ".svn", ".hg", ".venv"])  # pictures in these are not even counted


def is_picture_name(name: str) -> bool:
    """Whether a file name has the suffix of a picture and is not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES


def is_output_folder(folder: Path) -> bool:
    """Whether thumbnet has written a folder, or everything in it, as in ``runs``."""
    if _is_output(folder):
        return True
    inner = [path for path in inside(folder) if not path.name.startswith(".")]
    return bool(inner) and all(is_folder(path) and _is_output(path) for path in inner)


def _is_output(folder: Path) -> bool:
    return any(all(is_file(folder / name) for name in files) for files in OUTPUTS)


class _Listing(NamedTuple):
    changed: int
    pictures: list[str]
    ignored: list[str]
    folders: list[str]
    links: list[str]


class Index:
    """The pictures below ``root``.

    Args:
        root: a folder.
        unpacked: the archive that ``root`` is in, if any.

    Attributes:
        ignored: paths, relative to ``root``, of the other files that :meth:`pictures_below` has found so far.
    """

    def __init__(self, root: Path, unpacked: Unpacked | None = None) -> None:
        self.root = str(root)
        self._pack = unpacked and unpacked.pictures
        self._in_pack = "/".join(root.relative_to(unpacked.folder).parts) if unpacked else ""
        self._listed: dict[str, _Listing] = {}
        self.ignored: list[str] = []

    def pictures_below(self, folder: str) -> list[str]:
        """Sorted paths of the pictures below ``folder``. It and the paths are relative to ``root``.

        Raises:
            FailedReadError: a folder cannot be listed.
            DataError: as for :meth:`tree`.
        """
        if not is_folder(os.path.join(self.root, folder)):
            return []
        tree = self.tree("" if folder == "." else folder.replace(os.sep, "/"))
        self.ignored += tree.ignored_below()
        return sorted(tree.pictures_below())

    def tree(self, folder: str = "") -> Folder:
        """All folders below ``folder`` with the names in them, except those of systems, tools and thumbnet.

        A link to a folder is followed only if the folder that contains it has no pictures.

        Raises:
            FailedReadError: a folder cannot be listed.
            DataError: a link leads to a folder that contains it.
        """
        tree = Folder(folder)
        order: list[Folder] = []
        pending: list[tuple[Folder, tuple[str, ...]]] = [(tree, ())]
        while pending:
            parent, followed = pending.pop()
            listing = self._list(parent.path)
            if parent is not tree and is_output(listing.ignored):
                parent.outputs = [(parent.path, self._count(parent.path))]
                continue
            order.append(parent)
            packed = self._packed(parent.path)
            parent.pictures = listing.pictures + packed if packed else listing.pictures
            parent.ignored = list(listing.ignored)
            inner = [(name, followed) for name in listing.folders]
            for name in listing.links:
                link = os.path.join(self.root, parent.path, name)
                why = self._why_not_followed(link, parent, followed)
                if why:
                    parent.links.append((join(parent.path, name), why))
                else:
                    inner.append((name, (*followed, _target(link, followed))))
            for name, links in sorted(inner):
                child = Folder(join(parent.path, name))
                if is_tool_folder(name):
                    parent.skipped.append((child.path, self._count(child.path)))
                else:
                    parent.folders.append(child)
                    pending.append((child, links))
        for each in reversed(order):  # children before their parents
            each.count = len(each.pictures) + sum(child.count for child in each.folders)
            # Neither a run nor a folder that holds only runs is a class without pictures.
            each.outputs += [one for child in each.folders if not child.count for one in child.outputs]
            each.folders = [child for child in each.folders if child.count or not child.outputs]
        return tree

    def _why_not_followed(self, link: str, parent: Folder, followed: tuple[str, ...]) -> str:
        """Why a link in ``parent`` is not followed, in words; empty if it is."""
        if not is_folder(link):
            return "it leads nowhere"
        if parent.pictures:
            return "pictures lie next to it"
        return f"it is behind {_MAX_LINKS} other links" if len(followed) == _MAX_LINKS else ""

    def _count(self, folder: str) -> int:
        """The number of pictures in and below a folder of a system or tool."""
        count, pending = 0, [] if folder.rpartition("/")[2] in _NEVER_CLASSES else [folder]
        while pending:
            parent = pending.pop()
            try:
                listing = self._list(parent)
            except FailedReadError:  # the count is only for a note
                continue
            count += len(listing.pictures) + len(self._packed(parent))
            pending += [join(parent, name) for name in listing.folders]
        return count

    def _packed(self, folder: str) -> list[str]:
        """The names of the pictures that the pack has in a folder."""
        if self._pack is None:
            return []
        return self._pack.by_folder.get("/".join(PurePath(self._in_pack, folder).parts), [])

    def split(self, paths: Sequence[str], labels: np.ndarray) -> Split:
        """The pictures at ``paths``, with ``labels`` (int [N])."""
        if self._pack is not None:
            return PackedSplit(self._pack, self._in_pack, list(paths), labels)
        return FileSplit(Path(self.root), paths, labels)

    def keep(self) -> None:
        """Cache the listing, unless the cache has it already or there are too few pictures to be worth it."""
        pictures = sum(len(listing.pictures) for listing in self._listed.values())
        if self._listed == self._kept or pictures < WORTH_KEEPING:
            return
        content = json.dumps({"version": _VERSION, "folders": self._listed})
        with contextlib.suppress(OSError, RunError):  # without a cache, the next run lists again
            self._kept_at.parent.mkdir(parents=True, exist_ok=True)
            write_file(self._kept_at, content)

    @cached_property
    def _kept_at(self) -> Path:
        digest = hashlib.blake2b(os.fsencode(os.path.realpath(self.root)), digest_size=16).hexdigest()
        return cache_folder() / "index" / f"{digest}.json"

    @cached_property
    def _kept(self) -> dict[str, _Listing]:
        """The cached listing of each folder."""
        return self._read()

    @cached_property
    def _fuse(self) -> set[int]:
        """The devices whose folders may have other pictures without another modification time."""
        try:
            return fuse_devices(Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape"))
        except OSError:  # not Linux
            return set()

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
        with reads(path):
            found = os.stat(path)
            # `rsync -t` and tar set mtime back. No program sets ctime, but Windows has none.
            changed = max(found.st_mtime_ns, found.st_ctime_ns)
            mounted = found.st_dev in self._fuse
            listing = self._kept.get(folder)
            if listing is None or listing.changed != changed or mounted:
                if time.time_ns() - changed < _SURE_AFTER or mounted:
                    changed = -1  # a later change could leave the same time: always list this folder again
                listing = _Listing(changed, *_scan(path))
        self._listed[folder] = listing
        return listing


def fuse_devices(mounts: str) -> set[int]:
    """The device numbers (``st_dev``) of the FUSE file systems in the text of ``/proc/self/mountinfo``."""
    found = set()
    for line in mounts.split("\n"):
        before, _, after = line.partition(" - ")
        kind = after.partition(" ")[0]
        if kind == "fuse" or kind.startswith("fuse."):  # a disk of Windows is "fuseblk"
            major, minor = before.split()[2].split(":")
            found.add(os.makedev(int(major), int(minor)))
    return found


def _scan(path: str) -> tuple[list[str], list[str], list[str], list[str]]:
    """The names in a folder: pictures, other files, folders, and links that lead to folders or nowhere."""
    pictures: list[str] = []
    ignored: list[str] = []
    folders: list[str] = []
    links: list[str] = []
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            elif entry.is_symlink() and leads_to_folder(entry):
                links.append(entry.name)
            elif (is_picture_name(entry.name) and _may_be_read(entry)) or (
                "." not in entry.name and _begins_as_picture(entry)
            ):
                pictures.append(entry.name)
            elif entry.name.startswith("."):
                continue
            elif entry.is_symlink() and not exists(entry.path):
                links.append(entry.name)
            else:
                ignored.append(entry.name)
    return pictures, ignored, folders, links


def _begins_as_picture(entry: os.DirEntry[str]) -> bool:
    """Whether the content of a file begins like a picture; browsers and buckets often drop the suffix."""
    try:
        if not entry.is_file():
            return False
        with open_whole(entry.path) as file:
            return is_picture_start(file.read(HEAD_BYTES))
    except OSError as error:
        if not is_not_there(error):
            raise
        return False


def is_picture_start(head: bytes) -> bool:
    """Whether a file that begins with ``head`` is a picture of a common format."""
    return head.startswith(_STARTS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def _target(link: str, followed: tuple[str, ...]) -> str:
    """The folder that a link leads to.

    Raises:
        DataError: the link is inside that folder, or another link on the path led there already.
    """
    target, here = os.path.realpath(link), os.path.realpath(os.path.dirname(link))
    if target in followed or Path(here).is_relative_to(target):
        raise DataError(f"{printable(link)} is a link to a folder that contains it: remove the link")
    return target


def _may_be_read(entry: os.DirEntry[str]) -> bool:
    """False for pipes, sockets and devices. A broken link counts as a picture: reading it reports it."""
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:  # reading it reports what is wrong
        return True
