"""Pictures in every form that a user may give; what is no picture is refused, and said to be none."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from helpers import noise, write_picture
from thumbnet.classifiers.given import decoded, is_path, one_by_one
from thumbnet.errors import DataError, UnreadableImageError


def test_an_error_says_what_was_given_instead_of_a_picture() -> None:
    with pytest.raises(DataError, match=r"expected a picture \(a path, .*\), got a dict"):
        decoded({}, None)
    with pytest.raises(UnreadableImageError, match="nowhere"):
        decoded("nowhere.png", None)


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.full((8, 8), np.nan), "not finite"),
        (np.full((8, 8), 200.5), r"values from 200.5 to 200.5: .*floats in \[0, 1\]"),
    ],
)
def test_a_pil_image_of_floats_is_checked_like_an_array(pixels: np.ndarray, words: str) -> None:
    values = pixels.astype(np.float32)
    for given in (values, Image.fromarray(values)):
        with pytest.raises(DataError, match=words):
            decoded(given, None)
    half = np.full((8, 8), 0.5, dtype=np.float32)
    assert np.array_equal(np.asarray(decoded(Image.fromarray(half), None)), half)


def test_a_pil_image_that_cannot_be_decoded_is_an_unreadable_picture(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "half.png", noise(0))
    path.write_bytes(path.read_bytes()[:300])
    with (
        Image.open(path) as truncated,
        pytest.raises(UnreadableImageError, match=r"half\.png: .*truncated"),
    ):
        decoded(truncated, None)
    with pytest.raises(UnreadableImageError, match=r"half\.png"):  # it is closed now
        decoded(truncated, None)


def test_files_and_bytes_are_refused_and_stay_usable(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.png", noise(0))
    with path.open("rb") as file:
        for given, kind in ((file, "BufferedReader"), (io.BytesIO(b"x"), "BytesIO"), (b"x", "bytes")):
            (one,) = one_by_one(given)
            with pytest.raises(
                DataError, match=rf"got a {kind}: open encoded pictures with PIL\.Image\.open"
            ):
                decoded(one, None)
        assert file.read(4) == b"\x89PNG"
    for name in ("a\0.png", "a\ud800.png"):
        with pytest.raises(UnreadableImageError, match="there is no such file"):
            decoded(name, None)


def test_grey_pictures_with_alpha_are_not_taken_for_pictures_of_two_columns() -> None:
    for given in (np.zeros((32, 32, 2), np.uint8), torch.zeros(32, 32, 2, dtype=torch.uint8)):
        (one,) = one_by_one(given)
        with pytest.raises(DataError, match="is not a picture"):
            decoded(one, None)
    assert len(list(one_by_one(np.zeros((2, 32, 32), np.uint8)))) == 2


def test_paths_may_come_from_any_iterable_with_an_order() -> None:
    paths = [Path("a.png"), Path("b.png"), Path("c.png")]
    forms: list[Any] = [
        iter(paths),
        dict(enumerate(paths)).values(),
        tuple(paths),
        np.array(paths, dtype=object),
    ]
    for given in forms:
        assert list(one_by_one(given)) == paths
    names = [str(path) for path in paths]
    for given in (map(str, paths), np.array(names)):
        found = list(one_by_one(given))
        assert found == names
        assert all(map(is_path, found))


def test_a_column_of_a_table_holds_paths_but_a_table_is_no_picture() -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"path": ["b.png", "a.png"]})
    assert list(one_by_one(table["path"])) == ["b.png", "a.png"]
    (one,) = one_by_one(table)
    with pytest.raises(DataError, match="got a DataFrame"):
        decoded(one, None)


@pytest.mark.parametrize(("given", "kind"), [({"a.png"}, "set"), ({"a.png": 1}, "dict")])
def test_pictures_without_an_order_are_refused(given: Any, kind: str) -> None:
    (one,) = one_by_one(given)
    with pytest.raises(DataError, match=f"expected a picture .*, got a {kind}"):
        decoded(one, None)


def test_a_number_array_of_one_axis_is_no_picture() -> None:
    (one,) = one_by_one(np.zeros(5))
    with pytest.raises(DataError, match=r"an array of float64 \[5\] is not a picture"):
        decoded(one, None)


def test_a_folder_among_pictures_names_the_method_that_takes_folders(tmp_path: Path) -> None:
    forms: list[Any] = [tmp_path, str(tmp_path), [tmp_path]]
    for given in forms:
        (one,) = one_by_one(given)
        with pytest.raises(DataError, match="is a folder: use predict_files"):
            decoded(one, None)


def test_whole_numbers_in_floats_and_truth_values_are_as_good_as_uint8() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    whole: list[Any] = [
        levels.astype(np.float64),
        levels.astype(np.float16),
        torch.from_numpy(levels)[None].float(),
    ]
    for given in whole:
        found = np.asarray(decoded(given, None))
        assert found.dtype == np.uint8
        assert np.array_equal(found, levels)
    white = levels > 100
    both: list[Any] = [white, torch.from_numpy(white)[None]]
    for mask in both:
        for limits in (None, (0.0, 4095.0)):
            assert np.array_equal(np.asarray(decoded(mask, limits)), np.where(white, 255, 0))


def test_an_animation_is_classified_at_the_frame_that_it_is_at(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "two.gif") as image:
        seen = []
        for frame in ImageSequence.Iterator(image):
            found = decoded(frame, None)
            assert isinstance(found, Image.Image)
            seen.append(found.convert("RGB").getpixel((0, 0)))
        assert image.tell() == 1
    assert seen == [(255, 0, 0), (0, 255, 0)]
