from __future__ import annotations

from pathlib import Path

import pytest

from helpers import coloured, write_picture
from thumbnet.errors import DataError
from thumbnet.sources.load import load_data
from thumbnet.sources.table_rows import Rows


def write(folder: Path, count: int, rows: str) -> Path:
    """Write the pictures 0.png, 1.png, ... and a table."""
    for n in range(count):
        write_picture(folder / f"{n}.png", coloured(n, n))
    path = folder / "l.csv"
    path.write_text("image,label\n" + rows)
    return path


TWELVE = "".join(f"{n}.png,c{n % 2}\n" for n in range(12))


def test_missing_pictures_are_listed_or_skipped(tmp_path: Path) -> None:
    path = write(tmp_path, 10, TWELVE)
    with pytest.raises(DataError, match=r"2 row\(s\)") as failure:
        load_data(path)
    assert "line 12: 10.png" in str(failure.value)
    data = load_data(path, on_bad_image="skip")
    assert sum(map(len, data.splits.values())) == 10
    assert any("2 row(s)" in note for note in data.notes)


def test_repeated_pictures_and_missing_labels_are_noted(tmp_path: Path) -> None:
    write(tmp_path, 14, TWELVE + "0.png,c1\n12.png,\n")
    notes = "\n".join(load_data(tmp_path).notes)
    assert "warning: 1 row(s) give a picture a second label, such as 0.png (c0 and c1)" in notes
    assert "skipped 1 row(s) of train without a label" in notes
    assert "skipped 2 picture(s) that no row gives a label" in notes


def test_rows_that_name_several_pictures_say_which(tmp_path: Path) -> None:
    path = write(tmp_path, 12, TWELVE.replace(".png", ""))
    for n in range(12):
        write_picture(tmp_path / "thumbs" / f"{n}.png", coloured(n, n))
    with pytest.raises(DataError, match=r"12 row\(s\) each name several pictures in") as failure:
        load_data(path)
    assert "line 3: 1 (1.png, thumbs/1.png)" in str(failure.value)


def test_a_picture_in_another_folder_is_no_replacement(tmp_path: Path) -> None:
    rows = "image,label\n" + "".join(f"{n},c{n % 2}\n" for n in range(12))
    for n in range(12):
        write_picture(tmp_path / "test" / f"{n}.png", coloured(n, n))
        if n != 5:
            write_picture(tmp_path / "train" / f"{n}.png", coloured(n, n))
    (tmp_path / "train.csv").write_text(rows)
    with pytest.raises(DataError, match=r"1 row\(s\) name pictures .*") as failure:
        load_data(tmp_path)
    assert "train.csv, line 7: 5 (test/5.png is in another folder)" in str(failure.value)
    data = load_data(tmp_path, on_bad_image="skip")
    assert all(data.splits[split].name(0).startswith("train") for split in data.splits)


def test_rows_of_one_picture_are_merged() -> None:
    rows = Rows(True, ["a", "b", "a"], [("x",), (), ("y", "x")], ["1", "2", "1"]).merged()
    assert (rows.paths, rows.labels, rows.groups) == (["a", "b"], [("x", "y"), ()], ["1", "2"])


def test_labels_spelt_differently_in_two_tables_are_one_class(tmp_path: Path) -> None:
    for split, labels in (("train", ("cat", "caf\u00e9")), ("test", ("Cat", "cafe\u0301"))):
        for n in range(4):
            write_picture(tmp_path / split / f"{n}.png", coloured(n, n))
        rows = "".join(f"{split}/{n}.png,{labels[n % 2]}\n" for n in range(4))
        (tmp_path / f"{split}.csv").write_text("image,label\n" + rows, "utf-8")
    data = load_data(tmp_path)
    assert data.class_names == ("caf\u00e9", "cat")
    assert data.splits["test"].labels.tolist() == [1, 0, 1, 0]
    assert any("'Cat' is 'cat'" in note for note in data.notes)


def test_addresses_without_pictures_are_not_taken_for_missing_files(tmp_path: Path) -> None:
    rows = "".join(f"http://a.org/{n}.jpg,c{n % 2}\n" for n in range(12))
    path = write(tmp_path, 2, rows)
    with pytest.raises(DataError, match="These are addresses: download the pictures"):
        load_data(path)


