"""Read data sets that come with lists of the pictures in each split and of their classes.

```text
CUB-200:  images.txt, image_class_labels.txt, train_test_split.txt, classes.txt, images/CLASS/*.jpg
others:   train.txt, test.txt (and val.txt), here or in meta/, labels/, annotations/, splits/ or data/;
          a line is PATH, PATH CLASS or CLASS PATH, where PATH may lack the suffix: Food-101, pets, DTD,
          Aircraft; or PATH 0 1 1 with a 0 or 1 (or -1 or 1) for each of several labels
```
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from thumbnet.data.multilabel import MultiLabelSplit
from thumbnet.data.reading import inside, is_file
from thumbnet.data.spelling import nfc
from thumbnet.data.splits import Data, Split
from thumbnet.errors import DataError, printable
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources.arrays import class_labels
from thumbnet.sources.index import is_picture_name
from thumbnet.sources.label_matrices import label_matrices
from thumbnet.sources.labels import as_class, number_classes
from thumbnet.sources.place import Place
from thumbnet.sources.split_names import SPLITS, split_name
from thumbnet.sources.tiny_imagenet import read_lines
from thumbnet.sources.tree import join

_CUB = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
_LIST_FOLDERS = ("", "meta", "labels", "annotations", "splits", "lists", "data")
_PICTURE_FOLDERS = ("", "images", "data/images", "image", "jpg", "data")
_THERE = 0.9  # share of the pictures in train's list that must exist
_MAX_LIST = 100_000_000  # bytes


class _Line(NamedTuple):
    """A line of a list: a path, the picture that it names, and the rest of the line, whole and in columns."""

    path: str
    picture: str
    label: str = ""
    columns: tuple[str, ...] = ()


@dataclass
class _Found:
    """What lists say about the pictures that exist.

    Attributes:
        paths: the pictures of each split.
        classes: the class of each picture, unless pictures have several labels.
        several: if they do, a row of zeros and ones for each picture.
        missing, unlabelled: how many pictures do not exist, or have no label.
        notes: what the user should know.
    """

    paths: dict[str, list[str]] = field(default_factory=dict)
    classes: dict[str, list[str | int]] = field(default_factory=dict)
    several: dict[str, np.ndarray] = field(default_factory=dict)
    missing: int = 0
    unlabelled: int = 0
    notes: list[str] = field(default_factory=list)


def recognise(place: Place, settings: DataSettings) -> bool:
    """Whether there are CUB-200's files, or lists and at least 90% of the pictures in that of train."""
    try:
        if all(is_file(place.path / name) for name in _CUB):
            return True
        lists = _lists(place.path, settings.label_column)
        if "train" not in lists:
            return False
        known = _Pictures(place.index().pictures_below(""))
        lines = [_line(text, known) for text in read_lines(lists["train"]) if text.strip()]
        found = [line for line in lines if line is not None]
        there = len(found) >= _THERE * len(lines)
        return there and len({line.label or _folder(line) for line in found} - {""}) > 1
    except DataError:
        return False


def read(place: Place, source: str, settings: DataSettings) -> Data:
    """Read the pictures that the lists name.

    Raises:
        DataError: a list is damaged, it is unclear which of several numbers is the class, or another split
            has classes that train lacks.
    """
    index = place.index()
    known = _Pictures(index.pictures_below(""))
    if all(is_file(place.path / name) for name in _CUB):
        found = _read_cub(place.path, known)
        shape = "CUB-200's lists"
    else:
        lists = _lists(place.path, settings.label_column)
        found = _read_lists(lists, known)
        names = [os.path.relpath(path, place.path) for path in lists.values()]
        shape = f"lists of pictures: {', '.join(names)}"
    paths, where = found.paths, printable(source)
    if not paths.get("train"):
        raise DataError(f"{printable(str(place.path))}: none of the pictures in its list for train exist")
    several = label_matrices(found.several, None, settings.multilabel, where) if found.several else None
    notes: list[str] = []
    if several is not None:
        class_names, matrices = several
        labels = {split: np.zeros(len(matrix), dtype=np.int64) for split, matrix in matrices.items()}
        shape += ", several labels per picture"
    elif found.several:  # a single 1 in each line
        class_names, labels = class_labels(found.several, None, where, notes)
    else:
        class_names, labels, notes = number_classes(found.classes, where)
    notes += found.notes
    if found.missing:
        notes.append(f"warning: {found.missing:,} picture(s) in the lists do not exist")
    if known.unclear:
        name, pictures = next(iter(known.unclear.items()))
        notes.append(
            f"warning: {len(known.unclear):,} name(s) in the lists fit several pictures, of which the last "
            f"is taken, such as {printable(pictures[-1])} for {printable(name)}. Write the suffixes "
            "into the lists"
        )
    unlisted = len(index.pictures_below("")) - sum(map(len, paths.values())) - found.unlabelled
    if unlisted > 0:
        notes.append(f"skipped {unlisted:,} picture(s) that no list names")
    index.keep()
    splits: dict[str, Split] = {
        split: index.split(paths[split], labels[split]) for split in paths if paths[split]
    }
    if several is not None:
        splits = {split: MultiLabelSplit(one, matrices[split]) for split, one in splits.items()}
    return Data(source, printable(shape), class_names, splits, tuple(notes))


