"""Layouts of data sets from public threads and tools."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers import coloured, noise, write_picture
from thumbnet.errors import DataError
from thumbnet.sources.load import load_data


def picture(path: Path, seed: int) -> str:
    """Write a picture, whose path may lack a suffix, and return its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed)).save(path, "PNG")
    return path.name


def rows_of(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def counts(source: Path, **settings: Any) -> dict[str, dict[str, int]]:
    data = load_data(source, **settings)
    return {
        name: {
            data.class_names[k]: int(n)
            for k, n in enumerate(np.bincount(split.labels, minlength=len(data.class_names)))
        }
        for name, split in data.splits.items()
    }


def test_roboflows_classes_csv_in_each_split_folder_has_a_column_per_class(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "valid", "test")):
        lines = ["filename, cat, ship"]
        for i in range(6):
            name = picture(tmp_path / split / f"p{number}{i}_jpg.rf.{i}.png", 10 * number + i)
            lines.append(f"{name}, {int(i % 2 == 0)}, {int(i % 2)}")
        rows_of(tmp_path / split / "_classes.csv", lines)
    assert counts(tmp_path) == {name: {"cat": 3, "ship": 3} for name in ("train", "val", "test")}


def test_automls_import_file_has_the_split_first_and_no_header(tmp_path: Path) -> None:
    lines = []
    for number, split in enumerate(("TRAIN", "VALIDATION", "TEST")):
        for i in range(6):
            picture(tmp_path / "images" / f"{split}{i}.png", 10 * number + i)
            lines.append(f"{split},images/{split}{i}.png,{('cat', 'ship')[i % 2]}")
    rows_of(tmp_path / "import.csv", lines)
    assert counts(tmp_path / "import.csv") == {
        name: {"cat": 3, "ship": 3} for name in ("train", "val", "test")
    }


def test_label_studios_export_has_its_classes_in_the_choice_column(tmp_path: Path) -> None:
    lines = ["annotation_id,annotator,choice,id,image,lead_time"]
    for i in range(12):
        picture(tmp_path / "upload" / "1" / f"{i:08x}-p.png", i)
        lines.append(f"{i},1,{('cat', 'ship')[i % 2]},{i},/data/upload/1/{i:08x}-p.png,3.2")
    rows_of(tmp_path / "project-1.csv", lines)
    assert counts(tmp_path, test_fraction=0.0) == {"train": {"cat": 6, "ship": 6}}


def test_label_studios_export_may_have_several_choices_in_a_cell(tmp_path: Path) -> None:
    lines = ["annotation_id,annotator,choice,id,image,lead_time"]
    cells = ('"{""choices"": [""cat"", ""ship""]}"', "cat", '"cat, sleeping"', "")
    for i in range(12):
        picture(tmp_path / "upload" / "1" / f"{i:08x}-p.png", i)
        lines.append(f"{i},1,{cells[i % 4]},{i},/data/upload/1/{i:08x}-p.png,3.2")
    rows_of(tmp_path / "project-1.csv", lines)
    data = load_data(tmp_path, test_fraction=0.0)
    assert data.class_names == ("cat", "cat, sleeping", "ship")
    assert data.splits["train"].class_counts(3).tolist() == [6, 3, 3]
    lines[5] = lines[5].replace("choices", "rectangle")
    rows_of(tmp_path / "project-1.csv", lines)
    with pytest.raises(DataError, match=r'project-1\.csv, line 6: \{"rectangle": .* is neither a label'):
        load_data(tmp_path)


def test_ham10000s_two_folders_of_pictures_are_not_classes(tmp_path: Path) -> None:
    lines, pixels = (
        ["lesion_id,image_id,dx,dx_type,age"],
        [",".join([f"pixel{i:04}" for i in range(192)] + ["label"])],
    )
    for i in range(12):
        picture(tmp_path / f"HAM10000_images_part_{1 + i % 2}" / f"ISIC_{i:07}.jpg", i)
        lines.append(f"HAM_{i // 2},ISIC_{i:07},{('nv', 'mel', 'bkl')[i % 3]},histo,45.0")
        pixels.append(",".join(["7"] * 192) + f",{i % 3}")
    rows_of(tmp_path / "HAM10000_metadata.csv", lines)
    rows_of(tmp_path / "hmnist_8_8_RGB.csv", pixels)
    assert counts(tmp_path, test_fraction=0.0) == {"train": {"bkl": 4, "mel": 4, "nv": 4}}


