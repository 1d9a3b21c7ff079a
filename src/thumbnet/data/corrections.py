"""What a person decided about pictures whose labels may be wrong, and how that changes a data set.

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

import csv
import difflib
import functools
import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from thumbnet.data.joined import with_files
from thumbnet.data.listings import guarded_name, guarded_text, unguarded_name, unguarded_text
from thumbnet.data.reading import is_file, is_folder, is_not_there, read_error
from thumbnet.data.rows import numbered_rows
from thumbnet.data.splits import Corrected, Data, FileSplit, Split
from thumbnet.errors import DataError, nearest, printable
from thumbnet.files import read_whole, write_file

DECISIONS = ("confirm", "relabel", "drop", "unsure")
COLUMNS = ("picture", "label", "split", "was", "decision")
FILE_NAME = "labels.csv"
# Names of a split that mean train: pictures without labels have no split, `all` is what is measured if the
# data have no split of their own, and calibration pictures are set aside from train.
_TRAIN = ("", "train", "all", "calibration")
_SPLITS = ("train", "test", "val")
_HELD_OUT = ("test", "val")
_UNKNOWN_SHOWN = 10  # class names that an error about an unknown class lists


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


def read_corrections(path: Path) -> list[Correction]:
    """Read a file of corrections. Of several rows about one picture, the last one counts.

    Args:
        path: the file, or a folder (such as a run's) with a ``labels.csv``.

    Raises:
        DataError: the file cannot be read, or a line is wrong; the message says which line, and why.
    """
    path = path.expanduser()
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
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in newest(corrections):
        label, was = guarded_text(one.label), guarded_text(one.was)
        writer.writerow([guarded_name(one.name), label, one.split, was, one.decision])
    return text.getvalue().encode(errors="surrogateescape")


def corrections_of(labels: str | Path | Sequence[Correction]) -> list[Correction]:
    """Read corrections from a file, or take them as they are; relative paths become absolute.

    Args:
        labels: a file of corrections, a folder with a ``labels.csv``, or corrections whose relative paths
            start from the current folder.

    Raises:
        DataError: as for :func:`read_corrections`.
    """
    if not isinstance(labels, str | Path):
        return absolute(labels, Path())
    path = Path(labels).expanduser()
    return absolute(read_corrections(path), path if is_folder(path) else path.parent)


def absolute(corrections: Iterable[Correction], folder: Path) -> list[Correction]:
    """Name each picture that the data need not have by its absolute path.

    These are the pictures without ``was`` that are files, relative to ``folder``. Their corrections are then
    valid in any folder.
    """
    return newest(replace(one, name=_file_of(one, folder) or one.name) for one in corrections)


def _file_of(one: Correction, folder: Path) -> str:
    """The absolute path of the file that a correction may add; empty if it names no file."""
    if one.was and not os.path.isabs(one.name):
        return ""  # the name of a picture in the data, even if a file happens to have it
    path = os.path.abspath(os.path.join(folder, one.name))
    return path if is_file(path) else ""


def apply_corrections(data: Data, corrections: Sequence[Correction], folder: Path) -> Data:
    """Relabel, drop and add pictures as a person decided.

    A correction finds its picture by name. If several splits have a picture of that name, the correction's
    split decides; a split that was set aside from ``train`` counts as ``train`` where it does not exist.

    - ``relabel`` and ``confirm`` give the picture the class ``label``, in every split.
    - ``drop`` leaves it out, in every split.
    - ``unsure`` leaves it out of ``train``. In ``test`` and ``val`` it stays with the class given by the
      data: a measurement without the hard pictures would be too good.
    - A picture that the data lack but that is a file joins ``train`` with the class ``label``.

    Which pictures are in which split does not change. A class that loses its last picture is no longer a
    class.

    Args:
        data: a data set whose held-out splits are set aside already, so that they do not depend on the
            corrections, except for the calibration split.
        corrections: the decisions; of several about one picture, the last one counts.
        folder: where relative paths of files start.

    Returns:
        The corrected data, whose notes say how many pictures changed; ``data`` themselves if they have these
        corrections already.

    Raises:
        DataError: a label is not one of the classes, no correction finds its picture, a split or a class in
            ``train`` would become empty, or the data have other corrections already.
    """
    decided = absolute(corrections, folder)
    content = corrections_csv(decided)
    if data.corrected is not None:
        if data.corrected.content == content:
            return data
        raise DataError(
            f"the labels of {data.source} have been corrected already: put all corrections into one file"
        )
    if any(split.labels.ndim != 1 for split in data.splits.values()):
        raise DataError(f"{data.source} has several labels per picture: corrections are for single labels")
    found = _find(data, decided)
    if decided and len(found.missing) == len(decided):
        raise DataError(
            f"no correction names a picture of {data.source}, not even the first one, "
            f"{printable(decided[0].name)}: the corrections belong to other data"
        )
    return _Application(data, found).result(content)


@dataclass(frozen=True)
class _Found:
    """Corrections by what they are about.

    Attributes:
        places: by split and position, for pictures of the data.
        files: by absolute path, for pictures that the data lack.
        missing: those about neither.
    """

    places: dict[str, dict[int, Correction]]
    files: dict[str, Correction]
    missing: list[Correction]


def _find(data: Data, corrections: Sequence[Correction]) -> _Found:
    """Find the pictures that corrections are about. Of several corrections, a picture gets the last one."""
    by_name = _places_by_name(data, {one.name for one in corrections})
    named_files = [one.name for one in corrections if os.path.isabs(one.name) and is_file(one.name)]
    real = functools.cache(os.path.realpath)  # of folders, of which there are few
    by_path = _places_by_path(data, real) if named_files else {}
    files = set(named_files)
    found = _Found({name: {} for name in data.splits}, {}, [])
    for one in corrections:
        folder, name = os.path.split(one.name)
        places = by_path.get((real(folder), name), []) if one.name in files else []
        if not places and (one.was or one.name not in files):
            places = _chosen_split(data, one, by_name.get(one.name, {}))
        for split, index in places:
            earlier = found.places[split].get(index, one)  # the data's class is the one of the first review
            found.places[split][index] = replace(one, was=earlier.was)
        if not places and one.name in files:
            found.files[one.name] = one
        elif not places:
            found.missing.append(one)
    return found


def _places_by_name(data: Data, wanted: set[str]) -> dict[str, dict[str, list[int]]]:
    """For each of the wanted names, the positions of its pictures by split."""
    places: dict[str, dict[str, list[int]]] = {}
    for split_name, split in data.splits.items():
        for index in range(len(split)):
            name = split.name(index)
            if name in wanted:
                places.setdefault(name, {}).setdefault(split_name, []).append(index)
    return places


def _places_by_path(data: Data, real: Callable[[str], str]) -> dict[tuple[str, str], list[tuple[str, int]]]:
    """The places of all pictures that are files, by the folder that ``real`` gives and the file's name."""
    places: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for split_name, split in data.splits.items():
        if isinstance(split, FileSplit):
            for index, path in enumerate(split.paths):
                folder, name = os.path.split(os.path.join(split.root, path))
                places.setdefault((real(folder), name), []).append((split_name, index))
    return places


def _chosen_split(data: Data, one: Correction, places: dict[str, list[int]]) -> list[tuple[str, int]]:
    """The places that a correction means, given those of its name in each split."""

    def origin(split: str) -> str:
        return "train" if split in data.set_aside or split not in data.splits else split

    options = [one.split] if one.split in places else list(places)
    if len(options) > 1:
        options = [split for split in options if origin(split) == origin(one.split)]
    return [(options[0], index) for index in places[options[0]]] if len(options) == 1 else []


class _Application:
    """Applies corrections that are found, and counts what changes."""

    def __init__(self, data: Data, found: _Found) -> None:
        self._data, self._found = data, found
        self._numbers = {name: number for number, name in enumerate(data.class_names)}
        self._counts: Counter[str] = Counter(missing=len(found.missing))
        self._surprising: list[str] = []

    def result(self, content: bytes) -> Data:
        """The corrected data; ``content`` is the file of corrections to keep with a run."""
        data = self._data
        splits, groups = dict(data.splits), dict(data.groups)
        for name, decided in self._found.places.items():
            if decided:
                splits[name], kept = self._split(name, decided)
                if name in groups:
                    groups[name] = groups[name][kept]
        new = {path: self._number(one) for path, one in self._found.files.items() if one.label}
        if new:
            self._counts["added"] = len(new)
            splits["train"] = with_files(splits["train"], list(new), np.array(list(new.values()), np.int64))
            if "train" in groups:  # each new picture is a group of its own
                own = np.array([f"\0{path}" for path in new], dtype=object)
                groups["train"] = np.concatenate([groups["train"].astype(object), own])
        class_names, splits, lost = _without_lost_classes(data, splits)
        corrected = Corrected(**self._counts, content=content)
        notes = [*data.notes, describe_corrections(corrected.counts()), *self._warnings(), *lost]
        return replace(
            data,
            class_names=class_names,
            splits=splits,
            groups=groups,
            notes=tuple(notes),
            corrected=corrected,
        )

    def _split(self, name: str, decided: dict[int, Correction]) -> tuple[Split, np.ndarray]:
        """A corrected split, and which of the former pictures it has: bool [N]."""
        split = self._data.splits[name]
        labels, kept = split.labels.copy(), np.ones(len(split), dtype=bool)
        for index, one in decided.items():
            given = self._data.class_names[labels[index]]
            if one.was and given not in (one.was, one.label):
                self._surprising.append(f"{one.name} ({given}, and {one.was} when it was reviewed)")
            if one.label:
                labels[index] = self._number(one)
            what = _effect(one, name, given)
            kept[index] = what not in ("dropped", "unsure")
            self._counts[what] += 1
            self._counts["held_out"] += name in _HELD_OUT and what in ("relabelled", "dropped")
        if not kept.any():
            raise DataError(f"{self._data.source}: the corrections leave no picture in {name}")
        changed = split.with_labels(labels)
        return (changed if kept.all() else changed.subset(np.flatnonzero(kept))), kept

    def _number(self, one: Correction) -> int:
        """The position of the correction's class in the class names."""
        number = self._numbers.get(one.label, self._numbers.get(one.label.strip()))
        if number is None:
            raise DataError(_unknown_class(one, self._data))
        return number

    def _warnings(self) -> list[str]:
        notes = []
        if self._found.missing:
            notes.append(
                f"warning: {len(self._found.missing):,} correction(s) name pictures that the data do not "
                f"have, such as {printable(self._found.missing[0].name)}"
            )
        if self._surprising:
            notes.append(
                f"warning: {len(self._surprising):,} corrected picture(s) have another class in the data "
                f"than when they were reviewed, such as {printable(self._surprising[0])}. The corrections "
                "count"
            )
        return notes


def _effect(one: Correction, split: str, given: str) -> str:
    """The name of the count in :class:`~thumbnet.data.splits.Corrected` that a correction adds to."""
    if one.decision == "drop":
        return "dropped"
    if one.decision == "unsure":
        return "unsure_kept" if split in _HELD_OUT else "unsure"
    return "confirmed" if one.label == given else "relabelled"


def _unknown_class(one: Correction, data: Data) -> str:
    """The message about a label that is not one of the classes."""
    names = data.class_names
    likely = difflib.get_close_matches(one.label, names, n=1, cutoff=0.5)
    hint = f"Did you mean {likely[0]!r}? " if likely else ""
    listed = difflib.get_close_matches(one.label, names, n=_UNKNOWN_SHOWN, cutoff=0.0)
    which = "The classes" if len(listed) == len(names) else f"The nearest of its {len(names):,} classes"
    where = f"corrections, line {one.line}" if one.line else "corrections"
    return (
        f"{where}: {printable(one.name)} gets the class {printable(one.label)!r}, which "
        f"{data.source} does not have. {hint}{which}: {', '.join(listed)}"
    )


def _without_lost_classes(
    data: Data, splits: dict[str, Split]
) -> tuple[tuple[str, ...], dict[str, Split], list[str]]:
    """Remove the classes that lost all their pictures; return class names, splits and a note.

    Raises:
        DataError: a class lost its training pictures, and other splits have some.
    """
    size = len(data.class_names)
    counts = {name: np.bincount(split.labels, minlength=size) for name, split in splits.items()}
    gone = (np.bincount(data.splits["train"].labels, minlength=size) > 0) & (counts["train"] == 0)
    if not gone.any():
        return data.class_names, splits, []
    held = np.sum(list(counts.values()), axis=0)  # train has none of these
    for label in np.flatnonzero(gone & (held > 0)).tolist():
        raise DataError(
            f"{data.source}: the corrections leave no training picture of the class "
            f"{data.class_names[label]!r}, but {held[label]:,} to measure on: relabel or drop these as well"
        )
    position = np.cumsum(~gone) - 1
    renumbered = {name: split.with_labels(position[split.labels]) for name, split in splits.items()}
    names = tuple(name for name, lost in zip(data.class_names, gone, strict=True) if not lost)
    lost = ", ".join(data.class_names[label] for label in np.flatnonzero(gone).tolist())
    return names, renumbered, [f"no picture is left of {lost}: no longer a class"]


def describe_corrections(counts: Mapping[str, int]) -> str:
    """Say in a sentence what corrections changed; ``counts`` as from :meth:`Corrected.counts`."""

    def told(*keys_and_words: tuple[str, str]) -> list[str]:
        return [f"{counts[key]:,} {words}" for key, words in keys_and_words if counts.get(key)]

    changed = " and ".join(told(("relabelled", "relabelled"), ("dropped", "dropped")))
    held = told(("held_out", "of these in test or val"))
    others = told(
        ("added", "added to train"),
        ("unsure", "unsure and left out of train"),
        ("unsure_kept", "unsure but kept in test or val"),
        ("confirmed", "confirmed"),
    )
    parts = [", ".join([changed, *held]), *others] if changed else others
    return f"corrected labels: {'; '.join(parts) or 'nothing changed'}"
