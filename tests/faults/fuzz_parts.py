"""What the fuzzers' targets share: inputs of several parts, a folder to write them to, and checks of data.

A file that begins with checksums, lengths or compression hides its reader from plain mutations. So an input is
often not the file itself but its parts, separated by ``SEPARATOR``, and the target puts a valid file around
them. The first byte holds flags, among them whether the input is the raw file instead.
"""

from __future__ import annotations

import atexit
import random
import shutil
import struct
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thumbnet.data.splits import Data
from thumbnet.errors import DataError, RecipeError, UnreadableImageError
from thumbnet.sources.load import load_data

SEPARATOR = b"<|>"
SCRATCH = Path(tempfile.mkdtemp(prefix="thumbnet-fuzz-"))
atexit.register(shutil.rmtree, SCRATCH, ignore_errors=True)


@dataclass(frozen=True)
class Target:
    """A reader to fuzz.

    Attributes:
        run: reads an input; returns None if it was refused as documented, anything else if it was accepted.
        seeds: makes inputs that are accepted.
        words: what mutations may insert.
    """

    run: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    words: Sequence[bytes] = ()


def joined(flags: int, *parts: bytes) -> bytes:
    """An input of several parts."""
    return bytes([flags]) + SEPARATOR.join(parts)


def split(data: bytes, count: int) -> tuple[int, list[bytes]]:
    """The flags of an input, and its first ``count`` parts; those that are missing are empty."""
    parts = data[1:].split(SEPARATOR, count - 1)
    return (data[0] if data else 0), [*parts, *[b""] * (count - len(parts))]


def npy_file(header: bytes, payload: bytes) -> bytes:
    """A ``.npy`` around any header text, with the right length."""
    return b"\x93NUMPY\x02\0" + struct.pack("<I", len(header) + 1) + header + b"\n" + payload


def folder_of(files: Mapping[str, bytes]) -> Path:
    """A folder that has just these files."""
    folder = SCRATCH / "data"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def read_data(place: Path, **settings: Any) -> Data | None:
    """Load data and check what holds for all data; None if they are refused."""
    cache = SCRATCH / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    try:
        data = load_data(place, data_dir=cache, **settings)
    except (DataError, RecipeError):
        return None
    check_data(data)
    return data


def check_data(data: Data) -> None:
    """Check that pictures, labels and class names fit together."""
    assert len(data.class_names) > 1
    assert all(isinstance(name, str) and name for name in data.class_names), data.class_names
    assert len(set(data.class_names)) == len(data.class_names), "two classes of one name"
    for part in data.splits.values():
        size = len(part)
        if part.multilabel:
            assert part.targets.shape == (size, len(data.class_names))
            assert part.targets.dtype == bool
        else:
            assert part.labels.shape == (size,)
            assert part.labels.dtype == np.int64
            assert size == 0 or (part.labels.min() >= 0 and part.labels.max() < len(data.class_names))
        for index in {0, size - 1} if size else ():
            assert part.name(index)
            try:
                part.read(index)
            except UnreadableImageError:
                continue
    data.fingerprint()


def mutated(data: bytes, words: Sequence[bytes], generator: random.Random) -> bytes:
    """A simple mutation, for tests that have no libFuzzer."""
    content = bytearray(data)
    for _ in range(generator.randint(1, 4)):
        at = generator.randrange(len(content) + 1)
        kind = generator.randrange(5)
        if kind == 0 and content:
            content[at % len(content)] ^= 1 << generator.randrange(8)
        elif kind == 1:
            del content[at : at + generator.randint(1, 16)]
        elif kind == 2 and words:
            content[at:at] = generator.choice(words)
        elif kind == 3:
            content[at:at] = content[at : at + generator.randint(1, 32)]
        elif content:
            content[at % len(content)] = generator.choice((0, 1, 9, 32, 48, 57, 127, 128, 255))
    return bytes(content)
