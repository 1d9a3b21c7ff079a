from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from thumbnet.data.splits import Data
from thumbnet.errors import DataError
from thumbnet.sources import pixel_tables
from thumbnet.sources.load import load_data


def grid(count: int, pixels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, pixels))


def write(path: Path, header: str, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, values, fmt="%d", delimiter=",", header=header, comments="")
    return path


def test_kaggles_digit_recognizer_is_read_without_its_unlabelled_test_table(tmp_path: Path) -> None:
    header = ",".join(f"pixel{n}" for n in range(784))
    values = grid(40, 784)
    labelled = np.column_stack([np.arange(40) % 10, values])
    write(tmp_path / "train.csv", "label," + header, labelled)
    write(tmp_path / "test.csv", header, grid(5, 784))
    (tmp_path / "sample_submission.csv").write_text("ImageId,Label\n1,0\n2,0\n")
    data = load_data(tmp_path)
    assert data.class_names == tuple("0123456789")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 30, "test": 10}
    assert any("test.csv has no labels: its 5 rows were skipped" in note for note in data.notes)
    alone = load_data(tmp_path / "train.csv").splits["train"]
    pixels = np.asarray(alone.read(0))
    match = (values == pixels[..., 0].reshape(-1)).all(axis=1)
    assert match.sum() == 1
    assert match.argmax() % 10 == alone.labels[0]
    with pytest.raises(DataError, match="no label column"):
        load_data(tmp_path / "test.csv")


def test_sign_mnist_has_a_table_per_split(tmp_path: Path) -> None:
    header = "label," + ",".join(f"pixel{n}" for n in range(1, 785))
    for split in ("train", "test"):
        labels = np.array([0, 1, 10, 24] * 5)
        write(tmp_path / f"sign_mnist_{split}.csv", header, np.column_stack([labels, grid(20, 784)]))
    data = load_data(tmp_path)
    assert data.class_names == ("0", "1", "10", "24")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 20, "test": 20}


def test_fer2013_has_all_pixels_in_one_cell_and_splits_in_a_column(tmp_path: Path) -> None:
    values = grid(12, 2304)
    usage = ["Training"] * 6 + ["PublicTest"] * 3 + ["PrivateTest"] * 3
    rows = [f"{n % 3},{' '.join(map(str, values[n]))},{usage[n]}" for n in range(12)]
    (tmp_path / "fer2013.csv").write_text("emotion,pixels,Usage\n" + "\n".join(rows) + "\n")
    data = load_data(tmp_path)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 6, "val": 3, "test": 3}
    assert np.array_equal(np.asarray(data.splits["train"].read(2))[..., 1].reshape(-1), values[2])


def test_without_a_header_the_first_column_is_the_label(tmp_path: Path) -> None:
    write(tmp_path / "A_Z Handwritten Data.csv", "", np.column_stack([np.arange(52) % 26, grid(52, 784)]))
    text = (tmp_path / "A_Z Handwritten Data.csv").read_text().lstrip("\n")
    (tmp_path / "A_Z Handwritten Data.csv").write_text(text)
    data = load_data(tmp_path)
    assert len(data.class_names) == 26
    assert sum(len(split) for split in data.splits.values()) == 52


@pytest.mark.parametrize("at", [0, 64])
def test_without_a_header_the_end_with_numbers_without_gaps_is_the_label(tmp_path: Path, at: int) -> None:
    values = grid(40, 64)
    np.savetxt(tmp_path / "t.csv", np.insert(values, at, np.arange(40) % 4, axis=1), fmt="%d", delimiter=",")
    data = load_data(tmp_path)
    assert data.class_names == ("0", "1", "2", "3")
    for split in data.splits.values():
        for i, label in enumerate(split.labels):
            match = (values == np.asarray(split.read(i))[..., 0].reshape(-1)).all(axis=1)
            assert match.argmax() % 4 == label
    assert (
        f"t.csv has no header: its {'last' if at else 'first'} column was taken as the labels" in data.notes
    )


