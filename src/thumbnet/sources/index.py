"""Which pictures are below a folder: listed once, and remembered for the next time.

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
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np

from thumbnet.data import plugins
from thumbnet.data.images import PICTURE_SUFFIXES
from thumbnet.data.splits import FileSplit, Split
from thumbnet.errors import DataError, RunError, printable
from thumbnet.files import cache_folder, write_file
from thumbnet.sources.packed import PackedSplit, Unpacked

WORTH_KEEPING = 10_000  # pictures; fewer are listed in no time
_SURE_AFTER = 2_000_000_000  # nanoseconds: clocks of file systems are this coarse
_VERSION = f"1 {plugins.fingerprint()}"  # what is a picture depends on the plug-ins


def is_picture_name(name: str) -> bool:
    """Whether a file's name says that it is a picture."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES


class _Listing(NamedTuple):
    changed: int
    pictures: list[str]
    ignored: list[str]
    folders: list[str]


class Index:
    """The pictures below ``root``.

    Args:
        unpacked: the archive that ``root`` is in.

    Attributes:
        ignored: paths, relative to ``root``, of what was passed over so far: no pictures by their name, or
            no files.
    """

    def __init__(self, root: Path, unpacked: Unpacked | None = None) -> None:
        self.root = str(root)
        self._pack = unpacked and unpacked.pictures
        self._in_pack = "/".join(root.relative_to(unpacked.folder).parts) if unpacked else ""
        digest = hashlib.blake2b(os.fsencode(root.resolve()), digest_size=16).hexdigest()
        self._kept_at = cache_folder() / "index" / f"{digest}.json"
        self._kept = self._read()
        self._listed: dict[str, _Listing] = {}
        self.ignored: list[str] = []

    def pictures_below(self, folder: str) -> list[str]:
        """Paths relative to ``root``, sorted. Links to folders are not followed, but for ``folder`` itself.

        Raises:
            DataError: a folder cannot be listed.
        """
        found: list[str] = []
        pending = [folder]
        while pending:
            parent = pending.pop()
            listing = self._list(parent)
            prefix = f"{parent}{os.sep}" if parent else ""
            found += [prefix + name for name in listing.pictures + self._packed(parent)]
            self.ignored += [prefix + name for name in listing.ignored]
            pending += [prefix + name for name in listing.folders]
        return sorted(found)

    def _packed(self, folder: str) -> list[str]:
        """The names of the pictures of a folder that are in the pack."""
        if self._pack is None:
            return []
        return self._pack.by_folder.get("/".join(PurePath(self._in_pack, folder).parts), [])

    def split(self, paths: Sequence[str], labels: np.ndarray) -> Split:
        """The pictures at ``paths``, with ``labels`` (int [N])."""
        if self._pack is not None:
            return PackedSplit(
                self._pack, self._in_pack, [path.replace(os.sep, "/") for path in paths], labels
            )
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
        except FileNotFoundError:  # a class that a split lacks is reported as empty
            listing = _Listing(-1, [], [], [])
        except OSError as error:
            raise DataError(
                f"cannot list {printable(str(error.filename or path))}: {error.strerror}"
            ) from None
        self._listed[folder] = listing
        return listing


def _scan(path: str) -> tuple[list[str], list[str], list[str]]:
    """Names of pictures, of other things, and of folders in a folder."""
    pictures: list[str] = []
    ignored: list[str] = []
    folders: list[str] = []
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            elif is_picture_name(entry.name) and _may_be_read(entry):
                pictures.append(entry.name)
            elif not entry.name.startswith("."):
                ignored.append(entry.name)
    return pictures, ignored, folders


def _may_be_read(entry: os.DirEntry[str]) -> bool:
    """Not so of pipes, sockets and devices. A link to nothing is a picture that cannot be read."""
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:  # links in a circle
        return True
