"""Read NumPy's ``.npz`` and ``.npy`` files, such as those of MedMNIST, Keras and Kuzushiji-MNIST.

Nothing is unpickled. The size that a header declares is checked against the file before memory is allocated.
A ``.npy`` file is memory-mapped.
"""

from __future__ import annotations

import math
import re
import sys
import zipfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from thumbnet.data.reading import damage_as_data_error, inside, is_file, is_folder
from thumbnet.data.splits import Data
from thumbnet.errors import DataError, printable
from thumbnet.files import open_whole, open_zip
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources.archives import MAX_EXPANSION
from thumbnet.sources.arrays import Arrays, data_from_arrays, pair_up, part_of
from thumbnet.sources.label_matrices import data_from_matrices
from thumbnet.sources.place import Place, has_pictures

_SUFFIXES = (".npz", ".npy")
_BLOCK = 1 << 20


def recognise(place: Place, settings: DataSettings) -> bool:
    """Whether the place is a ``.npz`` or ``.npy`` file, or a folder with such files and without pictures."""
    return bool(_files(place.path)) and (is_file(place.path) or not has_pictures(place))


def read(place: Place, source: str, settings: DataSettings) -> Data:
    """Read the pictures and labels in NumPy files.

    Raises:
        DataError: a file is damaged or holds Python objects, or there are no pictures with labels.
    """
    by_class = _one_file_per_class(place.path)
    if by_class:
        return _read_classes(by_class, source)
    files = _chosen(place.path)
    single = len(files) == 1 and files[0].suffix.lower() == ".npz"
    arrays: dict[str, np.ndarray] = {}
    for path in files:
        if path.suffix.lower() == ".npy":
            arrays[path.stem] = _map(path)
        else:
            found = _read_npz(path)
            for name, value in found.items():
                inside = name if part_of(name)[2] or len(found) > 1 else ""
                arrays[name if single else f"{path.stem}-{inside}".rstrip("-")] = value
    where = files[0] if len(files) == 1 else files[0].parent
    paired = pair_up(arrays, str(where))
    names = paired.class_names
    paired.class_names = None if names is None else [str(name) for name in np.asarray(names).tolist()]
    layout = f"NumPy arrays {', '.join(map(printable, arrays))}"
    several = data_from_matrices(paired, source, layout, str(where), settings.multilabel)
    return several or data_from_arrays(paired, source, layout, str(where))


def _one_file_per_class(path: Path) -> dict[str, Path]:
    """A folder's files by class if each holds the pictures of one class (as in Quick, Draw!), else empty."""
    files = _files(path) if is_folder(path) else []
    if len(files) < 2 or any(
        f.suffix.lower() != ".npy" or part_of(f.stem)[1:] != (None, None) for f in files
    ):
        return {}
    try:
        shapes = [_map(file).shape for file in files]
    except DataError:
        return {}
    if len(shapes[0]) < 2 or any(len(shape) < 2 or shape[1:] != shapes[0][1:] for shape in shapes):
        return {}
    # Drop a prefix that all names share, up to the last word: full_numpy_bitmap_cat is the class "cat".
    words = re.split(r"(?<=[_ -])", files[0].stem)
    prefix = "".join(words[:-1])
    shared = all(file.stem.startswith(prefix) for file in files)
    return {file.stem[len(prefix) if shared else 0 :]: file for file in files}


def _read_classes(by_class: dict[str, Path], source: str) -> Data:
    images = [_map(file) for file in by_class.values()]
    labels = np.arange(len(images)).repeat([len(one) for one in images])
    first = next(iter(by_class.items()))
    notes = [f"one file per class: {printable(first[1].name)} has the class {printable(first[0])!r}"]
    arrays = Arrays({"train": np.concatenate(images)}, {"train": labels}, list(by_class), notes)
    return data_from_arrays(arrays, source, f"{len(images)} NumPy files, one per class")


def _files(path: Path) -> list[Path]:
    files = inside(path) if is_folder(path) else [path]
    return [file for file in files if file.suffix.lower() in _SUFFIXES and is_file(file)]


def _chosen(path: Path) -> list[Path]:
    """The files of one data set: those in the folder, or the named file and its siblings.

    Raises:
        DataError: the folder has several data sets.
    """
    named = path if is_file(path) else None
    if named is not None and named.suffix.lower() == ".npz" and part_of(named.stem)[1:] == (None, None):
        return [named]
    if named is not None and named.suffix.lower() == ".npz" and _is_whole(named):
        return [named]
    groups: dict[str, list[Path]] = {}
    for file in _files(path.parent if named else path):
        rest, split, role = part_of(file.stem)
        alone = file.suffix.lower() == ".npz" and split is None and role is None
        groups.setdefault(f"{file.name}" if alone else rest, []).append(file)
    if named is not None:
        return next(files for files in groups.values() if named in files)
    related = {key: files for key, files in groups.items() if any(part_of(f.stem)[2] for f in files)}
    if len(groups) > 1 and len(related) == 1:
        return next(iter(related.values()))
    if len(groups) > 1:
        names = ", ".join(printable(files[0].name) for files in list(groups.values())[:10])
        raise DataError(f"{path} has several data sets: {names}. Pass one of these files instead")
    return next(iter(groups.values()))


