from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from helpers import noise, write_class_folders, write_picture
from thumbnet.reports.inspection import inspect_data, sample_grid
from thumbnet.sources.load import load_data


def test_an_inspection_reports_sizes_modes_duplicates_and_unreadable_pictures(tmp_path: Path) -> None:
    write_class_folders(tmp_path, ["train", "test"])
    shutil.copy(tmp_path / "train/red/0.png", tmp_path / "test/red/copy.png")
    shutil.copy(tmp_path / "train/red/0.png", tmp_path / "train/red/again.png")
    (tmp_path / "train/blue/broken.png").write_bytes(b"no picture")
    write_picture(tmp_path / "train/green/grey.png", Image.fromarray(noise(1, 20, 30)[..., 0]))
    seen: list[tuple[int, int]] = []
    found = inspect_data(load_data(tmp_path), progress=lambda done, total: seen.append((done, total)))
    assert found.counts["train"] == {"blue": 7, "green": 7, "red": 7}
    assert found.counts["test"] == {"blue": 6, "green": 6, "red": 7}
    assert found.sizes == [((16, 16), 38), ((20, 30), 1)]
    assert dict(found.modes) == {"RGB": 38, "L": 1}
    assert [Path(name).name for name, _ in found.unreadable] == ["broken.png"]
    assert found.repeated == 1
    assert found.repeats == [(("train", "train/red/0.png"), ("train", "train/red/again.png"))]
    assert found.duplicates == [(("train", "train/red/0.png"), ("test", "test/red/copy.png"))]
    assert found.image_size == (32, 32)
    assert seen[-1] == (40, 40)


def test_mean_and_std_are_measured_on_the_training_split_only(tmp_path: Path) -> None:
    for number in range(3):
        write_picture(tmp_path / "train/a" / f"{number}.png", np.full((16, 16, 3), 51, np.uint8))
        write_picture(tmp_path / "train/b" / f"{number}.png", np.full((16, 16, 3), 153, np.uint8))
        write_picture(tmp_path / "test/a" / f"{number}.png", np.full((16, 16, 3), 255, np.uint8))
    found = inspect_data(load_data(tmp_path))
    assert np.allclose(found.mean, 0.4)
    assert np.allclose(found.std, 0.2)
    assert found.image_size == (16, 16)


def test_a_sample_grid_has_pictures_of_every_class(tmp_path: Path) -> None:
    data = load_data(write_class_folders(tmp_path, ["train", "test"]))
    grid = sample_grid(data, "train", 4, (20, 20), "pad")
    assert {name: len(cells) for name, cells in grid.items()} == {"blue": 4, "green": 4, "red": 4}
    assert grid["red"][0].shape == (20, 20, 3)
    assert list(sample_grid(data, "train", 4, (20, 20), "pad", classes=2)) == ["blue", "green"]
