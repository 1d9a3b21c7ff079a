"""Every form of data, and what happens when a call of the system fails once while it is read.

test_failed_reads.py writes the data and runs :func:`main` in a process of its own, with the shim preloaded.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import itertools
import json
import os
import random
import shutil
import sys
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from faults.fork_server import Fault
from faults.in_process import Shim
from helpers import coloured, coloured_labels, noise, write_class_folders, write_label_table, write_picture
from thumbnet.batches.decoding import decode_split, shared_size, surveyed
from thumbnet.batches.prepare import without_unreadable
from thumbnet.errors import ThumbnetError
from thumbnet.recipes.settings import DataSettings
from thumbnet.reports.inspection import inspect_data
from thumbnet.sources.archives import is_archive_name
from thumbnet.sources.load import FORMS, load_data
from thumbnet.sources.place import Place

Writer = Callable[[Path], Path]


@dataclass(frozen=True)
class Layout:
    """A layout of data: the module that reads it, and how to write it.

    Attributes:
        form: the name of the module in ``thumbnet.sources``.
        write: writes it into a folder, and returns what to load.
    """

    form: str
    write: Writer


def _folders(root: Path, *splits: str) -> Path:
    write_class_folders(root, splits, per_class=2)
    top = root / splits[0]
    (top / "red" / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    shutil.copy(top / "blue" / "0.png", top / "blue" / "without_suffix")
    (top / "green" / "notes").write_text("no picture")
    write_picture(top / "green" / "turned.tif", noise(7, 12, 24), compression="tiff_lzw")
    return root


def _class_folders(root: Path) -> Path:
    _folders(root, "")
    (root / "labels.txt").write_text("green\nred\nblue\n")
    return root


def _linked_folders(root: Path) -> Path:
    """Class folders that are links to folders elsewhere."""
    _folders(root / "elsewhere", "")
    linked = root / "linked"
    linked.mkdir()
    for name in ("red", "green", "blue"):
        (linked / name).symlink_to(root / "elsewhere" / name)
    return linked


def _file_names(root: Path) -> Path:
    for split in ("train", "test"):
        for number in range(6):
            name = ("cat", "dog", "frog")[number % 3]
            write_picture(root / split / f"{name}_{number}.png", coloured(number, number))
    return root


def _archive(kind: str, inside: Writer) -> Writer:
    def write(root: Path) -> Path:
        inner = inside(root / "inside")
        made = shutil.make_archive(str(root / "pictures"), kind, inner if inner.is_dir() else inner.parent)
        shutil.rmtree(root / "inside")
        return Path(made)

    return write


def _table(root: Path) -> Path:
    """A table in a folder, with numbers for classes, whose names are in a file."""
    lines = ["image,label"]
    for number in range(9):
        write_picture(root / "images" / f"{number}.png", coloured(number, number))
        lines.append(f"{number}.png,{number % 3}")
    (root / "images" / "3.png").write_bytes(b"no picture")
    (root / "train.csv").write_text("\n".join(lines) + "\n")
    (root / "classes.txt").write_text("red\ngreen\nblue\n")
    return root


def _named_table(root: Path) -> Path:
    return _table(root) / "train.csv"


def _several_labels(root: Path) -> Path:
    return write_label_table(root, coloured_labels(8, ("train", "test")))


def _hub_folder(root: Path) -> Path:
    """Folders with metadata.jsonl, as on the Hub."""
    for split in ("train", "test"):
        lines = []
        for number in range(6):
            write_picture(root / split / f"{number}.png", coloured(number, number))
            lines.append(json.dumps({"file_name": f"{number}.png", "label": number % 3}))
        (root / split / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return root


def _pixel_table(root: Path) -> Path:
    for split, count in (("train", 6), ("test", 3)):
        rows = [",".join(map(str, (n % 3, *noise(n, 8, 8)[..., 0].ravel()))) for n in range(count)]
        head = ",".join(["label", *(f"pixel{n}" for n in range(64))])
        (root / f"{split}.csv").write_text("\n".join([head, *rows]) + "\n")
    return root


def _idx(packed: bool) -> Writer:
    def write(root: Path) -> Path:
        for split, count in (("train", 6), ("t10k", 3)):
            pictures = np.stack([coloured(n, n)[..., n % 3] for n in range(count)])
            labels = (np.arange(count) % 3).astype(np.uint8)
            for name, values in (("images-idx3", pictures), ("labels-idx1", labels)):
                head = bytes((0, 0, 8, values.ndim)) + np.array(values.shape, ">u4").tobytes()
                content = head + values.tobytes()
                suffix = ".gz" if packed else ""
                content = gzip.compress(content, mtime=0) if packed else content
                (root / f"emnist-x-{split.replace('t10k', 'test')}-{name}-ubyte{suffix}").write_bytes(content)
        (root / "emnist-x-mapping.txt").write_text("0 65\n1 66\n2 67\n")
        return root

    return write


def _arrays(count: int) -> tuple[np.ndarray, np.ndarray]:
    return np.stack([coloured(n, n) for n in range(count)]), np.arange(count) % 3


def _npz(root: Path) -> Path:
    (x, y), (more, others) = _arrays(6), _arrays(3)
    np.savez_compressed(root / "data.npz", x_train=x, y_train=y, x_test=more, y_test=others)
    return root / "data.npz"


def _npy(root: Path) -> Path:
    (x, y), (more, others) = _arrays(6), _arrays(3)
    for name, values in (("x_train", x), ("y_train", y), ("x_test", more), ("y_test", others)):
        np.save(root / f"{name}.npy", values)
    return root


def _npy_per_class(root: Path) -> Path:
    for label, name in enumerate(("cat", "dog", "frog")):
        np.save(root / f"bitmap_{name}.npy", np.stack([coloured(label, n) for n in range(4)]))
    return root


def _mat(root: Path) -> Path:
    from sources.test_mat import write_svhn

    return write_svhn(root, "train", "test")


def _stl10(root: Path) -> Path:
    from sources.test_stl10 import write_stl10

    return write_stl10(root)


def _tiny_imagenet(root: Path) -> Path:
    from sources.test_tiny_imagenet import tiny_imagenet

    return tiny_imagenet(root)


def _cifar10(python: bool) -> Writer:
    def write(root: Path) -> Path:
        from sources.test_cifar import write_binary10, write_python10

        return write_python10(root) if python else write_binary10(root)

    return write


def _cifar100(root: Path) -> Path:
    from sources.test_cifar import write_100

    return write_100(root, python=False)


def _lists(form: str) -> Writer:
    def write(root: Path) -> Path:
        from sources.test_listed import write_lists

        return write_lists(root, form)

    return write


def _parquet(root: Path) -> Path:
    from sources.test_parquet import write

    names = ["red", "green", "blue"]
    write(root / "data" / "train-00000-of-00001.parquet", [0, 1, 2] * 2, names)
    write(root / "data" / "test-00000-of-00001.parquet", [2, 1, 0], names)
    return root


def _webdataset(root: Path) -> Path:
    from sources.test_webdataset import shards

    return shards(root)


def _saved_by_datasets(root: Path) -> Path:
    from sources.test_hub import IMAGE, TEXT, columns, saved

    features = {"image": IMAGE, "label": TEXT}
    words = [("frog", "cat", "dog")[number % 3] for number in range(6)]
    return saved(root / "saved", {"train": (columns(6, label=words), features)})


LAYOUTS = {
    "class folders": Layout("folders", _class_folders),
    "split folders": Layout("folders", lambda root: _folders(root, "train", "test")),
    "linked folders": Layout("folders", _linked_folders),
    "file names": Layout("folders", _file_names),
    "zip": Layout("archives", _archive("zip", lambda root: _folders(root, "train", "test"))),
    "tar": Layout("archives", _archive("tar", lambda root: _folders(root, "train", "test"))),
    "tar.gz": Layout("archives", _archive("gztar", _class_folders)),
    "tar.xz": Layout("archives", _archive("xztar", _class_folders)),
    "zipped table": Layout("archives", _archive("zip", _table)),
    "table": Layout("manifest", _table),
    "named table": Layout("manifest", _named_table),
    "several labels": Layout("manifest", _several_labels),
    "metadata.jsonl": Layout("manifest", _hub_folder),
    "pixel table": Layout("pixel_tables", _pixel_table),
    "idx": Layout("idx", _idx(packed=False)),
    "idx.gz": Layout("idx", _idx(packed=True)),
    "npz": Layout("npz", _npz),
    "npy": Layout("npz", _npy),
    "npy per class": Layout("npz", _npy_per_class),
    "mat": Layout("mat", _mat),
    "stl10": Layout("stl10", _stl10),
    "tiny imagenet": Layout("tiny_imagenet", _tiny_imagenet),
    "cifar10 binary": Layout("cifar", _cifar10(python=False)),
    "cifar10 python": Layout("cifar", _cifar10(python=True)),
    "cifar100": Layout("cifar", _cifar100),
    "lists": Layout("listed", _lists("food")),
    "cub": Layout("listed", _lists("cub")),
    "parquet": Layout("parquet", _parquet),
    "webdataset": Layout("webdataset", _webdataset),
    "saved by datasets": Layout("hub", _saved_by_datasets),
}

# --------------------------------------------------------------------------- in a process with the shim

FAULTS = (
    ("fail", "open"),
    ("fail", "read"),
    ("end", "read"),
    ("short", "read"),
    ("fail", "list"),
    ("fail", "map"),
    ("fail", "stat"),
)


def main() -> int:
    """Let calls fail, one at a time, and print as JSON how many did and what went wrong.

    Arguments: the data, the folder that it is in, an empty folder, and how many calls may fail at most.
    """
    source, root, place, most = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    os.environ["THUMBNET_CACHE"] = str(place / "cache")
    # None of the faults is a call to sync, and only a power cut would show what such a call is for.
    with mock.patch.object(os, "fsync", return_value=None):
        print(json.dumps(_Trial(source, root, place).run(most)))
    return 0


# Whether the cache is kept, the kind of the fault, the operation, and the number of the call.
Tried = tuple[bool, str, str, int]


def _some(every: Sequence[Tried], most: int) -> list[Tried]:
    """Up to ``most`` of them at random, but of each kind of fault and operation as many as of any other."""
    drawn = random.Random(0).sample(every, len(every))
    numbers: defaultdict[tuple[str, str], Iterator[int]] = defaultdict(itertools.count)
    return sorted(drawn, key=lambda one: next(numbers[one[1:3]]))[:most]


class _Trial:
    def __init__(self, source: Path, root: Path, place: Path) -> None:
        self.source, self.cache, self.warm = source, place / "cache", place / "warm"
        self.right = outcome(source)  # also imports everything
        self.cache.mkdir(exist_ok=True)
        shutil.copytree(self.cache, self.warm)
        self.shim = Shim((root, self.cache))

    def run(self, most: int) -> dict[str, Any]:
        counts = {kept: self._counts(kept) for kept in (False, True)}
        every = [
            (kept, kind, operation, number)
            for kept in (False, True)
            for kind, operation in FAULTS
            for number in range(1, counts[kept][operation] + 1)
        ]
        chosen = _some(every, most)
        wrong = [problem for one in chosen if (problem := self._problem(*one))]
        return {
            "tried": len(chosen),
            "of": len(every),
            "wrong": wrong,
            "layout": self.right[0],
            "form": _form_of(self.source),
        }

    def _counts(self, kept: bool) -> dict[str, int]:
        """How often an undisturbed load does each operation."""
        self._reset(kept)
        with self.shim.fault(Fault(("open",), at=-1)):
            outcome(self.source)
        return self.shim.counts

    def _reset(self, kept: bool) -> None:
        shutil.rmtree(self.cache, ignore_errors=True)
        if kept:
            shutil.copytree(self.warm, self.cache)

    def _problem(self, kept: bool, kind: str, operation: str, number: int) -> str:
        """What goes wrong if one call does; empty if nothing."""
        self._reset(kept)
        problem = ""
        try:
            with self.shim.fault(Fault((operation,), at=number, kind=kind, error=errno.EIO)):
                found = outcome(self.source)
            if found != self.right:
                problem = f"other data, without an error: {difference(found, self.right)}"
        except ThumbnetError as error:
            name = Path(self.shim.failed.path).name if self.shim.failed else ""
            if not any(each in str(error) for each in (name, self.source.name)):
                problem = f"an error that does not name {name}: {error}"
        except Exception:
            problem = f"no error of ours: {traceback.format_exc()}"
        try:
            again = outcome(self.source)
            if again != self.right:
                problem += f"; the next time, other data: {difference(again, self.right)}"
        except Exception:
            problem += f"; the next time: {traceback.format_exc()}"
        where = "with a cache" if kept else "without a cache"
        return problem and f"{kind} {number} of {operation} {where}, at {self.shim.failed}: {problem}"


def _form_of(source: Path) -> str:
    """The module that reads it, unless it is an archive."""
    if not is_archive_name(source.name):
        for form in FORMS:
            if form.recognise(Place(source), DataSettings()):
                return form.__name__  # type: ignore[attr-defined]
    return ""


def outcome(source: Path) -> list[str]:
    """Everything that the pictures, labels and names of a data set are, and what is told about them."""
    data = load_data(source, on_bad_image="skip")
    found = [data.layout, str(data.class_names), data.fingerprint(), *data.notes]
    whole, skipped = without_unreadable(data)
    found += [
        str(skipped),
        str(surveyed(whole.splits["train"])),
        str(shared_size(whole.splits["train"], "pad")),
    ]
    for name, split in whole.splits.items():
        pixels = decode_split(split, (16, 16), "pad").images.numpy().tobytes()
        found += [
            f"{name}: {[split.name(index) for index in range(len(split))]}",
            f"{name}: {split.targets.tolist()}",
            f"{name}: {hashlib.sha256(pixels).hexdigest()}",
        ]
    seen = inspect_data(data, image_size=(16, 16))
    return [
        *found,
        str(seen.counts),
        str(seen.sizes),
        str(seen.modes),
        str(seen.unreadable),
        str(seen.repeated),
    ]


def difference(found: list[str], right: list[str]) -> str:
    """The first lines of both that differ."""
    for one, other in itertools.zip_longest(found, right, fillvalue=""):
        if one != other:
            return f"{one[:300]!r} instead of {other[:300]!r}"
    return "none"
