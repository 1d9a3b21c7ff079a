from __future__ import annotations

import json
import shlex
import shutil
import unicodedata
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers import coloured, write_picture
from sources.trees import CLASSES, COUNT, counts, pictures, table
from thumbnet.errors import DataError, UnusedSettingError
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources import manifest, pixel_tables
from thumbnet.sources.columns import find_columns, labels_of
from thumbnet.sources.labels import class_names
from thumbnet.sources.load import load_data
from thumbnet.sources.place import Place
from thumbnet.sources.tables import read_table


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("image,label", "{n}.png,{c}"),
        ("id,class", "{n},{c}"),
        ("filename;category", "{n}.png;{c}"),
        ("image_id\tcell_type", "{n}\t{c}"),
        ("Id|Species", "./{n}.png|{c}"),
        ("lesion_id,image_id,dx,dx_type,age,sex,localization", "HAM_{n},{n},{c},histo,80.0,male,scalp"),
        ("", "{n}.png,{c}"),
        ("", "{n}.png {c}"),
        ("file_name,label", '"{n}.png","{c}"'),
        ("image,label", "C:\\data\\pets\\{n}.png,{c}"),
        ("image,label", "/home/bob/data/{n}.png,{c}"),
        ("image,label", "{n}.jpeg,{c}"),
    ],
)
@pytest.mark.parametrize("folder", ["", "images"])
def test_path_and_label_columns_are_found_by_name_or_content(
    header: str, row: str, folder: str, tmp_path: Path
) -> None:
    pictures(tmp_path / folder, [f"pic{n}.png" for n in range(COUNT)])
    file = table(tmp_path / "labels.csv", header, lambda n: row.format(n=f"pic{n}", c=CLASSES[n % 3]))
    for source in (file, tmp_path):
        data = load_data(source)
        assert data.class_names == CLASSES
        assert counts(data) == {"train": 9, "test": 3}
        for split in data.splits.values():
            for index, label in enumerate(split.labels):
                number = int(Path(split.name(index)).stem.removeprefix("pic"))
                assert label == number % 3
                assert split.read(index).size == (16, 16)


def test_a_manifest_in_a_zip_reads_like_one_in_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "kaggle"
    pictures(folder / "train", [f"{n:04x}.png" for n in range(COUNT)])
    pictures(folder / "test", [f"{n:04x}.png" for n in range(100, 103)])
    table(folder / "train.csv", "id_code,diagnosis", lambda n: f"{n:04x},{n % 3}")
    (folder / "test.csv").write_text("id_code\n0064\n0065\n0066\n")
    (folder / "sample_submission.csv").write_text("id_code,diagnosis\n0064,0\n0065,0\n0066,0\n")
    with zipfile.ZipFile(tmp_path / "kaggle.zip", "w") as zipped:
        for path in sorted(folder.rglob("*.*")):
            zipped.write(path, path.relative_to(tmp_path))
    for source in (folder, tmp_path / "kaggle.zip"):
        data = load_data(source, data_dir=tmp_path / "cache")
        assert data.class_names == ("0", "1", "2")
        assert counts(data) == {"train": 9, "test": 3}
        assert all("train" in data.splits["test"].name(i) for i in range(3))
        assert any("test.csv has no labels" in note for note in data.notes)
        assert any("sample_submission.csv" in note for note in data.notes)


@pytest.mark.parametrize("suffix", [".png", ""])
@pytest.mark.parametrize("table_form", ["NFC", "NFD"])
def test_a_table_and_its_pictures_may_be_in_other_unicode_forms(
    suffix: str, table_form: Literal["NFC", "NFD"], tmp_path: Path
) -> None:
    folder, archive = tmp_path / "data", tmp_path / "data.zip"
    pictures_form: Literal["NFC", "NFD"] = "NFC" if table_form == "NFD" else "NFD"
    pictures(folder / "images", [unicodedata.normalize(pictures_form, f"café{n}.png") for n in range(COUNT)])
    named = unicodedata.normalize(table_form, "café{n}") + suffix
    table(folder / "labels.csv", "image,label", lambda n: f"{named.format(n=n)},c{n % 2}")
    with zipfile.ZipFile(archive, "w") as zipped:
        for path in sorted(folder.rglob("*.*")):
            zipped.write(path, path.relative_to(tmp_path))
    for source in (folder, archive):
        assert counts(load_data(source, data_dir=tmp_path / "cache", test_fraction=0)) == {"train": COUNT}


