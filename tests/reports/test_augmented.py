from __future__ import annotations

import numpy as np
import pytest

from helpers import coloured_data, coloured_labels
from thumbnet.data.rendering import BY_TYPE
from thumbnet.data.splits import ArraySplit, Data
from thumbnet.errors import DataError, UnreadableImageError
from thumbnet.recipes.recipe import load_recipe
from thumbnet.reports.augmented import VIEWS, AugmentedRow, preview_augmentation
from thumbnet.reports.figures import augmented_figure

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
NOTHING = ["augment.flip=none", "augment.translate=0", "augment.brightness=0", "augment.contrast=0"]


def preview(data: Data, *overrides: str) -> list[AugmentedRow]:
    return preview_augmentation(data, load_recipe("small", [*NOTHING, *overrides]), (16, 16), MEAN, STD)


def test_without_augmentation_every_view_is_the_picture_itself() -> None:
    data = coloured_data()
    rows = preview(data)
    assert [row.label for row in rows] == ["red", "green", "blue"]
    for index, row in enumerate(rows):
        assert np.array_equal(row.pixels, np.asarray(data.splits["train"].read(index)))
        assert len(row.views) == len(row.mixtures) == VIEWS
        assert all(np.array_equal(view, row.pixels) for view in row.views)
        assert row.mixtures == [None] * VIEWS


def test_views_are_what_the_training_makes_of_the_picture() -> None:
    rows = preview(coloured_data(), "augment.flip=alternating", "data.skip_easy=0.3")
    for row in rows:
        sides = [np.array_equal(view, row.pixels) for view in row.views]
        assert sides in ([True, False] * (VIEWS // 2), [False, True] * (VIEWS // 2))
        assert all(
            np.array_equal(view, row.pixels[:, ::-1])
            for view, same in zip(row.views, sides, strict=True)
            if not same
        )


def test_a_mixed_view_names_its_partner_and_its_own_share() -> None:
    rows = preview(coloured_data(), "augment.mixup=1.0")
    pixels = {row.label: row.pixels.astype(float) for row in rows}
    for row in rows:
        for view, mixture in zip(row.views, row.mixtures, strict=True):
            assert mixture is not None
            other, share = mixture
            expected = share * pixels[row.label] + (1 - share) * pixels[other]
            assert np.abs(view - expected).max() <= 0.51
    assert len({mixture[0] for row in rows for mixture in row.mixtures if mixture}) == 3


def test_pictures_with_several_labels_get_a_row_each_with_all_their_labels() -> None:
    data = coloured_labels()
    rows = preview(data, "augment.cutmix=1.0")
    assert len(rows) == 3
    assert len({row.pixels.tobytes() for row in rows}) == 3
    first = data.splits["train"].members(0)[0]
    assert rows[0].label == data.splits["train"].label_text(int(first), data.class_names)
    assert all(mixture is not None for row in rows for mixture in row.mixtures)


def test_pictures_that_cannot_be_read_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    load = ArraySplit.load

    def failing(split: ArraySplit, index: int) -> object:
        if index < 4:
            raise UnreadableImageError(f"{index}.png", "broken")
        return load(split, index)

    data = coloured_data()
    expected = np.asarray(data.splits["train"].read(6))
    monkeypatch.setattr(ArraySplit, "load", failing)
    monkeypatch.setattr("thumbnet.reports.augmented.surveyed", lambda split: None)
    monkeypatch.setattr("thumbnet.reports.augmented.choose_rendering", lambda *_: BY_TYPE)
    rows = preview(data)
    assert len(rows) == 3
    assert np.array_equal(rows[0].pixels, expected)
    monkeypatch.setattr(ArraySplit, "load", lambda split, index: failing(split, 0))
    with pytest.raises(DataError, match="no training picture can be read"):
        preview(data)


def test_the_figure_shows_every_view_and_names_what_is_mixed() -> None:
    figure = augmented_figure(preview(coloured_data(), "augment.mixup=1.0"), "a $ title $")
    assert len(figure.axes) == 3 * (1 + VIEWS)
    assert all(axes.images[0].get_interpolation() == "none" for axes in figure.axes)
    assert [axes.get_title() for axes in figure.axes[:3]] == ["as it is", "epoch 1", "epoch 2"]
    assert figure.axes[0].get_ylabel() == "red"
    own, other = figure.axes[1].get_xlabel().split("\n")
    assert own.startswith("red: ")
    assert sum(int(part.split(": ")[1].removesuffix(" %")) for part in (own, other)) == 100
