"""Convert the labels in a table or shard, integers or words, to indices into a list of class names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from thumbnet.errors import DataError, printable
from thumbnet.sources.spelling import name_key, nfc

MOST_CLASSES = 20_000


def as_class(value: object) -> str | int | None:
    """Convert a table's cell to a label: an integer, a word, or None if it holds no label.

    Booleans, whole floats and decimal strings without leading zeros become integers. Lists and other types
    give None.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        word = value.strip()
        return int(word) if re.fullmatch(r"0|-?[1-9]\d{0,17}", word, re.ASCII) else word or None
    if isinstance(value, float | np.floating):
        return int(value) if float(value).is_integer() else None
    return int(value) if isinstance(value, bool | int | np.integer | np.bool_) else None


def one_spelling(labels: Mapping[str, Iterable[str | int]]) -> tuple[dict[str, str], list[str]]:
    """Find labels that are the same but for their spelling, as for class folders.

    A label is the same in both Unicode forms. One of another split that train lacks is train's if they differ
    only in case. Within train, such labels stay different.

    Args:
        labels: the labels of each split, without outer spaces.

    Returns:
        How to spell each word that has to be spelt differently, and notes.
    """
    words = {split: {one for one in found if isinstance(one, str)} for split, found in labels.items()}
    respelt = {word: plain for word in set().union(*words.values()) if (plain := nfc(word)) != word}
    by_key: dict[str, list[str]] = {}
    for word in sorted({respelt.get(word, word) for word in words.get("train", ())}):
        by_key.setdefault(name_key(word), []).append(word)
    notes = []
    alike = [same for same in by_key.values() if len(same) > 1]
    if alike:
        shown = ", ".join(" and ".join(repr(printable(word)) for word in same) for same in alike[:3])
        notes.append(
            f"{sum(map(len, alike))} classes differ only in upper and lower case, but stay different: {shown}"
        )
    for split in (split for split in words if split != "train"):
        found = {}
        for word in sorted(words[split]):
            plain = respelt.get(word, word)
            same = by_key.get(name_key(plain), [])
            if len(same) == 1 and plain not in same:
                found[word] = same[0]
        if found:
            first, second = next(iter(found.items()))
            notes.append(
                f"{split}: {len(found)} label(s) are spelt differently from train's but taken as the same "
                f"classes: {printable(first)!r} is {printable(second)!r}"
            )
            respelt |= found
    return respelt, notes


class Numbered(NamedTuple):
    """Class names, the labels of each split (int64 [N]), and notes."""

    class_names: tuple[str, ...]
    labels: dict[str, np.ndarray]
    notes: list[str]


def number_classes(
    values: Mapping[str, Sequence[str | int]], where: str, names: Sequence[str] = ()
) -> Numbered:
    """Convert labels to indices into a list of class names.

    Args:
        values: for each split, the labels from :func:`as_class`, without None.
        where: what messages call the data, printable.
        names: the names that integer labels stand for, if the data have a list of them.

    Returns:
        Classes in the order of ``names``, otherwise integers by value and then words alphabetically. Classes
        without training pictures are left out.

    Raises:
        DataError: ``names`` has no name for a label, train lacks a label of another split, or nearly every
            picture has a label of its own.
    """
    respelt, notes = one_spelling(values)
    if respelt:
        values = {
            split: [respelt.get(value, value) if isinstance(value, str) else value for value in part]
            for split, part in values.items()
        }
    train = values["train"]
    known = set(train)
    found = {value for part in values.values() for value in part}
    whole = all(isinstance(value, int) for value in found)
    if whole and names:
        beyond = [value for value in found if isinstance(value, int) and not 0 <= value < len(names)]
        if beyond:
            raise DataError(
                f"{where}: there are labels such as {beyond[0]}, but only {len(names)} class names"
            )
    stray = sorted(printable(str(value)) for value in found - known)
    if stray:
        raise DataError(f"{where}: train has no pictures of {', '.join(stray[:10])}, but another split does")
    ordered: list[str | int] = sorted(known, key=lambda value: (isinstance(value, str), value))
    if names and known <= set(names):
        ordered = [name for name in names if name in known]
    if len(ordered) > MOST_CLASSES or (len(train) > 20 and len(ordered) > 0.9 * len(train)):
        raise DataError(
            f"{where} has {len(ordered):,} different labels for {len(train):,} pictures, such as "
            f"{printable(str(train[0]))[:60]!r}: these look like captions or picture numbers, not classes"
        )
    position = {value: number for number, value in enumerate(ordered)}
    labels = {split: np.array([position[v] for v in part], dtype=np.int64) for split, part in values.items()}
    classes = tuple(names[v] if names and isinstance(v, int) and whole else str(v) for v in ordered)
    if names and len(classes) < len(names):
        notes.append(f"{len(names) - len(classes)} of the {len(names)} classes have no training pictures")
    return Numbered(classes, labels, notes)
