"""Recognise a split by a folder's name: ``Training``, ``test_set``, ``seg_train``, ``01_valid``."""

from __future__ import annotations

import re
from typing import NamedTuple

from thumbnet.sources.spelling import nfc

SPLITS = ("train", "val", "test")
_WORDS = {
    "train": "train",
    "training": "train",
    "trn": "train",
    "trainval": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "validate": "val",
    "dev": "val",
    "development": "val",
    "test": "test",
    "testing": "test",
    "tst": "test",
    "eval": "test",
    "evaluation": "test",
    "holdout": "test",
    "heldout": "test",
}
_EITHER = frozenset({"eval", "evaluation", "holdout", "heldout"})  # val if there is another test folder
_AFFIX = (
    "set|sets|data|dataset|image|images|img|imgs|picture|pictures|pic|pics|photo|photos|folder|split|"
    "seg|cls|jpg|jpeg|png|raw|resized|cropped|small|full|final|labeled|labelled|my|the|list|lists"
)
_AFFIXES = frozenset(_AFFIX.split("|"))
_GLUED = re.compile(rf"(?P<word>{'|'.join(_WORDS)})(?:{_AFFIX})")


class SplitName(NamedTuple):
    """The split that a folder's name stands for.

    Attributes:
        split: ``train``, ``val`` or ``test``.
        rank: 0 for a plain word such as ``Testing``, 1 with a common affix (``test_set``, ``01_test``), 2
            with other words (``test-multiple_fruits``), which is not enough to make the folder a split.
        rest: the other words.
        either: whether the split becomes ``val`` if another folder is ``test``, as for ``eval``.
    """

    split: str
    rank: int
    rest: tuple[str, ...]
    either: bool


def split_name(name: str) -> SplitName | None:
    """The split in a folder's name, ignoring case and affixes; None if it names no split or several."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", nfc(name))
    text = re.sub(r"\b(hold|held)[ _-]*out", r"\1out", re.sub(r"[\W_]+", " ", spaced.casefold()))
    words: list[str] = []
    rest: list[str] = []
    for token in re.findall(r"[^\W\d_]+", text):
        glued = _GLUED.fullmatch(token)
        if token in _WORDS or glued:
            words.append(glued["word"] if glued else token)
            rest += ["set"] if glued else []
        else:
            rest.append(token)
    found = {_WORDS[word] for word in words}
    if found == {"train", "val"}:
        found = {"train"}  # train_val, as in VOC
    if len(found) != 1:
        return None
    plain = not rest and not re.search(r"\d", text)
    unusual = tuple(token for token in rest if token not in _AFFIXES)
    rank = 0 if plain else 2 if unusual else 1
    return SplitName(found.pop(), rank, unusual, words[0] in _EITHER)


def splits_named(name: str) -> frozenset[str]:
    """The splits that a name can stand for: none, one, or ``val`` and ``test`` for a name such as ``eval``.

    Names with other words in them, such as ``train_station``, stand for none.
    """
    found = split_name(name)
    if found is None or found.rank == 2:
        return frozenset()
    return frozenset(("val", "test")) if found.either else frozenset((found.split,))
