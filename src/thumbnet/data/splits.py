"""What every source of data becomes: splits of labelled pictures, and the names of the classes."""

from __future__ import annotations

import hashlib
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from thumbnet.data.images import FORMATS, MAX_PIXELS, lies_on_its_side, load_picture, open_image, to_rgb
from thumbnet.errors import DataError, TooManyPixelsError, UnknownFormatError, UnreadableImageError, printable


class Split(ABC):
    """Labelled pictures in a fixed order, read one at a time.

    Attributes:
        labels: int64 [N], positions in the data's class names.
    """

    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """What to call a picture: a path where it has one, relative to the data's root."""

    @abstractmethod
    def read(self, index: int) -> Image.Image:
        """The picture, in RGB and its own size.

        Raises:
            UnreadableImageError: it cannot be decoded.
        """

    def load(self, index: int) -> Image.Image | np.ndarray:
        """As :meth:`read`, but as uint8 [H, W, 3] where it is pixels already."""
        return self.read(index)

    @abstractmethod
    def content(self, index: int) -> bytes:
        """What identifies a picture's content: its file's bytes, or its pixels.

        Raises:
            UnreadableImageError: the file cannot be read.
        """

    @abstractmethod
    def peek(self, index: int) -> tuple[tuple[int, int], str]:
        """Size (height, width; upright) and mode of a picture, without decoding it where possible.

        Raises:
            UnreadableImageError: it is no picture.
        """

    @abstractmethod
    def subset(self, indices: np.ndarray) -> Split:
        """The pictures at ``indices`` (int [M]), in that order."""

    def content_key(self) -> str:
        """A digest that changes when a picture does; labels are not in it."""
        return _digest(self.content_stamp())

    @abstractmethod
    def content_stamp(self) -> Iterable[bytes]:
        """What :meth:`content_key` is made of."""

    @abstractmethod
    def stamp(self) -> Iterable[bytes]:
        """What a fingerprint of this split is made of, cheap to get."""


class FileSplit(Split):
    """Pictures in files. ``paths`` are relative to ``root``."""

    def __init__(self, root: Path, paths: Sequence[str], labels: np.ndarray) -> None:
        self.root = root
        self._root = str(root)  # to join strings takes a fifth of the time
        self.paths = np.asarray(paths, dtype=object)
        self.labels = np.asarray(labels, dtype=np.int64)

    def name(self, index: int) -> str:  # noqa: D102
        return str(self.paths[index])

    def path(self, index: int) -> Path:
        """Where the picture's file is."""
        return self.root / str(self.paths[index])

    def read(self, index: int) -> Image.Image:  # noqa: D102
        path = os.path.join(self._root, self.paths[index])
        return open_image(path, path)

    def load(self, index: int) -> Image.Image | np.ndarray:  # noqa: D102
        path = os.path.join(self._root, self.paths[index])
        return load_picture(path, path)

    def content(self, index: int) -> bytes:  # noqa: D102
        try:
            return self.path(index).read_bytes()
        except OSError as error:
            raise UnreadableImageError(str(self.path(index)), error.strerror or str(error)) from None

    def peek(self, index: int) -> tuple[tuple[int, int], str]:  # noqa: D102
        return _peek(self.path(index), str(self.path(index)))

    def subset(self, indices: np.ndarray) -> FileSplit:  # noqa: D102
        return FileSplit(self.root, self.paths[indices], self.labels[indices])

    def stamp(self) -> Iterable[bytes]:
        """Names, labels and file sizes: reading every file would cost too much."""
        for path, label, (size, _) in zip(self.paths, self.labels, self._states, strict=True):
            yield file_stamp(path, label, size)

    def content_stamp(self) -> Iterable[bytes]:
        """Names, file sizes and times of change."""
        yield os.fsencode(self.root.resolve())
        for path, (size, changed) in zip(self.paths, self._states, strict=True):
            yield f"{path}\0{size}\0{changed}\n".encode(errors="surrogateescape")

    @cached_property
    def _states(self) -> list[tuple[int, int]]:
        """Size and time of change, in nanoseconds, of every file; looked up once. -1 where there is none."""
        return [_state(os.path.join(self._root, path)) for path in self.paths]


