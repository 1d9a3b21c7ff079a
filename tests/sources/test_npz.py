from __future__ import annotations

import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import Payload, noise, write_class_folders
from thumbnet.errors import DataError
from thumbnet.sources import npz
from thumbnet.sources.load import load_data

X = np.random.default_rng(0).integers(0, 256, (30, 28, 28), dtype=np.uint8)
RGB = np.random.default_rng(1).integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
Y = np.arange(30) % 3


def test_medmnists_arrays_become_three_splits(tmp_path: Path) -> None:
    parts = {
        f"{split}_{kind}": values
        for split in ("train", "val", "test")
        for kind, values in (("images", RGB), ("labels", Y[:, None]))
    }
    np.savez_compressed(tmp_path / "bloodmnist.npz", **parts)  # type: ignore[arg-type]
    data = load_data(tmp_path / "bloodmnist.npz")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 30, "val": 30, "test": 30}
    assert (np.asarray(data.splits["val"].read(4)) == RGB[4]).all()
    assert data.splits["test"].labels.tolist() == Y.tolist()


@pytest.mark.parametrize(
    "names",
    [("X", "y"), ("images", "labels"), ("data", "target"), ("arr_0", "arr_1"), ("x_train", "y_train")],
)
def test_a_single_pair_of_arrays_with_usual_names_is_split(names: tuple[str, str], tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", **dict(zip(names, (X, Y), strict=True)))  # type: ignore[arg-type]
    data = load_data(tmp_path / "mine.npz")
    assert len(data.splits["train"]) + len(data.splits["test"]) == 30
    assert data.class_names == ("0", "1", "2")


def test_keras_arrays_read_the_same_from_one_npz_or_a_folder_of_npy(tmp_path: Path) -> None:
    arrays: dict[str, np.ndarray] = {"x_train": X, "y_train": Y, "x_test": X[:9], "y_test": Y[:9]}
    np.savez(tmp_path / "keras.npz", **arrays)  # type: ignore[arg-type]
    (tmp_path / "folder").mkdir()
    for name, values in arrays.items():
        np.save(tmp_path / "folder" / f"{name}.npy", values)
    one, other = load_data(tmp_path / "keras.npz"), load_data(tmp_path / "folder")
    by_file = load_data(tmp_path / "folder" / "x_train.npy")
    assert one.fingerprint() == other.fingerprint() == by_file.fingerprint()
    packed = shutil.make_archive(str(tmp_path / "all"), "zip", tmp_path / "folder")
    assert load_data(packed, data_dir=tmp_path / "cache").fingerprint() == one.fingerprint()


def test_kuzushijis_separate_files_of_pictures_and_labels_are_paired(tmp_path: Path) -> None:
    for split, count in (("train", 30), ("test", 9)):
        np.savez(tmp_path / f"kmnist-{split}-imgs.npz", X[:count])
        np.savez(tmp_path / f"kmnist-{split}-labels.npz", Y[:count])
    data = load_data(tmp_path)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 30, "test": 9}


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (np.eye(3)[Y], ("0", "1", "2")),
        (np.array(["cat", "dog", "owl"])[Y], ("cat", "dog", "owl")),
        (Y.astype(np.float64), ("0", "1", "2")),
        (Y + 7, ("7", "8", "9")),
    ],
)
def test_labels_may_be_one_hot_names_or_any_whole_numbers(
    labels: np.ndarray, names: tuple[str, ...], tmp_path: Path
) -> None:
    np.savez(tmp_path / "a.npz", images=X, labels=labels)
    data = load_data(tmp_path / "a.npz", test_fraction=0.0)
    assert data.class_names == names
    assert data.splits["train"].labels.tolist() == Y.tolist()


def test_channels_may_come_first_which_is_noted(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=RGB.transpose(0, 3, 1, 2), labels=Y)
    data = load_data(tmp_path / "a.npz", test_fraction=0.0)
    assert (np.asarray(data.splits["train"].read(2)) == RGB[2]).all()
    assert any("channels" in note for note in data.notes)


