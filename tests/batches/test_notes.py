from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import noise
from thumbnet.batches.engines import MemoryEngine, WorkerEngine
from thumbnet.batches.notes import (
    FLAT,
    copied_notes,
    flat_note,
    is_flat,
    picture_notes,
    shrunk_note,
    size_note,
)
from thumbnet.batches.prepare import prepare
from thumbnet.data.repeats import CopiedClass, Repeats
from thumbnet.data.splits import ArraySplit
from thumbnet.recipes.recipe import load_recipe
from thumbnet.sources.load import load_data

CPU = torch.device("cpu")


def test_a_picture_is_flat_if_no_channel_varies_by_more_than_the_limit() -> None:
    plain = np.full((16, 16, 3), 100, np.uint8)
    at_limit, beyond, lone = plain.copy(), plain.copy(), plain.copy()
    at_limit[0, 0, 1] += FLAT
    beyond[8, 8, 1] += FLAT + 1
    lone[3, 7, 2] = 255  # a pixel that the coarse check does not see
    found = is_flat(np.stack([plain, at_limit, beyond, lone, noise(1)]))
    assert found.tolist() == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("flat", "total", "warns"), [(1, 50, False), (2, 50, True), (3, 300, False), (4, 300, True)]
)
def test_more_than_one_flat_picture_in_a_hundred_is_a_warning(flat: int, total: int, warns: bool) -> None:
    (note,) = flat_note(np.arange(total) < flat, ["a.png"])
    assert note.startswith("warning: ") is warns
    assert f"{flat} of {total} training pictures" in note
    assert note.endswith("such as a.png")


def test_without_flat_pictures_there_is_no_note() -> None:
    assert flat_note(np.zeros(10, dtype=bool), []) == []


@pytest.mark.parametrize("in_memory", [True, False])
def test_both_engines_name_a_flat_training_picture(in_memory: bool) -> None:
    images = np.stack([noise(1), np.full((16, 16, 3), 9, np.uint8), noise(2)])
    split = ArraySplit(images, np.array([0, 1, 0]), "train")
    memory = MemoryEngine(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(split.labels))
    engine = memory if in_memory else WorkerEngine(split, (16, 16), "pad", 1)
    (note,) = picture_notes(engine, split)
    assert "1 of 3" in note
    assert split.name(1) in note


def test_a_copied_class_gives_a_warning_that_names_both_classes() -> None:
    repeats = Repeats((), (), {}, (CopiedClass("train", 1, 0, 19, 20),))
    (note,) = copied_notes(repeats, ("cat", "dog"))
    assert note.startswith("warning: the class 'dog' is a copy of 'cat': 19 of its 20 pictures in train")


def test_the_note_on_the_size_scales_the_time_with_the_area() -> None:
    note = size_note((400, 200), (96, 48), 96)
    assert "400x200" in note
    assert "96x48" in note
    assert "data.largest_auto_size=96" in note
    assert "about 17.4 times as long" in note
    assert "--image-size 400x200" in note


def test_a_note_says_how_to_see_more_of_much_larger_pictures() -> None:
    photos = [(375, 500), (500, 375), (20, 20)]
    (note,) = shrunk_note(photos, (32, 32), "pad")
    assert "typically 500 pixels, and are scaled to 32x32 (pad)" in note
    assert "--image-size 64x64" in note
    assert "16x16 takes a quarter" in note
    assert "--fit crop" in note
    assert "--fit" not in shrunk_note(photos, (32, 32), "crop")[0]
    assert "quarter" not in shrunk_note(photos, (24, 32), "pad")[0]  # 12x16 would be refused
    assert shrunk_note([(50, 40)], (32, 32), "pad") == []
    assert shrunk_note([], (32, 32), "pad") == []


def test_pictures_of_several_sizes_are_noted_only_where_they_are_much_larger(tmp_path: Path) -> None:
    recipe = load_recipe("small")
    for side, expected in ((40, 0), (160, 1)):
        root = tmp_path / str(side)
        for number in range(6):
            for name in "ab":
                path = root / "train" / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = noise(number, side + number, side)
                Image.fromarray(pixels).save(path)
        notes = prepare(load_data(root), recipe, CPU).notes
        assert sum("--image-size 128x128" in note for note in notes) == expected
        explicit = prepare(load_data(root), recipe.override(["data.image_size=32"]), CPU).notes
        assert not any("--image-size" in note for note in explicit)
