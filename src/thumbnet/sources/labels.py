"""Convert the labels in a table or shard, integers or words, to indices into a list of class names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple

import numpy as np

from thumbnet.data.spelling import name_key, nfc
from thumbnet.errors import DataError, printable
from thumbnet.invocation import quoted

MOST_CLASSES = 20_000
MAY_MEAN_NOTHING = frozenset(("NA", "N/A", "n/a", "#N/A", "<NA>", "NULL", "null"))
"""What other programs write where nothing is known. These may also be names: NA is Namibia."""
_WHOLE = re.compile(r"(0|-?[1-9]\d{0,38})(?:\.0*)?", re.ASCII)
_COUNTED = re.compile(r"\d{1,40}(\.0*)?", re.ASCII)
_MINUS_ONE = ("-1", "-1.0")
NUMBER = re.compile(r"[+-]?(?=.{1,40}$)(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,2})?", re.ASCII)


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


def one_spelling(labels: Mapping[str, Collection[str | int]]) -> tuple[dict[str, str], list[str]]:
    """Find labels that are the same but for their spelling, as for class folders.

    A label is the same in both Unicode forms. One of another split that train lacks is train's if they differ
    only in case. Within train, such labels stay different.

    Args:
        labels: the labels of each split, without outer spaces, each as often as it occurs.

    Returns:
        How to spell each word that has to be spelt differently, and notes, also about words that may mean
        that there is no label.
    """
    words = {split: {one for one in found if isinstance(one, str)} for split, found in labels.items()}
    respelt = {word: plain for word in set().union(*words.values()) if (plain := nfc(word)) != word}
    by_key: dict[str, list[str]] = {}
    for word in sorted({respelt.get(word, word) for word in words.get("train", ())}):
        by_key.setdefault(name_key(word), []).append(word)
    nothing = Counter(one for found in labels.values() for one in found if one in MAY_MEAN_NOTHING)
    notes = [
        f"warning: {count:,} label(s) are {word}, which is taken for a class. If it means that nothing is "
        "known, leave these labels empty"
        for word, count in nothing.items()
    ]
    notes += notes_on_minus_one(Counter(str(one) for found in labels.values() for one in found))
    alike = [same for same in by_key.values() if len(same) > 1]
    if alike:
        shown = ", ".join(" and ".join(repr(printable(word)) for word in same) for same in alike[:3])
        notes.append(
            f"{sum(map(len, alike))} classes differ only in case or spaces, but stay different: {shown}"
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


def notes_on_minus_one(counts: Mapping[str, int]) -> list[str]:
    """A warning if -1 is a class next to numbers from 0 on, where it may mean that there is no label.

    Args:
        counts: how often each label occurs.
    """
    others = [label for label in counts if label not in _MINUS_ONE]
    if len(others) == len(counts) or len(others) < 2 or not all(map(_COUNTED.fullmatch, others)):
        return []
    count = sum(counts[label] for label in _MINUS_ONE if label in counts)
    return [
        f"warning: {count:,} label(s) are -1, which is taken for a class. If it means that nothing is known, "
        "leave these pictures out"
    ]


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


def are_quantities(labels: Collection[str]) -> bool:
    """Whether all labels are numbers, and some have fractions, as weights and angles have."""
    return all(map(NUMBER.fullmatch, labels)) and any(map(_has_fraction, labels))


def _has_fraction(number: str) -> bool:
    exact = Decimal(number)
    return exact != exact.to_integral_value()


def class_names(labels: Iterable[str]) -> dict[str, str]:
    """Map each label to the name of its class, in class order.

    Whole numbers are ordered by value, and ``2`` and ``2.0`` are one class. If any label is something else,
    such as a word, ``007``, ``+1`` or ``1E2``, all labels are ordered as text.

    Raises:
        DataError: the labels are numbers with fractions, which are quantities rather than classes.
    """
    found = sorted(set(labels) - {""})
    text = {label: label for label in found}
    if any(re.match(r"-?0\d", label) for label in found):
        return text
    if are_quantities(found):
        odd = next(label for label in found if _has_fraction(label))
        raise DataError(
            f"the labels are numbers with fractions, such as {odd}: thumbnet learns classes, not quantities"
        )
    whole = {label: _WHOLE.fullmatch(label) for label in found}
    # A float would make one class of two long identifiers that differ in their last digits.
    numbers = {label: int(number[1]) for label, number in whole.items() if number}
    if len(numbers) < len(found):
        return text
    return {label: str(numbers[label]) for label in sorted(found, key=lambda label: numbers[label])}


def in_class_order(names: Mapping[str, str]) -> tuple[list[str], dict[str, int]]:
    """The class names in order, and each label's position in them, from the result of :func:`class_names`."""
    order = list(dict.fromkeys(names.values()))
    at = {name: position for position, name in enumerate(order)}
    return order, {label: at[name] for label, name in names.items()}


def are_whole_numbers(names: Iterable[str]) -> bool:
    """Whether all names of classes are whole numbers, so that another column may have words for them."""
    return all(map(_WHOLE.fullmatch, names))


def named_numbers(pairs: Collection[tuple[str, str]], order: Sequence[str]) -> tuple[str, ...]:
    """Names for classes that are whole numbers, in their ``order``.

    They are empty unless each number occurs with one word, and each word with one number.

    Args:
        pairs: the different pairs of a class and a word that occur together.
    """
    title = dict(pairs)
    one_to_one = len(title) == len(pairs) == len(set(title.values())) and set(title) == set(order)
    words = all(re.search(r"[^\W\d_]", word) for word in title.values())
    return tuple(title[name] for name in order) if one_to_one and words else ()


def note_on_titles(column: str, label: str) -> str:
    """Where the names of classes come from if the numbers in the column ``label`` are not taken."""
    return (
        f"class names come from the column {printable(column)!r}; "
        f"to keep the numbers: --label-column {quoted(label)}"
    )


def lacking_help(split: str) -> str:
    """What to do if ``split`` has classes or labels that ``train`` lacks."""
    return f"Move pictures of them to train, or remove them from {split}"


def check_in_train(labels: Mapping[str, Iterable[str]], names: Mapping[str, str], source: str) -> None:
    """Refuse classes of other splits that train lacks.

    Args:
        labels: the labels of each split.
        names: the class of each label, from :func:`class_names`.
        source: what the user named.

    Raises:
        DataError: a split has such classes. The message names them.
    """
    classes = {split: {names[label] for label in found} for split, found in labels.items()}
    in_train = classes.get("train", set())
    for split, found in classes.items():
        stray = sorted(found - in_train)
        if stray and in_train:
            raise DataError(
                f"{source}: {split} has classes that train lacks: {', '.join(map(printable, stray[:20]))}. "
                f"{lacking_help(split)}"
            )
