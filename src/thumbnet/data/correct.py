"""Relabel, drop and add pictures of a data set as a person decided (:mod:`thumbnet.data.corrections`)."""

from __future__ import annotations

import difflib
import functools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from thumbnet.data.corrections import Corrected, Correction, absolute, corrections_csv
from thumbnet.data.joined import with_files
from thumbnet.data.reading import is_file
from thumbnet.data.spelling import nfc
from thumbnet.data.splits import Data, FileSplit, Split
from thumbnet.errors import DataError, printable

_HELD_OUT = ("test", "val")
_UNUSED = "\0unused test"  # stands for `Data.unused_test` among the splits; no split has such a name
_UNKNOWN_SHOWN = 10  # class names that an error about an unknown class lists


def apply_corrections(data: Data, corrections: Sequence[Correction], folder: Path) -> Data:
    """Relabel, drop and add pictures as a person decided.

    A correction finds its picture by name, in any Unicode form if no picture has that very name, or else by
    the end of its path: a table may name the same pictures from another folder. If several splits have a
    picture of that name, the correction's split decides; a split that was set aside from ``train`` counts as
    ``train`` where it does not exist.

    - ``relabel`` and ``confirm`` give the picture the class ``label``, in every split.
    - ``drop`` leaves it out, in every split.
    - ``unsure`` leaves it out of ``train``. In ``test`` and ``val`` it stays with the class given by the
      data: a measurement without the hard pictures would be too good.
    - A picture that the data lack but that is a file joins ``train`` with the class ``label``.
    - A picture of :attr:`Data.unused_test` stays out of the data.

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
        DataError: a label is not one of the classes, no correction finds its picture, pictures in several
            folders fit one equally well, a split or a class in ``train`` would become empty, or the data have
            other corrections already.
    """
    decided = absolute(corrections, folder)
    content = corrections_csv(decided)
    if data.corrected is not None:
        if data.corrected.content == content:
            return data
        raise DataError(
            f"the labels of {data.source} have been corrected already: put all corrections into one file"
        )
    if data.multilabel:
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
        unused: those about pictures of :attr:`Data.unused_test`.
        missing: those about neither.
        elsewhere: those that name their pictures from another folder than the data do, by that folder.
    """

    places: dict[str, dict[int, Correction]]
    files: dict[str, Correction]
    unused: list[Correction]
    missing: list[Correction]
    elsewhere: dict[str, list[Correction]]


def _find(data: Data, corrections: Sequence[Correction]) -> _Found:
    """Find the pictures that corrections are about. Of several corrections, a picture gets the last one.

    Raises:
        DataError: see :func:`_places_by_end`.
    """
    searched = _with_unused_test(data)
    names = {one.name for one in corrections}
    by_name = _places_by_name(searched, names)
    lacking = {name: nfc(name) for name in names - by_name.keys()}
    by_form = _places_by_name(searched, set(lacking.values()), nfc)
    by_name |= {name: by_form[form] for name, form in lacking.items() if form in by_form}
    named_files = [one.name for one in corrections if os.path.isabs(one.name) and is_file(one.name)]
    real = functools.cache(os.path.realpath)  # of folders, of which there are few
    by_path = _places_by_path(searched, real) if named_files else {}
    files = set(named_files)
    unknown = [one for one in corrections if one.was and one.name not in files and one.name not in by_name]
    by_end = _places_by_end(searched, unknown, real) if unknown else {}
    found = _Found({name: {} for name in data.splits}, {}, [], [], {})
    for one in corrections:
        folder, name = os.path.split(one.name)
        places = by_path.get((real(folder), name), []) if one.name in files else []
        if not places and (one.was or one.name not in files):
            places = _chosen_split(searched, one, by_name.get(one.name, {}))
        if not places and one in by_end:
            start, ending = by_end[one]
            places = _chosen_split(searched, one, ending)
            if places:
                found.elsewhere.setdefault(start, []).append(one)
        used = [place for place in places if place[0] != _UNUSED]
        for split, index in used:
            earlier = found.places[split].get(index, one)  # the data's class is the one of the first review
            found.places[split][index] = replace(one, was=earlier.was)
        if places and not used:
            found.unused.append(one)
        elif not places and one.name in files:
            found.files[one.name] = one
        elif not places:
            found.missing.append(one)
    return found


def _with_unused_test(data: Data) -> Data:
    """``data`` with their unused test split as a further split, for a search."""
    if data.unused_test is None:
        return data
    return replace(data, splits={**data.splits, _UNUSED: data.unused_test})


def _places_by_name(
    data: Data, wanted: set[str], form: Callable[[str], str] = str
) -> dict[str, dict[str, list[int]]]:
    """For each of the wanted names, the positions of the pictures whose name has that ``form``, by split."""
    places: dict[str, dict[str, list[int]]] = {}
    for split_name, split in data.splits.items():
        for index in range(len(split) if wanted else 0):
            name = form(split.name(index))
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


def _places_by_end(
    data: Data, corrections: Sequence[Correction], real: Callable[[str], str]
) -> dict[Correction, tuple[str, dict[str, list[int]]]]:
    """Find pictures whose paths end with the corrections' names: a folder and positions by split for each.

    A correction does not say which folder its name starts from, and a table may name the same pictures from
    another one: ``cat/1.jpg`` is ``pictures/cat/1.jpg`` there. A picture is taken for that of a correction if
    the folders and the name are the same as far as the correction names them, and so is the class that was
    reviewed. If pictures in several folders fit, it is the folder that fits the most corrections.

    Args:
        data: pictures; only those in files are looked at.
        corrections: those of pictures with a class that the data do not have by name.
        real: gives the path of a folder without links.

    Raises:
        DataError: the pictures of several folders fit a correction equally well.
    """
    by_end: dict[str, list[Correction]] = {}
    for one in corrections:
        by_end.setdefault(nfc(_without_parents(one.name)), []).append(one)
    bases = {os.path.basename(end) for end in by_end}
    found: dict[Correction, dict[str, dict[str, list[int]]]] = {}
    for split_name, split in data.splits.items():
        if not isinstance(split, FileSplit):
            continue
        root = os.path.abspath(split.root)
        for index, path in enumerate(split.paths):
            folder, base = os.path.split(os.path.normpath(os.path.join(root, path)))
            if nfc(base) not in bases:
                continue
            given = data.class_names[split.labels[index]]
            seen: set[Correction] = set()
            for place in dict.fromkeys((os.path.join(folder, base), os.path.join(real(folder), base))):
                for start, end in _ends(nfc(place)):
                    for one in by_end.get(end, ()):
                        if given in (one.was, one.label) and one not in seen:
                            seen.add(one)
                            places = found.setdefault(one, {}).setdefault(start, {})
                            places.setdefault(split_name, []).append(index)
    fits = Counter(start for starts in found.values() for start in starts)
    chosen = {}
    for one, starts in found.items():
        best, *others = sorted(starts, key=lambda start: -fits[start])
        if others and fits[best] == fits[others[0]]:
            raise DataError(
                f"{data.source}: the correction of {printable(one.name)} fits pictures in several folders, "
                f"{printable(best)} and {printable(others[0])}. Write the path of the picture that is meant "
                "into the corrections, from / on"
            )
        chosen[one] = best, starts[best]
    return chosen


def _without_parents(name: str) -> str:
    """A name without the ``../`` at its beginning."""
    parts = os.path.normpath(name).split(os.sep)
    return os.sep.join(part for part in parts if part != os.pardir)


def _ends(path: str) -> Iterator[tuple[str, str]]:
    """Split an absolute path into a folder and the rest in all ways, the shortest rest first."""
    at = path.rfind(os.sep)
    while at >= 0:
        yield path[:at] or os.sep, path[at + 1 :]
        at = path.rfind(os.sep, 0, at)


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
        notes = [*data.notes, describe_corrections(corrected.counts()), *self._more_notes(), *lost]
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

    def _more_notes(self) -> list[str]:
        notes = []
        for start, those in self._found.elsewhere.items():
            notes.append(
                f"{len(those):,} correction(s), such as that of {printable(those[0].name)}, name pictures "
                f"from another folder than the data do: {printable(start)}"
            )
        if self._found.unused:
            notes.append(
                f"{len(self._found.unused):,} correction(s) are about pictures of the test split, which is "
                f"not used, such as {printable(self._found.unused[0].name)}"
            )
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
    """The name of the count in :class:`~thumbnet.data.corrections.Corrected` that a correction adds to."""
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
