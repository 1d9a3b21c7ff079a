from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers import coloured, write_picture
from thumbnet.data.splits import Data
from thumbnet.sources.load import load_data
from thumbnet.sources.place import Place
from thumbnet.sources.table_labels import _positions


def write(root: Path, classes: tuple[str, str], train: str, other: str, tables: dict[str, str]) -> None:
    """Four pictures in each class folder of ``train``, 0.png to 5.png in ``other``, and tables."""
    for name in classes:
        for number in range(4):
            write_picture(root / train / name / f"{name}_{number}.png", coloured(0, number))
    for number in range(6):
        write_picture(root / other / f"{number}.png", coloured(0, 10 + number))
    for path, text in tables.items():
        (root / path).write_text(text)


def labels(data: Data, split: str) -> dict[str, str]:
    found = data.splits[split]
    names = [Path(found.name(i)).stem for i in range(len(found))]
    return {name: data.class_names[label] for name, label in zip(names, found.labels, strict=True)}


def rows(form: str, values: tuple[str, str]) -> str:
    return "".join(form.format(n=n, c=values[n % 2]) + "\n" for n in range(6))


PETS = ("cat", "dog")
TRAIN = "".join(f"{name}/{name}_{n}.png {k}\n" for k, name in enumerate(PETS) for n in range(4))


@pytest.mark.parametrize(
    ("classes", "train", "other", "tables"),
    [
        (PETS, "train", "test", {"test.csv": "file,label\n" + rows("{n}.png,{c}", PETS)}),
        (PETS, "train", "test", {"test_labels.csv": "id,class\n" + rows("{n},{c}", ("Cat", "DOG"))}),
        (PETS, "train", "val", {"val/labels.csv": "file,label\n" + rows("{n}.png,{c}", PETS)}),
        (
            ("00000", "00001"),
            "GTSRB/Final_Training/Images",
            "GTSRB/Final_Test/Images",
            {
                "GTSRB/Final_Test/Images/GT-final_test.csv": "Filename;ClassId\n"
                + rows("{n}.png;{c}", ("0", "1"))
            },
        ),
        (PETS, "train", "val", {"val.txt": rows("{n}.png {c}", ("0", "1")), "train.txt": TRAIN}),
        (
            ("n01", "n02"),
            "ILSVRC/Data/CLS-LOC/train",
            "ILSVRC/Data/CLS-LOC/val",
            {
                "LOC_val_solution.csv": "ImageId,PredictionString\n"
                + rows("{n},{c} 1 2 3 4 5 6 7 8 ", ("n01", "n02"))
            },
        ),
    ],
)
def test_a_table_labels_the_pictures_of_a_split_without_class_folders(
    classes: tuple[str, str], train: str, other: str, tables: dict[str, str], tmp_path: Path
) -> None:
    split = "val" if "val" in other else "test"
    write(tmp_path, classes, train, other, tables)
    data = load_data(tmp_path)
    assert data.class_names == classes
    assert labels(data, split) == {str(n): classes[n % 2] for n in range(6)}
    notes = "\n".join(data.notes)
    assert "the classes of 6 pictures come from" in notes
    assert "has no labels" not in notes
    assert data.layout.endswith(f"+ {other}/*")


@pytest.mark.parametrize(
    ("table", "note"),
    [
        (
            "file,label\n" + rows("{n}.png,{c}", ("cat", "cow")),
            "test.csv is not used: its labels .* such as 'cow'",
        ),
        ("file,label\n" + rows("{n}.png,{c}", ("0", "1")), "such as '[01]', are not classes of train"),
        (
            "file,label\n" + rows("{n}.png,{c}", PETS) + "0.png,dog\n",
            "its labels for pictures of test/ differ",
        ),
        ("file,label\n" + rows("{n}.png,{c}", ("cat", "cat")), ""),  # a placeholder
        ("file,label\n" + rows("9{n}.png,{c}", PETS), ""),
        ("file\n" + rows("{n}.png", PETS), ""),
    ],
)
def test_a_table_that_does_not_fit_leaves_the_split_without_labels(
    table: str, note: str, tmp_path: Path
) -> None:
    write(tmp_path, PETS, "train", "test", {"test.csv": table})
    data = load_data(tmp_path)
    assert all("cat" in name or "dog" in name for name in labels(data, "test"))  # set aside from train
    assert any("test/ has no labels" in one for one in data.notes)
    used = "\n".join(one for one in data.notes if "is not used: its labels" in one)
    assert bool(used) == bool(note)
    assert re.search(note, used)


def test_rows_of_other_pictures_are_counted(tmp_path: Path) -> None:
    table = "file,label\n" + rows("{n}.png,{c}", PETS) + "70.png,cat\n71.png,dog\n"
    write(tmp_path, PETS, "train", "test", {"test.csv": table})
    said = "come from test.csv, column 'label'; 2 other row(s) were skipped"
    assert any(said in note for note in load_data(tmp_path).notes)


def test_a_label_is_the_class_of_exactly_its_name_before_one_of_another_case(tmp_path: Path) -> None:
    classes = ("Cat", "cat", "dog", "7")
    assert _positions({"Cat", "cat", "DOG", "7"}, classes, Place(tmp_path), []) == {
        "Cat": 0,
        "cat": 1,
        "DOG": 2,
        "7": 3,
    }
    assert _positions({"CAT", "dog"}, classes, Place(tmp_path), []) == {"dog": 2}


def test_a_damaged_table_for_pictures_without_class_folders_is_named(tmp_path: Path) -> None:
    text = "file,label\n" + rows("{n}.png,{c}", PETS)
    write(tmp_path, PETS, "train", "test", {"test.csv": text + "7\n"})
    data = load_data(tmp_path)
    assert "warning: " + str(tmp_path / "test.csv") in "\n".join(data.notes)
    assert any("line 8: 1 cell(s)" in note for note in data.notes)
