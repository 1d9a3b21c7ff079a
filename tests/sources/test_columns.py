from __future__ import annotations

from pathlib import Path

import pytest

from thumbnet.errors import DataError
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources.columns import find_columns, labels_of, marks_pictures, ones_of
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


@pytest.mark.parametrize(
    ("names", "cells", "label"),
    [
        (["image", "class", "species"], ["mammal", "{c}"], "species"),
        (["image", "type"], ["png"], "type"),
        (["image", "type", "animal"], ["png", "{c}"], ""),
        (["image", "label", "night", "blurry"], ["cat", "{b}", "{b}"], ""),
    ],
)
def test_a_constant_column_is_not_preferred_for_its_name(
    names: list[str], cells: list[str], label: str
) -> None:
    rows = [[f"{n}.png", *(cell.format(c="ab"[n % 2], b=n % 2) for cell in cells)] for n in range(8)]
    if label:
        assert find_columns(table(names, rows), DataSettings()).label == label
        return
    with pytest.raises(DataError, match=f"which column has the labels: {names[1]}, {names[2]}"):
        find_columns(table(names, rows), DataSettings())


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


def test_a_train_may_be_a_class() -> None:
    rows = [["a.png", "1", "0"], ["b.png", "0", "1"]]
    assert find_columns(table(["image", "train", "car"], rows), DataSettings()).one_hot == ("train", "car")


@pytest.mark.parametrize(
    ("one", "zero"),
    [("1", "0"), ("True", "False"), ("yes", "no"), ("TRUE", "FALSE"), ("1", ""), ("x", ""), ("X", "")],
)
def test_columns_of_yes_and_no_are_labels_however_they_are_written(one: str, zero: str) -> None:
    rows = [[f"{n}.png", *(one if n % 3 == k else zero for k in range(3))] for n in range(9)]
    found = table(["id", "cat", "dog", "frog"], rows)
    columns = find_columns(found, DataSettings())
    assert columns.one_hot == ("cat", "dog", "frog")
    assert labels_of(found, columns) == ["cat", "dog", "frog"] * 3


def test_a_rare_mark_far_down_the_table_is_a_class_too() -> None:
    rows = [[f"{n}.png", "x" if n % 2 else "", "" if n % 2 else "x", ""] for n in range(2100)]
    rows.append(["last.png", "", "", "x"])
    assert find_columns(table(["id", "cat", "dog", "frog"], rows), DataSettings()).one_hot == (
        "cat",
        "dog",
        "frog",
    )


def test_columns_of_yes_and_no_next_to_a_column_of_words_are_asked_about() -> None:
    rows = [[f"{n}.png", ("cat", "dog", "frog")[n % 3], str(n % 2), str(int(n % 5 == 0))] for n in range(20)]
    found = table(["image", "animal", "is_night", "is_blurry"], rows)
    with pytest.raises(
        DataError, match=r"animal, is_night, is_blurry\?.*--label-column NAME.*multilabel=true"
    ):
        find_columns(found, DataSettings())
    assert find_columns(found, DataSettings(label_column="animal")).label == "animal"
    assert find_columns(found, DataSettings(multilabel=True)).one_hot == ("is_night", "is_blurry")
    one_hot = [[f"{n}.png", "north", *(str(int(n % 2 == k)) for k in range(2))] for n in range(20)]
    for row in one_hot[:9]:
        row[1] = ("south", "east", "west")[len(row[0]) % 3]
    found = table(["image", "side", "cat", "dog"], one_hot)
    assert find_columns(found, DataSettings()).one_hot == ("cat", "dog")  # each row names one class


