from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import coloured, coloured_data, write_picture
from thumbnet.data.splits import ArraySplit, BytesSplit, Data, FileSplit, group_name
from thumbnet.errors import DataError, UnreadableImageError
from thumbnet.sources.objects import DatasetSplit, PicturesSplit


def as_files(root: Path) -> FileSplit:
    paths = []
    for number, label in enumerate([0, 1, 2]):
        write_picture(root / f"{number}.png", coloured(label, number))
        paths.append(f"{number}.png")
    return FileSplit(root, paths, np.array([0, 1, 2]))


def as_bytes(root: Path) -> BytesSplit:
    files = as_files(root)
    contents = [(root / files.name(index)).read_bytes() for index in range(3)]
    return BytesSplit(contents, np.array([0, 1, 2]), ["0.png", "1.png", "2.png"])


def as_array(root: Path) -> ArraySplit:
    return ArraySplit(np.stack([coloured(label, label) for label in range(3)]), np.array([0, 1, 2]), "x")


@pytest.mark.parametrize("make", [as_files, as_bytes, as_array])
def test_every_kind_of_split_has_pictures_labels_names_and_subsets(make: object, tmp_path: Path) -> None:
    split = make(tmp_path)  # type: ignore[operator]
    assert len(split) == 3
    assert split.labels.tolist() == [0, 1, 2]
    assert np.array_equal(np.asarray(split.read(1)), coloured(1, 1))
    part = split.subset(np.array([2, 0]))
    assert part.labels.tolist() == [2, 0]
    assert np.array_equal(np.asarray(part.read(1)), coloured(0, 0))


def test_only_a_picture_in_a_file_has_a_file(tmp_path: Path) -> None:
    files = as_files(tmp_path)
    assert files.file(1) == tmp_path / "1.png"
    assert files.subset(np.array([2])).file(0) == tmp_path / "2.png"
    assert as_bytes(tmp_path).file(1) is None
    assert as_array(tmp_path).file(1) is None


def test_a_file_that_has_gone_is_an_unreadable_picture(tmp_path: Path) -> None:
    split = as_files(tmp_path)
    (tmp_path / "1.png").unlink()
    with pytest.raises(UnreadableImageError, match="there is no such file"):
        split.load(1)


def test_the_fingerprint_changes_with_pictures_labels_names_and_splits(tmp_path: Path) -> None:
    files = as_files(tmp_path)
    names = ("red", "green", "blue")

    def fingerprint(split: FileSplit, key: str = "train", classes: tuple[str, ...] = names) -> str:
        return Data("source", "layout", classes, {key: split}).fingerprint()

    before = fingerprint(files)
    assert fingerprint(as_files(tmp_path)) == before
    assert fingerprint(FileSplit(tmp_path, ["0.png", "1.png", "2.png"], np.array([0, 2, 1]))) != before
    assert fingerprint(files, classes=("red", "green", "violet")) != before
    assert fingerprint(files.subset(np.array([0, 1]))) != before
    Image.new("RGB", (40, 40)).save(tmp_path / "2.png")
    assert fingerprint(as_files_again(tmp_path)) != before


def as_files_again(root: Path) -> FileSplit:
    return FileSplit(root, ["0.png", "1.png", "2.png"], np.array([0, 1, 2]))


def test_a_split_that_is_not_there_is_refused_with_those_that_are() -> None:
    data = coloured_data()
    with pytest.raises(DataError, match="no split 'nothing'"):
        data.split("nothing")
    assert data.measured_split() == "test"


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("\u0633\u06af\u200c\u0647\u0627", False),
        ("\U0001f469\u200d\U0001f52c", False),
        ("\u72ac\u3000\u5927", False),
        ("c\u200bat", True),
        ("cat\u200d", True),
        ("cat\u202e", True),
    ],
)
def test_only_names_of_classes_that_hide_something_are_refused(name: str, refused: bool) -> None:
    split = ArraySplit(np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 1]), "train")
    with pytest.raises(DataError, match="invisible or control characters") if refused else nullcontext():
        assert Data("x", "", ("a", name), {"train": split}, (name,)).class_names == ("a", name)


