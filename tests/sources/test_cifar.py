from __future__ import annotations

import pickle
import pickletools
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import Payload
from thumbnet.errors import DataError
from thumbnet.sources.cifar import ARCHIVES, CIFAR10_CLASSES
from thumbnet.sources.load import load_data

PER_FILE = 4


def pictures(seed: int, count: int = PER_FILE) -> tuple[np.ndarray, np.ndarray]:
    """Planes uint8 [N, 3072] and labels [N], as CIFAR stores them."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, 3072), dtype=np.uint8), generator.integers(0, 10, count)


def write_binary10(root: Path) -> Path:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for number, name in enumerate([*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]):
        planes, labels = pictures(number)
        records = np.concatenate([labels[:, None].astype(np.uint8), planes], axis=1)
        (folder / name).write_bytes(records.tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(CIFAR10_CLASSES) + "\n\n")
    return folder


def write_python10(root: Path, protocol: int = 2) -> Path:
    """Batches like the official ones: protocol 2, keys of bytes."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        planes, labels = pictures(number)
        batch = {b"data": planes, b"labels": labels.tolist(), b"batch_label": b"x"}
        (folder / name).write_bytes(pickle.dumps(batch, protocol))
    names = {b"label_names": [name.encode() for name in CIFAR10_CLASSES], b"num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(names, protocol))
    return folder


def write_100(root: Path, python: bool) -> Path:
    folder = root / ("cifar-100-python" if python else "cifar-100-binary")
    folder.mkdir(parents=True)
    fine_names = [f"fine{i}" for i in range(100)]
    for number, split in enumerate(("train", "test")):
        planes, coarse = pictures(number)
        fine = 99 - coarse
        if python:
            batch = {b"data": planes, b"fine_labels": fine.tolist(), b"coarse_labels": coarse.tolist()}
            (folder / split).write_bytes(pickle.dumps(batch, 2))
        else:
            heads = np.stack([coarse, fine], axis=1).astype(np.uint8)
            (folder / f"{split}.bin").write_bytes(np.concatenate([heads, planes], axis=1).tobytes())
    if python:
        meta = {b"fine_label_names": [name.encode() for name in fine_names]}
        (folder / "meta").write_bytes(pickle.dumps(meta, 2))
    else:
        (folder / "fine_label_names.txt").write_text("\n".join(fine_names) + "\n")
    return folder


def test_binary_and_python_versions_give_the_same_pictures(tmp_path: Path) -> None:
    binary, python = load_data(write_binary10(tmp_path)), load_data(write_python10(tmp_path))
    assert binary.layout == "CIFAR-10, binary version"
    assert python.layout == "CIFAR-10, python version"
    assert binary.class_names == python.class_names == CIFAR10_CLASSES
    for split, count in (("train", 5 * PER_FILE), ("test", PER_FILE)):
        a, b = binary.splits[split], python.splits[split]
        assert len(a) == count
        assert a.labels.tolist() == b.labels.tolist()
        assert all(a.content(i) == b.content(i) for i in range(count))


def test_channels_rows_and_columns_keep_their_order(tmp_path: Path) -> None:
    split = load_data(write_binary10(tmp_path)).splits["train"]
    planes, labels = pictures(0)
    picture = np.asarray(split.read(2))
    for channel, row, column in ((0, 0, 5), (1, 31, 0), (2, 7, 20)):
        assert picture[row, column, channel] == planes[2, channel * 1024 + row * 32 + column]
    assert split.labels[2] == labels[2]


def test_cifar100_is_read_with_its_fine_labels(tmp_path: Path) -> None:
    binary, python = load_data(write_100(tmp_path, False)), load_data(write_100(tmp_path, True))
    assert binary.layout == "CIFAR-100, binary version"
    assert len(binary.class_names) == 100
    assert binary.splits["train"].labels.tolist() == (99 - pictures(0)[1]).tolist()
    assert python.splits["train"].labels.tolist() == binary.splits["train"].labels.tolist()
    assert python.class_names == binary.class_names


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("python", [False, True])
def test_batches_already_in_the_data_dir_are_used_without_a_download(
    packed: bool, python: bool, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    folder = (write_python10 if python else write_binary10)(tmp_path if packed else cache)
    if packed:
        cache.mkdir()
        name = "cifar-10-python.tar.gz" if python else "cifar-10-binary.tar.gz"
        with tarfile.open(cache / name, "w:gz") as tar:
            tar.add(folder, folder.name)
    data = load_data("cifar10", data_dir=cache)
    assert len(data.splits["train"]) == 5 * PER_FILE
    assert data.source == "cifar10"


def test_downloads_are_the_official_binary_archives() -> None:
    assert all("binary" in archive.url and len(archive.sha256) == 64 for archive in ARCHIVES.values())


@pytest.mark.parametrize("size", [0, 1, 3072, 3073 * PER_FILE - 1])
def test_a_batch_that_is_cut_short_is_refused(size: int, tmp_path: Path) -> None:
    path = write_binary10(tmp_path) / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=r"data_batch_3\.bin"):
        load_data(path.parent)


def test_a_missing_batch_and_a_wrong_label_are_refused(tmp_path: Path) -> None:
    folder = write_binary10(tmp_path)
    path = folder / "test_batch.bin"
    content = bytearray(path.read_bytes())
    content[0] = 77
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match="test has the label 77, but there are only 10 classes"):
        load_data(folder)
    path.unlink()
    with pytest.raises(DataError, match="test_batch"):
        load_data(folder)


@pytest.mark.parametrize("where", ["data_batch_1", "batches.meta"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_crafted_pickle_runs_nothing(where: str, protocol: int, tmp_path: Path) -> None:
    folder, trace = write_python10(tmp_path), tmp_path / "trace"
    content = {b"data": Payload(trace), b"labels": [1], b"label_names": [Payload(trace)]}
    (folder / where).write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(DataError, match=r"nothing in it was run"):
        load_data(folder)
    assert not trace.exists()
    # The payload works: an ordinary unpickler runs it.
    pickle.loads(pickle.dumps(Payload(trace)))  # noqa: S301
    assert trace.exists()


def test_allowed_globals_cannot_be_abused_to_run_code(tmp_path: Path) -> None:
    folder = write_python10(tmp_path)
    for text in (
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"c_codecs\nencode\n(S'x'\nS'utf8'\ntR.",  # allowed, but the result is not a dictionary
        b"cnumpy\ndtype.__init__\n.",
        pickle.dumps({b"data": np.array([Payload(tmp_path / "trace")]), b"labels": [1]}, 2),
    ):
        list(pickletools.genops(text))  # well formed, so it is not refused as damaged
        (folder / "data_batch_1").write_bytes(text)
        with pytest.raises(DataError, match="data_batch_1"):
            load_data(folder)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    "batch",
    [
        {},
        {b"data": 3, b"labels": [1]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]},
        {b"data": np.zeros((1, 3072), np.float32), b"labels": [1]},
        {b"data": np.zeros((1, 100), np.uint8), b"labels": [1]},
        {b"data": np.zeros((1, 3072), np.uint8), b"labels": ["x"]},
        {b"data": np.zeros((1, 3072), np.uint8), b"labels": [-1]},
    ],
    ids=str,
)
def test_a_pickle_of_something_else_is_refused(batch: dict[bytes, Any], tmp_path: Path) -> None:
    folder = write_python10(tmp_path)
    (folder / "data_batch_1").write_bytes(pickle.dumps(batch, 2))
    with pytest.raises(DataError, match="data_batch_1"):
        load_data(folder)
