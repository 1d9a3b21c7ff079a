"""The common form of all data sets: splits of labelled pictures and the names of their classes."""

from __future__ import annotations

import copy
import hashlib
import io
import os
import stat
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from PIL import Image

from thumbnet.data.images import (
    HEAD_BYTES,
    NOT_FINITE,
    Picture,
    from_file,
    load_picture,
    peek_image,
    to_rgb,
)
from thumbnet.data.reading import is_not_there, read_error, version_of
from thumbnet.errors import (
    DataError,
    UnreadableImageError,
    is_printable,
    printable,
)
from thumbnet.files import read_whole

if TYPE_CHECKING:
    from thumbnet.data.corrections import Corrected
    from thumbnet.recipes.settings import DataSettings

# Called after each picture or batch, with how many pictures are done and how many there are.
Progress = Callable[[int, int], None]


class Split(ABC):
    """Labelled pictures in a fixed order, read one at a time.

    Attributes:
        labels: int64 [N], positions in the data's class names. A picture has one class, except in a
            :class:`thumbnet.data.multilabel.MultiLabelSplit`, where this raises an error.
        multilabel: whether the pictures have several labels each.
        forkable: whether processes that were forked from this one may read pictures at the same time, because
            they share memory but no open file.
        threadable: whether several threads may read pictures at the same time.
    """

    labels: np.ndarray
    multilabel = False
    forkable = False
    threadable = True

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def targets(self) -> np.ndarray:
        """What a network learns: :attr:`labels`, int64 [N], or bool [N, classes] for several labels."""
        return self.labels

    def class_counts(self, classes: int) -> np.ndarray:
        """The number of pictures with each class or label: int64 [classes]."""
        return np.bincount(self.labels, minlength=classes)

    def members(self, label: int) -> np.ndarray:
        """The positions of the pictures with a class or label: int64 [M], ascending."""
        return np.flatnonzero(self.labels == label)

    def single_classes(self) -> np.ndarray:
        """The only class of each picture, int64 [N]; -1 for all of them if they have several labels."""
        return self.labels

    def reader(self) -> Split:
        """The split that reads these pictures: itself, or the one that a split with several labels wraps."""
        return self

    def label_text(self, index: int, class_names: Sequence[str]) -> str:
        """A picture's class in words; its labels, or ``no label``, if it may have several."""
        return class_names[int(self.labels[index])]

    @abstractmethod
    def name(self, index: int) -> str:
        """The picture's name: its path relative to the data's root, if it has one.

        A subset of a split keeps the names.
        """

    def key(self, index: int) -> str:
        """What is hashed to choose the pictures of a held-out split: the name, except for arrays."""
        return self.name(index)

    def file(self, index: int) -> Path | None:
        """The picture's file on disk; None for pictures in archives, tables and arrays."""
        return None

    def read(self, index: int) -> Image.Image:
        """Decode the picture as RGB in its own size, rendered by its type (see :func:`to_rgb`).

        Raises:
            UnreadableImageError: it cannot be decoded.
            FailedReadError: the system failed to read it.
        """
        return to_rgb(self.load(index))

    @abstractmethod
    def load(self, index: int) -> Picture:
        """Decode the picture at its full bit depth (see :func:`thumbnet.data.images.load_picture`).

        Raises:
            UnreadableImageError: it cannot be decoded.
            FailedReadError: the system failed to read it.
        """

    def head(self, index: int) -> bytes:
        """The first ``HEAD_BYTES`` of the encoded file; empty if there is no file or reading it is slow."""
        return b""

    @abstractmethod
    def content(self, index: int) -> bytes:
        """Bytes that identify a picture's content: its file's bytes, or its pixels.

        Raises:
            UnreadableImageError: there is no such file.
            FailedReadError: the system failed to read it.
        """

    @abstractmethod
    def peek(self, index: int) -> tuple[tuple[int, int], str]:
        """The upright size (height, width) and the mode of a picture, if possible without decoding it.

        Raises:
            UnreadableImageError: the file is not a picture.
            FailedReadError: the system failed to read it.
        """

    @abstractmethod
    def subset(self, indices: np.ndarray) -> Split:
        """The pictures at ``indices`` (int [M]), in that order."""

    def with_labels(self, labels: np.ndarray) -> Self:
        """The same pictures with other labels (int [N])."""
        changed = copy.copy(self)
        changed.labels = np.asarray(labels, dtype=np.int64)
        return changed

    def content_key(self) -> str:
        """A digest of the pictures, without their labels. Computed once."""
        return self._content_key

    @cached_property
    def _content_key(self) -> str:
        return _digest(self.content_stamp())

    @abstractmethod
    def content_stamp(self) -> Iterable[bytes]:
        """The bytes that :meth:`content_key` digests, in parts."""

    def stamp(self) -> Iterable[bytes]:
        """The bytes that this split adds to :meth:`Data.fingerprint`, in parts.

        These are the labels, then :meth:`content_stamp`. Splits of files, also of those in archives,
        give names, labels and sizes instead, because reading every picture would take too long.
        """
        yield self.labels.tobytes()
        yield from self.content_stamp()


