"""The files and folders below a folder as a tree of names, and the names of folders that hold no data."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass, field

# Folders that operating systems and tools create. Other folders whose names begin with a dot are skipped too.
_TOOLS = (
    "__macosx __pycache__ @eadir @__thumb #recycle #snapshot $recycle.bin lost+found .ipynb_checkpoints "
    ".git .svn .hg .venv .idea .vscode .cache .trash .trashes .thumbnails .appledouble .spotlight-v100 "
    ".fseventsd .dvc"
)
_TOOL_FOLDERS = frozenset([*_TOOLS.split(), "system volume information"])


# The files by which the folders of runs and searches are known. Figures in them are no data.
OUTPUTS = (("recipe.toml", "run.json"), ("tune.json", "journal.jsonl"))


def is_output(names: Container[str]) -> bool:
    """Whether thumbnet has written a folder that has files of these names."""
    return any(all(name in names for name in files) for files in OUTPUTS)


def is_known_tool(name: str) -> bool:
    """Whether a system or tool creates folders of this name: ``.ipynb_checkpoints``, ``__MACOSX``, ..."""
    return name.casefold() in _TOOL_FOLDERS


def is_tool_folder(name: str) -> bool:
    """Whether a folder is skipped because it is hidden or created by a tool."""
    return name.startswith(".") or is_known_tool(name)


@dataclass
class Folder:
    """The names in a folder and below it.

    Attributes:
        path: its path, with parts separated by ``/``; ``""`` for the outermost folder.
        pictures, ignored: the names of the pictures in it, and of its other files.
        folders: the other folders in it, sorted by name, without hidden folders and those of tools.
        skipped: the hidden folders and those of tools in it: path and number of pictures below.
        outputs: the same for folders that thumbnet has written, also in folders in it without pictures.
        links: the links in it that lead nowhere, or to a folder, and are not followed: path and reason.
        count: how many pictures are in it and below it.
    """

    path: str
    pictures: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    folders: list[Folder] = field(default_factory=list)
    skipped: list[tuple[str, int]] = field(default_factory=list)
    outputs: list[tuple[str, int]] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)
    count: int = 0

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    def filled(self) -> list[Folder]:
        """The folders in it that hold pictures, at any depth."""
        return [folder for folder in self.folders if folder.count]

    def walk(self) -> Iterator[Folder]:
        """This folder and all folders below it, each before the folders inside it."""
        pending = [self]
        while pending:
            folder = pending.pop()
            yield folder
            pending += reversed(folder.folders)

    def pictures_below(self) -> list[str]:
        """The paths of all pictures in it and below it."""
        found: list[str] = []
        for folder in self.walk():
            start = join(folder.path, "")
            found += [start + name for name in folder.pictures]
        return found

    def ignored_below(self) -> list[str]:
        """The paths of all other files in it and below it."""
        return [join(folder.path, name) for folder in self.walk() for name in folder.ignored]


def join(folder: str, name: str) -> str:
    """The path of ``name`` in ``folder``, where ``""`` is the outermost folder."""
    return f"{folder}/{name}" if folder else name