def _read_cub(root: Path, known: _Pictures) -> _Found:
    table = {name: _numbered(root / name) for name in _CUB}
    files, class_of, in_train, classes = (table[name] for name in _CUB)
    paths: dict[str, list[str]] = {"train": [], "test": []}
    values: dict[str, list[str | int]] = {"train": [], "test": []}
    missing = 0
    for number, path in files.items():
        if class_of.get(number) not in classes or number not in in_train:
            raise DataError(f"{printable(str(root))}: picture {printable(number)} has no class or no split")
        found = known.find(path)
        if found is None:
            missing += 1
            continue
        split = "train" if in_train[number] == "1" else "test"
        paths[split].append(found)
        values[split].append(re.sub(r"^\d+\.", "", classes[class_of[number]]))
    return _Found(paths, values, missing=missing)


def _numbered(path: Path) -> dict[str, str]:
    """Read lines such as ``17 001.Black_footed_Albatross/Black_footed_Albatross_0046_18.jpg``."""
    lines = (line.strip().partition(" ") for line in read_lines(path) if line.strip())
    return {number: rest.strip() for number, _, rest in lines}


def _read_lists(lists: Mapping[str, Path], known: _Pictures) -> _Found:
    found = _Found()
    lines: dict[str, list[_Line]] = {}
    for split, path in lists.items():
        read = [_line(text, known) for text in read_lines(path) if text.strip()]
        lines[split] = [line for line in read if line is not None]
        found.missing += len(read) - len(lines[split])
    labelled = any(line.label for line in lines["train"])
    in_train = {line.label or _folder(line) for line in lines["train"]}
    for split, part in lines.items():
        kept = [line for line in part if line.label or (not labelled and _folder(line))]
        if not any(line.label or _folder(line) in in_train for line in kept):
            kept = []
        name, left_out = printable(lists[split].name), len(part) - len(kept)
        if part and not kept:
            found.notes.append(
                f"{name} has no labels, so its {left_out:,} picture(s), such as "
                f"{printable(part[0].picture)}, are not used as {split}"
            )
        elif left_out:
            found.notes.append(f"{name}: skipped {left_out:,} picture(s) without a label")
        lines[split] = kept
        found.paths[split] = [line.picture for line in kept]
        found.unlabelled += left_out
    lines = {split: part for split, part in lines.items() if part}
    every = [line for part in lines.values() for line in part]
    kind = _kind(every, lists["train"])
    if kind == "several":
        found.several = {
            split: np.array([[int(number == "1") for number in line.columns] for line in part])
            for split, part in lines.items()
        }
        return found
    if kind == "first":
        lines = {
            split: [line._replace(label=line.columns[0]) for line in part] for split, part in lines.items()
        }
    words = _words([line for part in lines.values() for line in part])
    for split, part in lines.items():
        classes = [line.label or _folder(line) for line in part]
        found.classes[split] = [words.get(name) or as_class(name) or 0 for name in classes]
    return found


def _kind(lines: Sequence[_Line], path: Path) -> str:
    """What several columns after a picture's path mean; empty if there is only one.

    They are ``several`` labels if all are 0 and 1, or -1 and 1. If the ``first`` decides the others, it is
    the class: in Oxford's pets, two more numbers give its species and its breed.

    Raises:
        DataError: it is unclear which of them is the class.
    """
    rows = [line.columns for line in lines]
    odd = next((line for line in lines if len(line.columns) > 1), None)
    if odd is None:
        return ""
    values = {column for row in rows for column in row}
    if len({len(row) for row in rows}) == 1:
        if values <= {"0", "1"} or values <= {"-1", "1"}:
            return "several"
        if len({row[0] for row in rows}) == len(set(rows)) <= len(rows) // 2:
            return "first"
    raise DataError(
        f"{printable(str(path))}: the lists have several columns after the path, such as "
        f"{printable(odd.label[:60])!r} for {printable(odd.path)}, and it is unclear which is the class. "
        "Keep only the class, or write a CSV file with a header and name its column: --label-column NAME"
    )