class FileSplit(Split):
    """Pictures in files. ``paths`` are relative to ``root``."""

    forkable = True

    def __init__(self, root: Path, paths: Sequence[str], labels: np.ndarray) -> None:
        self.root = root
        self._root = str(root)  # joining strings is five times as fast as joining paths
        self.paths = np.asarray(paths, dtype=object)
        self.labels = np.asarray(labels, dtype=np.int64)

    def name(self, index: int) -> str:
        return str(self.paths[index])

    def file(self, index: int) -> Path:
        return self.root / str(self.paths[index])

    def load(self, index: int) -> Picture:
        path = os.path.join(self._root, self.paths[index])
        return load_picture(path, path)

    def head(self, index: int) -> bytes:
        path = os.path.join(self._root, self.paths[index])
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                return b""
            with open(path, "rb", buffering=0) as file:
                return file.read(HEAD_BYTES)
        except OSError as error:
            if is_not_there(error):
                return b""
            raise read_error(error, path) from None

    def content(self, index: int) -> bytes:
        path = os.path.join(self._root, self.paths[index])
        try:
            return read_whole(path)
        except OSError as error:
            if is_not_there(error):
                raise UnreadableImageError(path, "there is no such file") from None
            raise read_error(error, path) from None

    def peek(self, index: int) -> tuple[tuple[int, int], str]:
        path = os.path.join(self._root, self.paths[index])
        return from_file(path, path, lambda stream: peek_image(stream, path))

    def subset(self, indices: np.ndarray) -> FileSplit:
        return FileSplit(self.root, self.paths[indices], self.labels[indices])

    def stamp(self) -> Iterable[bytes]:
        """Names, labels and file sizes. Reading every file would take too long."""
        for path, label, (size, *_) in zip(self.paths, self.labels, self._versions, strict=True):
            yield file_stamp(path, label, size)

    def content_stamp(self) -> Iterable[bytes]:
        """Names and versions of the files."""
        yield os.fsencode(self.root.resolve())
        for path, version in zip(self.paths, self._versions, strict=True):
            yield f"{path}\0{version}\n".encode(errors="surrogateescape")

    @cached_property
    def _versions(self) -> list[tuple[int, int, int]]:
        """Size and times of every file, see :func:`version_of`, looked up once; -1 for a missing file.

        Raises:
            FailedReadError: the system cannot tell.
        """
        return [_version(os.path.join(self._root, path)) for path in self.paths]


class EncodedSplit(Split):
    """Encoded files that are not files on disk, such as members of an archive, with their ``names``."""

    names: Sequence[str]
    forkable = True

    def name(self, index: int) -> str:
        return self.names[index]

    def load(self, index: int) -> Picture:
        return load_picture(self.content(index), self.names[index])

    def head(self, index: int) -> bytes:
        try:
            return self.content(index)[:HEAD_BYTES]
        except UnreadableImageError:
            return b""

    def peek(self, index: int) -> tuple[tuple[int, int], str]:
        return peek_image(io.BytesIO(self.content(index)), self.names[index])


class BytesSplit(EncodedSplit):
    """Encoded files in memory, such as a column of a Parquet file."""

    def __init__(self, files: Sequence[bytes], labels: np.ndarray, names: Sequence[str]) -> None:
        self.files = files
        self.labels = np.asarray(labels, dtype=np.int64)
        self.names = names

    def content(self, index: int) -> bytes:
        return self.files[index]

    def subset(self, indices: np.ndarray) -> BytesSplit:
        names = [self.names[i] for i in indices]
        return BytesSplit([self.files[i] for i in indices], self.labels[indices], names)

    def content_stamp(self) -> Iterable[bytes]:
        return self.files