class EncodedSplit(Split):
    """Pictures as encoded files that are not files of their own: ``names`` says what to call them."""

    names: Sequence[str]

    def name(self, index: int) -> str:  # noqa: D102
        return self.names[index]

    def read(self, index: int) -> Image.Image:  # noqa: D102
        return open_image(self.content(index), self.names[index])

    def load(self, index: int) -> Image.Image | np.ndarray:  # noqa: D102
        return load_picture(self.content(index), self.names[index])

    def peek(self, index: int) -> tuple[tuple[int, int], str]:  # noqa: D102
        return _peek(io.BytesIO(self.content(index)), self.names[index])


class BytesSplit(EncodedSplit):
    """Pictures as encoded files in memory, such as a column of a Parquet file."""

    def __init__(self, files: Sequence[bytes], labels: np.ndarray, names: Sequence[str]) -> None:
        self.files = files
        self.labels = np.asarray(labels, dtype=np.int64)
        self.names = names

    def content(self, index: int) -> bytes:  # noqa: D102
        return self.files[index]

    def subset(self, indices: np.ndarray) -> BytesSplit:  # noqa: D102
        names = [self.names[i] for i in indices]
        return BytesSplit([self.files[i] for i in indices], self.labels[indices], names)

    def stamp(self) -> Iterable[bytes]:  # noqa: D102
        yield self.labels.tobytes()
        yield from self.files

    def content_stamp(self) -> Iterable[bytes]:  # noqa: D102
        return self.files


