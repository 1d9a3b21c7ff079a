from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from thumbnet.errors import DataError
from thumbnet.sources.load import load_data

X = np.random.default_rng(0).integers(0, 256, (12, 96, 96, 3), dtype=np.uint8)
Y = np.arange(12) % 3
CLASSES = ("airplane", "bird", "car")


def write_stl10(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        (folder / f"{split}_X.bin").write_bytes(X.transpose(0, 3, 2, 1).tobytes())
        (folder / f"{split}_y.bin").write_bytes((Y + 1).astype(np.uint8).tobytes())
    (folder / "unlabeled_X.bin").write_bytes(X.tobytes())
    (folder / "class_names.txt").write_text("\n".join(CLASSES) + "\n")
    return folder


@pytest.mark.parametrize("place", ["", "stl10_binary", "stl10_binary/train_X.bin"])
def test_pictures_stored_by_columns_are_turned_upright(place: str, tmp_path: Path) -> None:
    write_stl10(tmp_path / "stl10_binary")
    data = load_data(tmp_path / place)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 12, "test": 12}
    assert data.class_names == CLASSES
    assert (np.asarray(data.splits["train"].read(4)) == X[4]).all()
    assert data.splits["train"].labels.tolist() == Y.tolist()


def test_files_that_are_cut_short_or_missing_are_refused(tmp_path: Path) -> None:
    folder = write_stl10(tmp_path)
    (folder / "train_X.bin").write_bytes(X.tobytes()[:-1])
    with pytest.raises(DataError, match="cut short"):
        load_data(folder)
    write_stl10(folder)
    (folder / "train_y.bin").unlink()
    with pytest.raises(DataError, match="has no labels: train_y"):
        load_data(folder)