class ArraySplit(Split):
    """Pictures as pixels: ``images`` [N, height, width] or [N, height, width, 1, 3 or 4].

    Args:
        images: uint8, uint16, int32 or floats. Other integers and booleans are converted to one of these. A
            :class:`thumbnet.data.rendering.Rendering` turns them into 8-bit RGB.
        labels: int [N].
        prefix: the start of each picture's name, which is ``prefix[number]``.
        numbers: the pictures' positions in the whole array, int [N], if these are a part of it.

    Raises:
        DataError: the shape or the type is not one of these.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, prefix: str, numbers: np.ndarray | None = None
    ) -> None:
        self.images = _as_pictures(images, prefix)
        self.labels = np.asarray(labels, dtype=np.int64)
        if self.labels.shape != (len(images),):
            raise DataError(
                f"{prefix}: {len(images)} pictures have labels of shape {list(self.labels.shape)}, "
                f"expected [{len(images)}]"
            )
        self.prefix = prefix
        self._numbers = np.arange(len(images)) if numbers is None else numbers

    def name(self, index: int) -> str:
        return f"{self.prefix}[{self._numbers[index]}]"

    def key(self, index: int) -> str:
        """The name with the position in this split, so that older runs find the same held-out pictures."""
        return f"{self.prefix}[{index}]"

    def load(self, index: int) -> np.ndarray:
        pixels: np.ndarray = self.images[index]
        if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
            raise UnreadableImageError(self.name(index), NOT_FINITE)
        return pixels

    def content(self, index: int) -> bytes:
        return bytes(self.images[index].tobytes())

    def peek(self, index: int) -> tuple[tuple[int, int], str]:
        channels = 1 if self.images.ndim == 3 else self.images.shape[3]
        mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
        if self.images.dtype != np.uint8:
            mode = f"{mode} {self.images.dtype}"
        return (self.images.shape[1], self.images.shape[2]), mode

    def subset(self, indices: np.ndarray) -> ArraySplit:
        return ArraySplit(self.images[indices], self.labels[indices], self.prefix, self._numbers[indices])

    def stamp(self) -> Iterable[bytes]:
        yield self.labels.tobytes()
        yield from self._parts()

    def content_key(self) -> str:
        return _digest(self.content_stamp())  # computed each time, because the array may have been written to

    def content_stamp(self) -> Iterable[bytes]:
        yield f"{self.images.shape} {self.images.dtype.str}".encode()
        yield from self._parts()

    def _parts(self) -> Iterable[bytes]:
        """Yield the pixels, 1,024 pictures at a time, because the array may be larger than memory."""
        for start in range(0, len(self.images), 1024):
            yield self.images[start : start + 1024].tobytes()


def _as_pictures(images: np.ndarray, name: str) -> np.ndarray:
    """Convert ``images`` to one of the types that :class:`ArraySplit` holds."""
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3, 4)):
        raise DataError(
            f"{name}: the array has shape {list(images.shape)}, expected pictures [N, height, width] or "
            "[N, height, width, 1, 3 or 4]"
        )
    kind, wide = images.dtype.kind, images.dtype.itemsize
    if kind == "b":
        return images.astype(np.uint8) * np.uint8(255)
    if images.dtype in (np.uint8, np.uint16, np.int32, np.float16, np.float32, np.float64):
        return images
    if kind not in "iu":
        raise DataError(f"{name}: the array has type {images.dtype}, expected integers or floats")
    if wide < 4:  # int8, int16
        return images.astype(np.int32)
    least, most = (int(images.min()), int(images.max())) if images.size else (0, 0)
    fits = np.iinfo(np.int32).min <= least and most <= np.iinfo(np.int32).max
    return images.astype(np.int32 if fits else np.float64)


def group_name(group: str) -> str:
    """The name of a picture's group as people know it; empty for a picture that is a group of its own."""
    return "" if group.startswith("\0") else group


def file_stamp(path: str, label: int, size: int) -> bytes:
    """The bytes that a picture in a file adds to a fingerprint."""
    return f"{path}\0{label}\0{size}\n".encode(errors="surrogateescape")


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _version(path: str) -> tuple[int, int, int]:
    try:
        return version_of(os.stat(path))
    except OSError as error:
        if is_not_there(error):
            return -1, -1, -1
        raise read_error(error, path) from None


