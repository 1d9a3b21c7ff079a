"""Read data sets that come with lists of the pictures in each split and of their classes.

```text
CUB-200:  images.txt, image_class_labels.txt, train_test_split.txt, classes.txt, images/CLASS/*.jpg
others:   train.txt, test.txt (and val.txt), here or in meta/, labels/, annotations/, splits/ or data/;
          a line is PATH, or PATH CLASS, where PATH may lack the suffix: Food-101, pets, DTD, Aircraft
```
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from thumbnet.data.reading import inside, is_file
from thumbnet.data.splits import Data
from thumbnet.errors import DataError, printable
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources.labels import as_class, number_classes
from thumbnet.sources.place import Place
from thumbnet.sources.split_names import SPLITS, split_name
from thumbnet.sources.tiny_imagenet import read_lines

_CUB = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
_LIST_FOLDERS = ("", "meta", "labels", "annotations", "splits", "lists", "data")
_PICTURE_FOLDERS = ("", "images", "data/images", "image", "jpg", "data")
_THERE = 0.9  # share of the pictures in train's list that must exist
_MAX_LIST = 100_000_000  # bytes


class _Line(NamedTuple):
    """A line of a list: a picture's path, possibly without suffix, and its class or an empty string."""

    path: str
    label: str


def recognise(place: Place, settings: DataSettings) -> bool:
    """Whether there are CUB-200's files, or lists and at least 90% of the pictures in that of train."""
    try:
        if all(is_file(place.path / name) for name in _CUB):
            return True
        lists = _lists(place.path, settings.label_column)
        if "train" not in lists:
            return False
        known = _by_stem(place.index().pictures_below(""))
        lines = [_line(text, known) for text in read_lines(lists["train"]) if text.strip()]
        found = [line for line in lines if line is not None]
        there = len(found) >= _THERE * len(lines)
        return there and len({_class_of(line) for line in found} - {""}) > 1
    except DataError:
        return False


def read(place: Place, source: str, settings: DataSettings) -> Data:
    """Read the pictures that the lists name.

    Raises:
        DataError: a list is damaged, or another split has classes that train lacks.
    """
    index = place.index()
    known = _by_stem(index.pictures_below(""))
    if all(is_file(place.path / name) for name in _CUB):
        paths, values, missing = _read_cub(place.path, known)
        shape = "CUB-200's lists"
    else:
        lists = _lists(place.path, settings.label_column)
        paths, values, missing = _read_lists(lists, known)
        names = [os.path.relpath(path, place.path) for path in lists.values()]
        shape = f"lists of pictures: {', '.join(names)}"
    if not values.get("train"):
        raise DataError(f"{printable(str(place.path))}: none of the pictures in its list for train exist")
    class_names, labels, notes = number_classes(values, printable(source))
    if missing:
        notes.append(f"warning: {missing:,} picture(s) in the lists do not exist")
    unlisted = len(index.pictures_below("")) - sum(map(len, paths.values()))
    if unlisted > 0:
        notes.append(f"skipped {unlisted:,} picture(s) that no list names")
    index.keep()
    return Data(
        source,
        printable(shape),
        class_names,
        {split: index.split(paths[split], labels[split]) for split in paths if paths[split]},
        tuple(notes),
    )


Found = tuple[dict[str, list[str]], dict[str, list[str | int]], int]
"""Paths by split, classes by split, and how many pictures do not exist."""


def _read_cub(root: Path, known: Mapping[str, str]) -> Found:
    table = {name: _numbered(root / name) for name in _CUB}
    files, class_of, in_train, classes = (table[name] for name in _CUB)
    paths: dict[str, list[str]] = {"train": [], "test": []}
    values: dict[str, list[str | int]] = {"train": [], "test": []}
    missing = 0
    for number, path in files.items():
        if class_of.get(number) not in classes or number not in in_train:
            raise DataError(f"{printable(str(root))}: picture {printable(number)} has no class or no split")
        found = _find(path, known)
        if found is None:
            missing += 1
            continue
        split = "train" if in_train[number] == "1" else "test"
        paths[split].append(found)
        values[split].append(re.sub(r"^\d+\.", "", classes[class_of[number]]))
    return paths, values, missing


def _numbered(path: Path) -> dict[str, str]:
    """Read lines such as ``17 001.Black_footed_Albatross/Black_footed_Albatross_0046_18.jpg``."""
    lines = (line.strip().partition(" ") for line in read_lines(path) if line.strip())
    return {number: rest.strip() for number, _, rest in lines}


def _read_lists(lists: Mapping[str, Path], known: Mapping[str, str]) -> Found:
    paths: dict[str, list[str]] = {}
    lines: dict[str, list[_Line]] = {}
    missing = 0
    for split, path in lists.items():
        found = [_line(text, known) for text in read_lines(path) if text.strip()]
        lines[split] = [line for line in found if line is not None]
        paths[split] = [known_path for line in lines[split] if (known_path := _find(line.path, known))]
        missing += len(found) - len(lines[split])
    words = _words([line for part in lines.values() for line in part])
    values = {
        split: [words.get(_class_of(line)) or as_class(_class_of(line)) or 0 for line in part]
        for split, part in lines.items()
    }
    return paths, values, missing


def _words(lines: Sequence[_Line]) -> dict[str, str]:
    """Names for numeric labels, from folders or file names if these match the labels one to one."""
    for name_of in (_folder, lambda line: re.sub(r"[_-]?\d+$", "", line.path.rpartition("/")[2])):
        pairs = {(line.label, name_of(line)) for line in lines}
        labels, names = Counter(label for label, _ in pairs), Counter(name for _, name in pairs)
        fits = max(labels.values(), default=2) == 1 and max(names.values(), default=2) == 1
        if fits and "" not in names and all(label.isdigit() for label in labels):
            return dict(pairs)
    return {}


def _class_of(line: _Line) -> str:
    return line.label or _folder(line)


def _folder(line: _Line) -> str:
    return line.path.rpartition("/")[0].rpartition("/")[2]


def _line(text: str, known: Mapping[str, str]) -> _Line | None:
    """Parse a line of a list; None if its picture does not exist."""
    text = text.strip()
    if _find(text, known):
        return _Line(text.removeprefix("./"), "")
    path, _, rest = re.sub(r"[\t, ]", " ", text, count=1).partition(" ")
    rest = rest.strip()
    numbers = re.fullmatch(r"(\d+)(\s+-?\d+)*", rest)
    label = numbers[1] if numbers else rest
    return _Line(path.removeprefix("./"), label) if _find(path, known) else None


def _find(path: str, known: Mapping[str, str]) -> str | None:
    """The picture that a list calls ``path``, with or without suffix, in one of the usual folders."""
    stem = _stem(path.removeprefix("./"))
    for folder in _PICTURE_FOLDERS:
        for each in (f"{folder}/{path}" if folder else path, f"{folder}/{stem}" if folder else stem):
            if each in known:
                return known[each]
    return None


def _by_stem(paths: Sequence[str]) -> dict[str, str]:
    """The paths of pictures by path without suffix."""
    return {_stem(path.replace(os.sep, "/")): path for path in paths}


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
