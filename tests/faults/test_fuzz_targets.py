"""Each target of the fuzzers, without libFuzzer: it accepts its own seeds, and survives simple mutations of them.

What ``make fuzz`` found is in :data:`FOUND`. The findings of single readers have tests next to those of these readers.
"""

from __future__ import annotations

import bz2
import json
import lzma
import random
import zlib
from pathlib import Path

import numpy as np
import pytest

from faults import fuzz_data, fuzz_runs
from faults.fuzz_parts import SEPARATOR, Target, joined, mutated
from thumbnet.errors import DataError
from thumbnet.sources.load import load_data

pytest.importorskip("onnx")
pytest.importorskip("pyarrow")
TARGETS: dict[str, Target] = fuzz_data.TARGETS | fuzz_runs.TARGETS
MUTATIONS = 12


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.filterwarnings("ignore")
def test_a_reader_accepts_its_seeds_and_refuses_damage_as_documented(name: str) -> None:
    target = TARGETS[name]
    seeds = target.seeds()
    for seed in seeds:
        assert target.run(seed) is not None, f"a seed of {name} is refused: {seed[:200]!r}"
    generator = random.Random(zlib.crc32(name.encode()))
    words = [SEPARATOR, *target.words]
    for _ in range(MUTATIONS):
        target.run(mutated(generator.choice(seeds), words, generator))


FOUND = {
    "an end of a name in a pack's index that is no whole number": (
        "packed",
        json.dumps({"names": list(fuzz_data.TREE), "ends": [120, 240, 1.5e300, 480]}).encode(),
    ),
    "a header of an array that ends within a token": (
        "npy",
        joined(0, b"{'descr': '|u1', 'fortran_order': False, 'shape': (3, '''", b"123"),
    ),
}


@pytest.mark.parametrize(("name", "content"), FOUND.values(), ids=list(FOUND))
def test_what_fuzzing_found_stays_mended(name: str, content: bytes) -> None:
    TARGETS[name].run(content)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("pack", [bz2.compress, lzma.compress])
@pytest.mark.parametrize("size", [0, 1, 100, 512, 600])
def test_a_short_compressed_file_ends_instead_of_waiting_for_more(
    pack: object, size: int, tmp_path: Path
) -> None:
    path = tmp_path / "short.tar.xz"
    path.write_bytes(pack(b"x" * size))  # type: ignore[operator]
    with pytest.raises(DataError):
        load_data(path, data_dir=tmp_path / "cache")


def test_text_with_characters_that_do_not_exist_is_refused(tmp_path: Path) -> None:
    words = np.array(["cat", "dog"] * 4)
    codes = words.view(np.uint32).copy()
    codes[0] = 0x00FFFFFF
    np.savez(tmp_path / "a.npz", x=np.zeros((8, 4, 4, 3), np.uint8), y=codes.view(words.dtype))
    with pytest.raises(DataError, match="characters that do not exist"):
        load_data(tmp_path / "a.npz")