@dataclass(frozen=True)
class Data:
    """A data set: what :func:`thumbnet.load_data` returns.

    Attributes:
        source: what the user named: ``cifar10``, a folder's path, ...
        layout: the layout that was recognised, in words.
        class_names: a label is a position in this tuple.
        splits: ``train``, and ``val`` and ``test`` if there are any, by name. ``all`` is ``train`` again, for
            measuring data that have no other split.
        notes: what the user should know, such as files that were skipped. A note that begins with
            ``warning: `` means that the result may be wrong.
        groups: each picture's group, str [N], by split, if pictures belong together (those of one person, for
            example). Held-out splits take whole groups. A picture that belongs to no other has a group that
            begins with a zero byte, see :func:`group_name`.
        set_aside: the splits that thumbnet split off ``train``, as opposed to the source's own.
        corrected: what corrections of labels changed; None if there were none.
        settings: the settings by which :func:`thumbnet.load_data` read and split the data, so that a run can
            load them again; None if the data were made in another way.
        unused_test: the test split of the source, if folds of ``train`` take its place. Corrections find its
            pictures there, so that none of them joins ``train``.
    """

    source: str
    layout: str
    class_names: tuple[str, ...]
    splits: dict[str, Split]
    notes: tuple[str, ...] = field(default=())
    groups: Mapping[str, np.ndarray] = field(default_factory=dict)
    set_aside: tuple[str, ...] = ()
    corrected: Corrected | None = None
    settings: DataSettings | None = None
    unused_test: Split | None = None

    def __post_init__(self) -> None:
        # Notes contain file names: remove control characters, and keep each note on one line.
        object.__setattr__(self, "notes", tuple(printable(note) for note in self.notes))
        if len(self.splits.get("train", ())) == 0:
            raise DataError(f"{printable(self.source)} has no training pictures")
        if len({split.multilabel for split in self.splits.values()}) > 1:
            raise DataError(
                f"{printable(self.source)}: some splits have one class per picture, others several labels"
            )
        odd = [printable(name) for name in self.class_names if not is_printable(name)]
        if odd:
            raise DataError(
                f"{printable(self.source)}: class names with invisible or control characters: "
                f"{', '.join(odd)}. "
                "Rename them. If a table or list names them, save it as UTF-8"
            )
        if "" in self.class_names or len(set(self.class_names)) < len(self.class_names):
            twice = next((name for name, n in Counter(self.class_names).items() if n > 1), "")
            what = f"two classes are called {twice!r}" if twice else "a class has no name"
            raise DataError(f"{printable(self.source)}: {what}. Rename one")

    @property
    def multilabel(self) -> bool:
        """Whether the pictures have several labels each."""
        return self.splits["train"].multilabel

    def check_trainable(self) -> None:
        """Check that there are at least two classes to learn.

        Raises:
            DataError: there are fewer than two classes.
        """
        if len(self.class_names) < 2:
            raise DataError(
                f"{printable(self.source)}: a classifier needs at least two classes, and there is "
                f"{'only one: ' + self.class_names[0] if self.class_names else 'no class'}. "
                "Put the pictures of each class in their own folder"
            )

    def split(self, name: str) -> Split:
        """The split of that name.

        Raises:
            DataError: there is no split of that name.
        """
        if name not in self.splits:
            raise DataError(f"{printable(self.source)} has no split {name!r}, only {', '.join(self.splits)}")
        return self.splits[name]

    def groups_of(self, name: str, part: Split) -> np.ndarray | None:
        """Each picture's group, str [N]; None if the split has no groups.

        Args:
            name: the name of the split.
            part: the split, or a part of it, such as the pictures that can be read. Pictures are found by
                their names.
        """
        groups, whole = self.groups.get(name), self.splits[name]
        if groups is None or len(part) == len(whole):
            return groups
        of_name = {whole.name(index): group for index, group in enumerate(groups.tolist())}
        return np.array([of_name[part.name(index)] for index in range(len(part))], dtype=object)

    def with_parts(self, parts: Mapping[str, Split]) -> Data:
        """The same data, of which each split is only a part; the groups follow their pictures."""
        groups = {name: self.groups_of(name, part) for name, part in parts.items()}
        known = {name: found for name, found in groups.items() if found is not None}
        return replace(self, splits={**self.splits, **parts}, groups={**self.groups, **known})

    def measured_split(self) -> str:
        """The name of the split to measure on: ``test``, else ``val``, else all pictures."""
        return next(name for name in ("test", "val", "all", "train") if name in self.splits)

    def fingerprint(self, *splits: str) -> str:
        """A digest of class names, labels and pictures (files count by name and size), in hexadecimal.

        With names of ``splits``, only these count.
        """
        digest = hashlib.blake2b("\0".join(self.class_names).encode(), digest_size=16)
        for name, split in sorted(self.splits.items()):
            if splits and name not in splits:
                continue
            digest.update(f"\n{name}\n".encode())
            for part in split.stamp():
                digest.update(part)
        return digest.hexdigest()
