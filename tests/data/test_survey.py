"""Range and background measured over the training split, and what is said of them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from helpers import coloured_data, noise, write_class_folders, write_picture
from thumbnet.batches import decoding
from thumbnet.batches.decoding import capped_size, surveyed
from thumbnet.batches.prepare import prepare
from thumbnet.data import survey
from thumbnet.data.rendering import Rendering
from thumbnet.data.splits import ArraySplit, Data, Split
from thumbnet.data.survey import Survey, choose_rendering, measured_range, rendering_notes
from thumbnet.errors import DataError, RecipeError, UnreadableImagesError
from thumbnet.recipes.recipe import load_recipe
from thumbnet.recipes.settings import LARGEST_SIDE, DataSettings
from thumbnet.reports.inspection import inspect_data
from thumbnet.sources.load import load_data

CPU = torch.device("cpu")


def twelve_bit(number: int, side: int = 32) -> np.ndarray:
    """As case r04 has it: 12-bit values, a grating of vertical or horizontal stripes."""
    rng = np.random.default_rng(number)
    stripes = np.sin(np.mgrid[:side, :side][number % 2] * 0.8 + rng.uniform(0, 6.28))
    values = (620 + 60 * stripes + rng.normal(0, 15, (side, side))).clip(515, 765)
    return np.asarray(values, dtype=np.uint16)


def arrays(images: np.ndarray) -> Data:
    labels = np.arange(len(images)) % 2
    splits: dict[str, Split] = {"train": ArraySplit(images, labels, "train")}
    return Data("arrays", "made by the tests", ("a", "b"), splits)


def prepared(data: Data, *overrides: str) -> Any:
    return prepare(data, load_recipe("small", ["training.min_steps=0", *overrides]), CPU)


def pixels(data: Data, *overrides: str) -> np.ndarray:
    engine = prepared(data, *overrides).train.engine
    fetched = next(iter(engine.fetch([torch.arange(len(engine.labels))])))
    return np.asarray(fetched.permute(0, 2, 3, 1))


# --- range


def test_r04_twelve_bit_pictures_keep_200_levels(tmp_path: Path) -> None:
    for number in range(60):
        name = ("vertical", "horizontal")[number % 2]
        write_picture(tmp_path / name / f"{number}.tif", Image.fromarray(twelve_bit(number)))
    data = load_data(tmp_path)
    result = prepared(data)
    low, high = result.preprocessing.range
    assert 515 <= low < 530
    assert 700 < high <= 765
    shown = pixels(data)
    assert len(np.unique(shown)) >= 200
    source = np.stack([np.asarray(data.splits["train"].load(i)) for i in range(len(shown))])
    inside = (source >= low) & (source <= high)
    assert inside.mean() > 0.99
    distinct = len(np.unique(source[inside]))
    assert len(np.unique(shown[..., 0][inside])) >= min(200, distinct)
    assert any("more than 8 bits" in note for note in result.notes)
    assert not any(note.startswith("warning") for note in result.notes)


def test_both_engines_measure_the_same_and_give_the_same_pixels(tmp_path: Path) -> None:
    for number in range(24):
        write_picture(tmp_path / "ab"[number % 2] / f"{number}.tif", Image.fromarray(twelve_bit(number)))
    data = load_data(tmp_path)
    memory, workers = (prepared(data, f"data.engine={engine}") for engine in ("memory", "workers"))
    assert memory.preprocessing == workers.preprocessing
    assert memory.notes == workers.notes
    first = pixels(data, "data.engine=memory")
    assert np.array_equal(first, pixels(data, "data.engine=workers"))
    assert np.array_equal(first[5], memory.preprocessing.pixels(data.splits["train"].load(5)))


@pytest.mark.parametrize("kind", [np.uint16, np.int16, np.int32, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("channels", [None, 1, 3])
def test_arrays_of_every_type_are_scaled_alike(kind: type, channels: int | None) -> None:
    grey = np.stack([twelve_bit(i) for i in range(20)])
    images = grey if channels is None else np.repeat(grey[..., None], channels, axis=3)
    expected = pixels(arrays(grey))
    assert np.array_equal(pixels(arrays(images.astype(kind))), expected)
    assert len(np.unique(expected)) > 150


def test_arrays_of_8_bits_in_every_shape_keep_their_values() -> None:
    images = np.stack([noise(i) for i in range(8)])
    assert np.array_equal(pixels(arrays(images)), images)
    grey = images[..., 0]
    for form in (grey, grey[..., None], grey.astype(np.int64), grey.astype(np.float64)):
        assert np.array_equal(pixels(arrays(form)), np.repeat(grey[..., None], 3, axis=3))
    assert np.array_equal(pixels(arrays((grey / 255).astype(np.float32)))[..., 0], grey)
    transparent = np.concatenate([images, np.zeros_like(images[..., :1])], axis=3)
    assert (pixels(arrays(transparent), "data.background=[1,2,3]") == (1, 2, 3)).all()


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((4, 8), np.uint8),
        np.zeros((4, 8, 8, 2), np.uint8),
        np.zeros((4, 8, 8), complex),
        np.zeros((4, 8, 8), "U1"),
    ],
)
def test_arrays_that_are_not_pictures_are_refused(images: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"expected (pictures \[N|integers or floats)"):
        ArraySplit(images, np.zeros(4), "x")


def test_an_array_with_nan_names_the_picture() -> None:
    images = np.random.default_rng(0).random((10, 16, 16)).astype(np.float32)
    images[7, 3, 3] = np.nan
    with pytest.raises(UnreadableImagesError, match=r"train\[7\].*not finite"):
        prepared(arrays(images))
    skipped = prepared(arrays(images), "data.on_bad_image=skip")
    assert [name for _, name, _ in skipped.skipped] == ["train[7]"]


def test_one_broken_picture_does_not_decide_the_range() -> None:
    images = np.stack([twelve_bit(i) for i in range(200)])
    low, high = prepared(arrays(images)).preprocessing.range
    images[3] = 65535
    images[4] = 0
    again = prepared(arrays(images)).preprocessing.range
    assert again == pytest.approx((low, high), abs=25)


def test_hot_pixels_in_every_picture_do_not_decide_the_range() -> None:
    images = np.stack([twelve_bit(i) for i in range(100)])
    images[:, 5, 9] = 60_000
    result = prepared(arrays(images))
    low, high = result.preprocessing.range
    assert 500 <= low < 560
    assert 700 < high < 900
    assert any("hot pixels" in note for note in result.notes)
    assert len(np.unique(pixels(arrays(images)))) > 120


def test_a_small_bright_object_is_not_taken_for_hot_pixels() -> None:
    images = np.full((50, 32, 32), 100, np.uint16)
    images[:, 10:12, 10:12] = 4000
    images += np.random.default_rng(0).integers(0, 1500, images.shape, dtype=np.uint16)
    low, high = prepared(arrays(images)).preprocessing.range
    assert high > 5000
    assert low == 100


def test_pictures_of_a_single_value_have_a_range() -> None:
    assert prepared(arrays(np.full((4, 16, 16), 7, np.uint16))).preprocessing.range == (7, 8)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 65000, (0, 65535)), (3, 250, (0, 255)), (0.01, 0.98, (0, 1)), (-0.99, 0.97, (-1, 1)), (10, 4090, (0, 4095)),
     (515, 765, (515, 765)), (0, 180, (0, 180))],
)  # fmt: skip
def test_a_range_that_nearly_fills_a_usual_one_becomes_that(
    low: float, high: float, expected: tuple[float, float]
) -> None:
    found, hot = measured_range(np.array([[low, low, high, high]] * 5))
    assert found == expected
    assert not hot


def test_a_range_that_is_set_is_used_and_a_poor_one_warned_of() -> None:
    data = arrays(np.stack([twelve_bit(i) for i in range(20)]))
    result = prepared(data, "data.range=[0, 65535]")
    assert result.preprocessing.range == (0, 65535)
    (warning,) = [note for note in result.notes if "levels are lost" in note]
    assert warning.startswith("warning: ")
    assert "data.range=auto" in warning
    assert prepared(data, "data.range=[500, 800]").preprocessing.range == (500, 800)


def test_deep_and_8_bit_pictures_together_are_noted(tmp_path: Path) -> None:
    for number in range(6):
        write_picture(tmp_path / "a" / f"{number}.tif", Image.fromarray(twelve_bit(number)))
        write_picture(tmp_path / "b" / f"{number}.png", noise(number, 32, 32))
    assert any(n.startswith("warning") and "mixed" in n for n in prepared(load_data(tmp_path)).notes)


@pytest.mark.parametrize(
    "setting",
    ["data.range=[3, 3]", "data.range=[5]", "data.range=wide", "data.range=[1, nan]", "data.background=pink",
     "data.background=[1, 2]", "data.background=[1, 2, 256]", "data.background=[0.5, 0.5, 0.5]",
     "data.largest_auto_size=8"],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(setting: str) -> None:
    with pytest.raises(RecipeError, match=setting.partition("=")[0]):
        load_recipe("small", [setting])


# --- background


def drawing(kind: str, place: int, fill: Any) -> Image.Image:
    """As case r03 has it: a filled shape on transparency."""
    image = Image.new("RGBA", (24, 24))
    draw = ImageDraw.Draw(image)
    box = [2 + place % 8, 2 + place // 8, 12 + place % 8, 12 + place // 8]
    (draw.ellipse if kind == "disc" else draw.rectangle)(box, fill=fill)
    return image


def drawings(root: Path, *fills: Any) -> Data:
    for number in range(24):
        for kind in ("disc", "square"):
            fill = fills[number % len(fills)]
            write_picture(root / kind / f"{number}.png", drawing(kind, number, fill))
    return load_data(root)


@pytest.mark.parametrize(
    ("fills", "expected"),
    [(["white"], (0, 0, 0)), (["black"], (255, 255, 255)), (["white", "black"], (128, 128, 128)),
     ([(250, 250, 245, 255)], (0, 0, 0)), (["red"], (255, 255, 255)), ([(255, 255, 255, 90)], (0, 0, 0))],
)  # fmt: skip
def test_the_background_is_one_on_which_drawings_are_seen(
    fills: list[Any], expected: tuple[int, int, int], tmp_path: Path
) -> None:
    result = prepared(drawings(tmp_path, *fills))
    assert result.preprocessing.background == expected
    assert any("would vanish on white" in note for note in result.notes) == (expected != (255, 255, 255))


def test_r03_no_white_drawing_becomes_a_white_square(tmp_path: Path) -> None:
    data = drawings(tmp_path, "white")
    assert pixels(data).std(axis=(1, 2, 3)).min() > 50
    warned = prepared(data, "data.background=white")
    assert any(note.startswith("warning: 100 %") and "background" in note for note in warned.notes)
    assert any(note.startswith("warning") and "one colour" in note for note in warned.notes)
    assert (pixels(data, "data.background=white") == 255).all()


def test_white_lines_with_dark_details_stay_on_white(tmp_path: Path) -> None:
    for number in range(10):
        for kind in ("disc", "square"):
            image = drawing(kind, number, "white")
            ImageDraw.Draw(image).line([6, 6, 16, 16], fill="black", width=2)
            write_picture(tmp_path / kind / f"{number}.png", image)
    assert prepared(load_data(tmp_path)).preprocessing.background == (255, 255, 255)


def test_a_palette_with_a_transparent_entry_counts_as_transparent(tmp_path: Path) -> None:
    for number in range(10):
        for kind in ("disc", "square"):
            palette = Image.new("P", (24, 24), 0)
            palette.putpalette([1, 2, 3, 255, 255, 255])
            palette.paste(1, (5, 5, 5 + number, 20))
            path = tmp_path / kind / f"{number}.png"
            write_picture(path, palette, transparency=0)
    found = surveyed(load_data(tmp_path).splits["train"])
    assert found.transparent == found.pictures
    assert choose_rendering(found, DataSettings()).background == (0, 0, 0)


def test_opaque_pictures_with_an_alpha_channel_are_not_transparent(tmp_path: Path) -> None:
    for name in "ab":
        for number in range(3):
            image = Image.new("RGBA", (16, 16), (255, 255, 255, 255))
            write_picture(tmp_path / name / f"{number}.png", image)
    assert surveyed(load_data(tmp_path).splits["train"]).transparent == 0


# --- what it costs


def test_plain_pictures_are_not_decoded_for_the_survey(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        write_picture(tmp_path / "a" / f"{number}.jpg", noise(number))
        write_picture(tmp_path / "b" / f"{number}.png", noise(number))
    split = load_data(tmp_path).splits["train"]
    monkeypatch.setattr(type(split), "load", lambda *_: pytest.fail("decoded"))
    found = surveyed(split)
    assert (found.pictures, found.deep, found.transparent) == (len(split), 0, 0)
    assert choose_rendering(found, DataSettings()) == Rendering()


def test_a_survey_is_kept_for_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = drawings(tmp_path, "white")
    first = surveyed(data.splits["train"])
    monkeypatch.setattr(decoding, "survey", lambda *_: pytest.fail("looked at again"))
    assert surveyed(load_data(tmp_path).splits["train"]) == first
    assert Survey.from_json(first.to_json()) == first


def test_of_very_many_pictures_a_sample_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "SURVEYED", 30)
    split = ArraySplit(np.stack([twelve_bit(i % 40) for i in range(200)]), np.zeros(200), "x")
    found = survey.survey(split)
    assert found.pictures == found.deep == 30
    assert found == survey.survey(split)


def test_a_picture_that_cannot_be_read_is_left_to_decoding(tmp_path: Path) -> None:
    write_class_folders(tmp_path, [""])
    (tmp_path / "red/broken.png").write_bytes(b"no picture")
    assert surveyed(load_data(tmp_path).splits["train"]).deep == 0


def test_another_rendering_is_another_entry_in_the_cache(tmp_path: Path) -> None:
    split = drawings(tmp_path, "white").splits["train"]
    white = decoding.decode_split(split, (24, 24), "pad").images
    black = decoding.decode_split(split, (24, 24), "pad", rendering=Rendering(None, (0, 0, 0))).images
    assert not torch.equal(white, black)
    assert torch.equal(decoding.decode_split(split, (24, 24), "pad").images, white)


# --- the size


@pytest.mark.parametrize(
    ("own", "used"),
    [((480, 640), (72, 96)), ((640, 480), (96, 72)), ((97, 97), (96, 96)), ((96, 96), (96, 96)), ((32, 32), (32, 32)),
     ((333, 500), (64, 96)), ((20, 2000), (16, 96))],
)  # fmt: skip
def test_a_large_size_is_brought_to_the_cap(own: tuple[int, int], used: tuple[int, int]) -> None:
    assert capped_size(own, 96) == used
    assert capped_size(own, 0) == (own if max(own) <= LARGEST_SIDE else (16, LARGEST_SIDE))


def test_r15_large_pictures_are_trained_smaller_and_a_note_says_how_to_keep_their_size(
    tmp_path: Path,
) -> None:
    for number in range(4):
        for name in "ab":
            write_picture(tmp_path / name / f"{number}.jpg", noise(number + 10 * ord(name), 240, 320))
    data = load_data(tmp_path)
    result = prepared(data)
    assert result.preprocessing.size == (72, 96)
    (note,) = [note for note in result.notes if "240x320" in note]
    for words in ("72x96", "--image-size 240x320", "about", "data.largest_auto_size"):
        assert words in note
    assert np.array_equal(pixels(data)[2], result.preprocessing.pixels(data.splits["train"].load(2)))
    assert prepared(data, "data.image_size=120x160").preprocessing.size == (120, 160)
    free = prepared(data, "data.largest_auto_size=0")
    assert free.preprocessing.size == (240, 320)
    assert free.notes == ()


# --- notes


def test_ordinary_pictures_need_no_note() -> None:
    assert prepared(coloured_data()).notes == ()


def test_pictures_of_one_colour_are_counted_and_one_is_named() -> None:
    images = np.stack([noise(i) for i in range(40)])
    images[5:9] = 200
    (note,) = prepared(arrays(images)).notes
    assert note.startswith("warning: 4 of 40")
    assert "train[5]" in note


def test_a_class_that_is_a_copy_is_named(tmp_path: Path) -> None:
    for number in range(12):
        for name in "ab":
            write_picture(tmp_path / "train" / name / f"{number}.png", noise(number))
            write_picture(tmp_path / "val" / name / f"{number}.png", noise(1000 + number + 50 * ord(name)))
    found = inspect_data(load_data(tmp_path))
    (note,) = found.notes
    assert note.startswith("warning: the class 'a' is a copy of 'b': 12 of its 12")


def test_notes_say_what_is_done_with_a_set_background() -> None:
    found = replace(Survey(), pictures=9, transparent=9, vanishing=(1.0, 0.0, 0.0), example="x")
    settings = DataSettings(background=(7, 7, 7))
    assert rendering_notes(found, choose_rendering(found, settings), settings) == []


# --- scale


def test_dark_and_bright_pictures_are_on_the_scale_of_the_training_and_other_units_are_not() -> None:
    for least, most in ((0, 500), (0, 5), (400, 2_000), (0, 65_535)):
        assert not survey.is_off_scale(least, most, (0.0, 500.0), floats=True)
    for least, most in ((0, 1), (-2_000, -1_000), (2_000, 2_500)):
        assert survey.is_off_scale(least, most, (0.0, 500.0), floats=True)
    assert not survey.is_off_scale(0, 1, (0.0, 500.0), floats=False)  # a dark picture of integers


USUAL = np.random.default_rng(0).integers(0, 501, (40, 32, 32)).astype(np.float64)
LIMITS = (0.0, 500.0)


def scale_of(images: np.ndarray, limits: tuple[float, float] | None) -> tuple[str, bool]:
    return survey.scale_problem(ArraySplit(images, np.zeros(len(images), dtype=np.int64), "x"), limits)


def changed(images: np.ndarray, where: Any, value: float) -> np.ndarray:
    copy = images.copy()
    copy[where] = value
    return copy


def sparse(value: float) -> np.ndarray:
    """Black pictures with three bright pixels each."""
    return changed(np.zeros((40, 32, 32)), (slice(None), [3, 9, 20], [5, 5, 30]), value)


@pytest.mark.parametrize(
    ("images", "limits"),
    [
        (USUAL, LIMITS),
        (USUAL / 10, LIMITS),
        (USUAL * 3, LIMITS),
        (sparse(65_535), LIMITS),
        (np.zeros((40, 32, 32)), LIMITS),
        (np.minimum(USUAL, 1), LIMITS),  # counts of few photons
        (changed(USUAL, 7, 1e6), LIMITS),
        (USUAL.astype(np.uint16) // 500, LIMITS),
        (USUAL[:0], LIMITS),
        (USUAL / 500, None),
        (USUAL / 480 - 0.02, None),  # sharpened
        (sparse(1.5), None),
        (changed(USUAL / 500, 7, -1000), None),
        (USUAL.astype(np.uint16), None),
        (np.zeros((40, 32, 32, 3), np.uint8), None),
    ],
)
def test_data_that_may_be_right_cause_no_alarm(
    images: np.ndarray, limits: tuple[float, float] | None
) -> None:
    assert scale_of(images, limits) == ("", False)


@pytest.mark.parametrize(
    ("images", "limits", "certain"),
    [
        (USUAL / 500, LIMITS, True),
        (USUAL - 10_000, LIMITS, True),
        (USUAL * 131, LIMITS, False),  # perhaps only bright
        (np.concatenate([USUAL, USUAL[:9] / 500]), LIMITS, False),
        (USUAL + 0.5, None, True),
        (USUAL / 250 - 1, None, True),
        (USUAL.astype(np.int64), None, True),
        (changed(USUAL.astype(np.int64) // 2, (39, 0, 0), 256), None, True),  # all are rendered as 16 bits
    ],
)
def test_data_on_another_scale_cause_an_alarm(
    images: np.ndarray, limits: tuple[float, float] | None, certain: bool
) -> None:
    problem, is_certain = scale_of(images, limits)
    assert re.match(r"values from .* to .* in (float64|int32): expected uint8", problem)
    assert is_certain == certain