def test_a_table_in_an_archive_cannot_name_files_outside_it(tmp_path: Path) -> None:
    write_picture(tmp_path / "secret.png", coloured(0, 0))
    for cell in ("../secret.png", str(tmp_path / "secret.png"), "C:\\secret.png"):
        archive = tmp_path / "a.zip"
        with zipfile.ZipFile(archive, "w") as zipped:
            zipped.writestr("labels.csv", f"image,label\n{cell},a\n1.png,b\n")
            zipped.write(tmp_path / "secret.png", "1.png")
        with pytest.raises(DataError, match="outside its archive"):
            load_data(archive, data_dir=tmp_path / "cache")
        archive.unlink()


def test_gtsrb_is_read_as_downloaded(tmp_path: Path) -> None:
    header = "Width,Height,Roi.X1,Roi.Y1,Roi.X2,Roi.Y2,ClassId,Path"
    classes = (2, 10, 20)
    for split in ("Train", "Test"):
        names = [
            f"Train/{classes[n % 3]}/000{n:02}.png" if split == "Train" else f"Test/{n:05}.png"
            for n in range(COUNT)
        ]
        pictures(tmp_path, names)
        rows = [f"27,26,5,5,22,20,{classes[n % 3]},{name}" for n, name in enumerate(names)]
        table(tmp_path / f"{split}.csv", header, rows.__getitem__)
    pictures(tmp_path / "Meta", ["0.png"])
    table(
        tmp_path / "Meta.csv", "Path,ClassId,ShapeId,ColorId,SignId", lambda n: f"Meta/{n}.png,{n},1,0,3.32"
    )
    data = load_data(tmp_path / "Train.csv")
    assert data.class_names == ("2", "10", "20")
    data = load_data(tmp_path)
    assert data.class_names == ("2", "10", "20")
    assert counts(data) == {"train": 12, "test": 12}


def test_isics_one_hot_columns_become_classes(tmp_path: Path) -> None:
    names = ["MEL", "NV", "BCC"]
    pictures(tmp_path, [f"ISIC_{n:07}.jpg" for n in range(COUNT)])

    def row(n: int) -> str:
        return f"ISIC_{n:07}," + ",".join("1.0" if n % 3 == k else "0.0" for k in range(3))

    path = table(tmp_path / "ISIC_2019_Training_GroundTruth.csv", "image," + ",".join(names), row)
    assert load_data(tmp_path).class_names == ("BCC", "MEL", "NV")
    path.write_text(path.read_text() + "ISIC_0000000,1.0,1.0,0.0\n")
    assert load_data(tmp_path).multilabel
    with pytest.raises(DataError, match="line 14: 2 labels"):
        load_data(tmp_path, multilabel=False)


def test_a_column_can_name_the_split(tmp_path: Path) -> None:
    pictures(tmp_path, [f"{n}.png" for n in range(COUNT)])
    table(
        tmp_path / "all.csv",
        "path,label,split",
        lambda n: f"{n}.png,c{n % 2},{('Train', 'VALID', 'test')[n // 4]}",
    )
    assert counts(load_data(tmp_path)) == {"train": 4, "val": 4, "test": 4}


def test_a_group_column_reaches_the_data(tmp_path: Path) -> None:
    pictures(tmp_path, [f"{n}.png" for n in range(COUNT)])
    table(
        tmp_path / "all.csv",
        "path,label,split,patient",
        lambda n: f"{n}.png,c{n % 2},{'train' if n < 8 else 'test'},p{n}",
    )
    data = load_data(tmp_path, group_by="patient")
    assert data.groups["train"].tolist() == [f"p{n}" for n in range(8)]


def test_labels_and_groups_that_may_mean_nothing_are_warned_about(tmp_path: Path) -> None:
    pictures(tmp_path, [f"{n}.png" for n in range(COUNT)])
    names = ("NA", "cat", "dog")
    table(
        tmp_path / "all.csv",
        "path,country,patient",
        lambda n: f"{n}.png,{names[n % 3]},{'N/A' if n < 2 else f'p{n // 2}'}",
    )
    data = load_data(tmp_path, label_column="country", group_by="patient", test_fraction=0)
    assert data.class_names == ("NA", "cat", "dog")
    warnings = [note for note in data.notes if note.startswith("warning: ")]
    assert [note.partition(". ")[0] for note in warnings] == [
        "warning: all.csv: 2 row(s) have the group N/A",
        "warning: 4 label(s) are NA, which is taken for a class",
    ]