def _is_whole(path: Path) -> bool:
    """Whether a ``.npz`` has both pictures and labels, so that no other file is needed."""
    with _damage_of(path), open_zip(path) as zipped:
        roles = {part_of(Path(info.filename).stem)[2] for info in zipped.infolist()}
        return {"images", "labels"} <= roles


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    """Read every array in a ``.npz``.

    Raises:
        DataError: the file is damaged, is a decompression bomb, or holds Python objects.
    """
    arrays = {}
    with _damage_of(path), open_zip(path) as zipped:
        infos = [info for info in zipped.infolist() if info.filename.endswith(".npy")]
        limit = MAX_EXPANSION * path.stat().st_size + _BLOCK
        if sum(info.file_size for info in infos) > limit:
            raise DataError(
                f"{path} declares more than {MAX_EXPANSION} times its {path.stat().st_size:,} bytes and is "
                "refused as a decompression bomb. If it is genuine, save it with numpy.savez instead of "
                "numpy.savez_compressed"
            )
        for info in infos:
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                # zipfile decompresses the other methods without a limit.
                raise DataError(
                    f"{path} is compressed by method {info.compress_type}, which NumPy does not use: save it "
                    "with numpy.savez_compressed"
                )
            where = f"{path}, array {printable(info.filename.removesuffix('.npy'))}"
            with zipped.open(info) as file:
                shape, fortran, dtype = _header(file, where)
                content = _content(file, math.prod(shape) * dtype.itemsize, info.file_size, where)
            array = np.frombuffer(content, dtype=dtype)
            array = array.reshape(shape[::-1]).T if fortran else array.reshape(shape)
            _check_text(array, where)
            arrays[info.filename.removesuffix(".npy")] = array
    if not arrays:
        raise DataError(f"{path} holds no arrays")
    return arrays


def _map(path: Path) -> np.ndarray:
    """Memory-map the array in a ``.npy`` file."""
    with _damage_of(path):
        with open_whole(path) as file:
            shape, _, dtype = _header(file, str(path))
            held = path.stat().st_size - file.tell()
        if math.prod(shape) * dtype.itemsize > held:
            raise DataError(
                f"{path} declares an array of {list(shape)} {dtype}, but holds only {held:,} bytes"
            )
        if math.prod(shape) == 0:
            return np.empty(shape, dtype=dtype)
        # "c" is copy-on-write: the file stays unchanged, and torch does not warn about a read-only array.
        array = np.load(path, mmap_mode="c", allow_pickle=False)
        _check_text(array, str(path))
        return array


def _header(file: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """The shape, order (True for Fortran's) and dtype that a ``.npy`` file declares.

    Raises:
        DataError: it holds Python objects, or records instead of numbers or names.
        ValueError: it is not a ``.npy`` file.
    """
    version = npy.read_magic(file)
    try:
        if version == (1, 0):
            shape, fortran, dtype = npy.read_array_header_1_0(file)
        elif version in ((2, 0), (3, 0)):  # version 3 differs only in the encoding of field names
            shape, fortran, dtype = npy.read_array_header_2_0(file)
        else:
            raise ValueError(f"unknown .npy version {version}")
    except MemoryError:  # Python's parser also raises it, for a header that is nested too deeply
        raise ValueError("its header is too long or nested too deeply") from None
    if dtype.hasobject:
        raise DataError(
            f"{where} holds Python objects (a pickle) and is refused, because loading them can run any code. "
            "Save labels as numpy.array(labels, dtype=str) and pictures as an array of numbers"
        )
    if dtype.fields or any(size < 0 for size in shape):
        raise DataError(f"{where} holds {dtype} {list(shape)}, expected an array of numbers or names")
    return shape, fortran, dtype


def _check_text(array: np.ndarray, where: str) -> None:
    """Refuse text with numbers that stand for no character, on which NumPy and Python fail much later.

    Raises:
        DataError: the array has such text.
    """
    if array.dtype.kind == "U" and array.dtype.itemsize:
        codes = (
            np.ascontiguousarray(array).reshape(-1).view(np.dtype("u4").newbyteorder(array.dtype.byteorder))
        )
        if codes.max(initial=0) > sys.maxunicode:
            raise DataError(f"{where} is damaged: it holds {array.dtype} with characters that do not exist")


def _content(file: IO[bytes], expected: int, held: int, where: str) -> bytearray:
    """Read ``expected`` bytes. Memory grows with what is read, not with what the header declares."""
    if expected > held:
        raise DataError(f"{where} declares {expected:,} bytes of values, but holds at most {held:,}")
    content = bytearray()
    while len(content) < expected and (block := file.read(min(_BLOCK, expected - len(content)))):
        content += block
    if len(content) < expected:
        raise DataError(f"{where} is truncated: it has {len(content):,} of {expected:,} bytes")
    return content


def _damage_of(path: Path) -> AbstractContextManager[None]:
    """In this block, the errors that a damaged file causes are raised as :class:`DataError`."""
    return damage_as_data_error(path, f"{path} is not a NumPy file, or is damaged")
