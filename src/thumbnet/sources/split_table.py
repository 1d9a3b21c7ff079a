"""Write which picture is in which split into a table, so that the splits stay as they are.

A split that thumbnet sets aside depends on all pictures of a class: a new picture can move another one. A
table with a column of splits is read as it stands (:mod:`thumbnet.sources.manifest`), and new pictures are
new rows.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from thumbnet.data.listings import as_csv, guarded_name, guarded_text
from thumbnet.data.splits import Data, Split
from thumbnet.errors import DataError, RunError, printable
from thumbnet.files import check_output, reason, write_file
from thumbnet.sources.load import load_data
from thumbnet.sources.split_names import SPLITS

_LABEL_HEADS = ("label", "class", "category", "target")  # a header that is also a class is taken for a row


class _Row(NamedTuple):
    """A row of the table: the picture's path from the table's folder, its split and its labels."""

    path: str
    split: str
    labels: frozenset[str]


def check_new_table(path: Path) -> None:
    """Check that a new table can be written at ``path``. Call this before long work.

    Raises:
        RunError: the name does not end in ``.csv``, there is a file of that name already, or the folder is
            missing or not writable.
    """
    if path.suffix.lower() != ".csv":
        raise RunError(f"--splits {path}: the name must end in .csv")
    if os.path.lexists(path):
        raise RunError(
            f"{path} already exists, and a new table could have other splits: train on this one, or name "
            "another file"
        )
    check_output(path)


def write_split_table(data: Data, path: Path) -> None:
    """Write the path, the label and the split of each picture as CSV.

    Paths start from the table's folder. Several labels are a list, such as ``["cat", "dog"]``. The table is
    read again before it is kept, and has to give the same pictures, labels and splits.

    Args:
        data: pictures in files, in more than one split.
        path: the file to write. It must not exist.

    Raises:
        DataError: some pictures are no files, all pictures are in ``train``, or a table cannot hold their
            names or classes.
        RunError: the table cannot be written; see :func:`check_new_table`.
    """
    check_new_table(path)
    rows = _rows(data, path)
    if data.multilabel:
        cells = [json.dumps(sorted(row.labels), ensure_ascii=False) for row in rows]
        head = "labels"
    else:
        cells = [label for row in rows for label in row.labels]
        head = next((one for one in _LABEL_HEADS if one not in data.class_names), _LABEL_HEADS[0])
    lines = [(guarded_name(row.path), cell, row.split) for row, cell in zip(rows, cells, strict=True)]
    text = as_csv(("path", head, "split"), lines)
    try:
        content = text.encode()
    except UnicodeEncodeError:
        odd = next(row.path for row in rows if not _is_text(row.path))
        raise DataError(
            f"the name of {printable(odd)} is not UTF-8, so no table can hold it. Rename it"
        ) from None
    with _draft(path, content) as draft:
        _check_same(rows, data, draft, path)
    write_file(path, content)


def _rows(data: Data, path: Path) -> list[_Row]:
    """The rows of the table at ``path``.

    Raises:
        DataError: as for :func:`write_split_table`.
    """
    source = printable(data.source)
    if set(data.splits) == {"train"}:
        raise DataError(f"{source}: all pictures are in train, so there are no splits to write")
    formulas = [name for name in data.class_names if guarded_text(name) != name]
    if formulas and not data.multilabel:
        raise DataError(
            f"{source}: a spreadsheet would take the class {printable(formulas[0])!r} for a formula. Rename "
            "it"
        )

    @functools.cache
    def real(folder: str) -> str:  # there are few folders
        return os.path.realpath(folder)

    start = real(str(path.parent))
    rows = []
    for name in (one for one in SPLITS if one in data.splits):
        split = data.splits[name]
        for index in range(len(split)):
            file = split.file(index)
            if file is None:
                raise DataError(
                    f"{source}: {printable(split.name(index))} is not a file of its own, and a table names "
                    "files. If it is in an archive, unpack that first"
                )
            folder, base = os.path.split(file)
            picture = _from(start, os.path.join(real(folder), base))
            rows.append(_Row(picture, name, _labels(split, index, data.class_names)))
    return rows


def _from(start: str, place: str) -> str:
    """The path to ``place`` from the folder ``start``; the absolute one if it is on another drive."""
    with suppress(ValueError):
        place = os.path.relpath(place, start)
    return place.replace(os.sep, "/")


def _labels(split: Split, index: int, names: tuple[str, ...]) -> frozenset[str]:
    if split.multilabel:
        return frozenset(names[one] for one in np.flatnonzero(split.targets[index]).tolist())
    return frozenset((names[int(split.labels[index])],))


def _is_text(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)


@contextmanager
def _draft(path: Path, content: bytes) -> Iterator[Path]:
    """A file with this content next to ``path``, which is removed at the end of the block.

    Raises:
        RunError: it cannot be written.
    """
    draft = None
    try:
        try:
            with tempfile.NamedTemporaryFile(
                dir=path.parent, prefix=f".{path.stem}.", suffix=".csv", delete=False
            ) as file:
                draft = Path(file.name)
                file.write(content)
        except OSError as error:
            raise RunError(f"cannot write {path}: {reason(error)}") from None
        yield draft
    finally:
        if draft is not None:
            with suppress(OSError):
                draft.unlink()


def _check_same(rows: list[_Row], data: Data, draft: Path, path: Path) -> None:
    """Check that the table in ``draft``, which is for ``path``, gives these rows.

    Raises:
        DataError: it does not.
    """
    try:
        again = load_data(draft)
    except DataError as error:
        told = str(error).replace(str(draft), str(path)).replace(draft.name, path.name)
        raise DataError(f"a table of these splits could not be read: {told}") from None
    found = [
        _Row(split.name(index).replace(os.sep, "/"), name, _labels(split, index, again.class_names))
        for name, split in ((name, again.splits[name]) for name in SPLITS if name in again.splits)
        for index in range(len(split))
    ]
    lost = set(rows) - set(found)
    if lost or len(found) != len(rows) or again.multilabel != data.multilabel:
        odd = min(lost or rows, key=lambda row: (row.path, row.split))
        raise DataError(
            f"a table of these splits would be read in another way than it is meant, for example "
            f"{printable(odd.path)} ({printable(', '.join(sorted(odd.labels)))}). Give plainer names to the "
            "classes and files: no spaces at their ends, no lists of words, no numbers with fractions"
        )
