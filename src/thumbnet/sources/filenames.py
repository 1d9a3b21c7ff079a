"""Find labels in file names: ``0_frog.png``, ``cat.0.jpg``, ``american_bulldog_12.jpg``, or by a pattern."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from thumbnet.data.patterns import compile_pattern
from thumbnet.data.spelling import nfc
from thumbnet.errors import DataError, printable

_TUTORIAL_NAME = re.compile(r"(?P<number>\d+)_(?P<label>.+)\.[^.]+")
_LABEL = r"(?P<label>[^\W\d_](?:.*[^\W_])?)"  # begins with a letter and ends with a letter or digit

# Tried in this order; the first form that fits all names is used.
FORMS = {
    "NUMBER_CLASS": _TUTORIAL_NAME,
    "CLASS.NUMBER": re.compile(_LABEL + r"\.\d+\.[^.]+"),
    "CLASS_NUMBER": re.compile(_LABEL + r"[ _-]+\d+\.[^.]+"),
    "CLASSNUMBER": re.compile(r"(?P<label>[^\W\d_]{3,})\d+\.[^.]+"),
    "CLASS (NUMBER)": re.compile(_LABEL + r"[ _-]*\(\d+\)\.[^.]+"),
}

# Words with which cameras, phones and programs begin file names. They are never classes.
_CAMERA_WORDS = (
    "img image images photo photos picture pic pics dsc dscn dscf pxl mvimg vid video frame file scan "
    "imag gopr screenshot screen sample test train val valid copy untitled whatsapp download unnamed wp "
    "wa camera capture snapshot crop page item data x"
)
_NO_CLASSES = frozenset(_CAMERA_WORDS.split())

KNOWN = "0_cat.png, cat.0.jpg, cat_0.jpg, cat-0.jpg, cat0.jpg, cat (0).jpg"


@dataclass(frozen=True)
class NameLabels:
    """The classes found in file names.

    Attributes:
        form: the form of the names, such as ``CLASS_NUMBER``; empty for a pattern.
        labels: the class of each name.
    """

    form: str
    labels: list[str]


def label_from_name(name: str) -> str:
    """The class in a file name of the tutorial's form: ``12_frog.jpeg`` → ``frog``.

    Raises:
        DataError: the name is not NUMBER_CLASS.SUFFIX.
    """
    match = _TUTORIAL_NAME.fullmatch(name)
    if match is None:
        raise DataError(f"{printable(name)}: expected a name such as 0_frog.png (NUMBER_CLASS.SUFFIX)")
    return match["label"]


def labels_from_names(names: Sequence[str], pattern: str = "") -> NameLabels | None:
    """The classes in file names (without folders), or None if the names follow no known form.

    Args:
        names: the names of all pictures in a training split.
        pattern: a regular expression to use instead of the known forms. The class is its group ``label``,
            else its first group, else the whole match.

    Raises:
        DataError: the pattern or form fits only some names; the message lists some that it does not fit.
    """
    if pattern:
        return NameLabels("", labels_by_pattern(names, pattern))
    partial: tuple[int, str] = (0, "")
    for form, regex in FORMS.items():
        found = [regex.fullmatch(name) for name in names]
        fitting = [match for match in found if match is not None]
        labels = [_tidy(match["label"]) for match in fitting]
        if not _plausible(labels, [match.groupdict().get("number", "") for match in fitting]):
            continue
        if len(fitting) == len(names):
            return NameLabels(form, labels)
        partial = max(partial, (len(fitting), form))
    if 2 * partial[0] > len(names):
        regex = FORMS[partial[1]]
        others = [name for name in names if regex.fullmatch(name) is None]
        raise DataError(
            f"{partial[0]:,} of {len(names):,} names have the form {partial[1]}.*, but not "
            f"{_some(others)}. Rename or remove these, or say where the class is: --label-pattern REGEX"
        )
    return None


def labels_by_pattern(names: Sequence[str], pattern: str) -> list[str]:
    """The class that ``pattern`` finds in each name.

    Raises:
        DataError: the pattern finds no class in some names.
    """
    regex = compile_pattern(pattern, names, "--label-pattern")
    group: str | int = "label" if "label" in regex.groupindex else min(regex.groups, 1)
    matches = [regex.search(name) for name in names]
    labels = [_tidy(match[group] or "") if match else "" for match in matches]
    others = [name for name, label in zip(names, labels, strict=True) if not label]
    if others:
        raise DataError(
            f"--label-pattern {pattern} finds no class in {len(others):,} of {len(names):,} names, such as "
            f"{_some(others)}. Its first group, or its group called label, must match the class"
        )
    return labels


def labels_in_form(names: Sequence[str], form: str, pattern: str) -> list[str | None]:
    """The classes in another split's names, read like those of the training split; None for no class."""
    regex = compile_pattern(pattern, names, "--label-pattern") if pattern else FORMS[form]
    group: str | int = "label" if "label" in regex.groupindex else min(regex.groups, 1)
    find = regex.search if pattern else regex.fullmatch
    found = [find(name) for name in names]
    return [_tidy(match[group] or "") or None if match else None for match in found]


def number_first(path: str) -> tuple[int, str]:
    """A sort key that puts ``2_cat.png`` before ``10_frog.png``."""
    name = path.rpartition("/")[2]
    match = _TUTORIAL_NAME.fullmatch(name)
    return (int(match["number"]) if match else -1, name)


def unrecognised(names: Sequence[str]) -> str:
    """The message that no labels were recognised in these names, and what to do."""
    return (
        f"no labels were recognised in the names of its {len(names):,} pictures, such as {_some(names)}. "
        f"Put the pictures of each class in a folder of its own, name them in a known form ({KNOWN}), or "
        "say where in the name the class is: --label-pattern '^([a-z]+)' takes the letters at the start"
    )


def _tidy(label: str) -> str:
    return nfc(label).strip()


def _plausible(labels: Sequence[str], numbers: Sequence[str]) -> bool:
    """Whether these can be classes: at least two, repeated, and without a camera's words such as IMG."""
    classes = set(labels)
    if len(classes) < 2 or len(classes) == len(labels):
        return False
    if all(label.isdecimal() for label in classes) and len(set(numbers)) < len(numbers):
        return False  # 7_001.png, 7_002.png: the first number repeats, so it is not the picture's number
    if len({re.sub(r"\d+", "#", label) for label in classes}) == 1 and len(re.findall(r"\d+", labels[0])) > 1:
        return False  # input_3_1_7.jpg: any of the numbers could be the class
    words = {re.split(r"[\W\d_]", label, maxsplit=1)[0].casefold() for label in classes}
    return not words & _NO_CLASSES


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(printable(name) for name in sorted(names)[:3])
    return shown + (", ..." if len(names) > 3 else "")
