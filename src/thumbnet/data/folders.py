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

from thumbnet.data import cifar
from thumbnet.data.images import PICTURE_SUFFIXES
from thumbnet.data.splits import Data, FileSplit, Split
from thumbnet.errors import DataError

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


def load_folder(root: Path, source: str) -> Data:
    """The data in a folder, its layout found out.

    Raises:
        DataError: no known layout, an empty class, or classes that differ between splits.
    """
    root = _descend(root)
    batches = cifar.find_batches(root)
    if batches is not None:
        return cifar.load_batches(batches, source)
    folders = _split_folders(root)
    if "train" not in folders:
        if folders:
            found = ", ".join(path.name for path in folders.values())
            raise DataError(f"{root} has {found}/ but no train/. {LAYOUTS_HELP}")
        return _load_class_folders(root, {"train": root}, source, "CLASS/*")
    if _subfolders(folders["train"]):
        shape = " + ".join(f"{path.name}/CLASS/*" for path in folders.values())
        return _load_class_folders(root, folders, source, shape)
    return _load_tutorial(root, folders, source)


def label_from_name(name: str) -> str:
    """The class in a file name of the tutorial's form: ``12_frog.jpeg`` → ``frog``.

    Raises:
        DataError: the name is not NUMBER_CLASS.SUFFIX.
    """
    match = _TUTORIAL_NAME.fullmatch(name)
    if match is None:
        raise DataError(f"{name}: expected a name such as 0_frog.png (NUMBER_CLASS.SUFFIX)")
    return match["label"]


def is_picture_name(name: str) -> bool:
    """Whether a file's name says that it is a picture."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES


def pictures_below(folder: str | Path) -> list[str]:
    """The paths of all files in ``folder`` and below whose names say that they are pictures."""
    return list(_walk(Path(folder), []))


def _load_class_folders(root: Path, folders: dict[str, Path], source: str, shape: str) -> Data:
    names = tuple(sorted(path.name for path in _subfolders(folders["train"])))
    if not names:
        raise DataError(f"no pictures were recognised in {root}. {LAYOUTS_HELP}")
    notes: list[str] = []
    splits: dict[str, Split] = {}
    for split, folder in folders.items():
        stray = sorted({path.name for path in _subfolders(folder)} - set(names))
        if stray:
            raise DataError(
                f"{folder} has classes that {folders['train']} lacks: {', '.join(stray)}. "
                "Rename or remove them."
            )
        paths: list[str] = []
        labels: list[int] = []
        ignored: list[str] = []
        empty: list[str] = []
        for label, name in enumerate(names):
            found = sorted(_walk(folder / name, ignored))
            if not found:
                empty.append(name)
            paths += [os.path.relpath(path, root) for path in found]
            labels += [label] * len(found)
        if empty and split == "train":
            raise DataError(f"{folder}: no pictures in the class folder(s) {', '.join(empty)}")
        if empty:
            notes.append(f"{split} has no pictures of {', '.join(empty)}")
        notes += _ignored_note(ignored, split)
        splits[split] = FileSplit(root, paths, np.array(labels))
    return Data(source, shape, names, splits, tuple(notes))


def _load_tutorial(root: Path, folders: dict[str, Path], source: str) -> Data:
    names = _read_labels_file(root)
    notes: list[str] = []
    found: dict[str, tuple[list[str], list[str]]] = {}
    for split, folder in folders.items():
        ignored: list[str] = []
        paths = sorted(_walk(folder, ignored), key=_number_first)
        if not paths and split == "train":
            raise DataError(f"no pictures were recognised in {folder}. {LAYOUTS_HELP}")
        try:
            labels = [label_from_name(os.path.basename(path)) for path in paths]
        except DataError as error:
            raise DataError(f"{folder}: {error}. {LAYOUTS_HELP}") from None
        found[split] = ([os.path.relpath(path, root) for path in paths], labels)
        notes += _ignored_note(ignored, split)
    if names is None:
        names = tuple(sorted(set(found["train"][1])))
        notes.append("there is no labels.txt: the classes are those of the file names, sorted")
    position = {name: label for label, name in enumerate(names)}
    unknown = sorted({label for _, labels in found.values() for label in labels} - set(position))
    if unknown:
        raise DataError(f"{root}: file names have classes that labels.txt lacks: {', '.join(unknown)}")
    splits: dict[str, Split] = {
        split: FileSplit(root, paths, np.array([position[label] for label in labels], dtype=np.int64))
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


def _descend(root: Path) -> Path:
    """Into the one folder that an archive often wraps everything in."""
    for _ in range(3):
        inner = _subfolders(root)
        wraps = len(inner) == 1 and not _split_folders(root) and not cifar.find_batches(root)
        if not (wraps and _subfolders(inner[0])) and not (wraps and cifar.find_batches(inner[0])):
            break
        root = inner[0]
    return root


def _split_folders(root: Path) -> dict[str, Path]:
    return {
        split: root / name
        for split, names in _SPLIT_FOLDERS.items()
        for name in names
        if (root / name).is_dir()
    }


def _subfolders(folder: Path) -> list[Path]:
    try:
        return [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__"))]
    except OSError as error:
        raise DataError(f"cannot list {folder}: {error.strerror}") from None


def _walk(folder: Path, ignored: list[str]) -> Iterator[str]:
    """Pictures below ``folder``, links to folders not followed; other files are added to ``ignored``."""

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # a class that a split lacks is reported as empty
            raise DataError(f"cannot list {error.filename}: {error.strerror}")

    for parent, _, files in os.walk(folder, onerror=fail):
        for name in files:
            if is_picture_name(name):
                yield os.path.join(parent, name)
            elif not name.startswith("."):
                ignored.append(os.path.join(parent, name))


def _number_first(path: str) -> tuple[int, str]:
    name = os.path.basename(path)
    match = _TUTORIAL_NAME.fullmatch(name)
    return (int(match["number"]) if match else -1, name)


def _ignored_note(ignored: list[str], split: str) -> list[str]:
    if not ignored:
        return []
    return [f"{split}: {len(ignored)} file(s) passed over, no pictures by their name, such as {ignored[0]}"]
