"""Find the pictures below a folder, regardless of what its subfolders mean."""

from __future__ import annotations

from pathlib import Path

from thumbnet.data import plugins
from thumbnet.data.reading import is_folder
from thumbnet.errors import DataError, printable
from thumbnet.sources.index import Index
from thumbnet.sources.place import Place
from thumbnet.sources.unknown import explain_folder


def find_pictures(folder: str | Path) -> tuple[list[str], list[str]]:
    """List the pictures below a folder.

    Returns:
        The sorted paths, relative to ``folder``, and notes for the user about files that need a plug-in.

    Raises:
        DataError: there is no such folder, it cannot be listed, or it has no pictures.
    """
    root = Path(folder)
    if not is_folder(root):
        raise DataError(f"there is no folder {printable(str(folder))}")
    index = Index(root)
    found = index.pictures_below("")
    if not found:
        what = explain_folder(Place(root))
        because = f": {what.splitlines()[0]}" if what else ""
        raise DataError(f"there are no pictures in the folder {printable(str(folder))}{because}")
    return found, plugins.notes_on(index.ignored)
