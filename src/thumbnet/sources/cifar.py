"""Read CIFAR-10 and CIFAR-100 (Krizhevsky 2009) in their official binary and python formats.

The python format is a pickle, and loading a pickle may run any code. The unpickler here runs none: it accepts
only the few globals that a CIFAR batch needs, and replaces each with a harmless stand-in.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thumbnet.data.reading import is_file, is_folder, read_error, reads
from thumbnet.data.splits import ArraySplit, Data
from thumbnet.errors import DataError, printable
from thumbnet.files import read_whole
from thumbnet.invocation import command
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources.place import Place
from thumbnet.sources.tiny_imagenet import read_lines

SIDE = 32
PICTURE_BYTES = 3 * SIDE * SIDE
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Archive:
    """An official archive: its address, its SHA-256 digest, and the folder in it."""

    url: str
    sha256: str
    folder: str


ARCHIVES = {
    "cifar10": Archive(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        "cifar-10-batches-bin",
    ),
    "cifar100": Archive(
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        "cifar-100-binary",
    ),
}


@dataclass(frozen=True)
class BatchFiles:
    """A folder with CIFAR's batches.

    Attributes:
        folder: the folder.
        files: the names of each split's files.
        meta: the name of the file with the class names.
        label_bytes: label bytes per picture in the binary format: 1 for CIFAR-10, 2 for CIFAR-100.
        python: whether the format is python rather than binary.
    """

    folder: Path
    files: dict[str, tuple[str, ...]]
    meta: str
    label_bytes: int
    python: bool

    @property
    def layout(self) -> str:
        """The data set and its format, such as ``CIFAR-10, binary version``."""
        number = 10 if self.label_bytes == 1 else 100
        return f"CIFAR-{number}, {'python' if self.python else 'binary'} version"


def recognise(place: Place, settings: DataSettings) -> bool:
    """Whether ``place`` is a folder with all training batches of a version, or a batch in such a folder."""
    return _batches_of(place.path) is not None


def read(place: Place, source: str, settings: DataSettings) -> Data:
    """The pictures of the batches. See :func:`load_batches`."""
    batches = _batches_of(place.path)
    assert batches is not None
    return load_batches(batches, source)


def _batches_of(path: Path) -> BatchFiles | None:
    if is_folder(path):
        return find_batches(path)
    batches = find_batches(path.parent)
    named = batches is not None and any(path.name in files for files in batches.files.values())
    return batches if named else None


def find_batches(folder: Path) -> BatchFiles | None:
    """The CIFAR batches in ``folder``; None if any training batch is missing."""
    ten = tuple(f"data_batch_{number}" for number in range(1, 6))
    versions = [
        BatchFiles(
            folder,
            {"train": tuple(f"{n}.bin" for n in ten), "test": ("test_batch.bin",)},
            "batches.meta.txt",
            1,
            False,
        ),
        BatchFiles(folder, {"train": ten, "test": ("test_batch",)}, "batches.meta", 1, True),
        BatchFiles(
            folder, {"train": ("train.bin",), "test": ("test.bin",)}, "fine_label_names.txt", 2, False
        ),
        BatchFiles(folder, {"train": ("train",), "test": ("test",)}, "meta", 2, True),
    ]
    return next((v for v in versions if all(is_file(folder / f) for f in v.files["train"])), None)


def load_batches(batches: BatchFiles, source: str) -> Data:
    """All pictures of a folder of batches, in memory: 184 MB for a full data set.

    Raises:
        DataError: a file is missing, has the wrong length, or is not a CIFAR batch.
    """
    read = _read_python if batches.python else _read_binary
    splits = {}
    for split, files in batches.files.items():
        parts = [read(batches.folder / name, batches.label_bytes) for name in files]
        images = np.concatenate([images for images, _ in parts])
        labels = np.concatenate([labels for _, labels in parts])
        # Planes (C, H, W) to pixels (H, W, C).
        images = np.ascontiguousarray(images.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1))
        splits[split] = ArraySplit(images, labels, split)
    names = _class_names(batches)
    for split, part in splits.items():
        if len(part) and int(part.labels.max()) >= len(names):
            raise DataError(
                f"{printable(str(batches.folder))}: {split} has the label {part.labels.max()}, but there are "
                f"only {len(names)} classes"
            )
    return Data(source, batches.layout, names, dict(splits))


def _read_binary(path: Path, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Planes (uint8 [N, 3072]) and labels (int64 [N]). CIFAR-100's second label byte is the fine label."""
    with reads(path):
        raw = np.frombuffer(read_whole(path), dtype=np.uint8)
    record = label_bytes + PICTURE_BYTES
    if len(raw) == 0 or len(raw) % record:
        raise DataError(
            f"{printable(str(path))} has {len(raw)} bytes, not a multiple of {record}: it is cut short or "
            "damaged"
        )
    records = raw.reshape(-1, record)
    return records[:, label_bytes:], records[:, label_bytes - 1].astype(np.int64)