def test_imagenettes_folders_win_over_the_noisy_csv_next_to_them(tmp_path: Path) -> None:
    lines = ["path,noisy_labels_0,is_valid"]
    for split in ("train", "val"):
        for i in range(8):
            name = ("n01440764", "n02102040")[i % 2]
            picture(tmp_path / "imagenette2-160" / split / name / f"{i}.JPEG", i)
            lines.append(f"{split}/{name}/{i}.JPEG,n01440764,{split == 'val'}")
    rows_of(tmp_path / "imagenette2-160" / "noisy_imagenette.csv", lines)
    assert load_data(tmp_path).layout == "train/CLASS/* + val/CLASS/*"


def test_words_such_as_train_in_picture_names_do_not_make_splits(tmp_path: Path) -> None:
    lines = []
    for i, word in enumerate(("a cat", "a train", "test tubes") * 4):
        name = picture(tmp_path / f"photo of {word} {i}.png", i)
        lines.append(json.dumps({"file_name": name, "label": ("cat", "truck", "ship")[i % 3]}))
    rows_of(tmp_path / "metadata.jsonl", lines)
    assert counts(tmp_path, test_fraction=0.0) == {"train": {"cat": 4, "ship": 4, "truck": 4}}


@pytest.mark.parametrize("packed", [False, True])
def test_pictures_without_a_suffix_are_recognised_by_their_first_bytes(packed: bool, tmp_path: Path) -> None:
    for i in range(8):
        picture(tmp_path / "pictures" / ("cat", "ship")[i % 2] / f"{i:032x}", i)
    (tmp_path / "pictures" / "cat" / "LICENSE").write_text("no picture")
    source = tmp_path / "pictures"
    if packed:
        source = tmp_path / "pictures.zip"
        with zipfile.ZipFile(source, "w") as zipped:
            for path in (tmp_path / "pictures").rglob("*/*"):
                zipped.write(path, path.relative_to(tmp_path))
    assert counts(source, test_fraction=0.0, data_dir=tmp_path / "cache") == {"train": {"cat": 4, "ship": 4}}


def test_names_of_several_numbers_are_refused_instead_of_guessed(tmp_path: Path) -> None:
    for suite in range(5):
        for code in range(4):
            picture(tmp_path / f"input_{suite}_1_{code}.jpg", 10 * suite + code)
    with pytest.raises(DataError, match="--label-pattern"):
        load_data(tmp_path)
    read = counts(tmp_path, label_pattern=r"_(\d+)\.jpg", test_fraction=0.0)
    assert read == {"train": {"0": 5, "1": 5, "2": 5, "3": 5}}


def test_zips_with_windows_backslashes_or_mac_files_are_read(tmp_path: Path) -> None:
    windows, mac = tmp_path / "windows.zip", tmp_path / "mac.zip"
    buffer = io.BytesIO()
    Image.fromarray(coloured(0, 0)).save(buffer, "PNG")
    with zipfile.ZipFile(windows, "w") as zipped:
        for path in ("空\\", *(f"{name}\\{i}.png" for name in ("猫", "船") for i in range(4))):
            info = zipfile.ZipInfo("x")
            info.filename = f"训练集\\{path}"
            zipped.writestr(info, buffer.getvalue() if path.endswith(".png") else b"")
    with zipfile.ZipFile(mac, "w") as zipped:
        for name in ("normal_2", "normal_10"):
            for i in range(4):
                zipped.writestr(f"pics/{name}/{i}.png", buffer.getvalue())
                zipped.writestr(f"__MACOSX/pics/{name}/._{i}.png", b"\0\5\x16\7Mac OS X")
            zipped.writestr(f"pics/{name}/.DS_Store", b"\0\0\0\1Bud1")
    cache = tmp_path / "cache"
    assert counts(windows, test_fraction=0.0, data_dir=cache) == {"train": {"猫": 4, "船": 4}}
    assert counts(mac, test_fraction=0.0, data_dir=cache) == {"train": {"normal_10": 4, "normal_2": 4}}


def test_16_bit_pngs_of_high_values_keep_their_levels(tmp_path: Path) -> None:
    """In pytorch/pytorch issue 20524, values of about 40,000 became white."""
    for i in range(8):
        values = 35_000 + 50 * coloured(i % 2, i).mean(axis=2).astype(np.uint16)
        write_picture(tmp_path / ("a", "b")[i % 2] / f"{i}.png", Image.fromarray(values))
    from thumbnet.reports.inspection import inspect_data

    found = inspect_data(load_data(tmp_path))
    assert any("become 0 to 255" in note for note in found.notes)
    assert 0.2 < found.mean[0] < 0.8
    assert found.std[0] > 0.1
