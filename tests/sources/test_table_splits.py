from __future__ import annotations

from pathlib import Path

import pytest

from helpers import coloured, write_picture
from thumbnet.data.splits import Data
from thumbnet.errors import DataError
from thumbnet.sources.load import load_data
from thumbnet.sources.table_splits import splits_by_folder


def write(folder: Path, **tables: str) -> None:
    """Write tables, whose suffixes follow two underscores, and the pictures 0.png to 11.png."""
    for number in range(12):
        write_picture(folder / "images" / f"{number}.png", coloured(number, number))
    for name, text in tables.items():
        (folder / name.replace("__", ".")).write_text(text)


def rows(first: int, last: int, form: str = "{n}.png,c{c}") -> str:
    return "".join(form.format(n=n, c=n % 2, k=n % 3, h=n // 10) + "\n" for n in range(first, last))


def numbers(data: Data) -> dict[str, list[int]]:
    return {
        name: sorted(int(Path(split.name(i)).stem) for i in range(len(split)))
        for name, split in data.splits.items()
    }


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train", "holdout"), ("train", "test")),
        (("trainLabels", "testLabels"), ("train", "test")),
        (("train", "eval", "test"), ("train", "val", "test")),
        (("my_training_data", "my_validation_data"), ("train", "val")),
    ],
)
def test_the_names_of_tables_tell_their_splits(
    names: tuple[str, ...], splits: tuple[str, ...], tmp_path: Path
) -> None:
    header = "file,label\n"
    write(tmp_path, **{f"{name}__csv": header + rows(4 * k, 4 * k + 4) for k, name in enumerate(names)})
    found = numbers(load_data(tmp_path, test_fraction=0))
    assert found == {split: list(range(4 * k, 4 * k + 4)) for k, split in enumerate(splits)}


PARTS = "".join(f"{n}.png,{n // 4}\n" for n in range(12))


@pytest.mark.parametrize(
    ("tables", "splits"),
    [
        ({"train_val_list__txt": rows(0, 8, "{n}.png"), "test_list__txt": rows(8, 12, "{n}.png")}, (8, 0, 4)),
        ({"list_eval_partition__csv": "image_id,partition\n" + PARTS}, (4, 4, 4)),
        ({"list_eval_partition__txt": PARTS.replace(",", " ")}, (4, 4, 4)),
        (
            {"splits__csv": "image,split\n" + rows(0, 8, "{n}.png,train") + rows(8, 12, "{n}.png,test")},
            (8, 0, 4),
        ),
    ],
)
def test_lists_next_to_a_table_tell_the_splits_of_its_rows(
    tables: dict[str, str], splits: tuple[int, int, int], tmp_path: Path
) -> None:
    write(tmp_path, labels__csv="image,label\n" + rows(0, 12), **tables)
    train, val, test = splits
    found = {"train": range(train), "val": range(train, train + val), "test": range(12 - test, 12)}
    data = load_data(tmp_path)
    assert numbers(data) == {split: list(found[split]) for split in found if found[split]}
    assert any(note.startswith("splits come from") for note in data.notes)


def test_rows_that_no_list_names_are_left_out_and_lists_of_other_pictures_are_skipped(tmp_path: Path) -> None:
    lists = {"train_list__txt": rows(0, 6, "{n}.png"), "test_list__txt": rows(6, 10, "{n}.png")}
    write(tmp_path, labels__csv="image,label\n" + rows(0, 12), **lists)
    data = load_data(tmp_path)
    assert numbers(data) == {"train": list(range(6)), "test": [6, 7, 8, 9]}
    assert any(note.startswith("2 row(s) are left out") for note in data.notes)
    (tmp_path / "train_list.txt").write_text("90.png\n91.png\n")
    data = load_data(tmp_path)
    assert sum(map(len, numbers(data).values())) == 12
    assert any("train_list.txt has no labels: its 2 rows were skipped" in note for note in data.notes)


