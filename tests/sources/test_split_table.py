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
from thumbnet.data.corrections import Correction
from thumbnet.data.held_out import share
from thumbnet.data.splits import Data, FileSplit
from thumbnet.errors import DataError, RunError
from thumbnet.sources import split_table
from thumbnet.sources.load import load_data
from thumbnet.sources.split_table import check_split_table, write_split_table

PERSON = "/(s[0-9]+)_"  # finds the group of the pictures that `write_people` writes


def splits_of(data: Data) -> dict[str, dict[str, str]]:
    """For each split, the labels of each picture by its path."""
    return {
        name: {str(split.file(i).resolve()): split.label_text(i, data.class_names) for i in range(len(split))}  # type: ignore[union-attr]
        for name, split in data.splits.items()
    }


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def groups_of(data: Data) -> dict[str, str]:
    """The group of each picture by its path; empty if it is a group of its own."""
    return {
        str(split.file(i).resolve()): "" if group.startswith("\0") else group  # type: ignore[union-attr]
        for name, split in data.splits.items()
        for i, group in enumerate(data.groups[name].tolist())
    }


def write_people(root: Path, people: range, number: int = 0) -> Path:
    """Two pictures of each person, one per class."""
    for person in people:
        for label, name in enumerate(("red", "green")):
            write_picture(root / name / f"s{person}_{number}.png", noise(100 * number + 2 * person + label))
    return root


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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("=cmd", r"formula\. Rename it"),
        ("nan", "the class 'nan' cannot be written into a table, where it means that a picture has no label"),
        ("NaN", "the class 'NaN' cannot be written"),
        ("0.5", "in another way than it is meant|could not be read"),
    ],
)
def test_classes_that_no_table_can_hold_are_refused(name: str, message: str, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label, other in enumerate((name, "1.5" if name == "0.5" else "cat")):
            write_picture(tmp_path / "in" / split / other / "1.png", noise(label))
    table = tmp_path / "frozen.csv"
    with pytest.raises(DataError, match=message):
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


def test_a_file_that_is_no_such_table_is_not_replaced(tmp_path: Path) -> None:
    table = tmp_path / "frozen.csv"
    root = write_class_folders(tmp_path / "in", ["train", "test"])
    for content in (b"mine", b"", b"\xff,\n", b"path;label;split\n", b"path,label,split,group,more\n"):
        table.write_bytes(content)
        with pytest.raises(RunError, match=r"frozen\.csv already exists, and is not a table in UTF-8"):
            check_split_table(table)
        with pytest.raises(RunError, match="already exists"):
            write_split_table(load_data(root), table)
        assert table.read_bytes() == content
    with pytest.raises(RunError, match=r"the name must end in \.csv"):
        check_split_table(tmp_path / "frozen.txt")
    with pytest.raises(RunError, match="there is no folder"):
        check_split_table(tmp_path / "nowhere" / "frozen.csv")


# --- groups -----------------------------------------------------------------------------------------------


def test_groups_are_a_column(tmp_path: Path) -> None:
    root = write_people(tmp_path / "pictures", range(10))
    write_picture(root / "red" / "alone.png", noise(900))
    data = load_data(root, group_by=PERSON)
    table = tmp_path / "frozen.csv"
    assert write_split_table(data, table).options == ("--group-by", "group")
    assert {row["group"] for row in rows_of(table)} == {"", *(f"s{number}" for number in range(10))}
    again = load_data(table, group_by="group")
    assert splits_of(again) == splits_of(data)
    assert groups_of(again) == groups_of(data)
    plain = load_data(table)
    assert splits_of(plain) == splits_of(data)
    assert "--group-by group" in " ".join(plain.notes)
    assert "--group-by group" not in " ".join(again.notes)


def test_groups_with_odd_names_stay_apart(tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    people = ["=a", "'=a", "b c", "b", "-1", "é"]
    for number, person in enumerate(people):
        for name in ("red", "green"):
            write_picture(root / name / f"{person}_{number}.png", noise(number))
    data = load_data(root, group_by="/([^/_]+)_", test_fraction=0.3)
    table = tmp_path / "frozen.csv"
    write_split_table(data, table)
    assert not any(row["group"].startswith("=") for row in rows_of(table))
    again = load_data(table, group_by="group")
    assert len(set(groups_of(again).values())) == len(people)
    assert splits_of(again) == splits_of(data)
    write_picture(root / "red" / "nan_7.png", noise(7))
    write_picture(root / "green" / "nan_7.png", noise(8))
    with pytest.raises(DataError, match="Give plainer names to the classes, groups and files"):
        write_split_table(load_data(root, group_by="/([^/_]+)_"), tmp_path / "other.csv")


def test_several_labels_with_groups_keep_both(tmp_path: Path) -> None:
    data = load_data(write_label_table(tmp_path, coloured_labels(30)), group_by="-([0-9])[0-9]*[.]")
    table = tmp_path / "frozen.csv"
    write_split_table(data, table)
    for again in (load_data(table), load_data(table, group_by="group")):
        assert again.multilabel
        assert splits_of(again) == splits_of(data)
    assert groups_of(again) == groups_of(data)


# --- more pictures ----------------------------------------------------------------------------------------


def test_an_existing_table_gets_rows_for_new_pictures(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "pictures", [""], per_class=10)
    table = tmp_path / "frozen.csv"
    assert write_split_table(load_data(root, val_fraction=0.2), table).added == 30
    before = table.read_bytes()
    for number in range(100, 130):
        for name in ("red", "green", "blue"):
            write_picture(root / name / f"{number}.png", noise(number))
    written = write_split_table(load_data(root, val_fraction=0.2), table)
    after = table.read_bytes()
    assert written.added == 90
    assert "90 picture(s) were added (" in written.notes[0]
    assert "the 30 earlier row(s) stay as they are" in written.notes[0]
    assert after.startswith(before)
    new = {row["path"]: row["split"] for row in rows_of(table)[30:]}
    for path, split in new.items():
        name = path.removeprefix("pictures/")
        late = "val" if share(name, 1) < 0.2 else "train"
        assert split == ("test" if share(name, 0) < 0.2 else late)
    assert set(new.values()) == {"train", "val", "test"}
    again = write_split_table(load_data(root, val_fraction=0.2), table)
    assert (again.added, table.read_bytes()) == (0, after)
    assert "no picture is new" in again.notes[0]
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["frozen.csv"]


def test_new_pictures_join_the_split_of_their_group(tmp_path: Path) -> None:
    root = write_people(tmp_path / "pictures", range(10))
    table = tmp_path / "frozen.csv"
    write_split_table(load_data(root, group_by=PERSON), table)
    split_of = {row["group"]: row["split"] for row in rows_of(table)}
    assert set(split_of.values()) == {"train", "test"}
    write_people(root, range(40), number=1)
    assert write_split_table(load_data(root, group_by=PERSON), table).added == 80
    for row in rows_of(table)[20:]:
        hashed = "test" if share(row["group"], 0) < 0.2 else "train"
        assert row["split"] == split_of.get(row["group"], hashed)
    write_people(root, range(10), number=2)  # also if all other new pictures are to stay in train
    assert write_split_table(load_data(root, group_by=PERSON, test_fraction=0), table).added == 20
    assert all(row["split"] == split_of[row["group"]] for row in rows_of(table)[100:])


def test_earlier_rows_stay_as_they_are(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "pictures", [""], per_class=10)
    table = tmp_path / "frozen.csv"
    write_split_table(load_data(root), table)
    text = table.read_text().replace('"pictures/red/0.png","red"', '"pictures/red/0.png","blue"').rstrip()
    assert '"pictures/red/0.png","blue"' in text
    table.write_text(text)
    (root / "green" / "1.png").unlink()
    write_picture(root / "red" / "new.png", noise(1))
    written = write_split_table(load_data(root), table)
    assert table.read_text().startswith(text + '\n"pictures/red/new.png","red",')
    assert written.added == 1
    assert written.options == ("--on-bad-image", "skip")
    notes = "\n".join(written.notes)
    assert "1 row(s) of frozen.csv name pictures that are gone, such as pictures/green/1.png" in notes
    assert "1 picture(s) have another label or group in the data" in notes
    assert "such as pictures/red/0.png" in notes
    assert sum(map(len, load_data(table, on_bad_image="skip").splits.values())) == 30


def test_rows_that_were_added_by_hand_count_as_known(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "pictures", [""], per_class=10)
    table = tmp_path / "frozen.csv"
    write_split_table(load_data(root), table)
    for number, split in enumerate(("test", "unused")):  # rows of unknown splits are left out
        write_picture(root / "red" / f"new{number}.png", noise(number))
        with table.open("a") as file:
            file.write(f"./pictures/red/new{number}.png,red,{split}\n")
    before = table.read_bytes()
    assert write_split_table(load_data(root), table).added == 0
    assert table.read_bytes() == before


def test_the_first_picture_of_a_new_class_stays_in_train(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "pictures", [""], per_class=10)
    table = tmp_path / "frozen.csv"
    write_split_table(load_data(root), table)
    low = [number for number in range(200) if share(f"white/{number}.png", 0) < 0.2][:3]
    for number in low:
        write_picture(root / "white" / f"{number}.png", noise(number))
    assert write_split_table(load_data(root), table).added == 3
    splits = {row["path"]: row["split"] for row in rows_of(table)[30:]}
    highest = max(low, key=lambda number: share(f"white/{number}.png", 0))
    assert {path for path, split in splits.items() if split == "train"} == {f"pictures/white/{highest}.png"}


def test_the_splits_of_the_data_decide_where_they_have_some(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "pictures", ["train", "test"])
    table = tmp_path / "frozen.csv"
    write_split_table(load_data(root), table)
    for number in range(20):
        for split in ("train", "test"):
            write_picture(root / split / "red" / f"new{number}.png", noise(number))
    assert write_split_table(load_data(root), table).added == 40
    assert all(row["path"].split("/")[1] == row["split"] for row in rows_of(table))


def test_several_labels_grow(tmp_path: Path) -> None:
    source = write_label_table(tmp_path, coloured_labels(30))
    table = tmp_path / "frozen.csv"
    write_split_table(load_data(source), table)
    write_picture(tmp_path / "new.png", noise(1))
    with source.open("a") as file:
        file.write("new.png,red;blue,val\n")
    assert write_split_table(load_data(source), table).added == 1
    assert rows_of(table)[-1] == {"path": "new.png", "labels": '["blue", "red"]', "split": "val"}
    assert splits_of(load_data(table)) == splits_of(load_data(source))


def test_what_does_not_fit_the_table_is_refused(tmp_path: Path) -> None:
    root = write_people(tmp_path / "pictures", range(10))
    plain, grouped = tmp_path / "plain.csv", tmp_path / "grouped.csv"
    write_split_table(load_data(root), plain)
    write_split_table(load_data(root, group_by=PERSON), grouped)
    before = plain.read_bytes(), grouped.read_bytes()
    write_people(root, range(10), number=1)
    with pytest.raises(DataError, match=r"plain\.csv has no column 'group'"):
        write_split_table(load_data(root, group_by=PERSON), plain)
    with pytest.raises(DataError, match=r"grouped\.csv has a column 'group', so .* repeat the --group-by"):
        write_split_table(load_data(root), grouped)
    with pytest.raises(DataError, match=r"plain\.csv has no val pictures"):
        write_split_table(load_data(root, val_fraction=0.2), plain)
    several = load_data(write_label_table(tmp_path / "several", coloured_labels(30)))
    with pytest.raises(DataError, match="has one label per picture, and .* has several"):
        write_split_table(several, plain)
    assert (plain.read_bytes(), grouped.read_bytes()) == before


def test_a_split_that_no_new_picture_joins_is_a_warning(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "pictures", [""], per_class=10)
    table = tmp_path / "frozen.csv"
    write_split_table(load_data(root, val_fraction=0.2), table)
    write_picture(root / "red" / "new.png", noise(1))
    notes = write_split_table(load_data(root), table).notes
    assert any("has val, which no new picture joins. --val-fraction F" in note for note in notes)


def test_pictures_that_corrections_add_stay_in_train(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "pictures", [""], per_class=10)
    table = tmp_path / "frozen.csv"
    write_split_table(load_data(root), table)
    new = [write_picture(tmp_path / "new" / f"{number}.png", noise(number)) for number in range(30)]
    labels = [Correction(str(path), "train", "", "red", "relabel") for path in new]
    assert write_split_table(load_data(root, labels=labels), table).added == 30
    assert {row["split"] for row in rows_of(table)[30:]} == {"train"}


def test_a_class_called_like_a_column_of_the_table_is_refused(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "pictures", [""], per_class=10)
    table = tmp_path / "frozen.csv"
    write_split_table(load_data(root), table)
    before = table.read_bytes()
    write_picture(root / "label" / "1.png", noise(1))
    with pytest.raises(DataError):  # its name is that of the column, so the table would have no header
        write_split_table(load_data(root), table)
    assert table.read_bytes() == before
    with table.open("a") as file:
        file.write("pictures/label/1.png,label,train\n")
    with pytest.raises(DataError, match="its first line is not taken for a header"):
        write_split_table(load_data(root), table)


def test_a_folder_that_is_read_from_its_table_has_no_new_pictures(tmp_path: Path) -> None:
    for number in range(10):
        for seed, name in enumerate(("cat", "dog")):
            write_picture(tmp_path / f"{name}_{number}.png", noise(2 * number + seed))
    table, pattern = tmp_path / "frozen.csv", "^([a-z]+)_"
    write_split_table(load_data(tmp_path, label_pattern=pattern), table)
    write_picture(tmp_path / "cat_new.png", noise(99))
    for data in (load_data(tmp_path), load_data(table)):
        with pytest.raises(DataError, match=r"is read from .*frozen\.csv itself"):
            write_split_table(data, table)
    assert write_split_table(load_data(tmp_path, label_pattern=pattern), table).added == 1


def test_a_row_that_is_added_in_the_meantime_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_class_folders(tmp_path / "pictures", [""], per_class=10)
    table = tmp_path / "frozen.csv"
    write_split_table(load_data(root), table)
    before = table.read_bytes()
    write_picture(root / "red" / "new.png", noise(1))

    def check(*_: object) -> None:
        table.write_bytes(before + b"pictures/red/new.png,red,test\n")

    monkeypatch.setattr(split_table, "_check_same", check)
    with pytest.raises(RunError, match=r"another program has changed .*frozen\.csv"):
        write_split_table(load_data(root), table)
    assert table.read_bytes() == before + b"pictures/red/new.png,red,test\n"
