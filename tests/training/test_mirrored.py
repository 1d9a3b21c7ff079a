from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from thumbnet.data.splits import ArraySplit, Data
from thumbnet.recipes.recipe import load_recipe
from thumbnet.training.mirror_names import named_keys, opposite_names, without_mirroring
from thumbnet.training.mirrored import suspicious_pairs
from thumbnet.training.train import train

NOTHING: frozenset[str] = frozenset()


def arrows(count: int) -> Data:
    """Case r07 with names that tell nothing: ``b`` is ``a`` mirrored."""
    made = []
    for number in range(count):
        random = np.random.default_rng(number)
        image = random.integers(0, 90, (24, 24, 3), dtype=np.uint8)
        row, column = (int(v) for v in random.integers(3, 10, 2))
        for step in range(5):
            image[row + 4 - step : row + 6 - step, column + step : column + step + 2] = 255
            image[row + 4 + step : row + 6 + step, column + step : column + step + 2] = 255
        image[row + 4 : row + 6, column : column + 11] = 255
        made.append(image[:, ::-1] if number % 2 else image)
    images, labels = np.stack(made), np.arange(count) % 2
    split = count - count // 4
    parts = {"train": ArraySplit(images[:split], labels[:split], "train")}
    parts["test"] = ArraySplit(images[split:], labels[split:], "test")
    return Data("arrows", "made by the tests", ("a", "b"), dict(parts))


@pytest.mark.parametrize(
    ("names", "pair"),
    [
        (("left", "right"), ("left", "right")),
        (("stop", "turn_left", "turn_right"), ("turn_left", "turn_right")),
        (("ARROW-RIGHT", "arrow-left"), ("ARROW-RIGHT", "arrow-left")),
        (("turnLeft", "turnRight"), ("turnLeft", "turnRight")),
        (("turnleft", "turnright"), ("turnleft", "turnright")),
        (("hand_L", "hand_R"), ("hand_L", "hand_R")),
        (("east", "west", "north"), ("east", "west")),
        (("clockwise", "counterclockwise"), ("clockwise", "counterclockwise")),
        (("clockwise", "anticlockwise"), ("clockwise", "anticlockwise")),
        (("left", "middle"), None),
        (("cleft", "bright"), None),
        (("cat", "dog"), None),
        (("eye_left_open", "eye_right_closed"), None),
    ],
)
def test_names_that_differ_in_left_and_right_are_found(
    names: tuple[str, ...], pair: tuple[str, str] | None
) -> None:
    found = opposite_names(names)
    assert (None if found is None else set(found)) == (None if pair is None else set(pair))


def test_mirroring_and_mirrored_views_go_where_names_forbid_them_unless_the_user_named_them() -> None:
    fast = load_recipe("fast")
    chosen, notes = without_mirroring(fast, ("left", "right"), "x", NOTHING)
    assert (chosen.augment.flip, chosen.evaluation.tta) == ("none", "none")
    assert "augment.flip" in notes[0]
    assert "left and right" in notes[0]
    for names in (("0", "1", "2"), ("one", "two", "three"), ("a", "B", "c")):
        assert without_mirroring(fast, names, "x", NOTHING)[0].augment.flip == "none"
    for two in (("cat", "dog"), ("a", "b")):
        assert without_mirroring(fast, two, "x", NOTHING) == (fast, [])
    named = named_keys("fast", ["augment.flip=random"])
    assert without_mirroring(fast, ("left", "right"), "x", named) == (fast, [])
    unmirrored = load_recipe("fast", ["augment.flip=none"])
    assert without_mirroring(unmirrored, ("cat", "dog"), "x", NOTHING)[0].evaluation.tta == "none"
    kept, notes = without_mirroring(unmirrored, ("cat", "dog"), "x", frozenset({"evaluation.tta"}))
    assert kept.evaluation.tta == "adaptive"
    assert "warning" in notes[0]


def test_a_file_of_ones_own_that_names_the_flip_is_obeyed(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('extends = "fast"\n[augment]\nflip = "random"\n')
    assert "augment.flip" in named_keys(recipe, [])
    assert "augment.flip" not in named_keys("fast", [])


def test_only_pairs_confused_by_chance_among_classes_told_apart_are_suspicious() -> None:
    assert suspicious_pairs(np.array([[25, 25, 0], [24, 26, 0], [0, 1, 49]])) == [(0, 1)]
    assert suspicious_pairs(np.array([[50, 0], [50, 0]])) == [(0, 1)]  # all called the same
    assert suspicious_pairs(np.array([[45, 5, 0], [6, 44, 0], [0, 1, 49]])) == []
    assert suspicious_pairs(np.array([[17, 17, 16], [17, 17, 16], [16, 17, 17]])) == []  # nothing is learnt
    assert suspicious_pairs(np.array([[3, 3], [3, 3]])) == []  # too few


def test_classes_that_mirroring_makes_alike_are_found_by_measuring(tmp_path: Path) -> None:
    overrides = ["training.epochs=6", "model.width=0.25", "seed=3"]
    run = train(arrows(400), "small", overrides=overrides, out=tmp_path / "run", device="cpu")
    (warning,) = run.summary["warnings"]
    assert "a and b are mixed up" in warning
    assert "--set augment.flip=none" in warning
    better = [*overrides, "augment.flip=none"]
    mended = train(arrows(400), "small", overrides=better, out=tmp_path / "mended", device="cpu")
    assert mended.summary["warnings"] == []
    assert mended.summary["accuracy"] > 0.9
