"""Columns that say which split each row belongs to."""

from __future__ import annotations

from pathlib import Path

import pytest

from thumbnet.errors import DataError
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources.columns import find_columns
from thumbnet.sources.split_columns import (
    row_splits,
    split_column,
    split_of_name,
    split_word,
    splits_of,
    unused_splits,
)
from thumbnet.sources.tables import Table


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


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("Training", "train"),
        (" valid ", "val"),
        ("TEST", "test"),
        ("training set", "train"),
        ("test1", "test"),
        ("Validate", "val"),
        ("PublicTest", "val"),
        ("holdout", "test"),
        ("cat", ""),
        ("train_station", ""),
    ],
)
def test_common_words_for_splits_are_known(text: str, split: str) -> None:
    assert split_word(text) == split


def test_a_file_name_has_a_split_only_if_it_mentions_exactly_one() -> None:
    assert split_of_name("sign_mnist_train") == "train"
    assert split_of_name("trainLabels") == split_of_name("train_val_list") == "train"
    assert split_of_name("LOC_val_solution") == "val"
    assert split_of_name("holdout") == split_of_name("testLabels") == "test"
    assert split_of_name("train_test") == ""
    assert split_of_name("numbers") == ""


def rows_of(name: str, *values: str) -> Table:
    """A table of six rows whose column ``name`` has these values in turn."""
    rows = [[f"{n}.png", f"c{n % 2}", values[n // 2 % len(values)]] for n in range(6)]
    return Table(Path("x.csv"), ["image", "label", name], rows, list(range(2, 8)), header=True)


@pytest.mark.parametrize(
    ("name", "values", "splits"),
    [
        ("split", ("train", "eval"), ("train", "test")),
        ("split", ("train", "eval", "test"), ("train", "val", "test")),
        ("split", ("train", "test", "extra"), ("train", "test", "")),
        ("split", ("train", "test", ""), ("train", "test", "")),
        ("split", ("", "test"), ("train", "test")),
        ("Set", ("training set", "test set"), ("train", "test")),
        ("usage", ("Training", "PublicTest", "PrivateTest"), ("train", "val", "test")),
        ("partition", ("0", "1", "2"), ("train", "val", "test")),
        ("is_train", ("1", "0"), ("train", "test")),
        ("is_test", ("False", "True"), ("train", "test")),
        ("isVal", ("no", "yes"), ("train", "val")),
        ("train", ("True", "False"), ("train", "test")),
        ("kind", ("train", "holdout"), ("train", "test")),
    ],
)
def test_a_column_tells_the_splits(name: str, values: tuple[str, ...], splits: tuple[str, ...]) -> None:
    found = rows_of(name, *values)
    columns = find_columns(found, DataSettings())
    assert (columns.label, columns.split) == ("label", name)
    assert splits_of(found, columns)[0][::2] == [splits[n % len(splits)] for n in range(3)]


def test_what_the_values_of_a_split_column_mean_is_noted_unless_it_is_plain() -> None:
    def notes(name: str, *values: str) -> str:
        found = rows_of(name, *values)
        return "\n".join(splits_of(found, find_columns(found, DataSettings()))[1])

    assert notes("split", "train", "test") == ""
    assert "'partition' tells splits: 0 is train, 1 is val, 2 is test" in notes("partition", "0", "1", "2")
    assert "eval is val" in notes("split", "train", "eval", "test")
    assert "'split' leaves out 2 row(s), whose split is unknown: extra" in notes(
        "split", "train", "test", "extra"
    )
    assert "'split' leaves out 2 row(s), whose split is empty" in notes("split", "train", "test", "")
    assert "'split' is empty in 4 row(s)" in notes("split", "", "test")
    with pytest.raises(DataError, match="has extra, test: which of them is train"):
        notes("split", "test", "extra")


@pytest.mark.parametrize(
    ("name", "values"), [("partition", ("0", "1")), ("set", ("A", "B")), ("is_valid", ("True", "False"))]
)
def test_a_column_that_may_tell_splits_is_noted_if_it_is_not_used(name: str, values: tuple[str, ...]) -> None:
    found = rows_of(name, *values)
    columns = find_columns(found, DataSettings())
    assert columns.split == ""
    (note,) = unused_splits(found, columns)
    assert f"the column {name!r} ({', '.join(sorted(values))}) is not used" in note
