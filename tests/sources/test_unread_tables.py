"""A table that labels pictures in another way than their folders is not passed over without a word."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from helpers import coloured, write_picture
from thumbnet.errors import DataError
from thumbnet.sources.load import load_data

DAYS = ("2021-05-03", "2021-05-04")


def write_days(root: Path, header: str, rows: list[str], table: str = "labels.csv") -> Path:
    """Twelve pictures in the folders of two days, and a table."""
    for number in range(12):
        write_picture(root / DAYS[number // 6] / f"{number}.png", coloured(number, number))
    (root / table).parent.mkdir(parents=True, exist_ok=True)
    (root / table).write_text("\n".join([header, *rows]) + "\n")
    return root


def noted(source: Path, **settings: Any) -> list[str]:
    return [note for note in load_data(source, **settings).notes if "than their folders do" in note]


@pytest.mark.parametrize("path", ["{n}.png", "{n}", "2021-05-0{day}/{n}.png"])
def test_a_table_of_other_classes_is_named_with_the_command_that_uses_it(path: str, tmp_path: Path) -> None:
    rows = [f"{path.format(n=n, day=3 + n // 6)},{('cat', 'dog')[n % 2]}" for n in range(12)]
    root = write_days(tmp_path / "data", "image,label", rows)
    assert load_data(root).class_names == DAYS
    (note,) = noted(root)
    assert note.startswith(
        "warning: labels.csv gives the pictures other classes (cat, dog) than their folders"
    )
    assert note.endswith(f"thumbnet train {root / 'labels.csv'}")
    assert load_data(root / "labels.csv").class_names == ("cat", "dog")
    assert noted(root, classes_from="leaf") == []


def test_a_table_in_an_archive_is_chosen_by_its_column(tmp_path: Path) -> None:
    rows = [f"{n}.png,{('cat', 'dog')[n % 2]}" for n in range(12)]
    root, archive = write_days(tmp_path / "data", "image,label", rows), tmp_path / "data.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        for path in sorted(root.rglob("*.*")):
            zipped.write(path, path.relative_to(tmp_path))
    data = load_data(archive, data_dir=tmp_path / "cache")
    assert data.class_names == DAYS
    (note,) = [note for note in data.notes if "than their folders do" in note]
    assert note.endswith(f"thumbnet train {archive} --label-column label")
    chosen = load_data(archive, data_dir=tmp_path / "cache", label_column="label")
    assert chosen.class_names == ("cat", "dog")


def test_a_column_that_is_not_called_like_labels_is_only_noted(tmp_path: Path) -> None:
    root = write_days(tmp_path, "image,animal", [f"{n}.png,{('cat', 'dog')[n % 2]}" for n in range(12)])
    (note,) = noted(root)
    assert note.startswith("labels.csv gives the pictures other classes")


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("image,label", "{n}.png,{day}"),
        ("image,label,split", "{n}.png,{day},{split}"),  # splits, written down
        ("image,label", "{n}.png,{number}"),  # other names for the same classes
        ("image,label", "other{n}.png,c{split}"),  # of other pictures
        ("image,label", "{n}.png,none"),  # a submission to be filled in
        ("picture,class,probability", "{n}.png,{guess},0.9{n}"),  # what a network predicts
        ("picture,label,split,was,decision", "{n}.png,{day},train,2021-05-04,relabel"),  # corrections
        ("picture,label,split,was,decision", "{n}.png,cat{split},train,2021-05-04,relabel"),
    ],
)
def test_a_table_that_has_the_classes_of_the_folders_or_none_is_not_mentioned(
    header: str, row: str, tmp_path: Path
) -> None:
    rows = [
        row.format(n=n, day=DAYS[n // 6], guess=DAYS[n % 2], number=n // 6, split=("train", "test")[n % 2])
        for n in range(12)
    ]
    assert noted(write_days(tmp_path, header, rows)) == []


def test_a_table_in_the_folder_of_train_is_named_too(tmp_path: Path) -> None:
    for number in range(12):
        path = tmp_path / "train" / f"patient{number // 3}" / f"{number}.png"
        write_picture(path, coloured(number, number))
    rows = [f"patient{n // 3}/{n}.png,{('sick', 'well')[n % 2]}" for n in range(12)]
    (tmp_path / "train" / "labels.csv").write_text("\n".join(["image,diagnosis", *rows]))
    (note,) = noted(tmp_path)
    assert note.startswith("warning: labels.csv gives the pictures other classes (sick, well) ")
    path = tmp_path / "train" / "labels.csv"
    assert note.endswith(f"thumbnet train {path} --images {tmp_path}")
    assert load_data(path, images=str(tmp_path)).class_names == ("sick", "well")


def test_a_table_in_a_folder_of_tables_is_named_with_the_folder_of_its_pictures(tmp_path: Path) -> None:
    rows = [f"{n}.png,{('cat', 'dog')[n % 2]}" for n in range(12)]
    root = write_days(tmp_path / "data", "image,label", rows, "annotations/labels.csv")
    path = root / "annotations" / "labels.csv"
    (note,) = noted(root)
    assert note.endswith(f"thumbnet train {path} --images {root}")
    assert load_data(path, images=str(root)).class_names == ("cat", "dog")


@pytest.mark.parametrize("count", [12, 300])
def test_a_damaged_table_is_named_like_a_whole_one(count: int, tmp_path: Path) -> None:
    rows = [f"{n % 12}.png,{('cat', 'dog')[n % 2]}" for n in range(count)]
    whole = noted(write_days(tmp_path / "whole", "image,label", rows))
    damaged = noted(write_days(tmp_path / "damaged", "image,label", [*rows, "1.png,cat,more"]))
    assert len(whole) == len(damaged) == 1


def unused(source: Path) -> list[str]:
    return [note for note in load_data(source).notes if "not used: " in note]


def test_a_table_that_cannot_be_read_at_all_is_named_in_a_warning(tmp_path: Path) -> None:
    (note,) = unused(write_days(tmp_path, "image,label", ["0.png,cat,more"]))
    assert note.startswith("warning: not used: labels.csv, line 2: 3 cell(s)")


def test_a_parquet_table_that_needs_the_extra_is_named_in_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    (note,) = unused(write_days(tmp_path, "PAR1", [], "labels.parquet"))
    assert note.startswith("warning: not used: labels.parquet: Parquet files needs the extra 'formats'")


@pytest.mark.parametrize("name", ["labels.xlsx", "patients.xls", "table.ods"])
def test_a_spreadsheet_next_to_class_folders_is_named(name: str, tmp_path: Path) -> None:
    write_days(tmp_path, "PK", [], name)
    assert unused(tmp_path) == [f"not used: {name}: a spreadsheet; save it as CSV"]


@pytest.mark.parametrize("text", ["2021-05-03", "# days", "a,b\n1,2\n"])
@pytest.mark.parametrize("name", ["data.yaml", "README.txt", "classes.csv", "labels.json"])
def test_other_files_next_to_class_folders_are_not_named(name: str, text: str, tmp_path: Path) -> None:
    write_days(tmp_path, text, [], name)
    assert unused(tmp_path) == []


def write_eyes(root: Path) -> Path:
    """Ten pictures whose names seem to have the classes ``left`` and ``right``."""
    for number in range(10):
        write_picture(root / f"{number // 2}_{('left', 'right')[number % 2]}.png", coloured(number, number))
    return root


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", "patient,level\n0,1\n1,2\n"),
        ("trainLabels.csv", "image,grade\n0_left,0.5\n0_right,0.5\n1_left,1.5\n1_right,1.5\n"),
        ("labels.csv", "image,level\n0_left,1,2\n"),
        ("labels.json", '{"0_left": 1, "0_right": 2}'),
        ("image_labels.yaml", "0_left: 1\n0_right: 2\n"),
        ("Labels.xlsx", "PK"),
    ],
)
def test_names_of_pictures_have_no_classes_next_to_a_table_of_labels_that_cannot_be_used(
    name: str, text: str, tmp_path: Path
) -> None:
    write_eyes(tmp_path)
    assert load_data(tmp_path).class_names == ("left", "right")
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=f"have classes \\(left, right\\).*\\. {name}[:,]"):
        load_data(tmp_path)
    assert load_data(tmp_path, label_pattern="_([a-z]+)").class_names == ("left", "right")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.txt", "left\nright\n"),
        ("labels.csv", "number,name\n0,left\n1,right\n"),
        ("labels.json", '{"0": "left", "1": "right"}'),
        ("sampleSubmission.csv", "id,label\n7,0\n8,0\n"),
        ("README.txt", "Left, right\nand both\n"),
        ("info.json", "{}"),
    ],
)
def test_names_of_pictures_have_the_classes_next_to_a_list_of_them(
    name: str, text: str, tmp_path: Path
) -> None:
    (write_eyes(tmp_path) / name).write_text(text)
    data = load_data(tmp_path)
    assert data.class_names == ("left", "right")
    assert not [note for note in data.notes if "not used" in note]


def test_another_table_next_to_classes_in_names_is_named(tmp_path: Path) -> None:
    (write_eyes(tmp_path) / "ages.csv").write_text(
        "image,age\n0_left,50\n0_right,50\n1_left,51\n1_right,51\n"
    )
    (note,) = unused(tmp_path)
    assert note.startswith(
        "not used: ages.csv: it is unclear whether one of its columns (age) has the classes"
    )
