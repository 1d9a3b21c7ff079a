"""Keep the pictures of an archive in a single file, one after the other.

Creating 60,000 small files takes five times as long as unpacking them (25 s against 5 s, on two cores of an
EPYC), and every training would have to look them all up again. So the pictures of an archive stay together:
``pictures.bin`` has their bytes, and ``pictures.json`` has their names and the offset where each one ends.
"""

from __future__ import annotations

import json
import mmap
import operator
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from thumbnet.data.splits import EncodedSplit, file_stamp
from thumbnet.errors import FailedReadError

_BYTES, _INDEX = "pictures.bin", "pictures.json"


class Pack:
    """A pack in ``folder``, open for reading.

    Attributes:
        key: a string that changes when a picture changes.
        places: for each picture's path in the archive, the part of the file that its bytes are.

    Raises:
        OSError: the pack does not exist, or cannot be read.
        ValueError: the pack is incomplete.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._path = folder / _BYTES
        self.key = key
        index = json.loads((folder / _INDEX).read_text("utf-8"))
        names, ends = index["names"], index["ends"]
        starts = [0, *ends[:-1]]
        # A loop over 60,000 pictures would take 10 times as long as these C functions.
        typed = {*map(type, names)} <= {str} and {*map(type, ends)} <= {int}
        if not typed or len(names) != len(ends) or any(map(operator.gt, starts, ends)):
            raise ValueError(f"{folder / _INDEX} is damaged")
        # A later picture replaces an earlier one of the same name.
        self.places = dict(zip(names, map(slice, starts, ends), strict=True))
        size = ends[-1] if ends else 0
        if self._path.stat().st_size != size:
            raise ValueError(f"{self._path} does not have the size in its index: {size:,} bytes")

    @cached_property
    def by_folder(self) -> dict[str, list[str]]:
        """For each folder, the names of the pictures directly in it; ``""`` is the outermost folder."""
        found = defaultdict(list)
        for path in self.places:
            folder, _, name = path.rpartition("/")
            found[folder].append(name)
        return found

    @cached_property
    def _bytes(self) -> mmap.mmap:
        with self._path.open("rb") as file:
            try:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self._path)) from None

    def read(self, place: slice) -> bytes:
        """A picture's bytes.

        Raises:
            OSError: the file no longer exists, or cannot be read.
        """
        if place.start == place.stop:  # the whole pack may be empty, and an empty file cannot be mapped
            return b""
        return self._bytes[place]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_bytes"}


class Unpacked(NamedTuple):
    """An unpacked archive: ``folder`` has its folders and other files, ``pictures`` has its pictures."""

    folder: Path
    pictures: Pack


class PackWriter:
    """Writes a pack to ``folder``. The pack is complete when the ``with`` block ends without an error."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = (folder / _BYTES).open("wb")
        self._names: list[str] = []
        self._ends: list[int] = []
        self._written = 0  # bytes

    def add(self, name: str, blocks: Iterable[bytes]) -> None:
        """Append a picture.

        Args:
            name: the picture's path, its parts separated by ``/``.
            blocks: the picture's bytes, in blocks of any size.
        """
        for block in blocks:
            self._written += self._file.write(block)
        self._names.append(name)
        self._ends.append(self._written)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        self._file.close()
        if error is None:
            index = {"names": self._names, "ends": self._ends}
            (self._folder / _INDEX).write_text(json.dumps(index), "utf-8")


class PackedSplit(EncodedSplit):
    """Pictures in a pack. ``paths`` are relative to ``root``, a folder in it (``""`` is the outermost)."""

    def __init__(self, pack: Pack, root: str, paths: Sequence[str], labels: np.ndarray) -> None:
        self._pack, self._root = pack, root
        self.names = paths
        self.labels = np.asarray(labels, dtype=np.int64)

    def _place(self, path: str) -> slice:
        return self._pack.places[f"{self._root}/{path}" if self._root else path]

    def content(self, index: int) -> bytes:
        try:
            return self._pack.read(self._place(self.names[index]))
        except OSError as error:
            raise FailedReadError(f"{self.names[index]} in {error.filename}", error.strerror or "") from None

    def subset(self, indices: np.ndarray) -> PackedSplit:
        return PackedSplit(self._pack, self._root, [self.names[i] for i in indices], self.labels[indices])

    def stamp(self) -> Iterable[bytes]:
        """The same stamps as if these pictures were files."""
        places = map(self._place, self.names)
        stamps = [
            file_stamp(path, label, place.stop - place.start)
            for path, label, place in zip(self.names, self.labels.tolist(), places, strict=True)
        ]
        yield b"".join(stamps)

    def content_stamp(self) -> Iterable[bytes]:
        """The key of the pack and the root, then the paths of the pictures."""
        yield f"{self._pack.key}\0{self._root}\n".encode(errors="surrogateescape")
        yield "\n".join(self.names).encode(errors="surrogateescape")
