"""Find the pictures that the cells of a manifest name."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from functools import cached_property
from pathlib import Path

from thumbnet.data.images import PICTURE_SUFFIXES
from thumbnet.data.reading import is_file
from thumbnet.errors import DataError, printable
from thumbnet.sources.index import is_picture_name
from thumbnet.sources.place import Place


class Pictures:
    """The pictures that a manifest can refer to.

    Args:
        place: the folder that paths are relative to.
        trusted: whether paths may lead out of that folder, as they may if the user named the table and it is
            not from an archive.
    """

    def __init__(self, place: Place, trusted: bool) -> None:
        self._root, self._packed, self._trusted = place.path, place.unpacked is not None, trusted
        self.index = place.index()

    @cached_property
    def all(self) -> list[str]:
        """All pictures below the folder, relative to it."""
        return self.index.pictures_below("")

    @cached_property
    def _exact(self) -> set[str]:
        return {path.replace(os.sep, "/") for path in self.all}

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        """The pictures by file name and by file name without suffix, both in lower case."""
        found = defaultdict(list)
        for path in self.all:
            name = os.path.basename(path).casefold()
            found[name].append(path)
            found[os.path.splitext(name)[0]].append(path)
        return found

    def find(self, cell: str, base: str, split: str, label: str) -> str | None:
        """The picture that a cell names, or None.

        Tries the path relative to the table's folder, ``base``, and then the file name. If several pictures
        have that name, the folders in the cell, ``split`` and ``label`` decide.

        Raises:
            DataError: a path leads out of an archive.
        """
        path = cell.replace("\\", "/")
        outside = path.startswith("/") or re.match(r"[A-Za-z]:", path) or ".." in path.split("/")
        if outside and self._packed:
            raise DataError(f"the table names {printable(cell)!r}, which is outside its archive: refused")
        if not outside or self._trusted:
            direct = os.path.normpath(os.path.join(base, path)).replace(os.sep, "/")
            if self._is_there(direct):
                return direct
        parts = [part.casefold() for part in path.split("/") if part not in ("", ".", "..")]
        if not parts:
            return None
        stem, suffix = os.path.splitext(parts[-1])
        candidates = self._by_name.get(parts[-1], [])
        if not candidates and suffix in PICTURE_SUFFIXES:
            candidates = self._by_name.get(stem, [])
        return _best(candidates, parts[:-1], split, label)

    def _is_there(self, path: str) -> bool:
        if self._packed:
            return path in self._exact
        return os.path.splitext(path)[1].lower() in PICTURE_SUFFIXES and is_file(
            os.path.join(self._root, path)
        )

    def _in_root(self) -> list[str]:
        with os.scandir(self._root) as entries:
            return [entry.name for entry in entries if is_picture_name(entry.name)]

    def neighbours(self, found: set[str]) -> list[str]:
        """The other pictures in the folders of the ``found`` ones."""
        folders = {os.path.dirname(path) for path in found}
        plain = {os.path.normpath(path) for path in found}
        if "all" in self.__dict__:
            below = [path for path in self.all if os.path.dirname(path) in folders]
        else:
            inside = [folder for folder in folders if folder and not folder.startswith(("..", "/"))]
            below = self._in_root() if "" in folders else []
            below += [p for f in inside for p in self.index.pictures_below(f) if os.path.dirname(p) == f]
        return [path for path in below if os.path.normpath(path) not in plain]


def _best(candidates: list[str], folders: list[str], split: str, label: str) -> str | None:
    """The candidate whose folders best match the cell's, then the split, then the label; None on a tie."""
    if len(candidates) <= 1:
        return candidates[0] if candidates else None

    def score(path: str) -> tuple[int, bool, bool]:
        above = [part.casefold() for part in Path(path).parts[:-1]]
        same = 0
        while same < min(len(above), len(folders)) and above[-1 - same] == folders[-1 - same]:
            same += 1
        return same, any(split and part.startswith(split) for part in above), label.casefold() in above

    ranked = sorted(candidates, key=score, reverse=True)
    return ranked[0] if score(ranked[0]) > score(ranked[1]) else None
