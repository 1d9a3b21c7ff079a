"""Pandas frames with columns of paths, labels and splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers import write_class_folders
from thumbnet.errors import DataError
from thumbnet.sources.load import load_data

pandas = pytest.importorskip("pandas")


def frame_of(folder: Path, **columns: list[Any]) -> Any:
    """A frame of four pictures for each of blue, green and red, with more columns."""
    paths = sorted(write_class_folders(folder, [""], per_class=4).rglob("*.png"))
    classes = [path.parent.name for path in paths]
    return pandas.DataFrame({"picture": [str(path) for path in paths], "colour": classes, **columns})


def test_the_only_other_column_has_the_labels(tmp_path: Path) -> None:
    data = load_data(frame_of(tmp_path), test_fraction=0.0)
    assert data.class_names == ("blue", "green", "red")
    assert data.splits["train"].labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


@pytest.mark.parametrize("column", ["split", "Usage", "which"])
def test_a_column_of_splits_is_read(tmp_path: Path, column: str) -> None:
    frame = frame_of(tmp_path, **{column: ["train", "train", "Test", "val"] * 3})
    data = load_data(frame)
    assert {name: split.labels.tolist() for name, split in data.splits.items()} == {
        "train": [0, 0, 1, 1, 2, 2],
        "val": [0, 1, 2],
        "test": [0, 1, 2],
    }
    parts = (frame[frame[column] == "train"], frame[frame[column] == "Test"])
    assert {name: len(split) for name, split in load_data(parts).splits.items()} == {"train": 6, "test": 3}


def test_rows_of_an_unknown_split_are_left_out_with_a_note(tmp_path: Path) -> None:
    data = load_data(frame_of(tmp_path, split=["train", "train", "spare", "test"] * 3))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 6, "test": 3}
    assert any("no known split in 3 row(s), which were skipped: spare" in note for note in data.notes)
    data = load_data(frame_of(tmp_path, split=[0, 1, 2, 3] * 3))
    assert sum(map(len, data.splits.values())) == 12
    assert any("'split' is not used as splits: no row says train, but 0, 1" in note for note in data.notes)


@pytest.mark.parametrize("column", ["phase", "set", "usage"])
def test_labels_may_be_in_a_column_that_is_called_like_one_of_splits(column: str, tmp_path: Path) -> None:
    frame = frame_of(tmp_path).rename(columns={"colour": column})
    assert load_data(frame).class_names == ("blue", "green", "red")
    for name, values in (("split", ["train", "test"]), ("usage_", ["train", "test"]), ("is_train", [1, 0])):
        data = load_data(frame.assign(**{name: values * 6}))
        assert data.class_names == ("blue", "green", "red")
        assert {split: len(found) for split, found in data.splits.items()} == {"train": 6, "test": 6}


def test_a_column_that_is_called_like_one_of_splits_but_not_used_is_noted(tmp_path: Path) -> None:
    data = load_data(frame_of(tmp_path, phase=["a", "b", "c"] * 4, split=["train", "test"] * 6))
    assert data.class_names == ("blue", "green", "red")
    assert "data in Python, train: labels are read from 'colour', not from 'phase'" in data.notes


def test_several_columns_that_may_hold_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"which column has the labels; .* picture, colour, weather"):
        load_data(frame_of(tmp_path, weather=["wet", "dry"] * 6))
    assert load_data(frame_of(tmp_path, species=["cat", "dog"] * 6)).class_names == ("cat", "dog")


@pytest.mark.parametrize("missing", [None, float("nan"), "", "nan"])
def test_rows_without_a_label_are_left_out_with_a_note(tmp_path: Path, missing: object) -> None:
    frame = frame_of(tmp_path)
    frame.loc[[1, 5], "colour"] = missing
    data = load_data(frame, test_fraction=0.0)
    assert data.class_names == ("blue", "green", "red")
    assert data.splits["train"].labels.tolist() == [0] * 3 + [1] * 3 + [2] * 4
    assert "data in Python, train: skipped 2 row(s) without a label" in data.notes


def test_a_split_without_labels_is_left_out_and_train_needs_some(tmp_path: Path) -> None:
    frame = frame_of(tmp_path, split=["train", "train", "train", "test"] * 3)
    frame.loc[frame["split"] == "test", "colour"] = None
    data = load_data(frame, test_fraction=0.0)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 9}
    assert "data in Python, test: skipped 3 row(s) without a label" in data.notes
    frame["colour"] = None
    with pytest.raises(DataError, match="train: no row of the frame has a label"):
        load_data(frame)


def test_numbers_with_gaps_are_still_numbers(tmp_path: Path) -> None:
    frame = frame_of(tmp_path, label=[0, None, 1, 10] * 3)
    assert load_data(frame, test_fraction=0.0).class_names == ("0", "1", "10")


@pytest.mark.parametrize("missing", [None, float("nan"), ""])
@pytest.mark.parametrize("column", ["split", "stage"])
def test_rows_without_a_split_are_trains_if_none_says_train(
    tmp_path: Path, column: str, missing: object
) -> None:
    data = load_data(frame_of(tmp_path, **{column: [missing, missing, missing, "test"] * 3}))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 9, "test": 3}
    assert f"data in Python: the column {column!r} is empty in 9 row(s), which are train's" in data.notes


def test_two_columns_of_one_name_are_refused_by_name(tmp_path: Path) -> None:
    frame = frame_of(tmp_path)
    with pytest.raises(DataError, match="two columns are called 'colour'. Rename one"):
        load_data(pandas.concat([frame, frame[["colour"]]], axis=1))


def test_several_labels_in_a_cell_are_read_as_in_tables(tmp_path: Path) -> None:
    frame = frame_of(tmp_path).assign(colour=["cat;dog", "cat", "dog", None] * 3)
    data = load_data(frame, test_fraction=0.0)
    assert data.class_names == ("cat", "dog")
    assert (
        data.splits["train"].targets.tolist() == [[True, True], [True, False], [False, True], [False] * 2] * 3
    )
    assert any("several labels per picture (separated by ';')" in note for note in data.notes)
    single = load_data(frame, test_fraction=0.0, multilabel=False)
    assert single.class_names == ("cat", "cat;dog", "dog")
    assert "data in Python, train: skipped 3 row(s) without a label" in single.notes


def test_the_cells_of_all_splits_say_whether_there_are_several_labels(tmp_path: Path) -> None:
    frame = frame_of(tmp_path, split=["train", "train", "test", "val"] * 3)
    frame["colour"] = ["cat;dog", "cat", "dog", "cat"] * 3
    frame.loc[frame["split"] == "val", "colour"] = None
    data = load_data(frame)
    assert {name: split.targets.sum(axis=0).tolist() for name, split in data.splits.items()} == {
        "train": [6, 3],
        "test": [0, 3],
    }
    assert "data in Python, val: skipped 3 row(s) without a label" in data.notes


def test_one_label_in_each_row_can_be_read_as_several(tmp_path: Path) -> None:
    data = load_data(frame_of(tmp_path), test_fraction=0.0, multilabel=True)
    assert data.splits["train"].targets.sum(axis=1).tolist() == [1] * 12


def test_columns_of_zeros_and_ones_are_refused_with_the_form_to_pass(tmp_path: Path) -> None:
    frame = frame_of(tmp_path).drop(columns="colour").assign(cat=[0, 1, 1] * 4, dog=[1, 0, 1] * 4)
    with pytest.raises(DataError, match=r"column of 0 and 1: .*frame\[\['cat', 'dog'\]\].to_numpy\(\)"):
        load_data(frame)
    pair = (frame["picture"].tolist(), frame[["cat", "dog"]].to_numpy())
    assert load_data(pair, test_fraction=0.0).splits["train"].targets.sum() == 16