def test_a_group_column_has_to_be_in_all_tables(tmp_path: Path) -> None:
    for split in ("train", "test"):
        pictures(tmp_path / split, [f"{n}.png" for n in range(COUNT)])
    table(tmp_path / "train.csv", "path,label,patient", lambda n: f"train/{n}.png,c{n % 2},p1")
    table(tmp_path / "test.csv", "path,label", lambda n: f"test/{n}.png,c{n % 2}")
    with pytest.raises(DataError, match=r"--group-by patient: test\.csv has no such column"):
        load_data(tmp_path, group_by="patient")
    data = load_data(tmp_path, group_by=r"/(\d)")  # an expression, as no table has such a column
    assert len(set(data.groups["train"])) == 10


def test_a_column_of_groups_that_is_not_used_is_noted(tmp_path: Path) -> None:
    pictures(tmp_path, [f"{n}.png" for n in range(COUNT)])
    table(tmp_path / "all.csv", "path,label,patient id", lambda n: f"{n}.png,c{n % 2},p{n // 2}")
    note = "the column 'patient id' is not used. If it says which pictures belong together: --group-by "
    (found,) = [one for one in load_data(tmp_path).notes if one.startswith(note)]
    assert shlex.split(found.removeprefix(note)) == ["patient id"]
    data = load_data(tmp_path, group_by="patient id")
    assert not any("is not used" in one for one in data.notes)
    assert not set(data.groups["train"]) & set(data.groups["test"])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_tables_in_any_common_encoding_are_read(encoding: str, tmp_path: Path) -> None:
    pictures(tmp_path, [f"{n}.png" for n in range(COUNT)])
    table(tmp_path / "l.csv", "image,label", lambda n: f"{n}.png,{('cœur', 'thé')[n % 2]}", encoding)
    data = load_data(tmp_path)
    assert data.class_names == ("cœur", "thé")
    warning = "warning: l.csv is not UTF-8 and was read as Windows-1252. "
    assert any(note.startswith(warning) for note in data.notes) == (encoding == "cp1252")


def test_names_that_no_western_encoding_gives_are_refused_with_advice(tmp_path: Path) -> None:
    pictures(tmp_path, [f"{n}.png" for n in range(COUNT)])
    table(tmp_path / "l.csv", "image,label", lambda n: f"{n}.png,{('ラーメン', '画像')[n % 2]}", "shift-jis")
    with pytest.raises(DataError, match="control characters: .* save it as UTF-8"):
        load_data(tmp_path)


def test_pictures_may_be_outside_the_folder_of_the_table(tmp_path: Path) -> None:
    pictures(tmp_path / "elsewhere", [f"{n}.png" for n in range(COUNT)])
    path = table(tmp_path / "tables" / "l.csv", "image,label", lambda n: f"{n}.png,c{n % 2}")
    assert sum(counts(load_data(path, images=str(tmp_path / "elsewhere"))).values()) == COUNT
    path = table(tmp_path / "tables" / "m.csv", "image,label", lambda n: f"../elsewhere/{n}.png,c{n % 2}")
    assert sum(counts(load_data(path)).values()) == COUNT


@pytest.mark.parametrize("where", ["tables/l.csv", "tables"])
def test_the_folder_of_the_pictures_is_found_again_from_another_folder(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{n}.png" for n in range(COUNT)]
    pictures(tmp_path / "work" / "elsewhere", names)
    pictures(tmp_path / "tables" / "beside", names)
    table(tmp_path / "tables" / "l.csv", "image,label", lambda n: f"{n}.png,c{n % 2}")
    monkeypatch.chdir(tmp_path / "work")
    there = load_data(f"../{where}", images="elsewhere")
    beside = load_data(f"../{where}", images="beside")
    found = [data.settings.images for data in (there, beside) if data.settings is not None]
    assert found == [str(tmp_path / "work" / "elsewhere"), "beside"]
    monkeypatch.chdir(tmp_path)
    for data in (there, beside):
        again = load_data(where, settings=data.settings)
        assert again.fingerprint() == data.fingerprint()
        assert again.settings == data.settings
    monkeypatch.chdir(tmp_path / "tables")
    assert load_data("l.csv", images="beside").settings == beside.settings


def test_a_folder_of_pictures_in_an_archive_is_named_as_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{n}.png" for n in range(COUNT)]
    pictures(tmp_path / "data" / "beside", names)
    table(tmp_path / "data" / "l.csv", "image,label", lambda n: f"{n}.png,c{n % 2}")
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "data")
    monkeypatch.chdir(tmp_path / "data")  # where a folder has that name, too
    data = load_data(packed, data_dir=tmp_path / "cache", images="beside")
    assert data.settings is not None
    assert data.settings.images == "beside"
    assert sum(counts(data).values()) == COUNT


