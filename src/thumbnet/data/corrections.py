"""What a person decided about pictures whose labels may be wrong.

The decisions are in a CSV file, by convention ``labels.csv``, with one row per decided picture:

```text
picture,label,split,was,decision
train/cat/0012.jpg,dog,train,cat,relabel
test/dog/0907.jpg,dog,test,dog,confirm
train/dog/0013.jpg,,train,dog,drop
new/0001.jpg,cat,train,,relabel
```

A name that looks like a formula begins with ``./``, and such a class with ``'``, so that a spreadsheet does
not compute it. Reading takes these off again (:mod:`thumbnet.data.listings`).

A row without ``was`` whose picture is a file adds this picture to ``train``. The pictures themselves are
never changed, so deleting a row undoes it.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from thumbnet.data.listings import csv_text, guarded_name, guarded_text, unguarded_name, unguarded_text
from thumbnet.data.reading import is_file, is_folder, is_not_there, read_error
from thumbnet.data.rows import numbered_rows
from thumbnet.errors import DataError, nearest, printable
from thumbnet.files import read_whole, user_path, write_file

DECISIONS = ("confirm", "relabel", "drop", "unsure")
COLUMNS = ("picture", "label", "split", "was", "decision")
FILE_NAME = "labels.csv"
# Names of a split that mean train: pictures without labels have no split, `all` is what is measured if the
# data have no split of their own, and calibration pictures are set aside from train.
_TRAIN = ("", "train", "all", "calibration")
_SPLITS = ("train", "test", "val")


@dataclass(frozen=True)
class Correction:
    """A person's decision about one picture. Classes are given by name.

    Attributes:
        name: the picture's name, as :meth:`thumbnet.data.splits.Split.name` returns it.
        split: where the picture was when it was reviewed: ``train``, ``test`` or ``val``.
        was: the class given by the data; empty for a picture without a label.
        label: the class that the person decided on; empty for ``drop`` and ``unsure``.
        decision: one of ``DECISIONS``.
        line: the line of the file that it was read from, for messages; 0 if it was not read from a file.
    """

    name: str
    split: str
    was: str
    label: str
    decision: str
    line: int = field(default=0, compare=False)


Labels = str | Path | Sequence[str | Path | Correction]
"""What names corrections: a file or folder of them, corrections, or several of these; see
:func:`corrections_of`."""


@dataclass(frozen=True)
class Corrected:
    """What a person's corrections changed in a data set; see :mod:`thumbnet.data.correct`.

    Attributes:
        relabelled: how many pictures got another class.
        dropped: how many pictures were left out.
        unsure: how many pictures were left out of train because the person could not tell their class.
        unsure_kept: how many such pictures stay in test and val, with the class given by the data.
        added: how many pictures are new in train.
        confirmed: how many pictures keep their class because the person confirmed it.
        held_out: how many of the relabelled and dropped pictures are in test or val.
        missing: how many corrections name a picture that the data do not have.
        content: the corrections as a CSV file, valid in any folder.
    """

    relabelled: int = 0
    dropped: int = 0
    unsure: int = 0
    unsure_kept: int = 0
    added: int = 0
    confirmed: int = 0
    held_out: int = 0
    missing: int = 0
    content: bytes = field(default=b"", repr=False)

    def counts(self) -> dict[str, int]:
        """The numbers by name, without ``content``."""
        return {name: value for name, value in vars(self).items() if isinstance(value, int)}

    def record(self) -> dict[str, Any]:
        """The numbers, and the SHA-256 of ``content``: what a run keeps."""
        return {**self.counts(), "sha256": hashlib.sha256(self.content).hexdigest()}


def read_corrections(path: Path) -> list[Correction]:
    """Read a file of corrections. Of several rows about one picture, the last one counts.

    Args:
        path: the file, or a folder (such as a run's) with a ``labels.csv``.

    Raises:
        DataError: the file cannot be read, or a line is wrong; the message says which line, and why.
    """
    path = user_path(path)
    path = path / FILE_NAME if is_folder(path) else path
    try:
        content = read_whole(path)
    except OSError as error:
        if is_not_there(error):
            raise DataError(f"cannot read the corrections in {path}: {error.strerror or error}") from None
        raise read_error(error, path) from None
    return parse_corrections(content, path.name)


def is_corrections(columns: Iterable[str]) -> bool:
    """Whether a table with these columns is a file of corrections."""
    return set(COLUMNS) <= {column.strip().lower() for column in columns}


def parse_corrections(content: bytes, name: str) -> list[Correction]:
    """Parse the bytes of a file of corrections; ``name`` is the file's name, for messages.

    Raises:
        DataError: as for :func:`read_corrections`.
    """
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in content:
        raise DataError(f"{name} is not a text file in UTF-8: save it as CSV in UTF-8")
    # Names of files need not be UTF-8: their bytes survive as surrogates.
    rows = _rows(content.decode("utf-8-sig", errors="surrogateescape"), name)
    line, header = next(rows, (1, []))
    header = [cell.strip().lower() for cell in header]
    lacking = [column for column in COLUMNS if column not in header]
    if lacking:
        raise DataError(
            f"{name}, line {line}: there is no column {lacking[0]!r}. A file of corrections has the columns "
            f"{','.join(COLUMNS)}. To train on a table of pictures and classes, name it as DATA"
        )
    repeated = [column for column in COLUMNS if header.count(column) > 1]
    if repeated:
        raise DataError(f"{name}, line {line}: two columns are called {repeated[0]!r}")
    found = []
    for line, row in rows:
        where = f"{name}, line {line}"
        if len(row) != len(header):
            raise DataError(f"{where}: {len(row)} cells, but the header has {len(header)}")
        cells = dict(zip(header, row, strict=True))
        checked = _correction([cells[column] for column in COLUMNS], where)
        found.append(replace(checked, line=line))
    return newest(found)


def _rows(text: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the first line and the cells of each row that is not blank."""
    head = text[: text.find("\n")] if "\n" in text else text
    # Spreadsheet programs of some countries save CSV with semicolons.
    delimiter = next((mark for mark in (",", ";", "\t") if mark in head), ",")
    return numbered_rows(io.StringIO(text, newline=""), delimiter, name)


def _correction(cells: Sequence[str], where: str) -> Correction:
    """Check the cells of a row, in the order of ``COLUMNS``."""
    name, label, split, was, decision = cells
    split, decision = split.strip().lower(), decision.strip().lower()
    name = unguarded_name(name)
    label, was = (unguarded_text(cell) if cell.strip() else "" for cell in (label, was))
    if not name.strip():
        raise DataError(f"{where}: the row names no picture")
    for cell in (label, was):
        if any("\udc80" <= character <= "\udcff" for character in cell):
            raise DataError(f"{where}: the class {printable(cell)} is not UTF-8: save the file in UTF-8")
    if decision not in DECISIONS:
        raise DataError(
            f"{where}: there is no decision {printable(decision)!r}. {nearest(decision, DECISIONS)}"
        )
    split = "train" if split in _TRAIN else split
    if split not in _SPLITS:
        raise DataError(f"{where}: there is no split {printable(split)!r}. {nearest(split, _SPLITS)}")
    if decision in ("drop", "unsure"):
        return Correction(name, split, was, "", decision)
    if decision == "confirm":
        label = label or was
        if was and label.strip() != was.strip():
            raise DataError(
                f"{where}: confirms the class {printable(label)!r}, but the picture was in "
                f"{printable(was)!r}. To change the class, the decision is relabel"
            )
    if not label:
        raise DataError(f"{where}: the decision is {decision}, but the row has no label")
    return Correction(name, split, was, label, decision)


def newest(corrections: Iterable[Correction]) -> list[Correction]:
    """One correction per picture: the last one, with the class that the data gave before the first one.

    A class that returns to the one in the data is confirmed; any other class is a relabel.
    """
    kept: dict[tuple[str, str], Correction] = {}
    for one in corrections:
        if one.decision in ("drop", "unsure"):
            one = replace(one, label="")
        elif one.decision == "confirm":
            one = replace(one, label=one.label or one.was)
        earlier = kept.pop((one.name, one.split), None)  # the newest decision comes last
        if earlier is not None:
            one = replace(one, was=earlier.was)
        if one.label and one.was:
            one = replace(one, decision="confirm" if one.label == one.was else "relabel")
        kept[one.name, one.split] = one
    return list(kept.values())


def write_corrections(path: Path, corrections: Sequence[Correction]) -> None:
    """Write a file of corrections completely or not at all, one row per picture; see :func:`newest`.

    Raises:
        RunError: the file cannot be written. The former file is kept.
    """
    write_file(path, corrections_csv(corrections))


def corrections_csv(corrections: Iterable[Correction]) -> bytes:
    """The content of a file of corrections, safe to open in a spreadsheet; see :mod:`thumbnet.data.listings`.

    Names that are not UTF-8 keep their bytes.
    """
    rows: list[Sequence[str]] = [COLUMNS]
    for one in newest(corrections):
        label, was = guarded_text(one.label), guarded_text(one.was)
        rows.append([guarded_name(one.name), label, one.split, was, one.decision])
    return csv_text(rows).encode(errors="surrogateescape")


def corrections_of(labels: Labels) -> list[Correction]:
    """Read corrections from files, or take them as they are; relative paths become absolute.

    The last correction of a picture counts, whichever file it is in.

    Args:
        labels: a file of corrections, a folder with a ``labels.csv``, corrections whose relative paths start
            from the current folder, or a list of any of these.

    Raises:
        DataError: as for :func:`read_corrections`.
    """
    given: Sequence[str | Path | Correction] = [labels] if isinstance(labels, str | Path) else labels
    found: list[Correction] = []
    for one in given:
        if isinstance(one, Correction):
            found.append(_absolute(one, Path()))
            continue
        path = user_path(one)
        found += absolute(read_corrections(path), path if is_folder(path) else path.parent)
    return newest(found)


def absolute(corrections: Iterable[Correction], folder: Path) -> list[Correction]:
    """Name each picture that the data need not have by its absolute path.

    These are the pictures without ``was`` that are files, relative to ``folder``. Their corrections are then
    valid in any folder.
    """
    return newest(_absolute(one, folder) for one in corrections)


def _absolute(one: Correction, folder: Path) -> Correction:
    return replace(one, name=_file_of(one, folder) or one.name)


def _file_of(one: Correction, folder: Path) -> str:
    """The absolute path of the file that a correction may add; empty if it names no file."""
    if one.was and not os.path.isabs(one.name):
        return ""  # the name of a picture in the data, even if a file happens to have it
    path = os.path.abspath(os.path.join(folder, one.name))
    return path if is_file(path) else ""
