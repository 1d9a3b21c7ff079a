"""Find classes whose names say that mirroring or rotating changes them: left and right, digits, letters."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from thumbnet.data.splits import Data
from thumbnet.errors import UnreadableImageError, printable
from thumbnet.recipes.recipe import Recipe
from thumbnet.recipes.tables import by_key

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
_UPSIDE_DOWN = {
    "up": "down",
    "upward": "downward",
    "upwards": "downwards",
    "top": "bottom",
    "upper": "lower",
    "above": "below",
    "oben": "unten",
    "haut": "bas",
    "arriba": "abajo",
    "上": "下",
    "north": "south",
    "northwest": "southwest",
    "northeast": "southeast",
    "n": "s",
    "nw": "sw",
    "ne": "se",
    "clockwise": "counterclockwise",
    "cw": "ccw",
    "b": "p",
    "d": "q",
}
_NOT_BY_ROTATION = {"clockwise", "cw", "b", "d", "p"}  # only a mirror makes the one out of the other
_SAME = {"anticlockwise": "counterclockwise", "acw": "ccw"}
_GLUED = ("left", "right")  # found without a separator as well: turnleft, RIGHTARROW
_GLUED_UPSIDE_DOWN = ("down", "up")
_BY_ROTATION = (
    {one: other for one, other in {**_OPPOSITES, **_UPSIDE_DOWN}.items() if one not in _NOT_BY_ROTATION},
    (*_GLUED, *_GLUED_UPSIDE_DOWN),
)
STEEP = 45  # degrees: an arrow that is rotated by more points somewhere else
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
        The recipe, changed where necessary, and notes for the user: what was changed, and warnings of
        settings that go against the class names.
    """
    notes, flip = [], recipe.augment.flip
    reason = None if flip == "none" else _reason(class_names, source, are_digits)
    if reason and "augment.flip" not in named:
        recipe = replace(recipe, augment=replace(recipe.augment, flip="none"))
        notes.append(f"{reason}, so pictures are not mirrored (augment.flip = none)")
    elif reason:
        notes.append(
            f"warning: {reason}, but pictures are mirrored (augment.flip = {flip}). To leave that out: "
            "--set augment.flip=none"
        )
    if recipe.augment.flip == "none" and recipe.evaluation.tta != "none":
        if "evaluation.tta" not in named:
            recipe = replace(recipe, evaluation=replace(recipe.evaluation, tta="none"))
        else:
            notes.append(shows_mirrored(f"evaluation.tta = {recipe.evaluation.tta}"))
    return recipe, [*notes, *_turned_classes(recipe, class_names, source, are_digits)]


def shows_mirrored(setting: str) -> str:
    """The warning about a test-time augmentation of a network that is trained with ``augment.flip = none``.

    Args:
        setting: how the user set the augmentation, such as ``--tta mirror``.
    """
    return (
        f"warning: {setting} shows mirrored pictures to a network that is trained without them "
        "(augment.flip = none)"
    )


def _turned_classes(
    recipe: Recipe, class_names: Sequence[str], source: str, are_digits: Callable[[], bool]
) -> list[str]:
    """Warnings if pictures are turned although the class names speak against it.

    No recipe of thumbnet flips vertically or rotates, so the user has asked for it and gets it.
    """
    notes, augment = [], recipe.augment
    if augment.flip_vertical == "none" and augment.rotate <= STEEP:
        return []
    characters = _are_characters(class_names, source, are_digits)
    if augment.flip_vertical != "none":
        what = _turned_into(characters, opposite_names(class_names, _UPSIDE_DOWN, _GLUED_UPSIDE_DOWN))
        if what:
            notes.append(
                f"warning: augment.flip_vertical flips pictures top to bottom, which can turn {what}, by the "
                "class names. To leave it out: --set augment.flip_vertical=none"
            )
    if augment.rotate > STEEP:
        what = _turned_into(characters, opposite_names(class_names, *_BY_ROTATION))
        if what:
            notes.append(
                f"warning: augment.rotate = {augment.rotate:g} can turn {what}, by the class names. For "
                "smaller angles: --set augment.rotate=15"
            )
    return notes