def test_hub_image_folders_are_read_from_their_metadata(tmp_path: Path) -> None:
    for split in ("train", "test"):
        pictures(tmp_path / split, [f"{n}.png" for n in range(COUNT)])
        lines = [json.dumps({"file_name": f"{n}.png", "label": n % 3}) for n in range(COUNT)]
        (tmp_path / split / "metadata.jsonl").write_text("\n".join(lines))
    data = load_data(tmp_path)
    assert counts(data) == {"train": 12, "test": 12}
    assert data.splits["test"].name(0) == "test/0.png"


def test_integer_classes_take_their_names_from_a_matching_file(tmp_path: Path) -> None:
    pictures(tmp_path, [f"{n}.png" for n in range(COUNT)])
    table(tmp_path / "l.csv", "image,label", lambda n: f"{n}.png,{n % 2}")
    (tmp_path / "label_num_to_disease_map.json").write_text('{"0": "healthy", "1": "rust"}')
    assert load_data(tmp_path / "l.csv").class_names == ("healthy", "rust")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_names_of_classes_are_taken_from_a_file_with_a_byte_order_mark(encoding: str, tmp_path: Path) -> None:
    pictures(tmp_path, [f"{n}.png" for n in range(COUNT)])
    table(tmp_path / "l.csv", "image,label", lambda n: f"{n}.png,{n % 2}")
    (tmp_path / "classes.txt").write_text("thé\ncafé\n", encoding)
    data = load_data(tmp_path / "l.csv")
    odd = [note for note in data.notes if note.startswith("warning: classes.txt is not UTF-8")]
    assert (data.class_names, len(odd)) == ((("0", "1"), 1) if encoding == "utf-16" else (("thé", "café"), 0))


@pytest.mark.parametrize("cells", [["a|b", "a", "b"], ["haze water", "haze road", "water road", "haze"]])
def test_several_labels_in_one_cell_are_read_as_several(cells: list[str], tmp_path: Path) -> None:
    pictures(tmp_path, [f"{n}.png" for n in range(COUNT)])
    table(tmp_path / "l.csv", "image,label", lambda n: f"{n}.png,{cells[n % len(cells)]}")
    data = load_data(tmp_path / "l.csv")
    assert data.multilabel
    assert len(data.class_names) == (2 if "|" in cells[0] else 3)
    assert load_data(tmp_path / "l.csv", multilabel=False).class_names == tuple(sorted(cells))


