"""The names below a folder as a tree, and the names of folders without data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

# Folders that systems and tools make. Others whose names begin with a dot are passed over as well.
_TOOLS = (
    "__macosx __pycache__ @eadir @__thumb #recycle #snapshot $recycle.bin lost+found .ipynb_checkpoints "
    ".git .svn "
    ".hg .venv .idea .vscode .cache .trash .trashes .thumbnails .appledouble .spotlight-v100 .fseventsd .dvc"
)
_TOOL_FOLDERS = frozenset([*_TOOLS.split(), "system volume information"])


def is_known_tool(name: str) -> bool:
    """Whether a folder's name is that of a system or tool: ``.ipynb_checkpoints``, ``__MACOSX``, ..."""
    return name.casefold() in _TOOL_FOLDERS


def is_tool_folder(name: str) -> bool:
    """Whether a folder is passed over: one of a system or tool, or hidden."""
    return name.startswith(".") or is_known_tool(name)


@dataclass
class Folder:
    """The names in a folder and below.

    Attributes:
        path: where it is, its parts separated by ``/``; ``""`` for the outermost.
        pictures, ignored: names of files that are pictures by their names, and of others.
        folders: those in it, sorted by name, but for those of systems and tools.
        skipped: path, and how many pictures are below, of each folder of a system or tool in it.
        count: how many pictures are in it and below.
    """

    path: str
    pictures: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    folders: list[Folder] = field(default_factory=list)
    skipped: list[tuple[str, int]] = field(default_factory=list)
    count: int = 0

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition("/")[2]

    def filled(self) -> list[Folder]:
        """The folders in it that hold pictures, at whatever depth."""
        return [folder for folder in self.folders if folder.count]

    def walk(self) -> Iterator[Folder]:
        """This folder and all below."""
        pending = [self]
        while pending:
            folder = pending.pop()
            yield folder
            pending += reversed(folder.folders)

    def pictures_below(self) -> list[str]:
        """The paths of all pictures in it and below."""
        found: list[str] = []
        for folder in self.walk():
            start = join(folder.path, "")
            found += [start + name for name in folder.pictures]
        return found

    def ignored_below(self) -> list[str]:
        """The paths of all other files in it and below."""
        return [join(folder.path, name) for folder in self.walk() for name in folder.ignored]


def join(folder: str, name: str) -> str:
    """A path below a folder; ``""`` is the outermost."""
    return f"{folder}/{name}" if folder else name