class ArraySplit(Split):
    """Pictures as pixels.

    Args:
        images: uint8 [N, height, width], or [N, height, width, C] with 1 (grey), 3 (RGB) or 4 (RGBA) channels;
            it may be a file mapped into memory.
        labels: int [N].
        prefix: a picture is called ``prefix[position]``.

    Raises:
        DataError: the pictures have another shape or type, or there are more or fewer labels.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, prefix: str) -> None:
        fits = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3, 4))
        if images.dtype != np.uint8 or not fits:
            raise DataError(
                f"{prefix}: the pictures are {images.dtype} {list(images.shape)}, "
                "expected uint8 [N, H, W] or [N, H, W, 1, 3 or 4]"
            )
        self.images = images[..., 0] if images.ndim == 4 and images.shape[3] == 1 else images
        self.labels = np.asarray(labels, dtype=np.int64)
        if self.labels.shape != (len(images),):
            raise DataError(
                f"{prefix}: {len(images)} pictures have labels of shape {list(self.labels.shape)}, "
                f"expected [{len(images)}]"
            )
        self.prefix = prefix

    def name(self, index: int) -> str:  # noqa: D102
        return f"{self.prefix}[{index}]"

    def read(self, index: int) -> Image.Image:  # noqa: D102
        return to_rgb(Image.fromarray(np.ascontiguousarray(self.images[index])))

    def load(self, index: int) -> np.ndarray:  # noqa: D102
        pixels: np.ndarray = self.images[index]
        if pixels.ndim == 2:
            return np.repeat(pixels[..., None], 3, axis=2)
        return pixels if pixels.shape[2] == 3 else np.asarray(self.read(index))

    def rgb(self) -> np.ndarray:
        """All pictures, uint8 [N, height, width, 3]."""
        if self.images.ndim == 3:
            return np.repeat(self.images[..., None], 3, axis=3)
        if self.images.shape[3] == 3:
            return self.images
        pixels = np.empty((*self.images.shape[:3], 3), dtype=np.uint8)
        for index in range(len(self)):
            pixels[index] = self.load(index)
        return pixels

    def content(self, index: int) -> bytes:  # noqa: D102
        return bytes(self.images[index].tobytes())

    def peek(self, index: int) -> tuple[tuple[int, int], str]:  # noqa: D102
        mode = "L" if self.images.ndim == 3 else {3: "RGB", 4: "RGBA"}[self.images.shape[3]]
        return (self.images.shape[1], self.images.shape[2]), mode

    def subset(self, indices: np.ndarray) -> ArraySplit:  # noqa: D102
        return ArraySplit(self.images[indices], self.labels[indices], self.prefix)

    def stamp(self) -> Iterable[bytes]:  # noqa: D102
        yield self.labels.tobytes()
        yield from self._parts()

    def content_stamp(self) -> Iterable[bytes]:  # noqa: D102
        yield str(self.images.shape).encode()
        yield from self._parts()

    def _parts(self) -> Iterable[bytes]:
        """All pixels, some pictures at a time: the array may be larger than memory."""
        for start in range(0, len(self.images), 1024):
            yield self.images[start : start + 1024].tobytes()


def file_stamp(path: str, label: int, size: int) -> bytes:
    """What a picture in a file adds to a fingerprint."""
    return f"{path}\0{label}\0{size}\n".encode(errors="surrogateescape")


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _state(path: str) -> tuple[int, int]:
    try:
        state = os.stat(path)
    except OSError:
        return -1, -1
    return state.st_size, state.st_mtime_ns


def _peek(source: Path | io.BytesIO, name: str) -> tuple[tuple[int, int], str]:
    try:
        with Image.open(source, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise TooManyPixelsError(name, f"declares {width}x{height} pixels")
            if lies_on_its_side(image):
                width, height = height, width
            return (height, width), image.mode
    except UnreadableImageError:
        raise
    except UnidentifiedImageError:
        raise UnknownFormatError(name) from None
    except Exception as error:
        raise UnreadableImageError(name, str(error) or type(error).__name__) from None


@dataclass(frozen=True)
class Data:
    """A data set: what :func:`thumbnet.load_data` returns.

    Attributes:
        source: what the user named: ``cifar10``, a folder's path, ...
        layout: in words, what was recognised there.
        class_names: a label is a position in it.
        splits: by name, of ``train``, ``val`` and ``test``; ``train`` is always there.
        notes: what the user should know, such as files that were passed over. One that begins with
            ``warning: `` says that the result may be wrong.
        groups: by split, where pictures belong together, such as those of one person: each picture's group,
            str [N]. Pictures of a group stay together when some are set aside.
    """

    source: str
    layout: str
    class_names: tuple[str, ...]
    splits: dict[str, Split]
    notes: tuple[str, ...] = field(default=())
    groups: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.splits.get("train", ())) == 0:
            raise DataError(f"{self.source}: there are no training pictures in it")
        odd = [printable(name) for name in self.class_names if not name.isprintable()]
        if odd:
            raise DataError(f"{self.source}: class names that are no text: {', '.join(odd)}. Rename them")
        if len(self.class_names) < 2:
            raise DataError(
                f"{self.source}: a classifier needs two classes or more, and there "
                f"{'is one' if self.class_names else 'are none'}: {', '.join(self.class_names) or '-'}"
            )

    def split(self, name: str) -> Split:
        """The split of that name.

        Raises:
            DataError: there is none.
        """
        if name not in self.splits:
            raise DataError(f"{self.source} has no split {name!r}, only {', '.join(self.splits)}")
        return self.splits[name]

    def fingerprint(self) -> str:
        """A digest of class names, labels and pictures (files by name and size), as hex."""
        digest = hashlib.blake2b("\0".join(self.class_names).encode(), digest_size=16)
        for name, split in sorted(self.splits.items()):
            digest.update(f"\n{name}\n".encode())
            for part in split.stamp():
                digest.update(part)
        return digest.hexdigest()

    def with_held_out(self, test_fraction: float, val_fraction: float, seed: int) -> Data:
        """With ``test`` (where there is neither ``test`` nor ``val``) and ``val`` split off ``train``.

        Stratified, and by a hash of each picture's name: adding pictures moves no other one.

        Raises:
            DataError: ``val`` is asked for and exists, or too few pictures are there to split.
        """
        data = self
        if "test" not in data.splits and "val" not in data.splits:
            note = (
                f"no test or val split: {test_fraction:.0%} of each class was set aside as test (seed {seed})"
            )
            data = replace(data._split_off("test", test_fraction, seed), notes=(*data.notes, note))
        if val_fraction > 0:
            if "val" in data.splits:
                raise DataError(f"{self.source} has a val split of its own: leave out --val-fraction")
            data = data._split_off("val", val_fraction, seed + 1)
        return data

    def _split_off(self, name: str, fraction: float, seed: int) -> Data:
        train = self.splits["train"]
        held: list[int] = []
        for label in range(len(self.class_names)):
            members = np.flatnonzero(train.labels == label)
            if len(members) < 2:
                raise DataError(
                    f"{self.source}: class {self.class_names[label]!r} has {len(members)} picture(s), "
                    f"too few to set some aside as {name}"
                )
            count = min(max(1, round(len(members) * fraction)), len(members) - 1)
            ranked = sorted(members.tolist(), key=lambda index: _rank(train.name(index), seed))
            held += ranked[:count]
        chosen = np.zeros(len(train), dtype=bool)
        chosen[held] = True
        splits = {
            **self.splits,
            "train": train.subset(np.flatnonzero(~chosen)),
            name: train.subset(np.flatnonzero(chosen)),
        }
        return replace(self, splits=splits)


def _rank(name: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}\0{name}".encode(errors="surrogateescape"), digest_size=8).digest()
