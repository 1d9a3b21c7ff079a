"""Read the arrays of numbers in MATLAB's ``.mat`` files, of version 4 and of versions 5 to 7.

The format is described in MathWorks' "MAT-File Format" (versions 5 and 4). SciPy's reader is not used: a file
with a wrong type crashes the process (SciPy 1.17), and a compressed one may ask for any memory. Here every
size is compared with what the file has, and a file decompresses to at most ``MAX_EXPANSION`` times its size.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from thumbnet.data.reading import read_error
from thumbnet.errors import DataError, printable
from thumbnet.files import open_whole
from thumbnet.sources.archives import MAX_EXPANSION

_BLOCK = 1 << 20
_HDF5 = b"\x89HDF\r\n\x1a\n"
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15
# Types of stored values. MATLAB stores an array in the smallest type that holds its values.
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_NOT_READ = (
    "which thumbnet cannot read. In MATLAB, save it with save(FILE, ..., '-v7'). In Python, read it with "
    "h5py and save it with numpy.savez"
)
_OLD_TYPES = ("f8", "f4", "i4", "i2", "u2", "u1")  # of version 4
_NUMERIC = range(6, 16)  # classes of arrays: double, single and the integers
_COMPLEX = 0x800
_MOST_DIMENSIONS = 32  # as in NumPy
_LONGEST_NAME = 1 << 10  # bytes; MATLAB allows 63 characters


class DamagedError(Exception):
    """The bytes are not what the format demands."""


class _Element(NamedTuple):
    """A tagged piece of a file: its type, and its bytes."""

    kind: int
    data: memoryview


def numeric_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of real numbers in a file, by name. Text, cells, structs and sparse arrays are skipped.

    Raises:
        DataError: the file has version 7.3, cannot be read, is damaged, or decompresses to far more than its
            size.
    """
    try:
        with open_whole(path) as file:
            head = file.read(520)
            if head.startswith((b"MATLAB 7.3", _HDF5)) or head[512:] == _HDF5:
                raise DataError(f"{path} is a MATLAB file of version 7.3 (HDF5), {_NOT_READ}")
            file.seek(0)
            size = path.stat().st_size
            if not size:
                raise DamagedError("it is empty")
            found = (
                _version_5(file, size, head) if head[126:128] in (b"IM", b"MI") else _version_4(file, size)
            )
            return {name: array for name, array in found if name}
    except OSError as error:
        raise read_error(error, path) from None
    except (DamagedError, zlib.error) as error:
        raise DataError(f"{path} is not a MATLAB file, or is damaged: {printable(str(error))}") from None


# --- versions 5 to 7 --------------------------------------------------------------------------------------


def _version_5(file: IO[bytes], size: int, head: bytes) -> Iterator[tuple[str, np.ndarray]]:
    order = "<" if head[126:128] == b"IM" else ">"
    budget = MAX_EXPANSION * size + _BLOCK
    file.seek(128)
    while (left := size - file.tell()) > 0:
        tag = file.read(8)
        if len(tag) < 8:
            raise DamagedError("it is cut short")
        kind, length = struct.unpack(f"{order}II", tag)
        if length > left - 8:
            raise DamagedError(f"it declares {length:,} bytes where {left - 8:,} are left")
        if kind == _COMPRESSED:
            content = _decompressed(file, length, budget)
            budget -= len(content)
            elements = _elements(memoryview(content), order)
        elif kind == _MATRIX:
            content = bytearray(length)
            file.readinto(content)  # type: ignore[attr-defined]
            elements = iter([_Element(kind, memoryview(content))])
        else:
            file.seek(length, 1)
            continue
        for element in elements:
            if element.kind == _MATRIX:
                yield from _matrix(element.data, order)


def _decompressed(file: IO[bytes], length: int, most: int) -> bytearray:
    """Decompress the next ``length`` bytes to at most ``most``."""
    unpacker, content = zlib.decompressobj(), bytearray()
    while length and not unpacker.eof:
        packed = file.read(min(_BLOCK, length))
        length -= len(packed)
        if not packed:
            raise DamagedError("it is cut short")
        while packed and not unpacker.eof:
            content += unpacker.decompress(packed, _BLOCK)
            packed = unpacker.unconsumed_tail
            if len(content) > most:
                raise DamagedError(f"it decompresses to more than {MAX_EXPANSION} times its size: a bomb")
    if not unpacker.eof:
        raise DamagedError("compressed data are cut short")
    file.seek(length, 1)
    return content


