from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import coloured
from thumbnet.errors import UnreadableImageError
from thumbnet.sources.packed import Pack, PackedSplit, PackWriter


def encoded(label: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(coloured(label, label)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    with PackWriter(tmp_path) as writer:
        for label, name in enumerate(["r/a.png", "g/b.png", "c.png"]):
            content = encoded(label)
            writer.add(name, [content[:10], content[10:]])
        writer.add("empty.png", [])
    return Pack(tmp_path, "key")


def test_packed_pictures_are_read_back(pack: Pack) -> None:
    assert list(pack.places) == ["r/a.png", "g/b.png", "c.png", "empty.png"]
    assert pack.read(pack.places["g/b.png"]) == encoded(1)
    assert pack.read(pack.places["empty.png"]) == b""
    assert pack.by_folder == {"r": ["a.png"], "g": ["b.png"], "": ["c.png", "empty.png"]}


def test_the_last_of_several_pictures_with_the_same_name_is_kept(tmp_path: Path) -> None:
    with PackWriter(tmp_path) as writer:
        writer.add("a.png", [b"first"])
        writer.add("a.png", [b"second"])
    found = Pack(tmp_path, "key")
    assert found.read(found.places["a.png"]) == b"second"


def test_a_pack_that_is_cut_short_or_unfinished_is_refused(pack: Pack, tmp_path: Path) -> None:
    data = tmp_path / "pictures.bin"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(ValueError, match="does not have the size in its index"):
        Pack(tmp_path, "key")
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    writer = PackWriter(unfinished)
    writer.add("a.png", [b"x"])
    writer.__exit__(RuntimeError("stopped"))
    with pytest.raises(OSError, match="No such file"):
        Pack(unfinished, "key")


@pytest.mark.parametrize(
    "index",
    [
        {"names": ["r/a.png", 2], "ends": [3, 4]},
        {"names": ["r/a.png"], "ends": [3, 4]},
        {"names": ["r/a.png", "g/b.png"], "ends": [4, 3]},
        {"names": ["r/a.png", "g/b.png"], "ends": [-1, 3]},
        {"names": ["r/a.png"], "ends": [True]},
        {"names": ["r/a.png"], "ends": [3.0]},
    ],
)
def test_a_damaged_index_is_refused(pack: Pack, tmp_path: Path, index: dict[str, object]) -> None:
    (tmp_path / "pictures.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="is damaged"):
        Pack(tmp_path, "key")


def test_a_split_of_a_pack_reads_pictures_below_its_root_and_can_be_pickled(pack: Pack) -> None:
    split = PackedSplit(pack, "g", ["b.png"], np.array([1]))
    again = pickle.loads(pickle.dumps(split))  # noqa: S301
    for one in (split, again):
        assert np.array_equal(np.asarray(one.read(0)), coloured(1, 1))
    assert split.subset(np.array([0])).labels.tolist() == [1]


def test_the_error_names_an_empty_picture(pack: Pack) -> None:
    with pytest.raises(UnreadableImageError, match=r"empty\.png"):
        PackedSplit(pack, "", ["empty.png"], np.array([0])).load(0)
