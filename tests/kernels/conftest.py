"""The kernels, compiled so that tests can refuse them memory and emulate matrix tiles."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel_helpers import CAN_RUN, fake_gcc, gcc, loaded
from thumbnet.kernels import library
from thumbnet.kernels.library import has_tiles

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def test_kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """A library with emulated tile instructions and ``allocations_granted``."""
    if not CAN_RUN:
        pytest.skip("no AVX-512 BF16 or no gcc here: only the reference implementations run")
    target = tmp_path_factory.mktemp("kernels") / "test_kernels.so"
    headers = [str(HERE / "emulated_tiles.h"), str(HERE / "refusing_memory.h")]
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(library, "FLAGS", (*library.FLAGS, "-include", headers[0], "-include", headers[1]))
        library.compile_library(gcc(), target)
    return ctypes.CDLL(str(target))


@pytest.fixture
def by_real_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load every library by its real path.

    A process loads only one library per name, and thumbnet's names begin with the number of an open folder: the
    kernels of this process could be taken for those of a test, and those of a test for the kernels of later tests.
    """
    load = ctypes.CDLL
    monkeypatch.setattr(ctypes, "CDLL", lambda path: load(path and os.path.realpath(path)))


@pytest.fixture
def quick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, test_kernels: ctypes.CDLL, by_real_path: None
) -> None:
    """Make ``gcc`` fast: it copies a library that is already compiled."""
    fake_gcc(tmp_path, monkeypatch, f"cp {test_kernels._name} $target")


@pytest.fixture
def no_tiles(test_kernels: ctypes.CDLL) -> Iterator[None]:
    """Compute as on a processor without matrix tiles, with Winograd's algorithm."""
    with loaded(test_kernels, has_tiles=False):
        yield


@pytest.fixture(params=["emulated", "real"])
def tiles(request: pytest.FixtureRequest) -> Iterator[None]:
    """Use matrix tiles: emulated ones, and those of the processor if it has any."""
    if request.param == "real":
        if not has_tiles():
            pytest.skip("no AMX here")
        yield
        return
    with loaded(request.getfixturevalue("test_kernels"), has_tiles=True):
        yield
