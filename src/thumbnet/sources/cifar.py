"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) in their official binary and python formats.

The python format is a pickle, and a pickle may run any code when it is loaded. Here it is read by
an unpickler that knows three inert stand-ins and nothing else.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thumbnet.data.splits import ArraySplit, Data
from thumbnet.errors import DataError, printable
from thumbnet.invocation import command
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources.place import Place

SIDE = 32
PICTURE_BYTES = 3 * SIDE * SIDE
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Archive:
    """An official archive: its address, and the digest that verifies it."""

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
class Batches:
    """A folder that holds CIFAR's batches: which files are which split, and their format."""

    folder: Path
    files: dict[str, tuple[str, ...]]
    meta: str
    label_bytes: int
    python: bool

    @property
    def layout(self) -> str:
        """In words."""
        number = 10 if self.label_bytes == 1 else 100
        return f"CIFAR-{number}, {'python' if self.python else 'binary'} version"


def recognise(place: Place, settings: DataSettings) -> bool:
    """Whether all training batches of a known version are in a folder, or beside the batch that was named."""
    return _batches_of(place.path) is not None


def read(place: Place, source: str, settings: DataSettings) -> Data:
    """See :func:`load_batches`."""
    batches = _batches_of(place.path)
    assert batches is not None
    return load_batches(batches, source)


def _batches_of(path: Path) -> Batches | None:
    if path.is_dir():
        return find_batches(path)
    batches = find_batches(path.parent)
    named = batches is not None and any(path.name in files for files in batches.files.values())
    return batches if named else None


def find_batches(folder: Path) -> Batches | None:
    """The CIFAR batches in ``folder``, or None where it holds none."""
    ten = tuple(f"data_batch_{number}" for number in range(1, 6))
    shapes = [
        Batches(
            folder,
            {"train": tuple(f"{n}.bin" for n in ten), "test": ("test_batch.bin",)},
            "batches.meta.txt",
            1,
            False,
        ),
        Batches(folder, {"train": ten, "test": ("test_batch",)}, "batches.meta", 1, True),
        Batches(folder, {"train": ("train.bin",), "test": ("test.bin",)}, "fine_label_names.txt", 2, False),
        Batches(folder, {"train": ("train",), "test": ("test",)}, "meta", 2, True),
    ]
    return next((s for s in shapes if all((folder / f).is_file() for f in s.files["train"])), None)


def load_batches(batches: Batches, source: str) -> Data:
    """All pictures of a folder of batches, in memory: 184 MB for the full data set.

    Raises:
        DataError: a file is missing, of a wrong length, or holds what CIFAR's does not.
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
                f"{printable(str(batches.folder))}: {split} has label {part.labels.max()} of {len(names)} "
                f"classes"
            )
    return Data(source, batches.layout, names, dict(splits))


def _read_binary(path: Path, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Records of label byte(s) and 3,072 pixel bytes; of CIFAR-100's two the second is fine."""
    try:
        raw = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"cannot read {printable(str(path))}: {error.strerror}") from None
    record = label_bytes + PICTURE_BYTES
    if len(raw) == 0 or len(raw) % record:
        raise DataError(
            f"{printable(str(path))} has {len(raw)} bytes, not a multiple of {record}: it is cut short or "
            f"damaged"
        )
    records = raw.reshape(-1, record)
    return records[:, label_bytes:], records[:, label_bytes - 1].astype(np.int64)


def _read_python(path: Path, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
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
        raise DataError(f"{printable(str(path))} does not hold what a CIFAR batch holds")
    pixels = np.frombuffer(images.raw, dtype=np.uint8)
    if images.fortran:
        return pixels.reshape(PICTURE_BYTES, -1).T, np.array(labels)
    return pixels.reshape(-1, PICTURE_BYTES), np.array(labels)


def _class_names(batches: Batches) -> tuple[str, ...]:
    path = batches.folder / batches.meta
    if not path.is_file():
        if batches.label_bytes == 1:
            return CIFAR10_CLASSES
        raise DataError(f"{printable(str(path))} is missing: the class names are in it")
    if batches.python:
        key = b"label_names" if batches.label_bytes == 1 else b"fine_label_names"
        names = _load_inert(path).get(key)
        if not isinstance(names, list) or not all(isinstance(name, bytes | str) for name in names):
            raise DataError(f"{printable(str(path))} does not hold CIFAR's class names")
        return tuple(name if isinstance(name, str) else name.decode("utf-8", "replace") for name in names)
    return tuple(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())


class _Array:
    """Replaces numpy.ndarray in a pickle: keeps the raw bytes and runs nothing."""

    shape: tuple[Any, ...] = ()
    raw: object = b""
    fortran = False

    def __setstate__(self, state: Any) -> None:
        _, self.shape, dtype, self.fortran, self.raw = state
        if not isinstance(dtype, _DType) or dtype.name not in ("u1", b"u1"):
            raise pickle.UnpicklingError("an array that is not of unsigned bytes")


class _DType:
    """Replaces numpy.dtype in a pickle."""

    def __init__(self, name: object = "", *_: object) -> None:
        self.name = name

    def __setstate__(self, state: object) -> None:
        pass


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """Replaces _codecs.encode, with which Python 3 writes bytes into old pickles."""
    return text.encode("latin1")


_INERT: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _latin1,
}


# The unpickler in Python, not the one in C: that sets aside memory for whatever a file declares.
class _InertUnpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _INERT[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def _load_inert(path: Path) -> dict[Any, Any]:
    """A dictionary of plain values and :class:`_Array` from a pickle; nothing in it is run.

    Raises:
        DataError: damaged, or it asks for anything but what a CIFAR batch holds.
    """
    try:
        content = _InertUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except OSError as error:
        raise DataError(f"cannot read {printable(str(path))}: {error.strerror}") from None
    except Exception as error:  # a damaged pickle raises nearly anything
        raise DataError(
            f"{printable(str(path))} is not a CIFAR batch ({printable(str(error))}); nothing in it was run. "
            f"Use the binary version: {command('train', 'cifar10')}"
        ) from None
    if not isinstance(content, dict):
        raise DataError(f"{printable(str(path))} does not hold what a CIFAR batch holds")
    return content
