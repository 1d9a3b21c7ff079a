"""Find the pictures that the cells of a manifest name.

A picture at the very path in a cell is taken first. Otherwise names are compared by their keys
(:func:`thumbnet.data.spelling.file_key`): an archive made on macOS has another Unicode form than a table.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple

from thumbnet.data.images import PICTURE_SUFFIXES
from thumbnet.data.reading import is_file
from thumbnet.data.spelling import file_key
from thumbnet.errors import DataError, printable
from thumbnet.sources.index import is_picture_name
from thumbnet.sources.place import Place
from thumbnet.sources.split_names import splits_named

_MAX_SHOWN = 3  # pictures of the same name in a message
_FEW = 16  # pictures of one name that are looked through one by one


class Wanted(NamedTuple):
    """A row of a manifest: the cell that names its picture, and its split and label, empty if unknown."""

    cell: str
    split: str = ""
    label: str = ""


class Found(NamedTuple):
    """The picture of a row, or else, where known, why it has none.

    Attributes:
        path: the picture; None if there is none.
        several: whether the reason is that several pictures have its name.
        why: the reason in words, printable; may be empty.
    """

    path: str | None
    several: bool = False
    why: str = ""


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
        self._known: dict[tuple[str, tuple[str, ...], str], bool] = {}  # what _fits has answered
        self._many: dict[str, dict[str, list[str]]] = {}  # what _called has found, by name and folder

    @cached_property
    def all(self) -> list[str]:
        """All pictures below the folder, relative to it."""
        return self.index.pictures_below("")

    @cached_property
    def _exact(self) -> set[str]:
        return {path.replace(os.sep, "/") for path in self.all}

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        """The pictures by file name and by file name without suffix, both as keys."""
        found = defaultdict(list)
        for path in self.all:
            name = file_key(os.path.basename(path))
            found[name].append(path)
            found[os.path.splitext(name)[0]].append(path)
        return found

    def _called(self, name: str, folder: str = "") -> list[str]:
        """The pictures that the key of a file name stands for, also those with another suffix.

        Args:
            name: the key.
            folder: only pictures below a folder with this key; empty for all.
        """
        if name in self._many:
            return self._many[name].get(folder, [])
        found = self._by_name.get(name, []) if name else []
        stem, suffix = os.path.splitext(name)
        if suffix in PICTURE_SUFFIXES:
            found = list(dict.fromkeys([*found, *self._by_name.get(stem, [])]))
        if len(found) <= _FEW:
            return [path for path in found if not folder or folder in _above(path)]
        inside = defaultdict(list, {"": found})
        for path in found:
            for above in set(_above(path)):
                inside[above].append(path)
        self._many[name] = dict(inside)
        return self._called(name, folder)

    @cached_property
    def _folders(self) -> frozenset[str]:
        """The keys of the folders that have pictures, and of those above them."""
        folders = {os.path.dirname(path) for path in self.all}
        return frozenset(part for folder in folders for part in _parts(folder))

    @cached_property
    def _splits(self) -> frozenset[str]:
        """The splits that have a folder."""
        return frozenset(split for name in self._folders for split in splits_named(name))

    def find_all(self, wanted: Sequence[Wanted], base: str) -> list[Found]:
        """The pictures that the rows of one table name.

        Each cell is tried as a path relative to the table's folder, ``base``, and then as a file name. A
        picture of that name is not taken if it lies in another folder or split than the cell or row says.
        If several are left, the folders in the cell, the split and the label decide.

        Raises:
            DataError: a path leads out of an archive.
        """
        direct = [self._direct(one.cell, base) for one in wanted]
        # Rows of one table are written in one way: if some are paths from here, so are the others.
        exact = any(path and _folders_in(one.cell) for path, one in zip(direct, wanted, strict=True))
        # If names are the same in train and test, a table without a split is that of train.
        names = {
            _name(one.cell)
            for path, one in zip(direct, wanted, strict=True)
            if not path and not (exact and _folders_in(one.cell))
        }
        assumed = "train" if any(_in_train_and_elsewhere(self._called(name)) for name in names) else ""
        return [
            Found(path) if path else self._choice(one._replace(split=one.split or assumed), base, exact)
            for path, one in zip(direct, wanted, strict=True)
        ]

    def _direct(self, cell: str, base: str) -> str | None:
        """The picture at the path in a cell."""
        path = cell.replace("\\", "/")
        outside = path.startswith("/") or re.match(r"[A-Za-z]:", path) or ".." in path.split("/")
        if outside and self._packed:
            raise DataError(f"the table names {printable(cell)!r}, which is outside its archive: refused")
        if not path or (outside and not self._trusted):
            return None
        direct = os.path.normpath(os.path.join(base, path)).replace(os.sep, "/")
        return direct if self._is_there(direct) else None

    def _choice(self, one: Wanted, base: str, exact: bool) -> Found:
        """The picture that a row means, in ``exact`` only one in the folders that its cell says."""
        name, folders = _name(one.cell), (*_parts(base), *_folders_in(one.cell))
        exact = exact and bool(_folders_in(one.cell))
        # The picture is in each of these folders, so the one with the fewest pictures of the name is enough.
        there = [folder for folder in folders if exact or folder in self._folders] or [""]
        candidates = min((self._called(name, folder) for folder in there), key=len)
        if exact:
            candidates = [path for path in candidates if _above(path) == folders]
        fitting = [path for path in candidates if self._fits(os.path.dirname(path), folders, one.split)]
        if len(fitting) > 1:
            same = [path for path in fitting if name in (_name(path), os.path.splitext(_name(path))[0])]
            fitting = same or fitting
        if len(fitting) == 1:
            return Found(fitting[0])
        if not fitting:
            others = candidates if exact else self._called(name)
            why = f"{printable(others[0])} is in another folder" if others else ""
            return Found(None, why=why)

        def score(path: str) -> tuple[int, bool, bool]:
            above = _above(path)
            alike = 0
            while alike < min(len(above), len(folders)) and above[-1 - alike] == folders[-1 - alike]:
                alike += 1
            return alike, one.split in _splits_of(above), file_key(one.label) in above

        ranked = sorted(fitting, key=score, reverse=True)
        if score(ranked[0]) > score(ranked[1]):
            return Found(ranked[0])
        more = ", ..." if len(ranked) > _MAX_SHOWN else ""
        return Found(None, True, ", ".join(printable(path) for path in ranked[:_MAX_SHOWN]) + more)

    def _fits(self, folder: str, folders: tuple[str, ...], split: str) -> bool:
        """Whether the picture in ``folder`` may be the one of a row, whose cell names the ``folders``."""
        known = self._known.get((folder, folders, split))
        if known is None:
            known = self._known[folder, folders, split] = self._may_be_meant(folder, folders, split)
        return known

    def _may_be_meant(self, folder: str, folders: tuple[str, ...], split: str) -> bool:
        above = _parts(folder)
        if any(name in self._folders and name not in above for name in folders):
            return False
        here, said = _splits_of(above), _splits_of(folders)
        if not here or said:
            return not here or bool(here & said)
        # Pictures for val and test are often taken from train, but not if these splits have folders.
        return not split or split in here or (split != "train" and split not in self._splits)

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


def _name(path: str) -> str:
    """The key of a file's name."""
    return file_key(path.replace("\\", "/").rpartition("/")[2])


@lru_cache(4096)
def _parts(folder: str) -> tuple[str, ...]:
    """The keys of the names in a folder's path."""
    return tuple(map(file_key, (part for part in re.split(r"[/\\]", folder) if part not in ("", ".", ".."))))


def _above(path: str) -> tuple[str, ...]:
    """The keys of the folders that a picture is in."""
    return _parts(os.path.dirname(path))


def _folders_in(cell: str) -> tuple[str, ...]:
    """The keys of the folders in a cell."""
    return _parts(os.path.dirname(cell.replace("\\", "/")))


@lru_cache(4096)
def _splits_of(folders: tuple[str, ...]) -> frozenset[str]:
    """The splits that the names of folders stand for."""
    return frozenset(split for name in folders for split in splits_named(name))


def _in_train_and_elsewhere(candidates: list[str]) -> bool:
    """Whether some pictures are in train's folder and others in that of another split."""
    if len(candidates) < 2:
        return False
    splits = [_splits_of(_above(path)) for path in candidates]
    return any("train" in here for here in splits) and any(here and "train" not in here for here in splits)
