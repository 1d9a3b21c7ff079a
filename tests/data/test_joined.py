from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers import coloured, write_picture
from thumbnet.data.joined import JoinedSplit, with_files
from thumbnet.data.splits import ArraySplit, BytesSplit, Data, FileSplit, Split


def arrays(count: int) -> ArraySplit:
    labels = np.arange(count) % 3
    return ArraySplit(np.stack([coloured(int(c), i) for i, c in enumerate(labels)]), labels, "x")


def files(root: Path, count: int) -> tuple[list[str], np.ndarray]:
    labels = (np.arange(count) + 1) % 3
    paths = [write_picture(root / f"{i}.png", coloured(int(c), 90 + i)) for i, c in enumerate(labels)]
    return [str(path) for path in paths], labels


@pytest.fixture
def joined(tmp_path: Path) -> Split:
    return with_files(arrays(4), *files(tmp_path, 3))


def test_the_new_pictures_come_last_under_their_absolute_paths(joined: Split, tmp_path: Path) -> None:
    assert isinstance(joined, JoinedSplit)
    assert len(joined) == 7
    assert joined.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert [joined.name(i) for i in (0, 3, 4, 6)] == [
        "x[0]",
        "x[3]",
        *(f"{tmp_path}/{i}.png" for i in (0, 2)),
    ]
    assert np.array_equal(np.asarray(joined.load(3)), coloured(0, 3))
    assert np.array_equal(np.asarray(joined.read(5)), coloured(2, 91))
    assert joined.head(0) == b""
    assert (joined.file(0), joined.file(4)) == (None, tmp_path / "0.png")
    assert joined.head(4).startswith(b"\x89PNG")
    assert joined.content(4) == (tmp_path / "0.png").read_bytes()
    assert joined.peek(6) == ((16, 16), "RGB")


def test_files_are_added_to_files_without_another_kind_of_split(tmp_path: Path) -> None:
    write_picture(tmp_path / "a" / "own.png", coloured(0, 5))
    split = with_files(FileSplit(tmp_path / "a", ["own.png"], np.array([0])), *files(tmp_path / "b", 2))
    assert isinstance(split, FileSplit)
    assert [split.name(i) for i in range(2)] == ["own.png", str(tmp_path / "b" / "0.png")]
    assert split.file(1) == tmp_path / "b" / "0.png"
    assert np.array_equal(np.asarray(split.read(2)), coloured(2, 91))


def test_subsets_have_the_chosen_pictures_in_the_chosen_order(joined: Split) -> None:
    chosen = np.array([5, 0, 6, 2, 4])
    part = joined.subset(chosen)
    again = part.subset(np.array([4, 1, 0]))
    assert [part.name(i) for i in range(5)] == [joined.name(int(i)) for i in chosen]
    assert part.labels.tolist() == joined.labels[chosen].tolist()
    assert [again.name(i) for i in range(3)] == [joined.name(i) for i in (4, 0, 5)]
    assert np.array_equal(np.asarray(again.read(2)), coloured(2, 91))
    assert len(joined.subset(np.array([], dtype=np.int64))) == 0


def test_labels_can_be_replaced_also_in_another_order(joined: Split) -> None:
    part = joined.subset(np.array([6, 1, 4]))
    changed = part.with_labels(np.array([2, 0, 1]))
    assert changed.labels.tolist() == [2, 0, 1]
    assert part.labels.tolist() == [0, 1, 1]
    assert changed.subset(np.array([2, 0])).labels.tolist() == [1, 2]
    assert [changed.name(i) for i in range(3)] == [part.name(i) for i in range(3)]


def test_the_fingerprint_knows_labels_pictures_and_order(joined: Split, tmp_path: Path) -> None:
    def fingerprint(split: Split) -> str:
        return Data("x", "x", ("a", "b", "c"), {"train": split}).fingerprint()

    same = with_files(arrays(4), *files(tmp_path, 3))
    assert fingerprint(same) == fingerprint(joined)
    assert same.content_key() == joined.content_key()
    relabelled = joined.with_labels(joined.labels[::-1].copy())
    assert fingerprint(relabelled) != fingerprint(joined)
    assert relabelled.content_key() == joined.content_key()
    swapped = joined.subset(np.array([1, 0, 2, 3, 4, 5, 6]))
    assert fingerprint(swapped) != fingerprint(joined)
    assert swapped.content_key() != joined.content_key()


def test_encoded_files_in_memory_can_be_joined_too(tmp_path: Path) -> None:
    content = write_picture(tmp_path / "in.png", coloured(1, 1)).read_bytes()
    split = with_files(BytesSplit([content], np.array([1]), ["in.png"]), *files(tmp_path, 1))
    assert [split.name(i) for i in range(2)] == ["in.png", f"{tmp_path}/0.png"]
    assert split.key(0) == "in.png"