def text_rows(header: str, row: str, values: np.ndarray, texts: tuple[str, ...], path: Path) -> Path:
    """Write a table whose rows are ``row`` with a number n, label {c}, text {t} and pixels {p}."""
    lines = [header.format(p=",".join(f"p{n}" for n in range(values.shape[1])))]
    for n, pixels in enumerate(values):
        cells = ",".join(map(str, pixels))
        lines.append(row.format(n=n, c=n % 3, t=texts[n % len(texts)], p=cells))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("split,label,{p}", "{t},{c},{p}"),
        ("label,Usage,{p}", "{c},{t},{p}"),
        ("label,{p},Usage", "{c},{p},{t}"),
        ("label,{p},which", "{c},{p},{t}"),
        (",label,{p},set", "{n},{c},{p},{t}"),
    ],
)
def test_a_column_of_splits_is_found_wherever_it_stands(tmp_path: Path, header: str, row: str) -> None:
    values = grid(30, 64)
    texts = ("train", "train", "train", "train", "test")
    data = load_data(text_rows(header, row, values, texts, tmp_path / "all.csv"))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 24, "test": 6}
    for split, rows in (("train", [n for n in range(30) if n % 5 != 4]), ("test", range(4, 30, 5))):
        for i, n in enumerate(rows):
            assert np.array_equal(np.asarray(data.splits[split].read(i))[..., 0].reshape(-1), values[n])
            assert data.splits[split].labels[i] == n % 3


def test_splits_that_are_not_known_are_noted(tmp_path: Path) -> None:
    def read(*texts: str) -> Data:
        return load_data(text_rows("split,label,{p}", "{t},{c},{p}", grid(30, 64), texts, tmp_path / "t.csv"))

    data = read("train", "train", "spare", "test")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 16, "test": 7}
    assert "t.csv: the column 'split' has no known split in 7 row(s), which were skipped: spare" in data.notes
    assert any("is not used as splits: no row says train, but 0, 1" in note for note in read("0", "1").notes)


@pytest.mark.parametrize("index", ["", "Unnamed: 0", "id"])
def test_an_index_column_is_not_a_pixel(tmp_path: Path, index: str) -> None:
    text_rows(index + ",label,{p}", "{n},{c},{p}", grid(30, 64), ("",), tmp_path / "train.csv")
    text_rows(index + ",{p}", "{n},{p}", grid(9, 64), ("",), tmp_path / "test.csv")
    text_rows("label,{p}", "{c},{p}", grid(9, 64), ("",), tmp_path / "Dig-MNIST.csv")
    data = load_data(tmp_path)
    assert sum(map(len, data.splits.values())) == 30
    assert "test.csv has no labels: its 9 rows were skipped" in data.notes
    assert "Dig-MNIST.csv was skipped: its name does not mention a split" in data.notes


def test_a_label_column_of_another_name_must_be_named(tmp_path: Path) -> None:
    text_rows("digit,{p}", "{c},{p}", grid(30, 64), ("",), tmp_path / "train.csv")
    text_rows("{p}", "{p}", grid(9, 64), ("",), tmp_path / "test.csv")
    with pytest.raises(DataError, match=r"columns other than pixels: digit\).*\. .*--label-column NAME"):
        load_data(tmp_path)
    with pytest.raises(DataError, match="no label column 'number'"):
        load_data(tmp_path / "train.csv", label_column="number")
    assert load_data(tmp_path, label_column="digit").class_names == ("0", "1", "2")


