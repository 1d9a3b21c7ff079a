from __future__ import annotations

import numpy as np

from thumbnet.data.calibration import with_calibration_split
from thumbnet.data.splits import ArraySplit, Data
from thumbnet.recipes.settings import DataSettings


def test_calibration_pictures_are_a_share_of_each_class_and_stay_the_same() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    images = np.zeros((1000, 16, 16, 3), dtype=np.uint8)
    data = Data("x", "x", ("a", "b", "c"), {"train": ArraySplit(images, labels, "t")})
    held = with_calibration_split(data, DataSettings()).splits
    assert np.bincount(held["calibration"].labels).tolist() == [30, 15, 5]
    assert len(held["train"]) == 950
    few = with_calibration_split(data, DataSettings(calibration_pictures=20)).splits
    assert len(few["calibration"]) == 20
    assert with_calibration_split(data, DataSettings(calibration_pictures=0)) is data
    persons = np.repeat(np.arange(100), 10).astype(str)
    from dataclasses import replace

    grouped = with_calibration_split(replace(data, groups={"train": persons}), DataSettings())
    assert not set(grouped.groups["train"]) & set(grouped.groups["calibration"])
    assert len(grouped.groups["train"]) == len(grouped.splits["train"]) == 950
