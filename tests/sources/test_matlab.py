from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thumbnet.errors import DataError
from thumbnet.sources.matlab import numeric_arrays

scipy_io = pytest.importorskip("scipy.io")
KINDS = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")


def saved(values: Mapping[str, object], **options: object) -> bytes:
    stream = io.BytesIO()
    scipy_io.savemat(stream, values, **options)
    return stream.getvalue()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(KINDS),
    shape=st.lists(st.integers(0, 5), min_size=2, max_size=4),
    compressed=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_arrays_are_those_that_scipy_reads(
    kind: str, shape: list[int], compressed: bool, seed: int, tmp_path: Path
) -> None:
    values = np.random.default_rng(seed).integers(0, 100, shape).astype(kind)
    path = tmp_path / "a.mat"
    path.write_bytes(saved({"first": values, "x": np.arange(3)}, do_compression=compressed))
    theirs, ours = scipy_io.loadmat(path), numeric_arrays(path)
    assert set(ours) == {"first", "x"}
    assert ours["first"].size == values.size
    if values.size:
        np.testing.assert_array_equal(ours["first"], theirs["first"])
    np.testing.assert_array_equal(ours["x"], theirs["x"])


@pytest.mark.parametrize("kind", ["f8", "f4", "i4", "i2", "u2", "u1"])
def test_matrices_of_version_4_are_read(kind: str, tmp_path: Path) -> None:
    values = np.arange(12).reshape(3, 4).astype(kind)
    (tmp_path / "a.mat").write_bytes(saved({"x": values}, format="4"))
    np.testing.assert_array_equal(numeric_arrays(tmp_path / "a.mat")["x"], values)


def test_what_is_no_array_of_real_numbers_is_skipped(tmp_path: Path) -> None:
    values = {
        "text": "hello",
        "cells": np.array([1, "a"], dtype=object),
        "struct": {"a": 1},
        "complex": np.array([1j]),
        "numbers": np.eye(2),
    }
    (tmp_path / "a.mat").write_bytes(saved(values))
    assert list(numeric_arrays(tmp_path / "a.mat")) == ["numbers"]


def test_every_file_that_is_cut_short_gives_fewer_arrays_or_a_data_error(tmp_path: Path) -> None:
    content = saved({"x": np.arange(6), "y": np.eye(2)}, do_compression=True)
    path = tmp_path / "a.mat"
    refused = 0
    for length in range(len(content)):
        path.write_bytes(content[:length])
        try:
            assert len(numeric_arrays(path)) < 2
        except DataError:
            refused += 1
    assert refused > len(content) - 10


def test_an_array_that_declares_more_than_it_has_is_refused(tmp_path: Path) -> None:
    content = bytearray(saved({"x": np.zeros((3, 5), np.int32)}))
    sizes = struct.pack("<2i", 3, 5)
    at = content.index(sizes)
    content[at : at + 8] = struct.pack("<2i", 1 << 30, 1 << 30)
    (tmp_path / "a.mat").write_bytes(content)
    with pytest.raises(DataError, match="an array of"):
        numeric_arrays(tmp_path / "a.mat")


def test_a_bomb_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    packed = zlib.compress(bytes(16 << 20))
    head = b"MATLAB".ljust(124) + b"\x00\x01IM"
    (tmp_path / "a.mat").write_bytes(head + struct.pack("<II", 15, len(packed)) + packed)
    with pytest.raises(DataError, match="bomb"):
        numeric_arrays(tmp_path / "a.mat")
