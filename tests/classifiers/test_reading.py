"""Pictures that are read ahead."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from helpers import write_picture
from sorting_helpers import BRIGHT, DARK, Grey
from thumbnet.classifiers.base import Prediction
from thumbnet.classifiers.reading import classify_ahead, pictures_at, read_ahead
from thumbnet.data.images import load_picture
from thumbnet.errors import DataError, FailedReadError, ThumbnetError, UnreadableImageError


def blank(level: int) -> np.ndarray:
    return np.full((2, 2, 3), level, np.uint8)


def test_batches_keep_the_order_and_hold_the_error_for_what_cannot_be_read() -> None:
    def read(name: str) -> np.ndarray:
        if name == "3":
            raise UnreadableImageError(name, "cut short")
        if name == "4":
            raise FailedReadError(name, "Input/output error")
        return blank(int(name))

    batches = list(read_ahead(map(str, range(7)), read, size=3))
    assert [[name for name, _ in batch] for batch in batches] == [["0", "1", "2"], ["3", "4", "5"], ["6"]]
    damaged, failed = (found for _, found in batches[1][:2])
    assert isinstance(damaged, UnreadableImageError)
    assert isinstance(failed, FailedReadError)
    assert (damaged.reason, failed.reason) == ("cut short", "Input/output error")
    assert [int(found.max()) for _, found in batches[0] if isinstance(found, np.ndarray)] == [0, 1, 2]
    assert list(read_ahead([], read)) == []


def test_the_next_batch_is_read_while_the_first_is_used() -> None:
    second = threading.Event()

    def read(name: str) -> np.ndarray:
        if name == "1":
            second.set()
        return blank(0)

    batches = read_ahead(["0", "1"], read, size=1)
    assert next(batches)[0][0] == "0"
    assert second.wait(timeout=20)


def test_no_more_than_two_batches_are_taken_before_they_are_used() -> None:
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    batches = read_ahead(numbers(), lambda number: blank(number), size=5)
    next(batches)
    assert taken == list(range(10))
    next(batches)
    assert taken == list(range(15))


def test_some_pictures_are_read_by_the_callers_own_thread() -> None:
    threads: dict[int, bool] = {}
    own = threading.current_thread()

    def read(number: int) -> np.ndarray:
        threads[number] = threading.current_thread() is own
        return blank(number)

    found = list(read_ahead(range(6), read, size=4, in_thread=lambda number: number % 2 == 0))
    assert [[number for number, _ in batch] for batch in found] == [[0, 1, 2, 3], [4, 5]]
    assert threads == {number: number % 2 == 1 for number in range(6)}


def test_files_are_classified_and_bad_ones_reported_in_their_place(tmp_path: Path) -> None:
    names = []
    for number, level in enumerate((DARK, BRIGHT, DARK, BRIGHT)):
        names.append(str(write_picture(tmp_path / f"{number}.png", np.full((8, 8, 3), level, np.uint8))))
    names.insert(1, str(tmp_path / "gone.png"))
    batches = list(classify_ahead(Grey(), names, lambda name: load_picture(name, name), size=3))
    assert [len(batch) for batch in batches] == [3, 2]
    found = dict(one for batch in batches for one in batch)
    assert list(found) == names
    labels = [one.label if isinstance(one, Prediction) else one.reason for one in found.values()]
    assert labels == ["dark", "there is no such file", "bright", "dark", "bright"]


def test_a_batch_of_nothing_but_unreadable_pictures_is_no_error() -> None:
    ((one, other),) = classify_ahead(Grey(), ["a", "b"], lambda name: load_picture("/nowhere", name))
    assert [type(found) for _, found in (one, other)] == [UnreadableImageError] * 2


def test_paths_are_files_folders_and_globs(tmp_path: Path) -> None:
    for name in ("in/b.png", "in/deep/a.png", "[x].png", "y.png"):
        write_picture(tmp_path / name, blank(0))
    (tmp_path / "in" / "new.psd").write_bytes(b"x")
    told: list[str] = []

    def found(*names: str) -> list[str]:
        given = [tmp_path / name for name in names]
        return [str(Path(path).relative_to(tmp_path)) for path in pictures_at(given, told.append)]

    assert found("y.png", "gone.png") == ["y.png", "gone.png"]
    assert found("*.png") == ["[x].png", "y.png"]
    assert found("[x].png") == ["[x].png"]
    assert not told
    assert found("in", "y.png") == ["in/b.png", "in/deep/a.png", "y.png"]
    assert len(told) == 1
    assert "Photoshop" in told[0]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no pictures in the folder"):
        found("empty")
    with pytest.raises(ThumbnetError, match=r"no file matches .*\*\.jpg"):
        found("*.jpg")