def test_data_of_one_class_cannot_be_trained_on() -> None:
    one = ArraySplit(np.zeros((4, 16, 16, 3), np.uint8), np.zeros(4, np.int64), "x")
    with pytest.raises(DataError):
        Data("source", "layout", ("only",), {"train": one}).check_trainable()


@pytest.mark.parametrize("shape", [(4, 8), (4, 8, 8, 5)])
def test_arrays_that_are_no_pictures_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError):
        ArraySplit(np.zeros(shape, np.uint8), np.zeros(4, np.int64), "x")


@pytest.mark.parametrize("make", [as_files, as_bytes, as_array])
def test_other_labels_leave_the_split_and_its_pictures_as_they_are(make: object, tmp_path: Path) -> None:
    split = make(tmp_path)  # type: ignore[operator]
    key = split.content_key()
    changed = split.with_labels(np.array([2, 0, 1]))
    assert changed.labels.tolist() == [2, 0, 1]
    assert split.labels.tolist() == [0, 1, 2]
    assert changed.content_key() == key
    assert b"".join(changed.stamp()) != b"".join(split.stamp())


def test_a_picture_of_an_array_keeps_its_name_in_every_subset(tmp_path: Path) -> None:
    part = as_array(tmp_path).subset(np.array([2, 1])).subset(np.array([1]))
    assert part.name(0) == "x[1]"
    assert part.key(0) == "x[0]"  # what held-out splits are chosen by, as in older versions


def test_the_fingerprint_of_some_splits_ignores_the_others() -> None:
    data = coloured_data(6)
    changed = Data(
        "x", "x", data.class_names, {**data.splits, "train": data.splits["train"].subset(np.arange(5))}
    )
    assert changed.fingerprint("test") == data.fingerprint("test")
    assert changed.fingerprint("train") != data.fingerprint("train")
    assert changed.fingerprint() == changed.fingerprint("train", "test") != data.fingerprint()


def test_pictures_in_memory_count_in_the_fingerprint_with_their_labels_and_all_their_bytes(
    tmp_path: Path,
) -> None:
    split = as_bytes(tmp_path)
    assert b"".join(split.stamp()) == split.labels.tobytes() + b"".join(split.files)
    array = as_array(tmp_path)
    assert b"".join(array.stamp()) == array.labels.tobytes() + array.images.tobytes()  # no shape: as ever
    pictures = [Image.fromarray(coloured(label, label)) for label in range(2)]
    listed = PicturesSplit(pictures, np.array([1, 0]), "x")
    contents = b"".join(listed.content(index) for index in range(2))
    assert b"".join(listed.stamp()) == np.array([1, 0]).tobytes() + contents
    dataset = DatasetSplit(None, np.array([3, 5]), np.array([1, 0]), "x", "digest")  # reads no picture
    positions = np.array([3, 5]).tobytes()
    assert b"".join(dataset.stamp()) == np.array([1, 0]).tobytes() + b"digest\0" + positions


def test_groups_follow_their_pictures_into_a_part_of_a_split() -> None:
    data = coloured_data(6)
    groups = {"test": np.array([f"p{number}" for number in range(6)], dtype=object)}
    data = replace(data, groups=groups)
    part = data.splits["test"].subset(np.array([4, 1]))
    assert data.groups_of("train", data.splits["train"]) is None
    assert data.groups_of("test", data.splits["test"]) is groups["test"]
    found = data.groups_of("test", part)
    assert found is not None
    assert found.tolist() == ["p4", "p1"]
    less = data.with_parts({"test": part})
    assert less.groups["test"].tolist() == ["p4", "p1"]
    assert (len(less.splits["test"]), len(less.splits["train"])) == (2, 6)


def test_a_picture_that_is_a_group_of_its_own_has_no_group_name() -> None:
    assert (group_name("p1"), group_name("\0a.png")) == ("p1", "")
