from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from thumbnet.data.splits import ArraySplit, Data
from thumbnet.recipes.recipe import load_recipe
from thumbnet.training.mirror_names import named_keys, opposite_names, show_digits, without_mirroring

NOTHING: frozenset[str] = frozenset()


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
    kept, notes = without_mirroring(fast, ("left", "right"), "x", named)
    assert kept == fast
    assert notes == [
        "warning: left and right are mirror images by their names, but pictures are mirrored (augment.flip = "
        "alternating). To leave that out: --set augment.flip=none"
    ]
    assert without_mirroring(fast, ("cat", "dog"), "x", named) == (fast, [])
    unmirrored = load_recipe("fast", ["augment.flip=none"])
    assert without_mirroring(unmirrored, ("cat", "dog"), "x", NOTHING)[0].evaluation.tta == "none"
    kept, notes = without_mirroring(unmirrored, ("cat", "dog"), "x", frozenset({"evaluation.tta"}))
    assert kept.evaluation.tta == "adaptive"
    assert "warning" in notes[0]


def test_a_file_of_ones_own_that_names_the_flip_is_obeyed(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    for encoding in ("utf-8", "utf-8-sig"):
        recipe.write_text('extends = "fast"\n[augment]\nflip = "random"\n', encoding)
        assert "augment.flip" in named_keys(recipe, [])
    assert "augment.flip" not in named_keys("fast", [])


def test_an_invalid_recipe_file_names_no_keys_and_overrides_still_count(tmp_path: Path) -> None:
    recipe = tmp_path / "broken.toml"
    recipe.write_text("[augment\n")
    assert named_keys(recipe, ["seed = 3"]) == {"seed"}
    assert named_keys(tmp_path / "missing.toml", []) == frozenset()


def numbered(images: np.ndarray, layout: str = "") -> Data:
    labels = np.arange(len(images)) % 3
    split = ArraySplit(images, labels, "train")
    return Data("numbered", layout, ("0", "1", "2"), {"train": split})


def test_grey_pictures_of_numbered_classes_are_taken_for_digits_and_coloured_ones_are_not() -> None:
    random = np.random.default_rng(0)
    coloured = random.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    grey = np.repeat(coloured[..., :1], 3, axis=3)
    assert show_digits(numbered(grey))
    assert not show_digits(numbered(coloured))
    assert show_digits(numbered(coloured, "SVHN, cropped digits"))


def test_classes_that_are_only_numbered_keep_mirroring() -> None:
    fast = load_recipe("fast")
    assert without_mirroring(fast, ("0", "1", "2"), "x", NOTHING, lambda: False) == (fast, [])
    letters, _ = without_mirroring(fast, ("a", "b", "c"), "x", NOTHING, lambda: False)
    assert letters.augment.flip == "none"


@pytest.mark.parametrize("names", [("digit_0", "digit_1", "digit_2"), ("letter-a", "letter-b", "letter-c")])
def test_names_with_an_affix_are_characters_too(names: tuple[str, ...]) -> None:
    chosen, notes = without_mirroring(load_recipe("fast"), names, "x", NOTHING)
    assert chosen.augment.flip == "none"
    assert "characters" in notes[0]


@pytest.mark.parametrize(
    ("names", "setting", "said"),
    [
        (("up", "down"), "augment.flip_vertical=random", "turn up into down"),
        (
            ("arrow_top", "arrow_bottom", "other"),
            "augment.flip_vertical=random",
            "arrow_top into arrow_bottom",
        ),
        (("thumbsup", "thumbsdown"), "augment.flip_vertical=random", "thumbsup into thumbsdown"),
        (("0", "1", "2"), "augment.flip_vertical=random", "one character into another"),
        (("向上", "向下"), "augment.flip_vertical=random", "向上 into 向下"),
        (("0", "6", "9"), "augment.rotate=180", "one character into another"),
        (("turn left", "turn right"), "augment.rotate=90", "turn left into turn right"),
        (("up", "down"), "augment.rotate=60", "augment.rotate = 60"),
    ],
)
def test_turning_pictures_against_the_class_names_is_obeyed_with_a_warning(
    names: tuple[str, ...], setting: str, said: str
) -> None:
    recipe = load_recipe("digits", [setting])
    kept, notes = without_mirroring(recipe, names, "x", named_keys("digits", [setting]))
    assert kept.augment == recipe.augment
    (note,) = notes
    assert note.startswith("warning: ")
    assert said in note
    assert setting.partition("=")[0] in note


@pytest.mark.parametrize(
    ("names", "setting"),
    [
        (("left", "right"), "augment.flip_vertical=random"),
        (("cat", "dog", "setup"), "augment.flip_vertical=random"),
        (("0", "6", "9"), "augment.rotate=45"),
        (("clockwise", "counterclockwise"), "augment.rotate=180"),
        (("cat", "dog"), "augment.rotate=180"),
    ],
)
def test_turning_pictures_that_stay_in_their_class_needs_no_warning(
    names: tuple[str, ...], setting: str
) -> None:
    recipe = load_recipe("digits", [setting])
    assert without_mirroring(recipe, names, "x", NOTHING) == (recipe, [])
