from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

from helpers import (
    coloured_data,
    coloured_labels,
    noise,
    write_class_folders,
    write_label_table,
    write_picture,
)
from thumbnet.data.splits import Data, FileSplit
from thumbnet.errors import DataError, RunError
from thumbnet.sources.load import load_data
from thumbnet.sources.split_table import check_new_table, write_split_table


def splits_of(data: Data) -> dict[str, dict[str, str]]:
    """For each split, the labels of each picture by its path."""
    return {
        name: {str(split.file(i).resolve()): split.label_text(i, data.class_names) for i in range(len(split))}  # type: ignore[union-attr]
        for name, split in data.splits.items()
    }


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("where", ["pictures", "elsewhere/deep", "."])
def test_a_table_keeps_the_splits_that_were_set_aside(where: str, tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "pictures", [""], per_class=10)
    data = load_data(root, val_fraction=0.2, split_seed=3)
    table = tmp_path / where / "frozen.csv"
    table.parent.mkdir(parents=True, exist_ok=True)
    write_split_table(data, table)
    assert splits_of(load_data(table)) == splits_of(data)
    assert [path.name for path in table.parent.glob("*.csv")] == ["frozen.csv"]
    assert not list(table.parent.glob(".*"))
    assert not any(row["path"].startswith("/") for row in rows_of(table))


def test_new_rows_move_no_picture(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path, [""], per_class=10)
    table = tmp_path / "frozen.csv"
    write_split_table(load_data(root), table)
    before = splits_of(load_data(table))
    for number in range(10, 20):
        write_picture(root / "red" / f"{number}.png", noise(number))
        with table.open("a") as file:
            file.write(f"red/{number}.png,red,train\n")
    after = splits_of(load_data(table))
    assert after["test"] == before["test"]
    assert after["train"].keys() > before["train"].keys()


def test_the_table_and_its_pictures_can_move_together(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "old", ["train", "test"])
    write_split_table(load_data(root), root / "frozen.csv")
    new = Path(shutil.move(root, tmp_path / "new"))
    found = load_data(new / "frozen.csv")
    assert {name: len(split) for name, split in found.splits.items()} == {"train": 18, "test": 18}


def test_a_table_behind_a_link_finds_its_pictures(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "pictures", ["train", "test"])
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b", target_is_directory=True)
    data = load_data(root)
    write_split_table(data, tmp_path / "link" / "frozen.csv")
    assert splits_of(load_data(tmp_path / "link" / "frozen.csv")) == splits_of(data)


def test_several_labels_keep_their_splits(tmp_path: Path) -> None:
    source = write_label_table(tmp_path, coloured_labels(30))
    data = load_data(source)
    table = tmp_path / "frozen.csv"
    write_split_table(data, table)
    again = load_data(table)
    assert again.multilabel
    assert splits_of(again) == splits_of(data)
    assert "no label" in splits_of(again)["train"].values()


def test_odd_names_are_read_as_they_are(tmp_path: Path) -> None:
    names = ["=1+1.png", "a, b.png", 'say "x".png', "@home.png", "größe.png", "-1.png"]
    for split in ("train", "test"):
        for label in ("label", "fresh apple", "rotten; apple"):
            for number, name in enumerate(names):
                write_picture(tmp_path / split / label / name, noise(number))
    data = load_data(tmp_path)
    table = tmp_path / "frozen.csv"
    write_split_table(data, table)
    assert splits_of(load_data(table)) == splits_of(data)
    assert list(rows_of(table)[0]) == ["path", "class", "split"]  # the class called label is no header
    flat = write_class_folders(tmp_path / "flat", [""])
    write_picture(tmp_path / "flat" / "red" / "=1.png", noise(1))
    write_split_table(load_data(flat), flat / "red" / "frozen.csv")
    assert "./=1.png" in {row["path"] for row in rows_of(flat / "red" / "frozen.csv")}


@pytest.mark.parametrize("name", ["=cmd", "nan", "0.5"])
def test_classes_that_no_table_can_hold_are_refused(name: str, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label, other in enumerate((name, "1.5" if name == "0.5" else "cat")):
            write_picture(tmp_path / "in" / split / other / "1.png", noise(label))
    table = tmp_path / "frozen.csv"
    with pytest.raises(
        DataError, match=r"formula\. Rename it|in another way than it is meant|could not be read"
    ):
        write_split_table(load_data(tmp_path / "in"), table)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    labels = np.array([0, 1])
    splits = {name: FileSplit(tmp_path, ["a.png", "\udcff.png"], labels) for name in ("train", "test")}
    with pytest.raises(DataError, match=r"\\udcff\.png is not UTF-8"):
        write_split_table(Data("x", "x", ("cat", "dog"), dict(splits)), tmp_path / "frozen.csv")


def test_pictures_that_are_no_files_are_refused(tmp_path: Path) -> None:
    archive = shutil.make_archive(
        str(tmp_path / "pictures"), "zip", write_class_folders(tmp_path / "in", ["train", "test"])
    )
    for data in (coloured_data(), load_data(archive)):
        with pytest.raises(DataError, match="is not a file of its own, and a table names files"):
            write_split_table(data, tmp_path / "frozen.csv")
    assert not (tmp_path / "frozen.csv").exists()


def test_data_without_splits_are_refused(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path, [""])
    with pytest.raises(DataError, match="all pictures are in train"):
        write_split_table(load_data(root, test_fraction=0), tmp_path / "frozen.csv")


def test_an_existing_table_is_not_replaced(tmp_path: Path) -> None:
    table = tmp_path / "frozen.csv"
    table.write_text("mine")
    with pytest.raises(
        RunError, match=r"frozen\.csv already exists, and a new table could have other splits"
    ):
        check_new_table(table)
    with pytest.raises(RunError, match=r"the name must end in \.csv"):
        check_new_table(tmp_path / "frozen.txt")
    with pytest.raises(RunError, match="there is no folder"):
        check_new_table(tmp_path / "nowhere" / "frozen.csv")
    root = write_class_folders(tmp_path / "in", ["train", "test"])
    with pytest.raises(RunError, match="already exists"):
        write_split_table(load_data(root), table)
    assert table.read_text() == "mine"