def test_a_row_without_a_group_is_a_group_of_its_own(tmp_path: Path) -> None:
    patients = [("" if n % 4 == 1 else "nan") if n % 2 else f"p{n}" for n in range(12)]
    path = write(tmp_path, 12, "")
    lines = [f"{n}.png,c{n % 2},{patients[n]},{'train' if n < 9 else 'test'}" for n in range(12)]
    path.write_text("image,label,patient,split\n" + "\n".join(lines))
    data = load_data(path, group_by="patient")
    groups = [group for found in data.groups.values() for group in found.tolist()]
    assert len(set(groups)) == 12
    assert "l.csv: the column 'patient' is empty in 6 row(s), each of which forms its own group" in data.notes
    assert not any(note.startswith("warning: ") for note in data.notes)


@pytest.mark.parametrize(
    ("train", "test"),
    [("7", "7.0"), ("7.0", "7"), ("7", "7."), ("-1", "-1.00"), ("Zo\u00eb", "Zoe\u0308"), ("p", "p")],
)
def test_a_group_that_two_tables_write_differently_is_one_group(
    train: str, test: str, tmp_path: Path
) -> None:
    for split, group in (("train", train), ("test", test)):
        for n in range(4):
            write_picture(tmp_path / split / f"{n}.png", coloured(n, n))
        rows = "".join(f"{split}/{n}.png,c{n % 2},{group}\n" for n in range(4))
        (tmp_path / f"{split}.csv").write_text("image,label,patient\n" + rows, "utf-8")
    data = load_data(tmp_path, group_by="patient")
    assert {group for found in data.groups.values() for group in found.tolist()} == {
        min(train, test, key=len)
    }
    (note,) = [note for note in data.notes if note.startswith("warning: ")]
    assert "1 group(s) have pictures in more than one of" in note


@pytest.mark.parametrize(
    ("groups", "alike"),
    [
        (("P8", "p8"), True),
        (("P08", "P8"), True),
        (("007", "7"), True),
        (("P8", "P80"), False),
        (("7.5", "7"), False),
    ],
)
def test_groups_that_may_be_the_same_are_kept_apart_with_a_warning(
    groups: tuple[str, str], alike: bool, tmp_path: Path
) -> None:
    path = write(tmp_path, 12, "")
    lines = [f"{n}.png,c{n % 2},{(*groups, 'a', 'b')[n // 3]}" for n in range(12)]
    path.write_text("image,label,patient\n" + "\n".join(lines))
    data = load_data(path, group_by="patient")
    assert {group for found in data.groups.values() for group in found.tolist()} == {*groups, "a", "b"}
    warnings = [note for note in data.notes if note.startswith("warning: the column 'patient' has groups")]
    assert len(warnings) == alike
    assert all(" and ".join(sorted(groups)) in note for note in warnings)


def test_groups_keep_the_form_in_which_all_tables_write_them(tmp_path: Path) -> None:
    path = write(tmp_path, 12, "")
    path.write_text("image,label,patient\n" + "\n".join(f"{n}.png,c{n % 2},{n // 3}.0" for n in range(12)))
    groups = load_data(path, group_by="patient").groups
    assert {group for found in groups.values() for group in found.tolist()} == {"0.0", "1.0", "2.0", "3.0"}


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("labels", {"train": 8, "val": 4}),
        ("trainval", {"train": 8, "val": 4}),
        ("train_val", {"train": 8, "val": 4}),
        ("train", {"train": 12}),
        ("training_labels", {"train": 12}),
    ],
)
@pytest.mark.parametrize("alone", [False, True])
def test_one_table_takes_the_splits_from_the_folders_unless_its_name_says_only_train(
    name: str, splits: dict[str, int], alone: bool, tmp_path: Path
) -> None:
    paths = [f"{'train' if n < 8 else 'val'}/{n}.png" for n in range(12)]
    for n, path in enumerate(paths):
        write_picture(tmp_path / path, coloured(n, n))
    rows = "".join(f"{path},c{n % 2}\n" for n, path in enumerate(paths))
    table = tmp_path / f"{name}.csv"
    table.write_text("path,label\n" + rows)
    data = load_data(table if alone else tmp_path, test_fraction=0.0)
    assert {split: len(found) for split, found in data.splits.items()} == splits