def test_celeba_is_read_as_downloaded(tmp_path: Path) -> None:
    boxes = "12\nimage_id x_1 y_1 width height\n" + "".join(
        f"{n}.png {n // 4} 1 {n // 3} 9\n" for n in range(12)
    )
    attributes = "12\nMale Young\n" + "".join(f"{n}.png {(-1, 1)[n % 2]}  1\n" for n in range(12))
    write(
        tmp_path,
        list_attr_celeba__txt=attributes,
        list_bbox_celeba__txt=boxes,
        list_eval_partition__txt=PARTS.replace(",", " "),
    )
    data = load_data(tmp_path)
    assert data.class_names == ("Male", "Young")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 4, "val": 4, "test": 4}
    assert any("list_bbox_celeba.txt was skipped: it is unclear" in note for note in data.notes)
    data = load_data(tmp_path, label_column="Male")
    assert (data.multilabel, len(data.splits["test"])) == (False, 4)
    with pytest.raises(DataError, match="has splits and no classes"):
        load_data(tmp_path / "list_eval_partition.txt")


def test_two_tables_of_one_split_are_refused(tmp_path: Path) -> None:
    header = "file,label\n"
    write(tmp_path, train_a__csv=header + rows(0, 6), train_b__csv=header + rows(6, 12))
    with pytest.raises(DataError, match="several tables have labels"):
        load_data(tmp_path)


def test_the_folders_in_one_table_tell_the_splits(tmp_path: Path) -> None:
    paths = ["train/0.png", "train/1.png", "data/train/2.png", "test/4.png", "eval/5.png", "extra/6.png"]
    found = splits_by_folder([*paths, None], set())
    assert found is not None
    assert found[0] == ["train", "train", "train", "test", "val", "", ""]
    assert found[1][0].endswith("eval/ is val, test/ is test, train/ is train")
    assert found[1][1].startswith("1 row(s) are left out")
    assert splits_by_folder(paths[:3], set()) is None
    assert splits_by_folder(["a/train/1.png", "a/test/2.png"], {"train", "test"}) is None  # classes
    assert splits_by_folder(["train/x/1.png", "train/test/2.png"], set()) is None
    for path in ("train/0.png", "train/1.png", "train/2.png", "test/0.png", "test/1.png"):
        write_picture(tmp_path / path, coloured(0, 0))
    text = "path,label\ntrain/0.png,a\ntrain/1.png,b\ntrain/2.png,b\ntest/0.png,a\ntest/1.png,b\n"
    (tmp_path / "labels.csv").write_text(text)
    assert numbers(load_data(tmp_path)) == {"train": [0, 1, 2], "test": [0, 1]}


@pytest.mark.parametrize(
    ("tables", "splits"),
    [
        (
            {"data_split__csv": "image,label,split\n" + rows(0, 9, "{n}.png,{k},train") + rows(9, 12, "{n}.png,{k},test")},
            ("train", "test"),
        ),
        (
            {f"{split}_split__csv": "image,label\n" + rows(*part, "{n}.png,{k}") for split, part in (("train", (0, 9)), ("val", (9, 12)))},
            ("train", "val"),
        ),
    ],
)  # fmt: skip
def test_classes_0_1_and_2_are_no_splits_in_a_table_that_says_what_they_are(
    tables: dict[str, str], splits: tuple[str, str], tmp_path: Path
) -> None:
    write(tmp_path, **tables)
    first, second = splits
    assert numbers(load_data(tmp_path)) == {first: list(range(9)), second: [9, 10, 11]}
    for name in tables:
        data = load_data(tmp_path / name.replace("__", "."), test_fraction=0)
        assert data.class_names == ("0", "1", "2")


def test_numbers_that_may_be_splits_or_classes_are_classes_if_the_user_says_so(tmp_path: Path) -> None:
    write(tmp_path, data_split__csv="image,fruit\n" + PARTS)
    with pytest.raises(DataError, match="has splits and no classes.*--label-column NAME"):
        load_data(tmp_path / "data_split.csv")
    assert load_data(tmp_path / "data_split.csv", label_column="fruit").class_names == ("0", "1", "2")


IWILDCAM = {
    "train__csv": "category_id,file_name,location,frames\n" + rows(0, 8, "{c},{n}.png,l{c},f{h}"),
    "test__csv": "file_name,location,frames\n" + rows(8, 12, "{n}.png,l{c},f{h}"),
}


