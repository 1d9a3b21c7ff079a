from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from helpers import coloured, write_picture
from thumbnet.errors import DataError, MissingExtraError
from thumbnet.sources.load import load_data

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def png(label: int, seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(coloured(label, seed)).save(buffer, "png")
    return buffer.getvalue()


def write(path: Path, labels: list[object], names: list[str] | None, column: str = "label") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": png(n, n), "path": f"{n}.png"} for n in range(len(labels))]
    table = pa.table({"image": images, column: labels})
    if names:
        features = {"image": {"_type": "Image"}, column: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)


def test_the_hubs_parquet_files_are_read_with_their_class_names(tmp_path: Path) -> None:
    names = ["red", "green", "blue"]
    write(tmp_path / "data" / "train-00000-of-00002.parquet", [0, 1, 2] * 2, names, "fine_label")
    write(tmp_path / "data" / "train-00001-of-00002.parquet", [0, 1, 2], names, "fine_label")
    write(tmp_path / "data" / "test-00000-of-00001.parquet", [2, 1, 0], names, "fine_label")
    data = load_data(tmp_path)
    assert data.class_names == ("red", "green", "blue")
    assert data.splits["test"].labels.tolist() == [2, 1, 0]
    assert len(data.splits["train"]) == 9
    assert data.splits["train"].read(8).size == (16, 16)


@pytest.mark.parametrize("config", ["", "default/"])
def test_each_split_may_have_a_folder_of_parquet_files(tmp_path: Path, config: str) -> None:
    for split, shards in (("train", 2), ("validation", 1), ("test", 1)):
        for shard in range(shards):
            write(tmp_path / f"{config}{split}" / f"{shard:04}.parquet", [0, 1, 2], ["red", "green", "blue"])
    (tmp_path / "README.md").write_text("# data")
    data = load_data(tmp_path)
    assert data.class_names == ("red", "green", "blue")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 6, "val": 3, "test": 3}


def test_of_several_configurations_one_must_be_named(tmp_path: Path) -> None:
    for config in ("coarse", "fine"):
        write(tmp_path / config / "train" / "0000.parquet", [0, 1, 2], ["red", "green", "blue"])
    with pytest.raises(DataError, match=r"which is a Parquet table\. Name its folder"):
        load_data(tmp_path)
    assert len(load_data(tmp_path / "fine", test_fraction=0.0).class_names) == 3


@pytest.mark.parametrize("labels", [["b", "a"], [10, 2]])
def test_labels_without_class_names_may_be_text_or_integers(labels: list[object], tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", labels * 5, None)
    data = load_data(tmp_path / "train.parquet")
    assert data.class_names == tuple(map(str, sorted(labels, key=lambda c: (len(str(c)), str(c)))))


def test_a_parquet_table_of_paths_is_read_as_a_manifest(tmp_path: Path) -> None:
    for n in range(10):
        write_picture(tmp_path / "images" / f"{n}.png", coloured(n, n))
    table = pa.table(
        {"filename": [f"{n}.png" for n in range(10)], "category": [f"c{n % 2}" for n in range(10)]}
    )
    pq.write_table(table, tmp_path / "labels.parquet")
    assert load_data(tmp_path).class_names == ("c0", "c1")


def test_a_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1 nonsense PAR1")
    with pytest.raises(DataError, match="train.parquet"):
        load_data(tmp_path / "train.parquet")


def test_without_pyarrow_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "train.parquet", [0, 1] * 4, None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError, match="formats"):
        load_data(tmp_path / "train.parquet")


@pytest.mark.parametrize("form", ["data/{}-00000-of-00001.parquet", "{}/0000.parquet"])
def test_pictures_of_other_splits_do_not_join_train(form: str, tmp_path: Path) -> None:
    for split, count in (("train", 6), ("train_mini", 3), ("trainval", 9), ("val", 3), ("test", 3)):
        write(tmp_path / form.format(split), [0, 1, 2] * (count // 3), ["red", "green", "blue"])
    data = load_data(tmp_path)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 6, "val": 3, "test": 3}
    (note,) = [note for note in data.notes if "were left out" in note]
    assert note.startswith(
        f"2 file(s) were left out, such as {form.format('train_mini')}, because 'train' is"
    )


def test_labels_of_test_are_trains_in_another_case_and_others_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", ["cat", "dog"] * 3, None)
    write(tmp_path / "test.parquet", ["cat", "Dog"], None)
    data = load_data(tmp_path)
    assert data.class_names == ("cat", "dog")
    assert data.splits["test"].labels.tolist() == [0, 1]
    assert any("'Dog' is 'dog'" in note for note in data.notes)
    write(tmp_path / "test.parquet", ["cat", "zebra"], None)
    with pytest.raises(DataError, match="test has classes that train lacks: zebra"):
        load_data(tmp_path)
    for split, labels in (("train", [0, 1] * 3), ("test", [0, 2])):
        write(tmp_path / f"{split}.parquet", [*labels], ["red", "green", "blue"])
    with pytest.raises(DataError, match="test has classes that train lacks: blue"):
        load_data(tmp_path)


def test_outer_spaces_of_a_label_do_not_count(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", ["cat", "dog ", " cat", "dog"] * 3, None)
    assert load_data(tmp_path, test_fraction=0.0).class_names == ("cat", "dog")
    write(tmp_path / "train.parquet", [["cat", "dog "], [" cat"], ["dog"], []] * 3, None)
    data = load_data(tmp_path, test_fraction=0.0)
    assert (data.multilabel, data.class_names) == (True, ("cat", "dog"))


def test_a_number_that_is_missing_is_no_label(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [0.0, float("nan"), 1.0] * 4, None)
    data = load_data(tmp_path / "train.parquet", test_fraction=0.0)
    assert data.class_names == ("0", "1")
    assert "train: skipped 4 row(s) without a label (empty or -1)" in data.notes


@pytest.mark.parametrize("labels", [[2, 10, 7], [2.0, 10.0, 7.0]])
def test_numbers_take_the_names_of_another_column(labels: list[object], tmp_path: Path) -> None:
    words = {2: "dog", 7: "cat", 10: "ant"}
    for split in ("train", "test"):
        path = tmp_path / f"{split}.parquet"
        write(path, [*labels * 2, None], None)
        names = [*(words[int(label)] for label in labels * 2), "none"]  # type: ignore[call-overload]
        pq.write_table(pq.read_table(path).append_column("label_name", [names]), path)
    data = load_data(tmp_path)
    assert data.class_names == ("dog", "cat", "ant")
    assert data.splits["train"].labels.tolist() == [0, 2, 1] * 2
    assert (
        "class names come from the column 'label_name'; to keep the numbers: --label-column label"
        in data.notes
    )
    assert load_data(tmp_path, label_column="label").class_names == ("2", "7", "10")