def _read_python(path: Path, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Like :func:`_read_binary`, from a pickle."""
    batch = _load_inert(path)
    images = batch.get(b"data")
    labels = batch.get(b"labels" if label_bytes == 1 else b"fine_labels")
    if (
        not isinstance(images, _Array)
        or not isinstance(images.raw, bytes)
        or not isinstance(labels, list)
        or not all(type(label) is int and 0 <= label < 256 for label in labels)
        or images.shape != (len(labels), PICTURE_BYTES)
        or len(images.raw) != len(labels) * PICTURE_BYTES
        or not labels
    ):
        raise DataError(f"{printable(str(path))} is not a CIFAR batch: unpack the archive again")
    pixels = np.frombuffer(images.raw, dtype=np.uint8)
    if images.fortran:
        return pixels.reshape(PICTURE_BYTES, -1).T, np.array(labels)
    return pixels.reshape(-1, PICTURE_BYTES), np.array(labels)


def _class_names(batches: BatchFiles) -> tuple[str, ...]:
    path = batches.folder / batches.meta
    if not is_file(path):
        if batches.label_bytes == 1:
            return CIFAR10_CLASSES
        raise DataError(
            f"{printable(str(path))}, which has the class names, is missing: unpack the archive again"
        )
    if batches.python:
        key = b"label_names" if batches.label_bytes == 1 else b"fine_label_names"
        names = _load_inert(path).get(key)
        if not isinstance(names, list) or not all(isinstance(name, bytes | str) for name in names):
            raise DataError(
                f"{printable(str(path))} does not have CIFAR's class names: unpack the archive again"
            )
        return tuple(name if isinstance(name, str) else name.decode("utf-8", "replace") for name in names)
    return tuple(line.strip() for line in read_lines(path) if line.strip())


class _Array:
    """Stands in for numpy.ndarray in a pickle: keeps the raw bytes and runs nothing."""

    shape: tuple[Any, ...] = ()
    raw: object = b""
    fortran = False

    def __setstate__(self, state: Any) -> None:
        _, self.shape, dtype, self.fortran, self.raw = state
        if not isinstance(dtype, _DType) or dtype.name not in ("u1", b"u1"):
            raise pickle.UnpicklingError("it has an array that is not uint8")


class _DType:
    """Stands in for numpy.dtype in a pickle."""

    def __init__(self, name: object = "", *_: object) -> None:
        self.name = name

    def __setstate__(self, state: object) -> None:
        pass


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """Stands in for _codecs.encode, by which Python 3 stores bytes in pickles of old protocols."""
    return text.encode("latin1")


_INERT: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _latin1,
}


# This is the unpickler written in Python: the one in C allocates whatever size a file declares.
class _InertUnpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _INERT[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def _load_inert(path: Path) -> dict[Any, Any]:
    """A dictionary of plain values and :class:`_Array` from a pickle. Runs nothing in it.

    Raises:
        DataError: the pickle is damaged, asks for a global that a CIFAR batch does not need, or is not a
            dictionary.
    """
    try:
        content = _InertUnpickler(io.BytesIO(read_whole(path)), encoding="bytes").load()
    except OSError as error:
        raise read_error(error, path) from None
    except Exception as error:  # a damaged pickle can raise almost any exception
        raise DataError(
            f"{printable(str(path))} is not a CIFAR batch ({printable(str(error))}); nothing in it was run. "
            f"Use the binary version: {command('train', 'cifar10')}"
        ) from None
    if not isinstance(content, dict):
        raise DataError(f"{printable(str(path))} is not a CIFAR batch: unpack the archive again")
    return content
