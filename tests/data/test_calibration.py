from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from thumbnet.data.calibration import CALIBRATION, FEWEST, with_calibration_split
from thumbnet.data.multilabel import MultiLabelSplit
from thumbnet.data.splits import ArraySplit, Data
from thumbnet.recipes.settings import DataSettings


def data_of(labels: np.ndarray, groups: np.ndarray | None = None) -> Data:
    """Black pictures with these labels, int [N], and groups, str [N]."""
    images = np.zeros((len(labels), 16, 16, 3), dtype=np.uint8)
    names = tuple(f"class {label}" for label in range(labels.max() + 1))
    data = Data("x", "x", names, {"train": ArraySplit(images, labels, "t")})
    return data if groups is None else replace(data, groups={"train": groups})


def numbered(labels: np.ndarray, size: int) -> np.ndarray:
    """Groups of ``size`` pictures that follow each other: str [N]."""
    return (np.arange(len(labels)) // size).astype(str)


def test_calibration_pictures_are_a_share_of_each_class_and_stay_the_same() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    data = data_of(labels)
    held = with_calibration_split(data, DataSettings()).splits
    assert np.bincount(held["calibration"].labels).tolist() == [30, 15, 5]
    assert len(held["train"]) == 950
    few = with_calibration_split(data, DataSettings(calibration_pictures=20)).splits
    assert len(few["calibration"]) == 20
    assert with_calibration_split(data, DataSettings(calibration_pictures=0)) is data
    grouped = with_calibration_split(data_of(labels, numbered(labels, 10)), DataSettings())
    assert not set(grouped.groups["train"]) & set(grouped.groups["calibration"])
    assert len(grouped.groups["train"]) == len(grouped.splits["train"]) == 950


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_chosen_by_their_hashes_alone_where_no_class_can_be_lost(seed: int) -> None:
    labels = np.arange(1000) % 3  # each group has pictures of all classes
    groups = numbered(labels, 7)
    left, expected = 50, set()
    for name in sorted(
        set(groups.tolist()),
        key=lambda name: hashlib.blake2b(f"{seed + 2}\0{name}".encode(), digest_size=8).digest(),
    ):
        size = int((groups == name).sum())
        if size <= left:
            left -= size
            expected.add(name)
    found = with_calibration_split(data_of(labels, groups), DataSettings(split_seed=seed))
    assert set(found.groups[CALIBRATION].tolist()) == expected


@pytest.mark.parametrize("seed", range(5))
def test_no_class_loses_all_of_its_training_pictures(seed: int) -> None:
    """30 classes in one group each, and one class in 40 groups."""
    labels = np.repeat([*range(30), *[30] * 40], 10)
    data = with_calibration_split(data_of(labels, numbered(labels, 10)), DataSettings(split_seed=seed))
    assert set(data.splits["train"].labels.tolist()) == set(range(31))
    assert set(data.splits[CALIBRATION].labels.tolist()) == {30}
    assert FEWEST <= len(data.splits[CALIBRATION]) <= 35


def test_a_run_of_an_earlier_version_keeps_its_calibration_pictures() -> None:
    """It chose groups by their hashes alone, even all pictures of a class."""
    labels = np.repeat(np.arange(50), 10)
    data = data_of(labels, numbered(labels, 10))
    found = with_calibration_split(data, DataSettings(), keep_classes=False).splits
    assert len(found[CALIBRATION]) == 20
    assert len(set(found["train"].labels.tolist())) == 48


def test_a_class_of_one_picture_keeps_it() -> None:
    """900 classes have one picture each, and one class has 60."""
    data = data_of(np.arange(960).clip(max=900))
    held = with_calibration_split(data, DataSettings()).splits
    assert set(held["train"].labels.tolist()) == set(range(901))
    assert held[CALIBRATION].labels.tolist() == [900] * 30
    single = data_of(np.arange(400))
    assert with_calibration_split(single, DataSettings()) is single


def test_no_pictures_are_set_aside_if_each_group_is_a_whole_class() -> None:
    labels = np.repeat(np.arange(50), 10)
    data = data_of(labels, numbered(labels, 10))
    assert with_calibration_split(data, DataSettings()) is data


@pytest.mark.parametrize("size", [0, 2], ids=["single pictures", "groups"])
def test_no_label_loses_all_of_its_training_pictures(size: int) -> None:
    """500 pictures have a label that no other picture has; 100 share a label."""
    targets = np.zeros((600, 501), dtype=bool)
    targets[np.arange(600), np.minimum(np.arange(600), 500)] = True
    zeros = np.zeros(600, dtype=np.int64)
    split = MultiLabelSplit(ArraySplit(np.zeros((600, 16, 16, 3), np.uint8), zeros, "t"), targets)
    data = Data("x", "x", tuple(f"label {n}" for n in range(501)), {"train": split})
    if size:
        data = replace(data, groups={"train": numbered(zeros, size)})
    held = with_calibration_split(data, DataSettings()).splits
    assert (held["train"].class_counts(501) > 0).all()
    assert held[CALIBRATION].class_counts(501)[500] == len(held[CALIBRATION]) == 30