@pytest.mark.parametrize("label_column", ["", "category_id"])
def test_a_table_for_test_without_trains_labels_is_skipped_whatever_else_is_in_it(
    label_column: str, tmp_path: Path
) -> None:
    write(tmp_path, **IWILDCAM)
    data = load_data(tmp_path, label_column=label_column, test_fraction=0)
    assert numbers(data) == {"train": list(range(8))}
    assert "test.csv has no labels: its 4 rows were skipped" in data.notes
    with pytest.raises(DataError, match="which column has the labels: location, frames"):
        load_data(tmp_path / "test.csv")


@pytest.mark.parametrize("other", ["sex", "type", "level"])
@pytest.mark.parametrize(
    ("label", "header", "test"),
    [
        ("{k}", "", rows(8, 12, "{n}.png,{c}")),
        ("c{k}", "", rows(8, 12, "{n}.png,m{c}")),
        ("c{k}", ",label", rows(8, 12, "{n}.png,{c},")),
    ],
)
def test_another_column_of_a_table_for_test_is_not_taken_for_its_labels(
    label: str, header: str, test: str, other: str, tmp_path: Path
) -> None:
    train = f"image,{other},label\n" + rows(0, 8, "{n}.png,{c}," + label)
    write(tmp_path, train__csv=train, test__csv=f"image,{other}{header}\n" + test)
    data = load_data(tmp_path, test_fraction=0)
    assert numbers(data) == {"train": list(range(8))}
    assert f"test.csv: {other!r} is not taken for labels, because train's are in 'label'" in data.notes
    assert "test.csv has no labels: its 4 rows were skipped" in data.notes


def test_a_column_for_other_things_in_train_has_no_labels_in_test_even_with_words_of_train(
    tmp_path: Path,
) -> None:
    train = "image,weather,label\n" + rows(0, 8, "{n}.png,c{h},c{k}")
    write(tmp_path, train__csv=train, test__csv="image,weather\n" + rows(8, 12, "{n}.png,c{c}"))
    data = load_data(tmp_path, test_fraction=0)
    assert numbers(data) == {"train": list(range(8))}
    assert "test.csv: 'weather' is not taken for labels, because train's are in 'label'" in data.notes


@pytest.mark.parametrize(
    "other", ["image,kind\n" + rows(0, 12, "{n}.png,k{k}"), "image,age,sex\n" + rows(0, 12, "{n}.png,{k},s{c}")]
)  # fmt: skip
def test_metadata_next_to_the_labels_of_train_are_not_labels(other: str, tmp_path: Path) -> None:
    truth = "image,MEL,NV\n" + "".join(f"{n}.png,{n % 2}.0,{1 - n % 2}.0\n" for n in range(12))
    write(tmp_path, x_Training_GroundTruth__csv=truth, x_Training_Metadata__csv=other)
    data = load_data(tmp_path)
    assert data.class_names == ("MEL", "NV")
    assert "x_Training_Metadata.csv has no labels: its 12 rows were skipped" in data.notes


def test_a_table_of_train_whose_labels_are_unclear_is_refused_if_no_other_has_them(tmp_path: Path) -> None:
    unclear = "image,age,sex\n" + rows(0, 8, "{n}.png,{k},s{c}")
    write(tmp_path, train__csv=unclear, a_test__csv="image,age,sex\n" + rows(8, 12, "{n}.png,{k},s{c}"))
    with pytest.raises(DataError, match="train.csv: which column has the labels: age, sex"):
        load_data(tmp_path)
    for name in ("a_test.csv", "labels.csv"):
        (tmp_path / name).write_text("image,label\n" + rows(8, 12))
        with pytest.raises(DataError, match="train.csv: which column has the labels: age, sex"):
            load_data(tmp_path)


@pytest.mark.parametrize(
    "header_and_rows",
    ["image,truth\n" + rows(8, 12, "{n}.png,C{c}"), "image,c0,c1\n8.png,1,0\n9.png,0,1\n10.png,1,0\n11.png,0,1\n"],
)  # fmt: skip
def test_labels_of_test_in_another_column_are_known_by_trains_classes(
    header_and_rows: str, tmp_path: Path
) -> None:
    write(tmp_path, train__csv="image,label\n" + rows(0, 8), test__csv=header_and_rows)
    data = load_data(tmp_path)
    assert numbers(data) == {"train": list(range(8)), "test": [8, 9, 10, 11]}
    assert data.splits["test"].labels.tolist() == [0, 1, 0, 1]
