"""PIL pictures in lists and the items of data sets: one at a time, at their full depth, at their own frame."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from helpers import coloured, write_picture
from thumbnet.batches import decoding
from thumbnet.batches.decoding import decode_split
from thumbnet.batches.prepare import Prepared, prepare
from thumbnet.data.joined import JoinedSplit
from thumbnet.data.splits import Data
from thumbnet.errors import UnreadableImageError
from thumbnet.recipes.recipe import load_recipe
from thumbnet.sources.load import load_data
from thumbnet.sources.objects import DatasetSplit, PicturesSplit


class Items:
    """A data set in torchvision's style."""

    def __init__(self, pictures: Sequence[Any], labels: Sequence[int]) -> None:
        self.pictures, self.labels = pictures, labels

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.pictures[index], self.labels[index]


class OfOneFile:
    """A data set whose items are read in two steps, such as those of one open file."""

    def __len__(self) -> int:
        return 600

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        self.at = index
        time.sleep(0.001)
        return np.full((16, 16, 3), self.at % 251, dtype=np.uint8), index % 2


def test_a_data_set_is_read_by_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "usable_cores", lambda: 4)
    split = load_data(OfOneFile(), test_fraction=0.0).splits["train"]
    decoded = decode_split(split, (16, 16), "pad")
    assert decoded.images[:, 0, 0, 0].tolist() == [index % 251 for index in range(600)]


def test_a_pil_picture_that_occurs_twice_is_read_by_one_thread() -> None:
    one, other = Image.new("RGB", (16, 16)), Image.new("RGB", (16, 16))
    distinct = PicturesSplit([one, other], np.array([0, 1]), "x")
    twice = PicturesSplit([one, other, one], np.array([0, 1, 0]), "x")
    assert distinct.threadable
    assert not twice.threadable
    assert twice.subset(np.array([0, 1])).threadable
    assert not JoinedSplit([distinct, twice]).threadable


def prepared(data: Data) -> Prepared:
    return prepare(data, load_recipe("small", ["training.min_steps=0"]), torch.device("cpu"))


def pixels(found: Prepared) -> np.ndarray:
    engine = found.train.engine
    return np.asarray(next(iter(engine.fetch([torch.arange(len(engine.labels))]))))


def all_forms(folder: Path, pictures: Sequence[Image.Image]) -> list[Data]:
    """The same pictures of two classes as files, as a list, and as a data set."""
    labels = [number % 2 for number in range(len(pictures))]
    paths = [write_picture(folder / f"{number}.png", one) for number, one in enumerate(pictures)]
    given = [(paths, labels), (list(pictures), labels), Items(pictures, labels)]
    return [load_data(one, test_fraction=0.0) for one in given]


def test_deep_pictures_keep_their_levels_in_every_form(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (24, 16, 16), dtype=np.uint16)
    forms = all_forms(tmp_path, [Image.fromarray(one) for one in values])
    forms.append(load_data(Items(list(values), [number % 2 for number in range(24)]), test_fraction=0.0))
    first, *others = map(prepared, forms)
    assert first.preprocessing.range == (0.0, 4095.0)
    assert len(np.unique(pixels(first))) > 200
    for other in others:
        assert other.preprocessing == first.preprocessing
        assert np.array_equal(pixels(other), pixels(first))


def test_a_dark_picture_of_a_deep_data_set_stays_dark() -> None:
    values = np.random.default_rng(0).integers(0, 4096, (24, 16, 16), dtype=np.uint16)
    values[::3] //= 64
    labels = [number % 2 for number in range(24)]
    alone = load_data(Items(list(values[::3]), labels[::3]), test_fraction=0.0).splits["train"]
    assert np.asarray(alone.load(0)).dtype == np.uint8
    data = load_data({"train": Items(list(values), labels), "test": Items(list(values[::3]), labels[::3])})
    assert data.splits["test"].content_key() != alone.content_key()  # the cache keeps them apart
    for split, expected in (("train", values), ("test", values[::3])):
        found = [np.asarray(data.splits[split].load(index)) for index in range(len(expected))]
        assert {one.dtype for one in found} == {np.dtype(np.uint16)}
        assert np.array_equal(np.stack(found), expected)


def test_transparent_pictures_get_the_same_background_in_every_form(tmp_path: Path) -> None:
    pictures = []
    for number in range(24):
        picture = Image.new("RGBA", (16, 16))
        ImageDraw.Draw(picture).rectangle((4, 4, 8 + number % 4, 12), fill=(255, 255, 255, 255))
        pictures.append(picture)
    first, *others = map(prepared, all_forms(tmp_path, pictures))
    assert first.preprocessing.background != (255, 255, 255)
    for other in others:
        assert other.preprocessing == first.preprocessing
        assert np.array_equal(pixels(other), pixels(first))


def test_opaque_pictures_of_8_bits_have_the_digests_of_earlier_versions() -> None:
    images = [coloured(number % 3, number) for number in range(6)]
    expected = [b"(16, 16)" + one.tobytes() for one in images]
    opaque = [Image.fromarray(one).convert("RGBA") for one in images]
    for pictures in ([Image.fromarray(one) for one in images], opaque):
        listed = PicturesSplit(pictures, np.zeros(6), "x")
        assert [listed.content(index) for index in range(6)] == expected
        split = load_data(Items(pictures, [0, 1] * 3), test_fraction=0.0).splits["train"]
        assert isinstance(split, DatasetSplit)
        assert [split.content(index) for index in range(6)] == expected
        digest = hashlib.blake2b(b"".join(b"(16, 16, 3)" + one.tobytes() for one in images), digest_size=16)
        assert next(iter(split.content_stamp())) == digest.hexdigest().encode() + b"\0"


def test_what_rendering_does_not_show_belongs_to_the_content() -> None:
    deep = np.full((8, 8), 300, dtype=np.uint16)
    clear = np.zeros((8, 8, 4), dtype=np.uint8)
    white = np.full((8, 8, 4), 255, dtype=np.uint8)
    for first, second in ((deep, deep + 1), (clear, white)):
        one, other = (PicturesSplit([Image.fromarray(each)], np.zeros(1), "x") for each in (first, second))
        assert one.content(0) != other.content(0)


def test_an_animation_is_read_at_the_frame_that_it_is_at(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "two.gif") as image:
        image.seek(1)
        items = Items([image], [0])
        for split in (
            PicturesSplit([image], np.zeros(1), "x"),
            DatasetSplit(items, np.arange(1), np.zeros(1), "x", ""),
        ):
            assert np.asarray(split.read(0))[0, 0].tolist() == [0, 255, 0]
            assert image.tell() == 1


def test_pictures_that_cannot_be_decoded_are_named(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "half.png", coloured(0, 0))
    path.write_bytes(path.read_bytes()[:100])
    nan = Image.fromarray(np.full((8, 8), np.nan, dtype=np.float32))
    with Image.open(path) as image:
        split = PicturesSplit([image, nan], np.zeros(2), "train")
        for index, words in enumerate((r"train\[0\]: ", r"train\[1\]: .*not finite")):
            with pytest.raises(UnreadableImageError, match=words):
                split.load(index)