def _elements(data: memoryview, order: str) -> Iterator[_Element]:
    """Split bytes into elements."""
    at = 0
    while len(data) - at >= 8:
        kind, length = struct.unpack_from(f"{order}II", data, at)
        if kind >> 16:  # a small element has its type, its length and up to four bytes in eight
            kind, length, start, step = kind & 0xFFFF, kind >> 16, at + 4, 8
            if length > 4:
                raise DamagedError(f"a small element has {length} bytes")
        else:
            start, step = at + 8, 8 + length + -length % 8
        if length > len(data) - start:
            raise DamagedError(f"it declares {length:,} bytes where {len(data) - start:,} are left")
        yield _Element(kind, data[start : start + length])
        at += step


def _matrix(data: memoryview, order: str) -> Iterator[tuple[str, np.ndarray]]:
    """The name and the values of an array; nothing if it holds no real numbers."""
    elements = _elements(data, order)
    flags, sizes, name = (next(elements, None) for _ in range(3))
    if flags is None or flags.kind != _UINT32 or len(flags.data) < 4:
        raise DamagedError("an array has no flags")
    (bits,) = struct.unpack_from(f"{order}I", flags.data)
    if bits & 0xFF not in _NUMERIC or bits & _COMPLEX:
        return
    if sizes is None or sizes.kind != _INT32 or len(sizes.data) % 4:
        raise DamagedError("an array has no dimensions")
    if name is None or name.kind != _INT8 or len(name.data) > _LONGEST_NAME:
        raise DamagedError("an array has no name")
    shape = struct.unpack(f"{order}{len(sizes.data) // 4}i", sizes.data)
    values = next(elements, _Element(0, memoryview(b"")))
    if values.kind not in _TYPES:
        raise DamagedError(f"an array has values of the unknown type {values.kind}")
    yield _text(bytes(name.data)), _array(values.data, np.dtype(order + _TYPES[values.kind]), shape)


# --- version 4 --------------------------------------------------------------------------------------------


def _version_4(file: IO[bytes], size: int) -> Iterator[tuple[str, np.ndarray]]:
    while file.tell() < size:
        head = file.read(20)
        if len(head) < 20:
            raise DamagedError("it is cut short")
        order = "<" if struct.unpack("<i", head[:4])[0] in range(1000) else ">"
        code, rows, columns, imaginary, length = struct.unpack(f"{order}5i", head)
        machine, reserved, kind, text = code // 1000, code // 100 % 10, code // 10 % 10, code % 10
        if (
            machine != (order == ">")
            or reserved
            or kind >= len(_OLD_TYPES)
            or text > 2
            or min(rows, columns) < 0
        ):
            raise DamagedError("it begins like no MATLAB file")
        if not 0 <= length <= _LONGEST_NAME:
            raise DamagedError(f"a name has {length:,} bytes")
        name, dtype = file.read(length), np.dtype(order + _OLD_TYPES[kind])
        held = rows * columns * dtype.itemsize * (2 if imaginary else 1)
        if held > size - file.tell():
            raise DamagedError(f"it declares {held:,} bytes where {size - file.tell():,} are left")
        values = bytearray(held)
        file.readinto(values)  # type: ignore[attr-defined]
        if text == 0 and not imaginary:
            yield _text(name.rstrip(b"\0")), _array(memoryview(values), dtype, (rows, columns))


def _array(data: memoryview, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """An array in MATLAB's order, the first dimension fastest, in this machine's byte order."""
    if not 1 <= len(shape) <= _MOST_DIMENSIONS or min(shape) < 0:
        raise DamagedError(f"an array has the dimensions {list(shape)[:40]}")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise DamagedError(f"an array of {list(shape)} has {len(data):,} bytes of {dtype}")
    if 0 in shape:
        return np.empty((0,) * len(shape), dtype.newbyteorder("="))
    values = np.frombuffer(data, dtype).reshape(shape, order="F")
    return values.astype(dtype.newbyteorder("="), copy=False)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")
