from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers import write_class_folders
from thumbnet.errors import DataError
from thumbnet.sources.load import load_data

scipy_io = pytest.importorskip("scipy.io")
X = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
Y = np.arange(20) % 10


def write_svhn(folder: Path, *parts: str) -> Path:
    for part in parts:
        stored = {"X": X.transpose(1, 2, 3, 0), "y": np.where(Y == 0, 10, Y)[:, None]}
        scipy_io.savemat(folder / f"{part}_32x32.mat", stored)
    return folder


@pytest.mark.parametrize("name", ["", "train_32x32.mat"])
def test_svhn_is_read_with_pictures_on_the_last_axis_and_10_as_the_digit_0(name: str, tmp_path: Path) -> None:
    data = load_data(write_svhn(tmp_path, "train", "test") / name)
    assert {split: len(one) for split, one in data.splits.items()} == {"train": 20, "test": 20}
    assert data.class_names == tuple("0123456789")
    assert data.splits["train"].labels.tolist() == Y.tolist()
    assert (np.asarray(data.splits["test"].read(3)) == X[3]).all()


def test_svhns_extra_pictures_are_used_only_if_the_user_names_their_file(tmp_path: Path) -> None:
    write_svhn(tmp_path, "train", "test", "extra")
    assert len(load_data(tmp_path).splits["train"]) == 20
    assert any("extra" in note for note in load_data(tmp_path).notes)
    assert len(load_data(tmp_path / "extra_32x32.mat").splits["train"]) == 40


def test_a_file_with_an_array_of_pictures_and_one_of_labels_is_read(tmp_path: Path) -> None:
    scipy_io.savemat(tmp_path / "mine.mat", {"images": X, "labels": Y[:, None]})
    data = load_data(tmp_path / "mine.mat", test_fraction=0.0)
    assert (np.asarray(data.splits["train"].read(6)) == X[6]).all()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"MATLAB 7.3 MAT-file, Platform: GLNXA64", "-v7"),
        (b"\x89HDF\r\n\x1a\n" + bytes(600), "HDF5"),
        (b"nothing", "damaged"),
        (b"", "damaged"),
    ],
)
def test_files_of_version_7_3_and_damaged_files_are_refused(
    content: bytes, words: str, tmp_path: Path
) -> None:
    (tmp_path / "a.mat").write_bytes(content)
    with pytest.raises(DataError, match=words):
        load_data(tmp_path / "a.mat")


def test_a_mat_file_next_to_class_folders_is_not_read_instead_of_them(tmp_path: Path) -> None:
    write_class_folders(tmp_path, ["train", "test"])
    scipy_io.savemat(tmp_path / "file_list.mat", {"labels": Y})
    assert load_data(tmp_path).layout == "train/CLASS/* + test/CLASS/*"
