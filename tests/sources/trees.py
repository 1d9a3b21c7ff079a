"""Trees of names that tests of layouts use instead of folders on disk, and folders that tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers import coloured, write_picture
from thumbnet.data.splits import Data
from thumbnet.errors import DataError, is_printable
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources import index
from thumbnet.sources.index import is_picture_name
from thumbnet.sources.layout import Layout, decide
from thumbnet.sources.load import load_data
from thumbnet.sources.tree import Folder, is_tool_folder, join


def some(pattern: str, count: int, first: int = 0) -> list[str]:
    """Paths from a pattern with ``{}``, such as ``train/cat/{}.jpg``."""
    return [pattern.format(number) for number in range(first, first + count)]


def tree_of(paths: Iterable[str]) -> Folder:
    """Build the tree of these files. A path that ends in ``/`` is an empty folder."""
    tree = Folder("")
    for path in paths:
        *folders, name = path.split("/")
        here = tree
        for depth, part in enumerate(folders):
            if is_tool_folder(part):
                where = join(here.path, part)
                before = dict(here.skipped)
                before[where] = before.get(where, 0) + is_picture_name(name)
                here.skipped = list(before.items())
                break
            found = next((folder for folder in here.folders if folder.name == part), None)
            if found is None:
                found = Folder("/".join(folders[: depth + 1]))
                here.folders.append(found)
            here = found
        else:
            if is_picture_name(name):
                here.pictures.append(name)
            elif name and not name.startswith("."):
                here.ignored.append(name)
    for folder in reversed(list(tree.walk())):
        folder.folders.sort(key=lambda each: each.path)
        folder.count = len(folder.pictures) + sum(each.count for each in folder.folders)
    return tree


@dataclass(frozen=True)
class Meaning:
    """The layout of a list of files, in a form that is easy to compare."""

    layout: Layout
    counts: dict[str, int]
    notes: str

    def label_of(self, path: str) -> tuple[str, str]:
        """The split and class of a file (its path from the outermost folder)."""
        for split, (paths, labels) in self.layout.splits.items():
            for found, label in zip(paths, labels, strict=True):
                if join(self.layout.root, found) == path:
                    return split, self.layout.class_names[label]
        raise KeyError(path)


def meaning(paths: Iterable[str], **settings: str) -> Meaning:
    """Decide the layout of these files."""
    layout = decide(tree_of(paths), "data", DataSettings(**settings))  # type: ignore[arg-type]
    counts = {split: len(found) for split, (found, _) in layout.splits.items()}
    unlabelled = [one.note for one in layout.unlabelled.values()]
    return Meaning(layout, counts, "\n".join([*layout.notes, *unlabelled]))


def read_or_refused(folder: Path, lists: Sequence[Path], content: bytes) -> None:
    """Put bytes into one of a folder's lists after the other: each is read, or refused in printable words.

    Afterwards the lists have the content that they had before.
    """
    before = {path: path.read_bytes() for path in lists}
    try:
        for path in lists:
            path.write_bytes(content)
            try:
                said = " ".join(load_data(folder).notes)
            except DataError as error:
                said = str(error)
            assert is_printable(said.replace("\n", ""))
    finally:
        for path, content_before in before.items():
            path.write_bytes(content_before)


COUNT = 12
CLASSES = ("blue", "green", "red")


def pictures(folder: Path, names: Sequence[str]) -> None:
    for number, name in enumerate(names):
        write_picture(folder / name, coloured(number, number))


def table(path: Path, header: str, row: Callable[[int], str], encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [header] if header else []
    path.write_text("\n".join(lines + [row(i) for i in range(COUNT)]) + "\n", encoding)
    return path


def counts(data: Data) -> dict[str, int]:
    return {name: len(split) for name, split in data.splits.items()}


def watch_listing(monkeypatch: pytest.MonkeyPatch, root: Path, cache: Path) -> list[str]:
    """The folders below ``root`` that are listed from now on, and not taken from the index in ``cache``."""
    monkeypatch.setenv("THUMBNET_CACHE", str(cache))
    monkeypatch.setattr(index, "WORTH_KEEPING", 1)
    found: list[str] = []
    scan = index._scan

    def noted(path: str) -> tuple[list[str], list[str], list[str], list[str]]:
        found.append(os.path.relpath(path, root))
        return scan(path)

    monkeypatch.setattr(index, "_scan", noted)
    return found
