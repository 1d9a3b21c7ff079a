"""Recognise a split by a folder's name: ``Training``, ``test_set``, ``seg_train``, ``01_valid``."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from thumbnet.data.spelling import nfc
from thumbnet.errors import printable

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
_HEX = re.compile(r"(?<![^\W_])([0-9a-f]+)(?![^\W_])", re.I)  # not next to another letter or digit


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


def _spaced(name: str) -> str:
    """The words of a name in lower case, with spaces between them."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", nfc(name))
    return re.sub(r"\b(hold|held)[ _-]*out", r"\1out", re.sub(r"[\W_]+", " ", spaced.casefold()))


def _words_in(text: str) -> tuple[list[str], list[str]]:
    """The words of a name that stand for splits, and the others."""
    words: list[str] = []
    rest: list[str] = []
    for token in re.findall(r"[^\W\d_]+", text):
        glued = _GLUED.fullmatch(token)
        if token in _WORDS or glued:
            words.append(glued["word"] if glued else token)
            rest += ["set"] if glued else []
        else:
            rest.append(token)
    return words, rest


def split_name(name: str) -> SplitName | None:
    """The split in a folder's name, ignoring case and affixes; None if it names no split or several."""
    text = _spaced(name)
    words, rest = _words_in(text)
    found = {_WORDS[word] for word in words}
    if found == {"train", "val"}:
        found = {"train"}  # train_val, as in VOC
    if len(found) != 1:
        return None
    plain = not rest and not re.search(r"\d", text)
    unusual = tuple(token for token in rest if token not in _AFFIXES)
    rank = 0 if plain else 2 if unusual else 1
    return SplitName(found.pop(), rank, unusual, words[0] in _EITHER)


def is_train_and_val(name: str) -> bool:
    """Whether a name says both train and val, as ``trainval`` and ``train_val`` do."""
    words, _ = _words_in(_spaced(name))
    return "trainval" in words or {"train", "val"} <= {_WORDS[word] for word in words}


def plainer_names(splits: Mapping[str, str]) -> dict[str, str]:
    """Find the names of files or folders whose pictures another one of the same split may have, too.

    ``trainval`` and ``train_mini`` repeat pictures of ``train``. Numbers do not count: ``train_0`` and
    ``train_1`` are parts of one split, and so are ``train-3f2a`` and ``train-4839``. So are names with
    unknown words, such as ``train_a`` and ``train_b``, if no name is plainer.

    Args:
        splits: the split that each name stands for.

    Returns:
        For each of these names, the words of the plainer name.
    """
    words = _without_numbers(splits)
    together: dict[str, set[str]] = {}
    for name, split in splits.items():
        together.setdefault(split, set()).add(words[name])
    plainer: dict[tuple[str, str], str] = {}
    for split, several in together.items():
        known = {text: split_name(text) or SplitName(split, 2, (text,), False) for text in several}
        order = sorted(several, key=lambda text: (known[text].rank, known[text].either, len(text), text))
        for text in order:
            best = order[0]
            if known[text].rank == known[best].rank:
                best = next(one for one in order if known[one].rest == known[text].rest)
            if best != text:
                plainer[split, text] = best
    return {
        name: plainer[split, words[name]] for name, split in splits.items() if (split, words[name]) in plainer
    }


def note_left_out(what: str, example: str, plainer: str) -> str:
    """Say that files are left out because of :func:`plainer_names`, and what to do if they should not be.

    Args:
        what: how many files.
        example: one of them.
        plainer: the plainer name of their split.
    """
    return (
        f"{what} were left out, such as {printable(example)}, because {printable(plainer)!r} is the plainer "
        "name of the split. To join them, give them names that differ only in a number: train_0, train_1"
    )


def _without_numbers(names: Iterable[str]) -> dict[str, str]:
    """The words of each name.

    Parts such as ``3f2a`` are no words but hexadecimal numbers if names that differ only in these parts all
    have them in the same length, and some have a digit there.
    """
    pieces = {name: _HEX.split(name) for name in names}  # every second piece may be a number
    alike: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, found in pieces.items():
        alike[tuple(found[::2])].append(name)
    words = {}
    for same in alike.values():
        columns = list(zip(*(pieces[name] for name in same), strict=True))
        kept = [
            place % 2 == 0 or len(set(map(len, column))) > 1 or not re.search(r"\d", "".join(column))
            for place, column in enumerate(columns)
        ]
        for name in same:
            text = " ".join(piece for piece, keep in zip(pieces[name], kept, strict=True) if keep)
            words[name] = " ".join(re.findall(r"[^\W\d_]+", _spaced(text)))
    return words


def splits_named(name: str) -> frozenset[str]:
    """The splits that a name can stand for: none, one, or ``val`` and ``test`` for a name such as ``eval``.

    Names with other words in them, such as ``train_station``, stand for none.
    """
    found = split_name(name)
    if found is None or found.rank == 2:
        return frozenset()
    return frozenset(("val", "test")) if found.either else frozenset((found.split,))