def test_a_column_that_may_hold_lists_stays_the_labels_where_several_are_asked_for() -> None:
    def label_of(cells: list[str], paths: list[str]) -> str:
        rows = [
            [path, cell, str(n % 2), str(n // 2 % 2)]
            for n, (path, cell) in enumerate(zip(paths, cells, strict=True))
        ]
        names = ["image", "tags", "night", "blurry"]
        return find_columns(table(names, rows), DataSettings(multilabel=True)).label

    different = [f"{n}.png" for n in range(8)]
    assert label_of(["cat", "dog"] * 4, different) == ""
    assert label_of(["cat", "dog;cat"] * 4, different) == "tags"
    assert label_of(["cat", "dog cat"] * 4, different) == "tags"
    assert label_of(["['cat']", "['dog']"] * 4, different) == "tags"
    assert label_of(["cat", "dog"] * 4, [f"{n // 2}.png" for n in range(8)]) == "tags"


def test_an_address_is_a_path_only_if_there_is_no_other() -> None:
    rows = [[f"{n:04x}", f"http://a.org/b/File_{n}.jpg", str(n % 4)] for n in range(20)]
    assert find_columns(table(["id", "url", "landmark_id"], rows), DataSettings()).path == "id"
    found = table(["url", "landmark_id"], [row[1:] for row in rows])
    assert find_columns(found, DataSettings()).path == "url"
    files = [[row[1], f"{n}.png", row[2]] for n, row in enumerate(rows)]
    assert find_columns(table(["image", "saved as", "label"], files), DataSettings()).path == "saved as"


def test_numbers_without_a_header_name_no_pictures() -> None:
    rows = [[str(n % 3), str(n), str(n * 7 % 11), str(n % 2)] for n in range(12)]
    found = Table(Path("x.csv"), [f"column {n}" for n in range(1, 5)], rows, list(range(12)), header=False)
    with pytest.raises(DataError, match="no column appears to name pictures"):
        find_columns(found, DataSettings())


@pytest.mark.parametrize("order", [1, -1])
def test_a_table_that_is_sorted_is_read_like_any_other(order: int) -> None:
    splits = [[f"{n}.png", "ab"[n % 2], "train" if n < 2500 else "test"] for n in range(3000)][::order]
    assert find_columns(table(["image", "label", "stage"], splits), DataSettings()).split == "stage"
    unlabelled = [[f"{n}.png", "" if n < 2500 else "xy"[n % 2], "wd"[n % 2]] for n in range(3000)][::order]
    assert find_columns(table(["image", "label", "light"], unlabelled), DataSettings()).label == "label"
    fruits = [[f"{n}.png", "apple" if n < 2500 else "pear", "wd"[n % 2]] for n in range(3000)][::order]
    with pytest.raises(DataError, match="which column has the labels: fruit, light"):
        find_columns(table(["file", "fruit", "light"], fruits), DataSettings())


def test_the_cells_of_a_long_column_decide_whether_they_repeat() -> None:
    rows = [[f"{n}.png", f"c{n if n < 2500 else n % 2500}"] for n in range(7500)]
    assert find_columns(table(["file", "fruit"], rows), DataSettings()).label == "fruit"
    assert find_columns(table(["file", "fruit"], rows[:3000]), DataSettings()).label == ""


def test_measurements_do_not_compete_with_classes() -> None:
    measured = [str(n * 7 % 3000 / 10) for n in range(8000)]
    rows = [[f"{n}.png", "ab"[n % 2], one] for n, one in enumerate(measured)]
    assert find_columns(table(["file", "fruit", "weight"], rows), DataSettings()).label == "fruit"
    alone = table(["file", "weight"], [[file, weight] for file, _, weight in rows])
    assert find_columns(alone, DataSettings()).label == "weight"  # class_names says why it is refused
    rows = [[f"{n}.png", "1." + "05"[n % 2], str(n % 3)] for n in range(12)]
    assert find_columns(table(["file", "zoom", "fruit"], rows), DataSettings()).label == "fruit"
    rows = [[f"{n}.png", ("2.5", "old")[n % 2], str(n % 3)] for n in range(12)]
    with pytest.raises(DataError, match="which column has the labels: version, fruit"):
        find_columns(table(["file", "version", "fruit"], rows), DataSettings())


@pytest.mark.parametrize("order", [1, -1])
def test_a_column_of_paths_names_pictures_rather_than_one_of_names_that_folders_share(order: int) -> None:
    rows = [[f"{n}.jpg", f"{c}/{n}.jpg", c][::order] for c in ("cat", "dog") for n in range(4)]
    names = ["filename", "filepath", "label"][::order]
    assert find_columns(table(names, rows), DataSettings()).path == "filepath"
    masks = [[f"{n // 2}.jpg", f"{n}.png", "ab"[n % 2]][::order] for n in range(8)]
    assert find_columns(table(["image", "mask", "label"][::order], masks), DataSettings()).path == "image"


def test_without_labels_only_the_columns_of_pictures_and_splits_are_found() -> None:
    rows = [[f"{n}.png", "ab"[n % 2], "xy"[n // 4], ("train", "test")[n % 2]] for n in range(8)]
    found = table(["image", "place", "camera", "split"], rows)
    with pytest.raises(DataError, match="which column has the labels: place, camera"):
        find_columns(found, DataSettings())
    columns = find_columns(found, DataSettings(label_column="species"), labels=False)
    assert (columns.path, columns.split, columns.labelled) == ("image", "split", False)


@pytest.mark.parametrize(
    ("row", "marks"),
    [
        (["a.png", "41", *("0", "1.0", "-1", "0.25") * 16], True),
        (["a.png", *("", "x") * 160], True),
        (["41", *("0", "1") * 32], False),
        (["a.png", "0", *("0", "0", "0", "17") * 16], False),
    ],
)
def test_marks_of_labels_are_told_from_pixels(row: list[str], marks: bool) -> None:
    assert marks_pictures(table([str(n) for n in range(len(row))], [row, row])) is marks
