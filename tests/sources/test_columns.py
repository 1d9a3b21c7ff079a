from __future__ import annotations

from pathlib import Path

import pytest

from thumbnet.errors import DataError
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources.columns import (
    class_names,
    find_columns,
    label_candidates,
    labels_of,
    ones_of,
    split_of_name,
    split_word,
)
from thumbnet.sources.tables import Table


def table(names: list[str], rows: list[list[str]]) -> Table:
    return Table(Path("x.csv"), names, rows, list(range(2, 2 + len(rows))), header=True)


def test_columns_are_found_by_name() -> None:
    found = find_columns(
        table(["id", "filename", "class"], [["1", "a.png", "cat"], ["2", "b.png", "dog"]]), DataSettings()
    )
    assert (found.path, found.label) == ("filename", "class")
    assert found.labelled


def test_columns_are_found_by_content() -> None:
    rows = [[f"{n}.png", "cat" if n % 2 else "dog"] for n in range(8)]
    found = find_columns(table(["one", "two"], rows), DataSettings())
    assert (found.path, found.label) == ("one", "two")


def test_settings_take_precedence_and_must_name_an_existing_column() -> None:
    rows = [["a.png", "cat", "x"], ["b.png", "dog", "y"]]
    names = ["filename", "label", "kind"]
    assert find_columns(table(names, rows), DataSettings(label_column="kind")).label == "kind"
    with pytest.raises(DataError, match="has no column 'lable'.*Did you mean 'label'"):
        find_columns(table(names, rows), DataSettings(label_column="lable"))


def test_one_hot_columns_give_one_label_and_rows_with_two_are_refused() -> None:
    rows = [["a.png", "1", "0"], ["b.png", "0", "1"], ["c.png", "0", "0"]]
    one_hot = table(["image", "MEL", "NV"], rows)
    columns = find_columns(one_hot, DataSettings())
    assert columns.one_hot == ("MEL", "NV")
    assert labels_of(one_hot, columns) == ["MEL", "NV", ""]
    both = table(["image", "MEL", "NV"], [["a.png", "1", "1"]])
    with pytest.raises(DataError, match="line 2: 2 labels"):
        labels_of(both, columns)
    assert ones_of(both, columns) == [("MEL", "NV")]


@pytest.mark.parametrize(
    ("text", "split"), [("Training", "train"), (" valid ", "val"), ("TEST", "test"), ("cat", "")]
)
def test_common_words_for_splits_are_known(text: str, split: str) -> None:
    assert split_word(text) == split


def test_a_file_name_has_a_split_only_if_it_mentions_exactly_one() -> None:
    assert split_of_name("sign_mnist_train") == "train"
    assert split_of_name("train_test") == ""
    assert split_of_name("numbers") == ""


def test_whole_number_classes_are_ordered_by_value_and_fractions_are_refused() -> None:
    assert list(class_names(["10", "9", "2.0"]).values()) == ["2", "9", "10"]
    assert list(class_names(["b", "a", ""])) == ["a", "b"]
    assert list(class_names(["007", "7"])) == ["007", "7"]
    with pytest.raises(DataError, match=r"fractions, such as 2\.5"):
        class_names(["1", "2.5"])


def test_the_likeliest_label_column_comes_first() -> None:
    assert label_candidates(["id", "Class", "label"])[0] in ("label", "Class")
    assert label_candidates(["id", "size"]) == []
