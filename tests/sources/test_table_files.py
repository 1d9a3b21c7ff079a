from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers import coloured, write_picture
from sources.trees import CLASSES, COUNT, counts, pictures, table
from thumbnet.errors import DataError
from thumbnet.sources.load import load_data


@pytest.mark.parametrize("name", ["labels.csv", "styles.csv"])
def test_class_folders_take_precedence_over_a_table_next_to_them(name: str, tmp_path: Path) -> None:
    for c in CLASSES:
        pictures(tmp_path / "train" / c, [f"{c}{n}.png" for n in range(5)])
    table(tmp_path / name, "image,label", lambda n: f"blue{n % 5}.png,x{n % 2}")
    assert load_data(tmp_path).layout.startswith("train/CLASS")
    table(tmp_path / name, "class_id,class_name", lambda n: f"{n},{CLASSES[n % 3]}")
    assert load_data(tmp_path).class_names == CLASSES


def test_folders_that_only_divide_the_pictures_do_not_take_precedence(tmp_path: Path) -> None:
    for n in range(COUNT):
        write_picture(tmp_path / f"HAM10000_images_part_{1 + n % 2}" / f"ISIC_{n}.jpg", coloured(n, n))
    table(
        tmp_path / "HAM10000_metadata.csv",
        "lesion_id,image_id,dx",
        lambda n: f"HAM_{n},ISIC_{n},{CLASSES[n % 3]}",
    )
    assert load_data(tmp_path).class_names == CLASSES


@pytest.mark.parametrize("where", ["annotations/labels.csv", "splits/all.csv", "meta/m.csv"])
def test_a_table_may_lie_in_a_folder_next_to_that_of_the_pictures(where: str, tmp_path: Path) -> None:
    pictures(tmp_path / "images", [f"{n:04}.png" for n in range(COUNT)])
    table(tmp_path / where, "file,label", lambda n: f"{n:04}.png,{CLASSES[n % 3]}")
    assert load_data(tmp_path).class_names == CLASSES


@pytest.mark.parametrize("stem", ["{n:04}", "im{n}"])
def test_a_table_without_a_header_may_name_pictures_without_suffix(stem: str, tmp_path: Path) -> None:
    pictures(tmp_path, [stem.format(n=n) + ".png" for n in range(COUNT)])
    file = table(tmp_path / "labels.csv", "", lambda n: stem.format(n=n) + f",{CLASSES[n % 3]}")
    for source in (tmp_path, file):
        data = load_data(source, test_fraction=0)
        assert (data.class_names, counts(data)) == (CLASSES, {"train": COUNT})


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("labels.csv", "id,label\n7,a\n8,b\n", "no picture is called like the cells in 'id', such as '7'"),
        ("labels.csv", "# mine\nimage,label\n0001.png,a\n", r"line 2: 2 cell\(s\), but line 1 has 1"),
        ("labels.csv", "image,width\n0001.png,24\n0002.png,24\n", "no column appears to have labels"),
        ("labels.json", '{"0001.png": "a"}', "convert it to CSV"),
        ("labels.yaml", "0001.png: a", "convert it to CSV"),
        ("labels.xlsx", "PK", "save it as CSV"),
        ("train.ods", "PK", "save it as CSV"),
        ("truth.txt", "0001.png a\n0002.png b\n", "name the file itself"),
        ("m.jsonl", '{"picture": {"path": "0001.png"}, "a": "b"}\n', "no picture is called like|no column"),
    ],
)
def test_tables_that_are_not_used_are_named_with_the_reason(
    name: str, content: str, reason: str, tmp_path: Path
) -> None:
    pictures(tmp_path, [f"{n:04}.png" for n in range(100, 100 + COUNT)])
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as failure:
        load_data(tmp_path)
    said = str(failure.value)
    assert "Tables that were not used:" in said
    assert re.search(f"  {name}[:,] .*({reason})", said)