def test_three_channels_are_read_plane_after_plane_or_interleaved(tmp_path: Path) -> None:
    ramp = np.add.outer(np.arange(32), np.arange(32))
    picture = np.stack([ramp, 200 - ramp, ramp // 2], axis=-1)
    for name, row in (("planes", picture.transpose(2, 0, 1)), ("rgb", picture)):
        values = np.column_stack([np.arange(10) % 2, np.tile(row.reshape(1, -1), (10, 1))])
        path = write(tmp_path / f"{name}.csv", "label," + ",".join(f"p{n}" for n in range(3072)), values)
        assert np.array_equal(np.asarray(load_data(path).splits["train"].read(0)), picture)


@pytest.mark.parametrize("bad", ["256", "-1", "x", "0.5", ""])
def test_cells_that_are_not_pixels_are_refused(bad: str, tmp_path: Path) -> None:
    header = "label," + ",".join(f"pixel{n}" for n in range(784))
    path = write(tmp_path / "t.csv", header, np.column_stack([np.arange(10) % 2, grid(10, 784)]))
    lines = path.read_text().splitlines()
    cells = lines[6].split(",")
    cells[100] = bad
    lines[6] = ",".join(cells)
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match="line"):
        load_data(path)


def test_a_thousand_rows_are_parsed_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsing them one by one would take much longer."""
    parse, parsed = pixel_tables._numbers, list[int]()

    def counting(text: str, separator: str) -> np.ndarray | None:
        found = parse(text, separator)
        parsed.append(0 if found is None else found.size)
        return found

    monkeypatch.setattr(pixel_tables, "_numbers", counting)
    header = "label," + ",".join(f"pixel{n}" for n in range(64))
    row = ",".join(map(str, grid(1, 64)[0]))
    text = "\n".join(f"{n % 10},{row}" for n in range(2500))
    (tmp_path / "train.csv").write_text(f"{header}\n{text}\n")
    load_data(tmp_path / "train.csv")
    assert parsed == [64_000, 64_000, 32_000]


def test_labels_of_test_are_trains_in_another_case_and_others_are_refused(tmp_path: Path) -> None:
    def read(*labels: str) -> Data:
        text_rows("label,{p}", "{t},{p}", grid(12, 64), labels, tmp_path / "test.csv")
        return load_data(tmp_path)

    text_rows("label,{p}", "{t},{p}", grid(12, 64), ("cat", "dog"), tmp_path / "train.csv")
    data = read("cat", "Dog")
    assert data.class_names == ("cat", "dog")
    assert data.splits["test"].labels.tolist() == [0, 1] * 6
    assert any("'Dog' is 'dog'" in note for note in data.notes)
    with pytest.raises(DataError, match="test has classes that train lacks: cow, zebra"):
        read("cat", "zebra", "cow")
    data = read("", "nan")
    assert sum(map(len, data.splits.values())) == 12
    assert "test: skipped 12 row(s) without a label" in data.notes


def test_words_such_as_train_are_classes_in_the_column_that_the_user_names(tmp_path: Path) -> None:
    texts = ("train", "train", "train", "train", "test")
    path = text_rows("vehicle,{p}", "{t},{p}", grid(30, 64), texts, tmp_path / "all.csv")
    assert load_data(path, label_column="vehicle").class_names == ("test", "train")


def test_pixels_may_stand_next_to_the_names_of_pictures(tmp_path: Path) -> None:
    path = text_rows("file,label,{p}", "{n}.png,{c},{p}", grid(30, 784), ("",), tmp_path / "train.csv")
    for source in (path, tmp_path):
        assert load_data(source).layout.startswith("pixels in train.csv")


@pytest.mark.parametrize("row", ["1,2,3", "x", '"1'])
def test_a_damaged_table_of_train_is_not_replaced_by_that_of_test(row: str, tmp_path: Path) -> None:
    header = "label," + ",".join(f"pixel{n}" for n in range(64))
    for name in ("train", "test"):
        write(tmp_path / f"{name}.csv", header, np.column_stack([np.arange(20) % 2, grid(20, 64)]))
    path = tmp_path / "train.csv"
    lines = path.read_text().split("\n")
    for place in (1, 15):
        path.write_text("\n".join([*lines[:place], row, *lines[place:]]))
        with pytest.raises(DataError, match=f"train.csv.*line {place + 1}"):
            load_data(tmp_path)


def test_a_table_of_train_without_labels_is_not_replaced_by_that_of_test(tmp_path: Path) -> None:
    header = ",".join(f"pixel{n}" for n in range(64))
    write(tmp_path / "train.csv", header, grid(20, 64))
    write(tmp_path / "test.csv", "label," + header, np.column_stack([np.arange(20) % 2, grid(20, 64)]))
    with pytest.raises(DataError, match="test.csv .* would be trained on.*train.csv has no labels"):
        load_data(tmp_path)