def _words(lines: Sequence[_Line]) -> dict[str, str]:
    """Names for numeric labels, from folders or file names if these match the labels one to one."""
    for name_of in (_folder, lambda line: re.sub(r"[_-]?\d+$", "", line.path.rpartition("/")[2])):
        pairs = {(line.label, name_of(line)) for line in lines}
        labels, names = Counter(label for label, _ in pairs), Counter(name for _, name in pairs)
        fits = max(labels.values(), default=2) == 1 and max(names.values(), default=2) == 1
        if fits and "" not in names and all(label.isdigit() for label in labels):
            return dict(pairs)
    return {}


def _folder(line: _Line) -> str:
    return line.path.rpartition("/")[0].rpartition("/")[2]


def _line(text: str, known: _Pictures) -> _Line | None:
    """Parse a line of a list; None if its picture does not exist."""
    text = text.strip()
    picture = known.find(text)
    if picture:
        return _Line(text.removeprefix("./"), picture)
    first = re.split("[\t, ]", text, maxsplit=1)[0]
    separator, rest = text[len(first) : len(first) + 1], text[len(first) + 1 :].strip()
    if is_picture_name(rest.rpartition("/")[2]) and (picture := known.find(rest)):
        return _Line(rest.removeprefix("./"), picture, first, (first,))
    picture = known.find(first)
    if picture is None:
        return None
    if re.fullmatch(r"-?\d+([\s,;]+-?\d+)*", rest, re.ASCII):
        columns = re.split(r"[\s,;]+", rest)
    else:
        columns = rest.split(separator) if separator in (",", "\t") else [rest]
    return _Line(first.removeprefix("./"), picture, rest, tuple(column.strip() for column in columns))


class _Pictures:
    """The pictures that lists can name, with or without suffix, from one of the usual folders.

    A name may be in another Unicode form than the picture's, unless a picture has that very name.

    Attributes:
        unclear: the names that fit several pictures, each with those pictures. The last one is taken.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._whole = {path.replace(os.sep, "/"): path for path in paths}
        self._by_form = {nfc(path): path for path in self._whole}
        self._by_stem: dict[str, str] = {}
        self._alike: dict[str, list[str]] = {}  # pictures that differ only in their suffix
        self.unclear: dict[str, list[str]] = {}
        for form, path in self._by_form.items():
            stem = _stem(form)
            if stem in self._by_stem:
                self._alike.setdefault(stem, [self._by_stem[stem]]).append(path)
            self._by_stem[stem] = path

    def find(self, path: str) -> str | None:
        """The picture of this path, else one that has another suffix; None if there is none."""
        path = path.removeprefix("./")
        for folder in _PICTURE_FOLDERS:
            if (whole := join(folder, path)) in self._whole:
                return self._whole[whole]
        form = nfc(path)
        for folder in _PICTURE_FOLDERS:
            if (whole := join(folder, form)) in self._by_form:
                return self._whole[self._by_form[whole]]
        for folder in _PICTURE_FOLDERS:
            for stem in (join(folder, form), join(folder, _stem(form))):
                if stem in self._by_stem:
                    if stem in self._alike:
                        self.unclear[path] = self._alike[stem]
                    return self._whole[self._by_stem[stem]]
        return None


def _stem(path: str) -> str:
    stem, suffix = os.path.splitext(path)
    return stem if re.fullmatch(r"\.[A-Za-z]\w{1,4}", suffix) else path


def _lists(root: Path, word: str) -> dict[str, Path]:
    """The list of each split, all from one folder. The plainest name wins, such as ``train.txt``.

    Args:
        word: only lists with this in their names count: ``family`` selects ``images_family_train.txt``.
    """
    for folder in _LIST_FOLDERS:
        chosen: dict[str, Path] = {}
        rank: dict[str, tuple[int, str]] = {}
        for path in inside(root / folder):
            found = split_name(path.stem) if path.suffix == ".txt" else None
            if not found or word not in path.stem or not is_file(path) or path.stat().st_size > _MAX_LIST:
                continue
            if (found.rank, path.name) < rank.get(found.split, (9, "")):
                chosen[found.split], rank[found.split] = path, (found.rank, path.name)
        if "train" in chosen:
            return {split: chosen[split] for split in SPLITS if split in chosen}
    return {}
