"""Read a folder of pictures in any common layout; :mod:`thumbnet.sources.layout` decides which it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from thumbnet.data.reading import folders_in, inside, is_file, is_folder
from thumbnet.data.splits import Data
from thumbnet.errors import DataError, printable
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources.filenames import label_from_name
from thumbnet.sources.index import Index, is_output_folder
from thumbnet.sources.layout import decide
from thumbnet.sources.place import Place
from thumbnet.sources.split_folders import LAYOUTS_HELP
from thumbnet.sources.split_names import split_name
from thumbnet.sources.table_labels import labels_from_tables
from thumbnet.sources.tables import repeated_names
from thumbnet.sources.tiny_imagenet import read_lines
from thumbnet.sources.tree import is_tool_folder

_FEW = 20  # folders, of which one may hold the data, and the others runs

__all__ = [
    "LAYOUTS_HELP",
    "classes_in_names",
    "label_from_name",
    "pictures_below",
    "read",
    "recognise",
    "wrapped",
]


def recognise(place: Place, settings: DataSettings) -> bool:
    """Whether ``place`` is a folder. :func:`read` reports what is wrong with its content."""
    return is_folder(place.path)


def read(place: Place, source: str, settings: DataSettings) -> Data:
    """Decide the layout of a folder and read its data.

    Raises:
        DataError: the layout is unknown, or another split has classes that train lacks.
    """
    index = place.index()
    base = source if place.unpacked else str(place.path)
    tree = index.tree()
    layout = decide(
        tree,
        base,
        settings,
        lambda folder: _read_labels_file(place.path / folder),
        packed=place.unpacked is not None,
    )
    index.keep()
    root = place.inside(layout.root).index() if layout.root else index
    splits = {split: root.split(paths, labels) for split, (paths, labels) in layout.splits.items()}
    shape, notes = layout.shape, list(layout.notes)
    for split, (folder, note) in layout.unlabelled.items():
        found = labels_from_tables(place, tree.ignored_below(), folder, split, layout.class_names)
        if found is not None and found.paths:
            splits[split] = index.split(found.paths, found.labels)
            shape += f" + {printable(folder)}/*"
            notes.append(found.note)
        else:
            notes += [note, found.note] if found else [note]
    return Data(source, shape, layout.class_names, splits, tuple(notes))


def classes_in_names(data: Data) -> bool:
    """Whether the classes of :func:`read` come from the names of the pictures rather than from folders."""
    return "CLASS/" not in data.layout


def wrapped(place: Place) -> Iterator[Place]:
    """The place, then up to three nested folders that only wrap its content, as archives often have."""
    yield place
    for _ in range(3):
        inner = _subfolders(place.path)
        if len(inner) != 1 or split_name(inner[0].name):
            return
        place = place.inside(inner[0].name)
        if not inside(place.path):
            return
        yield place


def pictures_below(folder: str | Path) -> list[str]:
    """The paths of all pictures in ``folder`` and below, found as for training.

    Hidden files, hidden folders and the folders of tools are skipped.

    Raises:
        DataError: a folder cannot be listed.
    """
    return [os.path.join(folder, path) for path in Index(Path(folder)).pictures_below("")]


def _subfolders(folder: Path) -> list[Path]:
    found = [path for path in folders_in(folder) if not is_tool_folder(path.name)]
    return [path for path in found if not is_output_folder(path)] if 1 < len(found) <= _FEW else found


def _read_labels_file(root: Path) -> tuple[str, ...] | None:
    path = root / "labels.txt"
    if not is_file(path):
        return None
    names = tuple(line.strip() for line in read_lines(path) if line.strip())
    twice = repeated_names(names)
    if twice:
        raise DataError(f"{path} lists classes more than once: {', '.join(twice)}")
    return names
