from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import noise, write_picture
from thumbnet.batches import leaks
from thumbnet.batches.engines import Engine, MemoryEngine, WorkerEngine
from thumbnet.batches.leaks import (
    DIGESTS_NAME,
    LEAKS_NAME,
    NO_DIGESTS,
    RepeatSearch,
    are_among,
    belonging,
    belonging_to_training,
    engine_digests,
    lines_about,
    snapshot,
    training_digests,
)
from thumbnet.data.splits import ArraySplit, FileSplit, Split
from thumbnet.errors import RunError

NAMES = ("cat", "dog")


def split_of(seeds: list[int], labels: list[int], name: str) -> ArraySplit:
    return ArraySplit(np.stack([noise(seed) for seed in seeds]), np.array(labels), name)


def engine_of(split: ArraySplit) -> MemoryEngine:
    return MemoryEngine(torch.from_numpy(split.images).permute(0, 3, 1, 2), torch.from_numpy(split.labels))


def search(train: ArraySplit, test: ArraySplit) -> RepeatSearch:
    splits: dict[str, Split] = {"train": train, "test": test}
    engines: dict[str, Engine] = {"train": engine_of(train), "test": engine_of(test)}
    return RepeatSearch(engines, splits, NAMES)


def test_leaks_conflicts_and_repeats_are_reported_and_written(tmp_path: Path) -> None:
    train = split_of([1, 2, 3, 3], [0, 1, 0, 1], "train")
    test = split_of([9, 2], [0, 1], "test")
    found = search(train, test).finish(tmp_path)
    assert found is not None
    assert (found["leaks"], found["conflicts"], found["repeated"]["train"]) == (1, 1, 1)
    leak, conflict, *rest = found["lines"]
    assert leak.startswith("warning: 1 of the 2 test pictures are also in train")
    assert "two classes" in conflict
    assert "cat" in conflict
    assert "dog" in conflict
    assert rest == ["1 train picture repeats another train picture"]
    rows = [json.loads(line) for line in (tmp_path / LEAKS_NAME).read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["leak", "two classes"]
    assert {one["split"] for one in rows[0]["pictures"]} == {"train", "test"}
    assert {one["class"] for one in rows[1]["pictures"]} == {"cat", "dog"}


def test_sentences_and_the_file_of_leaks_have_the_whole_path_of_an_added_picture(tmp_path: Path) -> None:
    """Corrections may add pictures, whose names are absolute paths."""
    paths = [write_picture(tmp_path / "secret" / f"{seed}.png", noise(seed)) for seed in (1, 2, 1)]
    train = FileSplit(tmp_path, [str(path) for path in paths], np.array([0, 1, 1]))
    test = split_of([2], [1], "test")
    images = torch.from_numpy(np.stack([np.asarray(train.read(index)) for index in range(3)]))
    engine = MemoryEngine(images.permute(0, 3, 1, 2), torch.from_numpy(train.labels))
    looking = RepeatSearch({"train": engine, "test": engine_of(test)}, {"train": train, "test": test}, NAMES)
    found = looking.finish(tmp_path)
    assert found is not None
    leak, conflict, *_ = found["lines"]
    assert f"(such as test: test[0] = train: {paths[1]})" in leak
    assert f"(such as train: {paths[0]} in cat = train: {paths[2]} in dog)" in conflict
    assert str(paths[1]) in (tmp_path / LEAKS_NAME).read_text("utf-8")


def test_clean_data_give_no_lines_and_remove_an_old_file(tmp_path: Path) -> None:
    (tmp_path / LEAKS_NAME).write_text("old")
    train, test = split_of([1, 2], [0, 1], "train"), split_of([3, 4], [0, 1], "test")
    looking = search(train, test)
    found = looking.finish(tmp_path)
    assert found is not None
    assert found["lines"] == []
    assert looking.is_done
    assert not (tmp_path / LEAKS_NAME).exists()
    digests = training_digests(tmp_path)
    assert digests is not None
    assert np.array_equal(digests, np.asarray(engine_digests(engine_of(train))))


def test_pictures_decoded_during_the_training_are_not_compared(tmp_path: Path) -> None:
    train = split_of([1, 2], [0, 1], "train")
    engine = WorkerEngine(train, (16, 16), "pad", 1)
    looking = RepeatSearch({"train": engine}, {"train": train}, NAMES)
    assert looking.is_done
    assert looking.finish(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    about = lines_about(engine, train, "x", labels=train.labels, class_names=NAMES, trained_on=None)
    assert about == ["pictures were not compared: there are too many to hold them in memory"]


def test_other_data_are_compared_with_the_training_split() -> None:
    trained_on = engine_digests(engine_of(split_of([1, 2, 3], [0, 1, 0], "train")))
    other = split_of([7, 2, 8, 8], [0, 1, 0, 0], "test")
    lines = lines_about(
        engine_of(other), other, "test", labels=other.labels, class_names=NAMES, trained_on=trained_on
    )
    assert lines[0].startswith("warning: 1 of these 4 pictures were in the training split")
    assert other.name(1) in lines[0]
    again = "1 test picture repeats another test picture, so the 95 % interval is too narrow"
    assert lines[1:] == [f"{again} unless copies are in one group"]
    unknown = lines_about(
        engine_of(other), other, "test", labels=other.labels, class_names=NAMES, trained_on=None
    )
    assert unknown == [NO_DIGESTS, *lines[1:]]


def test_few_copies_in_a_measured_split_do_not_make_its_interval_too_narrow() -> None:
    other = split_of([*range(40), 0], [0] * 41, "test")
    lines = lines_about(
        engine_of(other), other, "test", labels=other.labels, class_names=NAMES, trained_on=None
    )
    assert lines[1:] == ["1 test picture repeats another test picture"]


def test_missing_digests_are_none_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    assert training_digests(tmp_path) is None
    path = tmp_path / DIGESTS_NAME
    path.write_bytes(b"damaged")
    with pytest.raises(RunError, match="cannot read"):
        training_digests(tmp_path)
    np.save(path, np.zeros((3, 2), np.float32))
    with pytest.raises(RunError, match="does not contain digests"):
        training_digests(tmp_path)


def test_a_snapshot_of_pictures_on_the_cpu_is_the_engine_itself() -> None:
    engine = engine_of(split_of([1], [0], "train"))
    assert snapshot(engine) is engine


def test_a_search_gives_the_engines_the_digests_of_their_snapshots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaks, "snapshot", copy.copy)  # as for pictures on a GPU
    split = split_of([1, 2], [0, 1], "train")
    engine = engine_of(split)
    RepeatSearch({"train": engine}, {"train": split}, NAMES).finish(tmp_path)
    assert "digests" in vars(engine)


def test_known_digests_are_recognised() -> None:
    digests = np.array([[1, 2], [3, 4], [2, 1]], dtype=np.uint64)
    assert are_among(digests, np.array([[2, 1], [1, 2]], dtype=np.uint64)).tolist() == [True, False, True]
    assert are_among(digests, np.empty((0, 2), dtype=np.uint64)).tolist() == [False, False, False]


def test_a_search_that_fails_costs_the_training_nothing_but_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("unexpected")

    monkeypatch.setattr(leaks, "find_repeats", fail)
    found = search(split_of([1, 2], [0, 1], "train"), split_of([3], [0], "test")).finish(tmp_path)
    assert found == {"lines": ["pictures were not compared: ValueError: unexpected"]}


def test_copies_and_pictures_of_a_group_belong_together() -> None:
    split = split_of([1, 2, 1, 3, 4], [0, 1, 0, 1, 0], "train")
    assert belonging(engine_of(split), None).tolist() == [0, 1, 0, 3, 4]
    groups = np.array(["a", "b", "c", "b", "c"], dtype=object)
    assert belonging(engine_of(split), groups).tolist() == [0, 1, 0, 1, 0]
    workers = WorkerEngine(split, (16, 16), "crop", 0)
    assert belonging(workers, groups).tolist() == [0, 1, 2, 1, 2]


def test_held_out_pictures_belong_to_training_as_copies_or_by_their_group() -> None:
    train, val = split_of([1, 2, 3], [0, 1, 0], "train"), split_of([9, 2, 8, 7], [0, 1, 0, 1], "val")
    here, there = engine_of(val), engine_of(train)
    assert belonging_to_training(here, None, there, None).tolist() == [False, True, False, False]
    own, their = (
        np.array(["ann", "bob", "eve", "ann"], dtype=object),
        np.array(["eve", "dan", "dan"], dtype=object),
    )
    assert belonging_to_training(here, own, there, their).tolist() == [False, True, True, False]
    assert belonging_to_training(here, own, there, None).tolist() == [False, True, False, False]
    of_a_copy = np.array(["ann", "bob", "eve", "bob"], dtype=object)
    assert belonging_to_training(here, of_a_copy, there, their).tolist() == [False, True, True, True]
    unread = WorkerEngine(train, (16, 16), "crop", 0)
    assert not belonging_to_training(here, None, unread, None).any()
