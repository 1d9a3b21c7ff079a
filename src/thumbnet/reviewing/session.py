"""A review in progress: the pictures in order, and what a person decided about them.

Every decision is in the file of labels before the page hears that it was taken, so the browser, the service
or the computer may stop at any moment. The next review of the same pictures continues from that file.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from thumbnet.data.corrections import DECISIONS, Correction, newest, read_corrections, write_corrections
from thumbnet.data.reading import is_file, is_not_there, read_error
from thumbnet.errors import DataError, RunError
from thumbnet.files import locked

if TYPE_CHECKING:  # these import torch
    from thumbnet.reviewing.scores import Scores
    from thumbnet.reviewing.suspects import Suspect
    from thumbnet.reviewing.unlabelled import Unlabelled

LIKELY = 10  # classes per picture whose probabilities the page shows, and which the digits choose
TRAIN = "train"  # where pictures go that had no label before
Key = tuple[str, str]  # split and name of a picture


@dataclass(frozen=True)
class Item:
    """A picture under review.

    Attributes:
        split, index: where it is in the data.
        name: its name in the file of labels.
        given: its class in the data, a position in the class names; None if it has no label.
        suggested: the class that the network suggests.
        likely: the most probable classes and their probabilities, most probable first.
        reasons: why it is suspicious, see :class:`~thumbnet.reviewing.suspects.Suspect`.
        copies: positions of the same picture elsewhere among the items of the review.
    """

    split: str
    index: int
    name: str
    given: int | None
    suggested: int
    likely: tuple[tuple[int, float], ...]
    reasons: tuple[str, ...] = ()
    copies: tuple[int, ...] = ()


@dataclass(frozen=True)
class Selection:
    """The pictures of a review.

    Attributes:
        items: the pictures to decide about, in their order, followed by those of their copies that are not
            among them.
        shown: how many of the items are to be decided.
        beyond: split and name of each further picture that is worth a decision.
        reach: how many pictures to select so that all of ``beyond`` are among them.
        what: what the pictures in ``beyond`` are, such as ``without a label``.
    """

    items: tuple[Item, ...]
    shown: int
    beyond: tuple[Key, ...]
    reach: int
    what: str


def suspicious_items(
    suspects: Sequence[Suspect], scores: Scores, first: int, settled: Collection[Key] = frozenset()
) -> Selection:
    """Select the ``first`` suspects, followed by their copies.

    Further suspects are worth a decision if their label is doubtful; all other pictures of the data are
    suspects too.

    Args:
        suspects: the pictures of a data set, most suspicious first.
        scores: what the networks say about them.
        first: how many to select.
        settled: the result of :func:`settled_pictures`; these come after all others.
    """
    suspects = sorted(suspects, key=lambda one: _key(one) in settled)
    shown = min(first, len(suspects))
    place = {(one.split, one.index): at for at, one in enumerate(suspects)}
    chosen = dict.fromkeys(range(shown))
    for at in list(chosen):
        chosen |= dict.fromkeys(place[copy] for copy in suspects[at].copies if copy in place)
    position = {at: number for number, at in enumerate(chosen)}
    items = []
    for at in chosen:
        one = suspects[at]
        copies = [position[place[copy]] for copy in one.copies if place.get(copy) in position]
        likely = _likely(scores.probabilities[one.split][one.index])
        items.append(
            Item(one.split, one.index, one.name, one.given, one.suggested, likely, one.reasons, tuple(copies))
        )
    beyond = {
        at: _key(suspects[at])
        for at in range(shown, len(suspects))
        if suspects[at].is_doubtful and _key(suspects[at]) not in settled
    }
    reach = max(beyond, default=shown - 1) + 1
    return Selection(tuple(items), shown, tuple(beyond.values()), reach, "whose label may be wrong")


def unlabelled_items(
    found: Unlabelled, order: np.ndarray, first: int, folder: Path, settled: Collection[Key] = frozenset()
) -> Selection:
    """Select the ``first`` pictures in this order, for a file of labels in ``folder``.

    All further pictures are worth a decision, except those in ``settled``; these come after all others.
    """
    real = functools.cache(
        os.path.realpath
    )  # most pictures share a folder, and resolving it asks the system for each part

    def name_of(file: Path) -> str:
        return _name_in(folder, file.resolve() if file.is_symlink() else Path(real(file.parent), file.name))

    named = [(index, name_of(found.split.file(index))) for index in order.tolist()]
    named.sort(key=lambda one: (TRAIN, one[1]) in settled)
    items = []
    for index, name in named[:first]:
        likely = _likely(found.probabilities[index])
        items.append(Item(TRAIN, index, name, None, likely[0][0], likely))
    beyond = tuple((TRAIN, name) for _, name in named[first:] if (TRAIN, name) not in settled)
    return Selection(tuple(items), len(items), beyond, len(items) + len(beyond), "without a label")


def settled_pictures(path: Path, inherited: Sequence[Correction]) -> frozenset[Key]:
    """Split and name of each picture whose decision the data contain already.

    These are the pictures of the ``inherited`` corrections, except those about which the file of labels
    ``path`` says something else.

    Raises:
        DataError, FailedReadError: as for :class:`Review`.
    """
    decisions = _decisions(path, inherited)
    return frozenset(_key(one) for one in inherited if decisions[_key(one)] == one)


def renamed(corrections: Iterable[Correction], folder: Path) -> list[Correction]:
    """Name pictures that corrections add to the data as :func:`unlabelled_items` does."""
    return [
        replace(one, name=_name_in(folder, Path(one.name).resolve()))
        if not one.was and Path(one.name).is_absolute()
        else one
        for one in corrections
    ]


def _name_in(folder: Path, path: Path) -> str:
    """A picture's name in a file of labels: relative to the file's ``folder`` or, outside it, absolute."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _likely(probabilities: np.ndarray) -> tuple[tuple[int, float], ...]:
    order = np.argsort(-probabilities, kind="stable")[:LIKELY].tolist()
    return tuple((label, float(probabilities[label])) for label in order)


