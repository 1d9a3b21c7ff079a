"""A folder of pictures, in any of the shapes that people have them, recognised by itself.

train/CLASS/*  with test/CLASS/* and/or val/CLASS/*
CLASS/*        alone: a test split is set aside
train/NUMBER_CLASS.png  with test/ and labels.txt: the tutorial's
cifar-10-batches-bin/, cifar-10-batches-py/, ...: see cifar.py
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from thumbnet.data import plugins
from thumbnet.data.splits import Data, Split
from thumbnet.errors import DataError, printable
from thumbnet.recipe import DataSettings
from thumbnet.sources.index import Index
from thumbnet.sources.place import Place

_SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_TUTORIAL_NAME = re.compile(r"(?P<number>\d+)_(?P<label>.+)\.[^.]+")

LAYOUTS_HELP = (
    "Expected one of: train/CLASS/* with test/CLASS/* or val/CLASS/*; CLASS/* alone; "
    "train/NUMBER_CLASS.png with test/ and labels.txt; or CIFAR's own batches."
)


def recognise(place: Place, settings: DataSettings) -> bool:
    """Whether it is a folder: :func:`read` says what it lacks."""
    return place.path.is_dir()


def read(place: Place, source: str, settings: DataSettings) -> Data:
    """The data in a folder, its layout found out.

    Raises:
        DataError: no known layout, an empty class, or classes that differ between splits.
    """
    place = list(wrapped(place))[-1]
    root, index = place.path, place.index()
    folders = _split_folders(root)
    if "train" not in folders:
        if folders:
            found = ", ".join(path.name for path in folders.values())
            raise DataError(f"{root} has {found}/ but no train/. {LAYOUTS_HELP}")
        return _load_class_folders(index, root, {"train": root}, source, "CLASS/*")
    if _subfolders(folders["train"]):
        shape = " + ".join(f"{path.name}/CLASS/*" for path in folders.values())
        return _load_class_folders(index, root, folders, source, shape)
    return _load_tutorial(index, root, folders, source)


def wrapped(place: Place) -> Iterator[Place]:
    """The place, and then the one folder in it, and in that, in which an archive often wraps everything."""
    yield place
    for _ in range(3):
        if not place.path.is_dir():
            return
        inner = _subfolders(place.path)
        if len(inner) != 1 or _split_folders(place.path):
            return
        place = place.inside(inner[0].name)
        if not _subfolders(place.path) and not any(place.path.iterdir()):
            return
        yield place


def label_from_name(name: str) -> str:
    """The class in a file name of the tutorial's form: ``12_frog.jpeg`` → ``frog``.

    Raises:
        DataError: the name is not NUMBER_CLASS.SUFFIX.
    """
    match = _TUTORIAL_NAME.fullmatch(name)
    if match is None:
        raise DataError(f"{name}: expected a name such as 0_frog.png (NUMBER_CLASS.SUFFIX)")
    return match["label"]


def pictures_below(folder: str | Path) -> list[str]:
    """The paths of all files in ``folder`` and below whose names say that they are pictures."""
    return [os.path.join(folder, path) for path in Index(Path(folder)).pictures_below("")]


def _load_class_folders(index: Index, root: Path, folders: dict[str, Path], source: str, shape: str) -> Data:
    names = tuple(sorted(path.name for path in _subfolders(folders["train"])))
    if not names:
        raise DataError(f"no pictures were recognised in {root}. {LAYOUTS_HELP}")
    notes = _alike_note(names)
    splits: dict[str, Split] = {}
    for split, folder in folders.items():
        stray = sorted({path.name for path in _subfolders(folder)} - set(names))
        if stray:
            raise DataError(
                f"{folder} has classes that {folders['train']} lacks: {_listed(stray)}. "
                "Rename or remove them."
            )
        paths: list[str] = []
        empty: list[str] = []
        counts: list[int] = []
        index.ignored.clear()
        for name in names:
            found = index.pictures_below(os.path.relpath(folder / name, root))
            if not found:
                empty.append(name)
            paths += found
            counts.append(len(found))
        if empty and split == "train":
            raise DataError(f"{folder}: no pictures in the class folder(s) {_listed(empty)}")
        if empty:
            notes.append(f"{split} has no pictures of {_listed(empty)}")
        notes += _ignored_note(index.ignored, split)
        splits[split] = index.split(paths, np.arange(len(names)).repeat(counts))
    index.keep()
    return Data(source, shape, names, splits, tuple(notes))


def _load_tutorial(index: Index, root: Path, folders: dict[str, Path], source: str) -> Data:
    names = _read_labels_file(root)
    notes: list[str] = []
    found: dict[str, tuple[list[str], list[str]]] = {}
    for split, folder in folders.items():
        index.ignored.clear()
        paths = sorted(index.pictures_below(os.path.relpath(folder, root)), key=_number_first)
        if not paths and split == "train":
            raise DataError(f"no pictures were recognised in {folder}. {LAYOUTS_HELP}")
        try:
            labels = [label_from_name(os.path.basename(path)) for path in paths]
        except DataError as error:
            raise DataError(f"{folder}: {error}. {LAYOUTS_HELP}") from None
        found[split] = (paths, labels)
        notes += _ignored_note(index.ignored, split)
    index.keep()
    if names is None:
        names = tuple(sorted(set(found["train"][1])))
        notes.append("there is no labels.txt: the classes are those of the file names, sorted")
    position = {name: label for label, name in enumerate(names)}
    unknown = sorted({label for _, labels in found.values() for label in labels} - set(position))
    if unknown:
        raise DataError(f"{root}: file names have classes that labels.txt lacks: {', '.join(unknown)}")
    splits: dict[str, Split] = {
        split: index.split(paths, np.array([position[label] for label in labels], dtype=np.int64))
        for split, (paths, labels) in found.items()
    }
    shape = " + ".join(f"{path.name}/NUMBER_CLASS.*" for path in folders.values())
    return Data(source, f"{shape} (the tutorial's)", names, splits, tuple(notes))


def _read_labels_file(root: Path) -> tuple[str, ...] | None:
    path = root / "labels.txt"
    if not path.is_file():
        return None
    try:
        names = tuple(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from None
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path} names classes twice: {', '.join(twice)}")
    return names


def _split_folders(root: Path) -> dict[str, Path]:
    return {
        split: root / name
        for split, names in _SPLIT_FOLDERS.items()
        for name in names
        if (root / name).is_dir()
    }


def _subfolders(folder: Path) -> list[Path]:
    try:
        found = [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__"))]
        loops = [p for p in found if p.is_symlink() and folder.resolve().is_relative_to(p.resolve())]
    except OSError as error:
        raise DataError(f"cannot list {folder}: {error.strerror}") from None
    if loops:
        raise DataError(f"{loops[0]} is a link to a folder that it is in itself: remove it")
    return found


def _number_first(path: str) -> tuple[int, str]:
    name = os.path.basename(path)
    match = _TUTORIAL_NAME.fullmatch(name)
    return (int(match["number"]) if match else -1, name)


def _ignored_note(ignored: list[str], split: str) -> list[str]:
    if not ignored:
        return []
    special = plugins.notes_on(ignored)
    others = [path for path in ignored if plugins.kind_by_name(path) is None]
    if not others:
        return special
    what = f"{len(others)} file(s) passed over, no pictures by their name or kind"
    return [*special, f"{split}: {what}, such as {printable(min(others))}"]


def _listed(names: list[str]) -> str:
    return ", ".join(map(printable, names))


def _alike_note(names: tuple[str, ...]) -> list[str]:
    """Cat and cat are two classes here, and one on many other systems."""
    spelt: dict[str, list[str]] = {}
    for name in names:
        spelt.setdefault(name.casefold(), []).append(name)
    alike = [" and ".join(same) for same in spelt.values() if len(same) > 1]
    return [f"class names that differ in upper and lower case only: {', '.join(alike)}"] if alike else []