def _turned_into(characters: bool, pair: tuple[str, str] | None) -> str:
    """What becomes of which class; empty if nothing does."""
    if characters:
        return "one character into another"
    return f"{printable(pair[0])} into {printable(pair[1])}" if pair else ""


def _both(pair: tuple[str, str]) -> str:
    return f"{printable(pair[0])} and {printable(pair[1])}"


def named_keys(recipe: object, overrides: Sequence[str]) -> frozenset[str]:
    """The keys that the user set, by ``overrides`` or in a TOML file."""
    keys = {assignment.partition("=")[0].strip() for assignment in overrides}
    if isinstance(recipe, str | Path) and Path(recipe).suffix == ".toml":
        try:
            settings = tomllib.loads(Path(recipe).read_text("utf-8-sig"))
        except (OSError, ValueError, RecursionError):
            return frozenset(keys)
        keys |= by_key(settings).keys()
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
    if _are_characters(class_names, source, are_digits):
        return "the classes are characters by their names"
    pair = opposite_names(class_names)
    return None if pair is None else f"{_both(pair)} are mirror images by their names"


def _are_characters(class_names: Sequence[str], source: str, are_digits: Callable[[], bool]) -> bool:
    """Whether the classes are digits or letters by their names. Numbered classes are, if they show digits."""
    if source == "digits":
        return True
    if len(class_names) < FEWEST_CHARACTERS or not all(_is_character(name) for name in class_names):
        return False
    return not all(name.isdecimal() for name in class_names) or are_digits()


def _is_character(name: str) -> bool:
    """Whether ``name`` is a letter, a digit or a number's English name, or has one, as in ``digit_7``."""
    if name.casefold() in _NUMBERS:
        return True
    if len(name) == 1:
        return name.isdigit() or (name.isascii() and name.isalpha())
    parts = re.split(r"[\W_]+", name.casefold())
    words = {"digit", "letter", "number", "char", "character"}
    return len(parts) == 2 and parts[0] in words and (len(parts[1]) == 1 or parts[1] in _NUMBERS)


def opposite_names(
    class_names: Sequence[str],
    opposites: Mapping[str, str] = _OPPOSITES,
    glued: Sequence[str] = _GLUED,
) -> tuple[str, str] | None:
    """The first two class names that differ only by left and right, or by another pair of ``opposites``.

    Words in ``glued`` are found at the beginning or the end of longer words, too.
    """
    seen: dict[tuple[str, ...], str] = {}
    for name in class_names:
        seen.setdefault(tuple(_words(name, opposites, glued)), name)
    for name in class_names:
        words = _words(name, opposites, glued)
        for place, word in enumerate(words):
            other = opposites.get(word)
            partner = seen.get((*words[:place], other, *words[place + 1 :])) if other else None
            if partner is not None:
                return name, partner
        turned = [opposites.get(word, word) for word in words]
        if turned != words and tuple(turned) in seen:
            return name, seen[tuple(turned)]
    return None


def _words(name: str, opposites: Mapping[str, str], glued: Sequence[str]) -> list[str]:
    """Split a name into words: ``turnLeft``, ``turn_left`` and ``turnleft`` all become turn, left."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    sides = "[左右上下]"
    words = []
    for word in re.split(
        rf"[\W_\d]+|(?<={sides})|(?={sides})", spaced.casefold().replace("counter-", "counter")
    ):
        whole = word in opposites or word in opposites.values()
        long = not whole and any(len(word) > len(one) + 2 for one in glued)
        end = next((one for one in glued if long and (word.endswith(one) or word.startswith(one))), None)
        if end is None:
            words.append(_SAME.get(word, word))
        elif word.endswith(end):
            words += [word.removesuffix(end), end]
        else:
            words += [end, word.removeprefix(end)]
    digits = re.sub(r"\D+", " ", name).split()
    return [word for word in words if word] + digits