def lock_labels(path: Path) -> AbstractContextManager[None]:
    """Lock a file of labels for a review.

    Raises:
        RunError: another review has locked it, or its folder is not writable.
    """
    busy = f"another review is writing {path}: go on in its page, or stop it first (Ctrl-C where it runs)"
    return locked(path.with_name(f".{path.name}.lock"), busy)


class Review:
    """The pictures of a review and the decisions about them. Threads may share it.

    Args:
        selection: the pictures.
        class_names: the classes that a picture can have.
        path: the file of labels. If it exists, its decisions are taken up.
        inherited: corrections that the data already contain; the file begins with them.

    Attributes:
        revision: a number that grows with every change.

    Raises:
        DataError: the file exists and is not a file of labels.
        FailedReadError: the system cannot read it, or tell whether it exists.
    """

    def __init__(
        self,
        selection: Selection,
        class_names: Sequence[str],
        path: Path,
        *,
        inherited: Sequence[Correction] = (),
    ) -> None:
        self.selection, self.class_names, self.path = selection, tuple(class_names), path
        self.items, self.shown = selection.items, selection.shown
        self.revision = 0
        self._lock = threading.Lock()
        self._inherited = {_key(one): one for one in inherited}
        self._stamp = _stamp(path)
        self._decisions = _decisions(path, inherited)
        self._beyond = frozenset(selection.beyond)
        self._remaining = set(self._beyond - self._decisions.keys())
        position = {_key(item): number for number, item in enumerate(self.items)}
        # What undo brings back, newest last: a picture's position and the decision before.
        self._past: list[tuple[int, Correction | None]] = [
            (position[key], self._inherited.get(key))
            for key, one in self._decisions.items()
            if key in position and one != self._inherited.get(key)
        ]

    @property
    def decided(self) -> int:
        """How many of the shown pictures are decided."""
        return sum(_key(item) in self._decisions for item in self.items[: self.shown])

    @property
    def remaining(self) -> int:
        """How many further pictures are worth a decision and have none."""
        return len(self._remaining)

    @property
    def can_undo(self) -> bool:
        """Whether there is a decision that :meth:`undo` can take back."""
        return bool(self._past)

    def decision(self, position: int) -> Correction | None:
        """What was decided about a picture; None if nothing was."""
        return self._decisions.get(_key(self._item(position)))

    def decide(self, position: int, decision: str, label: int | None = None) -> None:
        """Decide about a picture, and write the file.

        Args:
            position: the picture's position among the items.
            decision: ``confirm`` (the given class is right), ``relabel``, ``drop`` (the picture belongs to no
                class) or ``unsure``.
            label: the class for ``relabel``, a position in the class names.

        Raises:
            DataError: there is no such picture, decision or class; nothing has changed.
            RunError: the file cannot be written; nothing has changed.
        """
        item = self._item(position)
        with self._lock:
            before, after = self._decisions.get(_key(item)), self._correction(item, decision, label)
            if before == after:
                return
            self._write(_key(item), after)
            self._past.append((position, before))

    def undo(self) -> int | None:
        """Take the latest decision back, and write the file.

        Returns:
            The position of its picture; None if there is nothing to take back.

        Raises:
            RunError: the file cannot be written; nothing has changed.
        """
        with self._lock:
            if not self._past:
                return None
            position, before = self._past[-1]
            self._write(_key(self.items[position]), before)
            self._past.pop()
            return position

    def _item(self, position: int) -> Item:
        if not 0 <= position < len(self.items):
            raise DataError(f"there is no picture {position} in this review, which has {len(self.items)}")
        return self.items[position]

    def _correction(self, item: Item, decision: str, label: int | None) -> Correction:
        if decision not in DECISIONS:
            raise DataError(f"there is no decision {decision!r}, only {', '.join(DECISIONS)}")
        inherited = self._inherited.get(_key(item))
        given = "" if item.given is None else self.class_names[item.given]
        was = given if inherited is None else inherited.was
        if decision in ("drop", "unsure"):
            return Correction(item.name, item.split, was, "", decision)
        chosen = item.given if decision == "confirm" else label
        if chosen is None or not 0 <= chosen < len(self.class_names):
            raise DataError(
                f"{item.name} has no class to confirm: choose one"
                if decision == "confirm"
                else f"there is no class {label} in this review, which has {len(self.class_names)}"
            )
        name = self.class_names[chosen]
        return Correction(item.name, item.split, was, name, "confirm" if name == was else "relabel")

    def _write(self, key: Key, correction: Correction | None) -> None:
        """Replace one decision in the file, and then here."""
        if _stamp(self.path) != self._stamp:
            raise RunError(
                f"another program has changed {self.path}, so this review would overwrite its changes: "
                "stop the review (Ctrl-C where it runs) and start it again"
            )
        changed = {other: one for other, one in self._decisions.items() if other != key}
        if correction is not None:
            changed[key] = correction
        write_corrections(self.path, list(changed.values()))
        self._decisions, self._stamp = changed, _stamp(self.path)
        if correction is not None:
            self._remaining.discard(key)
        elif key in self._beyond:
            self._remaining.add(key)
        self.revision += 1


def _key(one: Item | Suspect | Correction) -> Key:
    return one.split, one.name


def _decisions(path: Path, inherited: Sequence[Correction]) -> dict[Key, Correction]:
    """The newest decision about each picture, from the file of labels (if it exists) or inherited."""
    written = read_corrections(path) if is_file(path) else []
    return {_key(one): one for one in newest([*inherited, *written])}


def _stamp(path: Path) -> tuple[int, int] | None:
    """Time and size of a file, which change if another program writes to it; None if it does not exist.

    Raises:
        FailedReadError: the system cannot tell.
    """
    try:
        state = path.stat()
    except OSError as error:
        if is_not_there(error):
            return None
        raise read_error(error, path) from None
    return state.st_mtime_ns, state.st_size
