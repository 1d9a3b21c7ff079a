"""Columns that say which split each row belongs to."""

from __future__ import annotations

import pytest

from thumbnet.sources.split_columns import row_splits, split_column


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"label": ["train", "test"], "Split": ["a", "b"]}, "Split"),
        ({"label": ["0", "1"], "which": ["train", "Testing"]}, "which"),
        ({"label": ["0", "1"], "is_train": ["1", "0"]}, "is_train"),
        ({"phase": ["a", "b"], "is_train": ["1", "0"]}, "is_train"),
        ({"set": ["a", "b"], "usage": ["train", "test"]}, "usage"),
        ({"label": ["0", "1"], "place": ["train", "bus"]}, ""),
        ({"empty": []}, ""),
    ],
)
def test_the_column_is_found_by_its_name_or_its_cells(columns: dict[str, list[str]], found: str) -> None:
    assert split_column(columns) == found


def test_cells_are_splits_if_a_row_is_in_train() -> None:
    assert row_splits("set", ["Training", "PublicTest", "PrivateTest"], "x") == (["train", "val", "test"], [])
    assert row_splits("is_train", ["1", "0"], "x") == (["train", "test"], [])
    splits, notes = row_splits("set", ["train", "spare", ""], "x")
    assert splits == ["train", "", ""]
    assert notes == ["x: the column 'set' has no known split in 2 row(s), which were skipped: spare, (empty)"]
    assert row_splits("set", ["test"], "x") == (
        None,
        ["warning: x: the column 'set' is not used as splits: no row says train, but test"],
    )


def test_empty_cells_are_trains_if_no_cell_says_train() -> None:
    note = "x: the column 'set' is empty in 2 row(s), which are train's"
    assert row_splits("set", ["", "nan", "test"], "x") == (["train", "train", "test"], [note])
    splits, notes = row_splits("set", ["", "spare", "test"], "x")
    assert splits == ["train", "", "test"]
    assert len(notes) == 2
    assert row_splits("set", ["", "spare"], "x")[0] is None
