"""What a power cut leaves of the files that processes wrote, as POSIX promises it and no better.

journal.c writes down every call that changed names or files below a folder. :class:`Disk` replays it and knows two
things of each moment: what the processes saw, and what was certain to be on the disk.

- The content of a file is certain up to the size that it had at its last fsync. What was written later may be there,
  be cut anywhere, or be zeros.
- A name (a new file, a rename, a removal, a folder) is certain after an fsync of the folder that holds it. Later
  changes may be there in part: either the first ones of them up to some moment (a file system with a journal), or any
  of them (one that reorders). One rename is there or not, never half.

A fsync of a file does not make its name certain, and one of a folder not the name of that folder (fsync(2)). Real file
systems often keep more, which is within what this model may draw.
"""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple


class _Change(NamedTuple):
    """A change of names: in ``folder``, ``name`` begins to mean ``node`` (None: nothing any more).

    A rename has a ``source``, a folder and a name, which then mean nothing any more.
    """

    folder: int
    name: str
    node: int | None
    source: tuple[int, str] | None = None


@dataclass
class _Node:
    """A file or a folder. ``number`` is its inode; inodes are used again, nodes are not."""

    number: int
    is_folder: bool
    synced: int | None = None  # the size at the last fsync


@dataclass
class Disk:
    """The files below ``root``, which changes only through processes that write a journal.

    Args:
        root: the folder; all that is in it when the model begins counts as certain.
        journal: the file that journal.c writes.
        kept: the folder in which it keeps files.
    """

    root: Path
    journal: Path
    kept: Path
    _nodes: dict[int, _Node] = field(default_factory=dict)
    _now: dict[int, dict[str, int]] = field(default_factory=dict)
    _certain: dict[int, dict[str, int]] = field(default_factory=dict)
    _pending: list[_Change] = field(default_factory=list)
    _newest: dict[int, int] = field(default_factory=dict)  # inode: node
    _read: int = 0  # bytes of the journal

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Take what is in ``root`` as certain, and forget everything else."""
        shutil.rmtree(self.kept, ignore_errors=True)
        self.kept.mkdir()
        self.journal.write_bytes(b"")
        self._read = 0
        self._nodes, self._now, self._pending, self._newest = {}, {}, [], {}
        self._take(self.root)
        self._certain = {folder: dict(names) for folder, names in self._now.items()}

    def _take(self, path: Path) -> int:
        state = path.lstat()
        node = self._node(state.st_ino, path.is_dir())
        if path.is_dir():
            for child in sorted(path.iterdir()):
                self._now[node][child.name] = self._take(child)
        else:
            self._nodes[node].synced = state.st_size
            os.link(path, self.kept / str(state.st_ino))
        return node

    def _node(self, number: int, is_folder: bool) -> int:
        node = len(self._nodes)
        self._nodes[node] = _Node(number, is_folder)
        self._newest[number] = node
        if is_folder:
            self._now[node] = {}
        return node

    @property
    def _top(self) -> int:
        return 0

    def follow(self) -> None:
        """Read what the journal has since the last call."""
        with self.journal.open("rb") as file:
            file.seek(self._read)
            content = file.read()
        self._read += len(content)
        for line in content.decode(errors="surrogateescape").splitlines():
            self._apply(line.split("\t"))

    def _apply(self, words: list[str]) -> None:
        what, numbers = words[0], words[1:]
        folder = self._newest.get(int(numbers[0]))
        if folder is None:  # not below the root
            return
        if what == "sync":
            self._nodes[folder].synced = int(numbers[1])
        elif what == "sync-folder":
            self._settle(folder)
        elif what == "create":
            self._change(_Change(folder, numbers[1], self._node(int(numbers[2]), False)))
        elif what == "mkdir":
            node = self._node(int(numbers[2]), True)
            self._certain[node] = {}
            self._change(_Change(folder, numbers[1], node))
        elif what == "remove":
            self._change(_Change(folder, numbers[1], None))
        else:
            assert what == "rename", what
            to, old, new = self._newest[int(numbers[2])], numbers[1], numbers[3]
            self._change(_Change(to, new, self._now[folder][old], (folder, old)))

    def _change(self, change: _Change) -> None:
        _play(self._now, change)
        self._pending.append(change)

    def _settle(self, folder: int) -> None:
        """A fsync of ``folder``: the changes of its names are certain."""
        left = []
        for change in self._pending:
            if change.folder == folder or (change.source and change.source[0] == folder):
                _play(self._certain, change)
            else:
                left.append(change)
        self._pending = left

    def numbers(self, path: Path) -> tuple[int, ...]:
        """The inodes that ``path`` may mean after a power cut; 0 stands for nothing."""
        raise NotImplementedError

    def write_back(self) -> None:
        """Enough time passes: the system writes everything to the disk."""
        self.follow()
        for change in self._pending:
            _play(self._certain, change)
        self._pending = []
        for node in self._nodes.values():
            kept = self.kept / str(node.number)
            if not node.is_folder and kept.exists():
                node.synced = kept.stat().st_size

    def cut_power(self, draw: random.Random) -> list[str]:
        """Leave in ``root`` what a power cut might leave. No process may be running. Say what was lost."""
        self.follow()
        names = {folder: dict(inside) for folder, inside in self._certain.items()}
        if draw.random() < 0.5:
            survivors = self._pending[: draw.randint(0, len(self._pending))]
        else:
            share = draw.choice((0.0, 0.5, 0.9))
            survivors = [change for change in self._pending if draw.random() < share]
        for change in survivors:
            _play(names, change)
        lost = [f"{len(self._pending) - len(survivors)} of {len(self._pending)} changes of names"]
        fresh = self.root.with_name(self.root.name + ".after")
        self._write(self._top, names, fresh, draw, lost)
        shutil.rmtree(self.root)
        fresh.rename(self.root)
        self.begin()
        return lost

    def _write(
        self, folder: int, names: dict[int, dict[str, int]], path: Path, draw: random.Random, lost: list[str]
    ) -> None:
        path.mkdir()
        for name, node in sorted(names.get(folder, {}).items()):
            to = path / name
            if self._nodes[node].is_folder:
                self._write(node, names, to, draw, lost)
                continue
            source = self.kept / str(self._nodes[node].number)
            state = source.stat()
            content = source.read_bytes()
            left = _surviving(content, self._nodes[node].synced, draw)
            if left != content:
                lost.append(f"{len(left)} of {len(content)} bytes of {_plain(to.name)} are left, or zeros")
            to.write_bytes(left)
            to.chmod(state.st_mode & 0o777)
            os.utime(to, ns=(state.st_atime_ns, state.st_mtime_ns))


def _play(names: dict[int, dict[str, int]], change: _Change) -> None:
    """Make a change, where what it changes is there."""
    if change.source is not None:
        folder, name = change.source
        if names.get(folder, {}).get(name) != change.node:
            # The file has this name only through changes that were lost. So has the rename.
            return
        del names[folder][name]
    if change.folder not in names:
        return
    if change.node is None:
        names[change.folder].pop(change.name, None)
    else:
        names[change.folder][change.name] = change.node


def _surviving(content: bytes, synced: int | None, draw: random.Random) -> bytes:
    """What is left of a file's content of which the first ``synced`` bytes are certain."""
    certain = min(synced or 0, len(content))
    if certain == len(content):
        return content
    cut = draw.randint(certain, len(content))
    kind = draw.choice(("all", "cut", "zeros", "nothing"))
    if kind == "all":
        return content
    if kind == "nothing":
        return content[:certain]
    return content[:cut] + (bytes(len(content) - cut) if kind == "zeros" else b"")


def _plain(name: str) -> str:
    return ".".join(name.split(".")[:-2]) + ".*.tmp" if name.endswith(".tmp") else name
