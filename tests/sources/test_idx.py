from __future__ import annotations

import gzip
import hashlib
import shutil
import struct
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import serve
from thumbnet.errors import DataError
from thumbnet.sources import idx
from thumbnet.sources.load import load_data

NAMES = {"train": "train", "test": "t10k"}


def idx_bytes(values: np.ndarray) -> bytes:
    """An array of bytes in the idx format."""
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def pictures(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), (np.arange(count) % 10).astype(np.uint8)


def write_mnist(
    folder: Path, prefix: str = "", packed: bool = False, splits: tuple[str, ...] = ("train", "test")
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, split in enumerate(splits):
        images, labels = pictures(seed, 40 if split == "train" else 20)
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            content = idx_bytes(values)
            name = f"{prefix}{NAMES[split]}-{kind}-ubyte" + (".gz" if packed else "")
            (folder / name).write_bytes(gzip.compress(content) if packed else content)
    return folder


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("place", [".", "raw", "MNIST/raw"])
def test_mnist_is_read_plain_or_gzipped_from_the_folders_that_torchvision_uses(
    packed: bool, place: str, tmp_path: Path
) -> None:
    write_mnist(tmp_path / place, packed=packed)
    data = load_data(tmp_path)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 40, "test": 20}
    assert data.class_names == tuple("0123456789")
    expected, labels = pictures(0, 40)
    assert (np.asarray(data.splits["train"].read(7))[..., 0] == expected[7]).all()
    assert data.splits["train"].labels.tolist() == labels.tolist()


def test_one_file_or_an_archive_loads_the_same_data_as_the_folder(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path / "mnist")
    by_file = load_data(folder / "train-images-idx3-ubyte")
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", folder)
    by_archive = load_data(archive, data_dir=tmp_path / "cache")
    assert by_file.fingerprint() == by_archive.fingerprint() == load_data(folder).fingerprint()


def test_file_names_with_a_dot_before_idx_are_read_too(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path)
    for path in list(folder.iterdir()):
        path.rename(folder / path.name.replace("-idx", ".idx"))
    assert len(load_data(folder).splits["test"]) == 20


def test_fashion_mnist_gets_its_class_names(tmp_path: Path) -> None:
    data = load_data(write_mnist(tmp_path / "FashionMNIST" / "raw"))
    assert data.class_names == idx.FASHION
    assert any("Fashion-MNIST" in note for note in data.notes)


def test_emnist_is_turned_upright_and_its_mapping_gives_the_class_names(tmp_path: Path) -> None:
    write_mnist(tmp_path, "emnist-balanced-")
    (tmp_path / "emnist-balanced-mapping.txt").write_text("".join(f"{i} {65 + i}\n" for i in range(10)))
    data = load_data(tmp_path)
    assert data.class_names == tuple("ABCDEFGHIJ")
    stored, _ = pictures(0, 40)
    assert (np.asarray(data.splits["train"].read(3))[..., 0] == stored[3].T).all()
    assert any("upright" in note for note in data.notes)


def damaged(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not an idx file"),
        (b"\0\0\x0d\x03" + b"\0" * 20, "not an idx file of bytes or 32-bit integers"),
        (b"\0\0\x08\x03\0\0", "cut short"),
        (struct.pack(">HBB3I", 0, 8, 3, 2**31, 2**31, 2**31), "more than its"),
        (idx_bytes(np.zeros((40, 28, 28), np.uint8))[:-5], "cut short|more than its"),
        (idx_bytes(np.zeros((40, 28, 28), np.uint8)) + b"x", "has more"),
        (idx_bytes(np.zeros((39, 28, 28), np.uint8)), "39 pictures but 40 labels"),
        (idx_bytes(np.zeros((40, 28), np.uint8)), "expected 3"),
    ],
)
def test_damaged_and_hostile_files_are_refused(content: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        load_data(damaged(write_mnist(tmp_path), "train-images-idx3-ubyte", content))


def test_a_gzip_bomb_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path, packed=True)
    header = struct.pack(">HBB3I", 0, 8, 3, 10**6, 28, 28)
    damaged(folder, "train-images-idx3-ubyte.gz", gzip.compress(header + bytes(1 << 22)))
    with pytest.raises(DataError, match="more than its"):
        load_data(folder)


def test_test_is_left_out_without_its_labels_and_the_error_names_those_of_train(tmp_path: Path) -> None:
    (write_mnist(tmp_path) / "t10k-labels-idx1-ubyte").unlink()
    data = load_data(tmp_path)
    assert sum(map(len, data.splits.values())) == 40
    assert any("test is left out, because the labels of test are missing" in note for note in data.notes)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="labels of train are missing"):
        load_data(tmp_path)


@given(st.binary(max_size=200))
def test_any_bytes_in_a_file_give_an_array_or_a_data_error(content: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train-images-idx3-ubyte"
        path.write_bytes(content)
        try:
            assert idx.read_idx(path).ndim >= 1
        except DataError as error:
            assert "train-images" in str(error)  # noqa: PT017


@pytest.mark.parametrize("name", ["mnist", "MNIST", "fashion_mnist", "fmnist"])
def test_mnist_is_downloaded_by_name_once_and_verified(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_mnist(tmp_path / "server", packed=True)
    asked: list[str] = []

    def handle(request: BaseHTTPRequestHandler) -> None:
        asked.append(request.path)
        content = (folder / request.path.rsplit("/", 1)[1]).read_bytes()
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    key = "mnist" if name.lower() == "mnist" else "fashion-mnist"
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    with serve(handle) as address:
        made = replace(idx.PUBLISHED[key], url=f"{address}/", sha256=digests)
        monkeypatch.setitem(idx.PUBLISHED, key, made)
        first = load_data(name, data_dir=tmp_path / "cache")
        again = load_data(name, data_dir=tmp_path / "cache")
        assert len(asked) == 4
        monkeypatch.setitem(idx.PUBLISHED, key, replace(made, sha256=dict.fromkeys(digests, "0" * 64)))
        with pytest.raises(DataError, match="SHA-256"):
            load_data(name, data_dir=tmp_path / "another")
    assert first.source == key
    assert first.fingerprint() == again.fingerprint()
    assert len(first.splits["train"]) == 40


def test_what_torchvision_has_downloaded_is_not_downloaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(tmp_path / "MNIST" / "raw")
    monkeypatch.setitem(idx.PUBLISHED, "mnist", replace(idx.PUBLISHED["mnist"], url="http://127.0.0.1:9/"))
    assert len(load_data("mnist", data_dir=tmp_path).splits["test"]) == 20


def test_the_error_offers_the_mirror_if_the_server_cannot_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(idx.PUBLISHED, "mnist", replace(idx.PUBLISHED["mnist"], url="http://127.0.0.1:9/"))
    with pytest.raises(DataError, match="hf:ylecun/mnist"):
        load_data("mnist", data_dir=tmp_path)
