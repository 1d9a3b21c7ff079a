"""Find classes whose names say that mirroring changes them: left and right, digits, letters."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from thumbnet.data.splits import Data
from thumbnet.errors import UnreadableImageError, printable
from thumbnet.recipes.recipe import Recipe

_NUMBERS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
]
_OPPOSITES = {
    "left": "right",
    "leftward": "rightward",
    "leftwards": "rightwards",
    "lefthand": "righthand",
    "l": "r",
    "links": "rechts",
    "gauche": "droite",
    "izquierda": "derecha",
    "左": "右",
    "west": "east",
    "northwest": "northeast",
    "southwest": "southeast",
    "w": "e",
    "nw": "ne",
    "sw": "se",
    "clockwise": "counterclockwise",
    "cw": "ccw",
    "b": "d",
    "p": "q",
}
_SAME = {"anticlockwise": "counterclockwise", "acw": "ccw"}
_GLUED = ("left", "right")  # found without a separator as well: turnleft, RIGHTARROW
FEWEST_CHARACTERS = 3  # classes; two classes named a and b need not be letters
LOOKED_AT = 40  # pictures checked for colour
COLOURLESS = 12  # of 255: a pixel is grey if its channels differ by no more than this


def without_mirroring(
    recipe: Recipe,
    class_names: Sequence[str],
    source: str,
    named: frozenset[str],
    are_digits: Callable[[], bool] = lambda: True,
) -> tuple[Recipe, list[str]]:
    """Turn mirroring off if the class names say that it would change the classes.

    This also turns off mirrored views at test time, because the network never saw a mirrored picture.

    Args:
        recipe: the requested recipe.
        class_names: class names of the data.
        source: where the data come from.
        named: keys that the user set; they are kept.
        are_digits: whether classes named 0, 1, 2, ... show these digits, and are not just numbered.

    Returns:
        The recipe, changed where necessary, and notes for the user about the changes.
    """
    notes = []
    if recipe.augment.flip != "none" and "augment.flip" not in named:
        reason = _reason(class_names, source, are_digits)
        if reason:
            recipe = replace(recipe, augment=replace(recipe.augment, flip="none"))
            notes.append(f"{reason}, so pictures are not mirrored (augment.flip = none)")
    if recipe.augment.flip == "none" and recipe.evaluation.tta != "none":
        if "evaluation.tta" not in named:
            recipe = replace(recipe, evaluation=replace(recipe.evaluation, tta="none"))
        else:
            notes.append(
                f"warning: evaluation.tta = {recipe.evaluation.tta} shows mirrored pictures to a network "
                "that is trained without them (augment.flip = none)"
            )
    return recipe, notes


def named_keys(recipe: object, overrides: Sequence[str]) -> frozenset[str]:
    """The keys that the user set, by ``overrides`` or in a TOML file."""
    keys = {assignment.partition("=")[0].strip() for assignment in overrides}
    if isinstance(recipe, str | Path) and Path(recipe).suffix == ".toml":
        try:
            settings = tomllib.loads(Path(recipe).read_text("utf-8"))
        except (OSError, ValueError):
            return frozenset(keys)
        tables = {section: table for section, table in settings.items() if isinstance(table, dict)}
        keys |= {f"{section}.{key}" for section, table in tables.items() for key in table}
    return frozenset(keys)


def show_digits(data: Data) -> bool:
    """Whether pictures of classes named 0, 1, 2, ... show these digits. Grey ones like MNIST's do.

    CIFAR-10 as arrays has such class names, too, but its pictures are in colour. SVHN shows digits in colour;
    its reader identifies it.
    """
    if data.layout.startswith("SVHN"):
        return True
    train = data.splits["train"]
    for index in np.linspace(0, len(train) - 1, LOOKED_AT).round().astype(int):
        try:
            pixels = np.asarray(train.read(int(index))).astype(np.int16)
        except UnreadableImageError:  # reported later with all others
            continue
        spread = pixels.max(axis=2) - pixels.min(axis=2)
        if (spread > COLOURLESS).mean() > 0.05:
            return False
    return True


def _reason(class_names: Sequence[str], source: str, are_digits: Callable[[], bool]) -> str | None:
    if source == "digits":
        return "digits are not the same mirrored"
    if len(class_names) >= FEWEST_CHARACTERS and all(_is_character(name) for name in class_names):
        if not all(name.isdecimal() for name in class_names) or are_digits():
            return "the classes are characters by their names"
        return None
    pair = opposite_names(class_names)
    if pair is not None:
        return f"{printable(pair[0])} and {printable(pair[1])} are mirror images by their names"
    return None


def _is_character(name: str) -> bool:
    """Whether ``name`` is a letter, a digit or a number's English name, or has one, as in ``digit_7``."""
    if name.casefold() in _NUMBERS:
        return True
    if len(name) == 1:
        return name.isdigit() or (name.isascii() and name.isalpha())
    parts = re.split(r"[\W_]+", name.casefold())
    words = {"digit", "letter", "number", "char", "character"}
    return len(parts) == 2 and parts[0] in words and (len(parts[1]) == 1 or parts[1] in _NUMBERS)


def opposite_names(class_names: Sequence[str]) -> tuple[str, str] | None:
    """The first two class names that differ only by left and right, or by a similar pair of words."""
    seen: dict[tuple[str, ...], str] = {}
    for name in class_names:
        seen.setdefault(tuple(_words(name)), name)
    for name in class_names:
        words = _words(name)
        for place, word in enumerate(words):
            other = _OPPOSITES.get(word)
            partner = seen.get((*words[:place], other, *words[place + 1 :])) if other else None
            if partner is not None:
                return name, partner
        turned = [_OPPOSITES.get(word, word) for word in words]
        if turned != words and tuple(turned) in seen:
            return name, seen[tuple(turned)]
    return None


def _words(name: str) -> list[str]:
    """Split a name into words: ``turnLeft``, ``turn_left`` and ``turnleft`` all become turn, left."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = []
    for word in re.split(
        r"[\W_\d]+|(?<=[左右])|(?=[左右])", spaced.casefold().replace("counter-", "counter")
    ):
        glued = next((end for end in _GLUED if len(word) > len(end) + 2 and word not in _OPPOSITES), None)
        glued = next((one for one in _GLUED if glued and (word.endswith(one) or word.startswith(one))), None)
        if glued is None or word in _OPPOSITES.values():
            words.append(_SAME.get(word, word))
        elif word.endswith(glued):
            words += [word.removesuffix(glued), glued]
        else:
            words += [glued, word.removeprefix(glued)]
    digits = re.sub(r"\D+", " ", name).split()
    return [word for word in words if word] + digits