def test_whole_numbers_up_to_255_are_read_as_bytes_whatever_their_type(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=RGB.astype(np.int64), labels=Y)
    np.savez(tmp_path / "b.npz", images=RGB, labels=Y)
    assert load_data(tmp_path / "a.npz").fingerprint() == load_data(tmp_path / "b.npz").fingerprint()


def test_files_with_one_class_each_are_labelled_by_their_names(tmp_path: Path) -> None:
    for name in ("cat", "ship"):
        np.save(tmp_path / f"full_numpy_bitmap_{name}.npy", X.reshape(30, 784))
    data = load_data(tmp_path)
    assert data.class_names == ("cat", "ship")
    assert any("one file per class" in note for note in data.notes)


def test_class_folders_take_precedence_over_arrays_next_to_them(tmp_path: Path) -> None:
    write_class_folders(tmp_path, ["train", "test"])
    np.save(tmp_path / "features.npy", np.zeros((10, 512)))
    assert load_data(tmp_path).layout == "train/CLASS/* + test/CLASS/*"


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": X, "labels": Y[:5]}, "30 pictures but 5 labels"),
        ({"images": X}, "no labels"),
        ({"images": RGB[..., :2], "labels": Y}, r"\[30, 32, 32, 2\]"),
        ({"images": X, "labels": Y + 0.5}, "fractions"),
        ({"images": X, "labels": np.ones((30, 3))}, "not one-hot"),
        ({"images": X.reshape(30, 784)[:, :700], "labels": Y}, "rows of 700"),
        ({"images": np.array(["a"] * 30), "labels": Y}, "expected numbers"),
        ({"x_train": X, "y_train": Y, "x_test": X / 255.0, "y_test": Y}, "same type"),
    ],
)
def test_unknown_arrays_are_refused_with_the_reason(
    arrays: dict[str, np.ndarray], words: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=words):
        load_data(tmp_path / "a.npz")


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    harmed = tmp_path / "harmed"
    np.savez(tmp_path / "a.npz", images=np.array([Payload(harmed)], dtype=object), labels=Y)
    np.save(tmp_path / "b.npy", np.array([Payload(harmed)], dtype=object), allow_pickle=True)
    for name in ("a.npz", "b.npy"):
        with pytest.raises(DataError, match="any code"):
            load_data(tmp_path / name)
    assert not harmed.exists()


def test_headers_that_declare_too_much_are_refused_before_memory_is_allocated(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 1024, 1024)}
    )
    (tmp_path / "x_train.npy").write_bytes(buffer.getvalue())
    np.save(tmp_path / "y_train.npy", Y)
    with pytest.raises(DataError, match="holds only"):
        load_data(tmp_path)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("images.npy", bytes(32 << 20))
        zipped.writestr("labels.npy", buffer.getvalue())
    with pytest.raises(DataError, match="bomb|declares"):
        load_data(tmp_path / "bomb.npz")


def test_a_lack_of_memory_is_no_damage_but_pythons_parser_reports_a_hostile_header_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError

    np.savez(tmp_path / "a.npz", images=X, labels=Y)
    with monkeypatch.context() as patch:
        patch.setattr(npz, "_content", refuse)
        with pytest.raises(MemoryError):
            load_data(tmp_path / "a.npz")
    monkeypatch.setattr(np.lib.format, "read_array_header_1_0", refuse)
    with pytest.raises(DataError, match=r"a\.npz is not a NumPy file, or is damaged: .* nested too deeply"):
        load_data(tmp_path / "a.npz")


@given(st.binary(max_size=300))
def test_a_file_of_random_bytes_raises_only_a_data_error(content: bytes) -> None:
    import tempfile

    from thumbnet.recipes.settings import DataSettings
    from thumbnet.sources.place import Place

    for suffix, start in ((".npy", b"\x93NUMPY\x01\x00"), (".npz", b"PK\x03\x04")):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"a{suffix}"
            path.write_bytes(start + content)
            with pytest.raises(DataError):
                npz.read(Place(path), "a", DataSettings())


def test_a_picture_is_read_exactly_as_it_was_saved(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.stack([noise(i) for i in range(12)]), labels=np.arange(12) % 2)
    train = load_data(tmp_path / "a.npz", test_fraction=0.0).splits["train"]
    assert (np.asarray(train.read(5)) == noise(5)).all()