def test_two_word_species_are_single_labels(tmp_path: Path) -> None:
    pictures(tmp_path, [f"{n}.png" for n in range(COUNT)])
    species = ("Canis lupus", "Canis aureus", "Vulpes vulpes")
    table(tmp_path / "l.csv", "image,label", lambda n: f"{n}.png,{species[n % 3]}")
    assert len(load_data(tmp_path).class_names) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"image,label\n1.png,a,b\n", r"line 2: 3 cell\(s\)"),
        (b"image,label\n1.png,\x00\n", "line 2: a NUL"),
        (b'image,label\n1.png,"a\n', "line 2: unexpected end"),
        (b"image,label\n1.png," + b"x" * 200_000 + b"\n", "line 2: field larger"),
        (b"", "empty"),
        (b"image,label\n1.png,0.5\n2.png,0.7\n", "fractions|no"),
    ],
)
def test_errors_about_damaged_tables_name_the_line(content: bytes, message: str, tmp_path: Path) -> None:
    pictures(tmp_path, ["1.png", "2.png"])
    (tmp_path / "l.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_data(tmp_path / "l.csv")


DAMAGE = {
    "a line that was cut off": ("{rows}7\n", "line 14: 1 cell"),
    "more cells in the first row": ("image,label\n1.png,a,b\n", "line 2: 3 cell"),
    "no end of a quote": ('{rows}7.png,"a\n', "line 14: unexpected end"),
    "zeros from a full disk": ("{rows}\0\0\0\0", "line 14: a NUL character"),
    "no content": ("", "is empty"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_damaged_table_of_a_split_is_an_error(split: str, damage: str, tmp_path: Path) -> None:
    for name in ("train", "val", "test"):
        names = [f"{name}{n}.png" for n in range(COUNT)]
        pictures(tmp_path / "images", names)
        rows = [f"{picture},{CLASSES[n % 3]}\n" for n, picture in enumerate(names)]
        (tmp_path / f"{name}.csv").write_text("image,label\n" + "".join(rows))
    assert counts(load_data(tmp_path)) == {"train": COUNT, "val": COUNT, "test": COUNT}
    content, message = DAMAGE[damage]
    path = tmp_path / f"{split}.csv"
    path.write_text(content.format(rows=path.read_text()))
    with pytest.raises(DataError, match=f"{split}.csv.*{message}"):
        load_data(tmp_path)


@pytest.mark.parametrize("table_name", ["metadata.jsonl", "metadata.csv", "labels.csv"])
def test_a_damaged_table_in_the_folder_of_a_split_is_an_error(table_name: str, tmp_path: Path) -> None:
    for split in ("train", "test"):
        pictures(tmp_path / split, [f"{split}{n}.png" for n in range(COUNT)])
        rows = [f"{split}{n}.png,{CLASSES[n % 3]}" for n in range(COUNT)]
        text = "\n".join(["file_name,label", *rows]) + "\n"
        if table_name.endswith("l"):
            cells = [row.split(",") for row in rows]
            text = "".join(json.dumps({"file_name": name, "label": label}) + "\n" for name, label in cells)
        (tmp_path / split / table_name).write_text(text)
    assert counts(load_data(tmp_path)) == {"train": COUNT, "test": COUNT}
    path = tmp_path / "test" / table_name
    path.write_text(path.read_text() + '{"file_name": "x')
    with pytest.raises(DataError, match=f"test.{table_name}, line 1[34]: "):
        load_data(tmp_path)


@pytest.mark.parametrize("rows", [3, 250])
def test_a_damaged_table_is_not_replaced_by_the_names_of_pictures(rows: int, tmp_path: Path) -> None:
    """The eyes of Kaggle's Diabetic Retinopathy: left and right are no classes."""
    pictures(tmp_path / "train", [f"{n}_{side}.jpeg" for n in range(6) for side in ("left", "right")])
    lines = [f"{n % 6}_{side},{n % 3}" for n in range(rows) for side in ("left", "right")]
    path = tmp_path / "trainLabels.csv"
    path.write_text("\n".join(["image,level", *lines[:12], ""]))
    assert len(load_data(tmp_path).class_names) == 3
    path.write_text("\n".join(["image,level", *lines, "x", ""]))
    for column in ("", "level"):
        with pytest.raises(DataError, match=f"trainLabels.csv, line {2 * rows + 2}: 1 cell"):
            load_data(tmp_path, label_column=column)


@pytest.mark.parametrize(
    ("train", "why"),
    [("image,label\n{n}9,{c}\n", "no picture is called"), ("image,width\n{n},24\n", "no column appears")],
)
def test_test_pictures_are_not_trained_on_because_the_table_of_train_is_not_used(
    train: str, why: str, tmp_path: Path
) -> None:
    pictures(tmp_path / "images", [f"{n}.png" for n in range(COUNT)])
    head, row, _ = train.split("\n")
    table(tmp_path / "train.csv", head, lambda n: row.format(n=f"{n:03}", c=CLASSES[n % 3]))
    table(tmp_path / "test.csv", "image,label", lambda n: f"{n}.png,{CLASSES[n % 3]}")
    with pytest.raises(DataError, match=f"test.csv would be trained on.*train.csv: .*{why}"):
        load_data(tmp_path)
    assert counts(load_data(tmp_path / "test.csv", test_fraction=0)) == {"train": COUNT}


def test_a_damaged_table_of_no_split_is_named_in_a_warning(tmp_path: Path) -> None:
    pictures(tmp_path, [f"{n}.png" for n in range(COUNT)])
    table(tmp_path / "labels.csv", "image,label", lambda n: f"{n}.png,{CLASSES[n % 3]}")
    (tmp_path / "sizes.csv").write_text("Sizes\nname,bytes\n1,2\n")
    (note,) = [note for note in load_data(tmp_path).notes if "sizes.csv" in note]
    assert note.startswith("warning: ")
    assert "line 2: 2 cell(s)" in note


@pytest.mark.parametrize(
    ("number", "name"),
    [("label_id", "label_name"), ("class", "class_name"), ("label", "species"), ("Target", "Breed")],
)
def test_classes_that_are_numbers_take_their_names_from_another_column(
    number: str, name: str, tmp_path: Path
) -> None:
    pictures(tmp_path, [f"{n}.png" for n in range(COUNT)])
    table(
        tmp_path / "labels.csv",
        f"image,{number},{name}",
        lambda n: f"{n}.png,{9 + n % 3},{CLASSES[2 - n % 3]}",
    )
    data = load_data(tmp_path, test_fraction=0)
    assert data.class_names == ("red", "green", "blue")  # by number
    train = data.splits["train"]
    assert [train.labels[n] for n in range(COUNT)] == [
        int(Path(train.name(n)).stem) % 3 for n in range(COUNT)
    ]
    (note,) = [note for note in data.notes if "class names come from" in note]
    assert note.endswith(f"the column {name!r}; to keep the numbers: --label-column {number}")
    assert load_data(tmp_path, label_column=number).class_names == ("9", "10", "11")


@pytest.mark.parametrize(
    "words", [("blue", "red", "blue"), ("1", "2", "3"), ("blue", "", "red"), ("blue", "{n}", "red")]
)
def test_other_columns_give_numbers_no_names(words: tuple[str, str, str], tmp_path: Path) -> None:
    pictures(tmp_path, [f"{n}.png" for n in range(COUNT)])
    table(
        tmp_path / "labels.csv",
        "image,label,label_name",
        lambda n: f"{n}.png,{n % 3},{words[n % 3].format(n=f'w{n}')}",
    )
    assert load_data(tmp_path).class_names == ("0", "1", "2")


def test_the_names_of_numbers_may_be_in_the_table_of_train_only(tmp_path: Path) -> None:
    pictures(tmp_path, [f"{n}.png" for n in range(2 * COUNT)])
    table(tmp_path / "train.csv", "image,label,label_name", lambda n: f"{n}.png,{n % 3},{CLASSES[n % 3]}")
    table(tmp_path / "test.csv", "image,label", lambda n: f"{COUNT + n}.png,{n % 3}")
    data = load_data(tmp_path)
    assert (data.class_names, counts(data)) == (CLASSES, {"train": COUNT, "test": COUNT})


def write_run(folder: Path) -> None:
    write_picture(folder / "confusion.png", coloured(0, 0))
    for name in ("recipe.toml", "run.json"):
        (folder / name).write_text("")


def test_a_table_next_to_runs_with_figures_is_read(tmp_path: Path) -> None:
    pictures(tmp_path / "images", [f"{n}.png" for n in range(COUNT)])
    table(tmp_path / "labels.csv", "image,label", lambda n: f"{n}.png,{CLASSES[n % 3]}")
    before = load_data(tmp_path)
    for run in ("first", "second"):
        write_run(tmp_path / run)
    assert load_data(tmp_path).fingerprint() == before.fingerprint()


def test_runs_next_to_a_folder_that_wraps_the_data_do_not_hide_it(tmp_path: Path) -> None:
    pictures(tmp_path / "data" / "images", [f"{n}.png" for n in range(COUNT)])
    table(tmp_path / "data" / "labels.csv", "image,label", lambda n: f"{n}.png,{CLASSES[n % 3]}")
    before = load_data(tmp_path)
    for run in ("runs/first", "runs/second", "search"):
        write_run(tmp_path / run)
    assert load_data(tmp_path).fingerprint() == before.fingerprint()


def test_whole_numbers_are_ordered_by_value() -> None:
    assert list(class_names(["10", "2.0", "1"]).values()) == ["1", "2", "10"]
    assert list(class_names(["010", "002"]).values()) == ["002", "010"]


TEXT = st.text(st.characters(codec="utf-8", exclude_characters='\0\r\n"'), min_size=1, max_size=8).map(
    str.strip
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(labels=st.lists(TEXT, min_size=1, max_size=9), separator=st.sampled_from(",;\t|"))
def test_quoted_cells_are_read_with_any_separator(labels: list[str], separator: str, tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    lines = [f'"{n}.png"{separator}"{label}"' for n, label in enumerate(labels)]
    path.write_text(f"image{separator}label\n" + "\n".join(lines) + "\n", "utf-8", newline="")
    found = read_table(path)
    assert found.names == ["image", "label"]
    assert found.column("label") == labels


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    content=st.one_of(st.binary(max_size=300), st.text("ab01.,;\t\n\"'| png", max_size=200).map(str.encode)),
    lines=st.booleans(),
)
def test_any_bytes_give_a_table_or_a_data_error(content: bytes, lines: bool, tmp_path: Path) -> None:
    path = tmp_path / ("l.jsonl" if lines else "l.csv")
    path.write_bytes(content)
    for form in (manifest, pixel_tables):
        assert form.recognise(Place(path), DataSettings()) in (True, False)
    try:
        found = read_table(path)
        columns = find_columns(found, DataSettings())
        if columns.labelled:
            class_names(labels_of(found, columns))
    except DataError:
        pass


def test_pictures_keep_their_labels_in_order(tmp_path: Path) -> None:
    pictures(tmp_path, [f"{n}.png" for n in range(COUNT)])
    path = table(
        tmp_path / "l.csv", "image,label,split", lambda n: f"{n}.png,c{n % 3},{'train' if n < 9 else 'val'}"
    )
    data = load_data(path)
    assert np.array_equal(data.splits["train"].labels, np.arange(9) % 3)


def test_a_table_of_many_attributes_asks_for_the_label_column(tmp_path: Path) -> None:
    pictures(tmp_path / "images", [f"{n}.jpg" for n in range(COUNT)])
    table(tmp_path / "styles.csv", "id,gender,season", lambda n: f"{n},{'MW'[n % 2]},{'FS'[n // 6]}")
    with pytest.raises(DataError, match=r"gender, season\?.*--label-column"):
        load_data(tmp_path)
    assert load_data(tmp_path, label_column="gender").class_names == ("M", "W")


def test_a_file_of_corrections_is_a_table_too(tmp_path: Path) -> None:
    pictures(tmp_path / "new", [f"{n}.png" for n in range(COUNT)])
    rows = [f"{n}.png,{CLASSES[n % 3]},train,,relabel" for n in range(COUNT - 2)]
    rows[0] = f"{tmp_path / 'new' / '0.png'},blue,train,green,relabel"  # an absolute path
    rows += ["10.png,,train,red,drop", "11.png,red,train,red,unsure", "1.png,red,train,,relabel"]
    file = tmp_path / "new" / "labels.csv"
    file.write_text("picture,label,split,was,decision\n" + "\n".join(rows) + "\n")
    for source in (file, file.parent):
        data = load_data(source, test_fraction=0)
        split = data.splits["train"]
        found = {Path(split.name(i)).name: data.class_names[label] for i, label in enumerate(split.labels)}
        expected = {f"{n}.png": CLASSES[n % 3] for n in range(COUNT - 2)}
        assert found == expected | {"1.png": "red"}  # the last row counts
        assert "labels.csv: 2 dropped or unsure picture(s) are left out" in data.notes
    file.write_text("picture,label,split,was,decision\n10.png,,train,red,drop\n")
    with pytest.raises(DataError, match="no row gives a picture a class"):
        load_data(file)


def test_corrections_of_other_data_say_how_to_apply_them(tmp_path: Path) -> None:
    pictures(tmp_path / "data", ["a/0.png", "b/1.png"])
    file = tmp_path / "labels.csv"
    file.write_text(
        "picture,label,split,was,decision\na/0.png,b,train,a,relabel\nb/9.png,b,train,a,relabel\n"
    )
    with pytest.raises(DataError, match=f"train DATA --labels {file}"):
        load_data(file)
    file.write_text(
        "picture,label,split,was,decision\na/0.png,b,train,a,relabel\nb/1.png,a,train,b,relabel\n"
    )
    assert counts(load_data(file, images=str(tmp_path / "data"), test_fraction=0)) == {"train": 2}


def test_settings_about_tables_select_the_table_even_if_there_are_class_folders(tmp_path: Path) -> None:
    for c in ("indoor", "outdoor"):
        pictures(tmp_path / c, [f"{c}{n}.png" for n in range(6)])
    table(
        tmp_path / "labels.csv",
        "file,animal,mood",
        lambda n: (
            f"{('indoor', 'outdoor')[n % 2]}{n // 2}.png,{('cat', 'dog')[n % 2]},{('sad', 'happy')[n // 6]}"
        ),
    )
    assert load_data(tmp_path).class_names == ("indoor", "outdoor")
    assert load_data(tmp_path, label_column="animal").class_names == ("cat", "dog")
    assert load_data(tmp_path, path_column="file", label_column="mood").class_names == ("happy", "sad")
    (tmp_path / "tables").mkdir()
    (tmp_path / "labels.csv").rename(tmp_path / "tables" / "labels.csv")
    data = load_data(tmp_path / "tables", images=str(tmp_path), label_column="mood")
    assert data.class_names == ("happy", "sad")


@pytest.mark.parametrize("key", ["label_column", "path_column", "images"])
def test_settings_about_tables_that_have_no_effect_are_refused(key: str, tmp_path: Path) -> None:
    for c in ("indoor", "outdoor"):
        pictures(tmp_path / "data" / c, [f"{c}{n}.png" for n in range(6)])
    table(tmp_path / "data" / "labels.csv", "class,name", lambda n: f"{n},x{n}")
    asked = replace(DataSettings(), **{key: str(tmp_path) if key == "images" else "nonsense"})  # type: ignore[arg-type]
    with pytest.raises(UnusedSettingError, match=f"--{key.replace('_', '-')} .* has no effect") as failure:
        load_data(tmp_path / "data", settings=asked)
    assert "labels.csv has the columns class, name" in str(failure.value)
    np.savez(tmp_path / "a.npz", images=np.zeros((8, 9, 9)), labels=np.arange(8) % 2)
    with pytest.raises(UnusedSettingError, match="has no effect"):
        load_data(tmp_path / "a.npz", settings=asked)
    with pytest.raises(UnusedSettingError, match="digits is not read from a table"):
        load_data("digits", settings=asked)
    with pytest.raises(DataError, match="there is no folder '/nothing'"):
        load_data(tmp_path / "data", images="/nothing")


@pytest.mark.parametrize(
    ("key", "value", "option"),
    [
        ("label_pattern", "^([a-z]+)", "--label-pattern"),
        ("classes_from", "leaf", "--classes-from"),
        ("classes_from", "1", "--depth"),
    ],
)
def test_settings_about_names_are_refused_where_classes_come_from_elsewhere(
    key: str, value: str, option: str, tmp_path: Path
) -> None:
    asked = replace(DataSettings(), **{key: value})  # type: ignore[arg-type]
    folder = tmp_path / "data"
    pictures(folder / "dog", [f"dog{n}.png" for n in range(6)])
    pictures(folder / "cat", [f"cat{n}.png" for n in range(6)])
    names = [f"{c}/{c}{n}.png" for c in ("cat", "dog") for n in range(6)]
    table(folder / "labels.csv", "file,mood", lambda n: f"{names[n]},{('sad', 'happy')[n % 2]}")
    assert load_data(folder, label_column="mood").class_names == ("happy", "sad")
    assert load_data(folder, settings=asked).class_names == ("cat", "dog")
    with pytest.raises(UnusedSettingError, match=f"{option} .*--label-column mood .*: leave one of them out"):
        load_data(folder, settings=replace(asked, label_column="mood"))
    np.savez(tmp_path / "a.npz", images=np.zeros((8, 9, 9)), labels=np.arange(8) % 2)
    in_memory = (np.zeros((8, 9, 9), np.uint8), np.arange(8) % 2)
    for source in (folder / "labels.csv", tmp_path / "a.npz", "digits", "hf:OWNER/NAME", in_memory):
        with pytest.raises(UnusedSettingError, match=f"{option} .* has no effect"):
            load_data(source, settings=asked)


@pytest.mark.parametrize(
    "names", [("splits/train.csv", "splits/test.csv"), ("train/labels.csv", "test/t.csv")]
)
def test_tables_in_folders_name_their_splits(names: tuple[str, str], tmp_path: Path) -> None:
    for split, name in zip(("train", "test"), names, strict=True):
        pictures(tmp_path / split, [f"{split}{n}.png" for n in range(COUNT)])
        table(tmp_path / name, "file,label", lambda n, split=split: f"{split}{n}.png,{CLASSES[n % 3]}")  # type: ignore[misc]
    data = load_data(tmp_path)
    assert counts(data) == {"train": 12, "test": 12}
    assert data.splits["test"].name(0) == "test/test0.png"


@pytest.mark.parametrize("count", [64, 100, 312])
def test_a_table_of_pictures_may_have_any_number_of_label_columns(count: int, tmp_path: Path) -> None:
    pictures(tmp_path, [f"{n}.png" for n in range(COUNT)])
    header = "age,image," + ",".join(f"c{i}" for i in range(count))
    path = table(
        tmp_path / "labels.csv",
        header,
        lambda n: f"{20 + n},{n}.png," + ",".join(str(int((n + i) % 4 == 0)) for i in range(count)),
    )
    for source in (path, tmp_path):
        data = load_data(source, test_fraction=0)
        assert data.multilabel
        assert f"one column per label ({count})" in data.layout
