from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from helpers import write_class_folders
from thumbnet.data.splits import ArraySplit
from thumbnet.errors import DataError
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources.archives import _unpack_tar, unpack
from thumbnet.sources.load import data_dir_again, load_data, unpacking_ahead
from thumbnet.sources.packed import Pack


def test_digits_are_scikit_learns_enlarged_to_32x32_rgb() -> None:
    data = load_data("digits")
    expected = load_digits()
    pairs = []
    for split in data.splits.values():
        assert isinstance(split, ArraySplit)
        assert split.images.shape[1:] == (32, 32, 3)
        small = split.images[:, ::4, ::4, 0]
        assert np.array_equal(
            split.images, np.repeat(np.kron(small, np.ones((4, 4), np.uint8))[..., None], 3, 3)
        )
        pairs += [(p.tobytes(), int(c)) for p, c in zip(small, split.labels, strict=True)]
    levels = np.minimum(expected.images * 16, 255).astype(np.uint8)
    assert sorted(pairs) == sorted(
        (p.tobytes(), int(c)) for p, c in zip(levels, expected.target, strict=True)
    )


def test_the_digits_split_is_fixed_and_stratified() -> None:
    data = load_data("digits")
    shares = np.bincount(data.splits["test"].labels) / np.bincount(load_digits().target)
    assert np.allclose(shares, 0.2, atol=0.01)
    assert data.fingerprint() == load_data("digits").fingerprint()


def test_a_fingerprint_changes_with_any_pixel_or_label() -> None:
    data = load_data("digits")
    before = data.fingerprint()
    split = data.splits["train"]
    assert isinstance(split, ArraySplit)
    split.images = split.images.copy()
    split.images[3, 5, 5, 1] ^= 1
    assert data.fingerprint() != before
    split.images[3, 5, 5, 1] ^= 1
    assert data.fingerprint() == before
    split.labels[0] = (split.labels[0] + 1) % 10
    assert data.fingerprint() != before


def test_loaded_data_stay_as_they_are_and_settings_come_too_late() -> None:
    data = load_data("digits", val_fraction=0.1)
    assert load_data(data) is data
    given: list[dict[str, Any]] = [{"val_fraction": 0.2}, {"settings": DataSettings()}, {"labels": []}]
    for late in given:
        with pytest.raises(DataError, match="digits is loaded already"):
            load_data(data, **late)


def test_an_archive_that_is_unpacked_ahead_is_unpacked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_class_folders(tmp_path / "data", ["train", "test"])
    archive = shutil.make_archive(str(tmp_path / "data"), "tar", tmp_path / "data")
    calls: list[Path] = []

    def slowly(path: Path, writer: object) -> None:
        calls.append(path)
        time.sleep(0.3)
        _unpack_tar(path, writer)  # type: ignore[arg-type]

    monkeypatch.setattr("thumbnet.sources.archives._unpack_tar", slowly)
    with unpacking_ahead(archive, tmp_path / "cache"):
        time.sleep(0.1)
        data = load_data(archive, data_dir=tmp_path / "cache")
    assert len(data.splits["train"]) == 18
    assert calls == [Path(archive)]


def test_a_block_that_ends_early_stops_unpacking_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_class_folders(tmp_path / "data", ["train", "test"])
    archive = shutil.make_archive(str(tmp_path / "data"), "gztar", tmp_path / "data")
    begun, proceed = threading.Event(), threading.Event()

    def slowly(path: Path, writer: object) -> None:
        begun.set()
        proceed.wait(5)
        _unpack_tar(path, writer)  # type: ignore[arg-type]

    monkeypatch.setattr("thumbnet.sources.archives._unpack_tar", slowly)
    with unpacking_ahead(archive, tmp_path / "cache"):
        assert begun.wait(5)
        assert list((tmp_path / "cache" / "unpacked").iterdir())
        threading.Timer(0.2, proceed.set).start()
    assert list((tmp_path / "cache" / "unpacked").iterdir()) == []


def test_what_was_unpacked_ahead_is_opened_once_unless_it_was_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_class_folders(tmp_path / "data", ["train", "test"])
    archive = shutil.make_archive(str(tmp_path / "data"), "tar", tmp_path / "data")
    cache, opened = tmp_path / "cache", []

    def pack(folder: Path, key: str) -> Pack:
        opened.append(folder)
        return Pack(folder, key)

    monkeypatch.setattr("thumbnet.sources.archives.Pack", pack)

    def read() -> int:
        before = len(opened)
        assert len(load_data(archive, data_dir=cache).splits["train"]) == 18
        return len(opened) - before

    unpack(Path(archive), cache, ahead=threading.Event())
    assert [read(), read()] == [0, 1]
    unpack(Path(archive), cache, ahead=threading.Event())
    shutil.rmtree(cache)
    assert read() > 0


@pytest.mark.parametrize("name", ["damaged.tar", "missing.tar", "digits", "", None])
def test_unpacking_ahead_leaves_errors_to_loading(
    name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", errors.append)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "damaged.tar").write_bytes(b"x" * 2000)
    with unpacking_ahead(name, tmp_path / "cache"):
        time.sleep(0.1)
    assert errors == []
    if name == "damaged.tar":
        with pytest.raises(DataError, match="cannot unpack"):
            load_data(name, data_dir=tmp_path / "cache")


def test_a_tilde_that_is_no_user_is_a_part_of_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_class_folders(tmp_path / "~nobody-is-called-this", ["train", "test"])
    data = load_data("~nobody-is-called-this")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 18, "test": 18}
    with pytest.raises(DataError, match="there is no data set, folder or archive '~nobody-else/x'"):
        load_data("~nobody-else/x")
    with pytest.raises(DataError, match="there is no folder '~nobody-else'"):
        load_data("~nobody-is-called-this", images="~nobody-else")


def test_a_folder_for_downloads_may_begin_with_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert data_dir_again("~/data") == str(tmp_path.resolve() / "data")
    assert data_dir_again("data") == str(tmp_path.resolve() / "data")
    assert data_dir_again(None) is None
    given: list[object] = []

    def load_hub(name: str, source: str, cache: Path | None, settings: object) -> None:
        given.append(cache)
        raise DataError("not loaded")

    monkeypatch.setattr("thumbnet.sources.hub.load_hub", load_hub)
    for folder in ("~/data", None):
        with pytest.raises(DataError, match="not loaded"):
            load_data("hf:someone/pictures", data_dir=folder)
    assert given == [tmp_path / "data", None]
