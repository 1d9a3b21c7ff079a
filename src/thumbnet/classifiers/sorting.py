"""Sort the pictures below a folder into one folder per class: copied, linked, or listed in a table.

Pictures of uncertain class go into ``unsure``, pictures that are unlike the training pictures into
``unlike``. These are two folders because they need different work: an unsure picture needs a label, an unlike
one a class of its own or the bin.

The originals are only read. A file that exists is never replaced. A picture that is in one of the folders
already, with its path or file name and its content, stays where it is. So the same command can be killed and
repeated, new pictures can be added later, and a picture that a person has moved to another class stays there.
Imports no torch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thumbnet.classifiers.placing import UNLIKE, UNSURE, Target, folder_names
from thumbnet.classifiers.reading import Unread, classify_ahead
from thumbnet.classifiers.thresholds import describe_threshold, threshold_for
from thumbnet.data.images import Picture, load_picture
from thumbnet.data.listings import csv_text, safe_name, safe_text
from thumbnet.data.splits import Progress
from thumbnet.errors import RunError
from thumbnet.files import check_new, user_path, write_file
from thumbnet.runs.weights_info import TTA_NAMES
from thumbnet.sources.unlabelled import find_pictures

if TYPE_CHECKING:
    from thumbnet.classifiers.base import Classifier, Prediction
    from thumbnet.runs.certainty import Threshold, Thresholds

COPIERS = 8  # threads; they mostly wait for the disk
COLUMNS = ("picture", "folder", "class", "probability", "unlikeness", "error")


@dataclass(frozen=True)
class Criterion:
    """When a class is accepted.

    Attributes:
        threshold: the least probability of the predicted class, 0 to 1.
        precision: the precision for which it was chosen; None if the user chose the threshold.
        text: a sentence that says so.
    """

    threshold: float
    precision: float | None
    text: str


@dataclass
class Sorted:
    """What :func:`sort_folder` and :func:`list_folder` did.

    Attributes:
        criterion: when a class was accepted.
        folders: the name of the folder of each class.
        counts: the number of pictures sorted into each folder, by its name; ``unsure`` and ``unlike`` too.
        present: the number of pictures that were in each folder already and stayed there.
        unreadable: the path of each picture that cannot be read, and why.
        seconds: how long it took.
        notes: what the user should know.
    """

    criterion: Criterion
    folders: dict[str, str]
    counts: dict[str, int]
    present: dict[str, int]
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def pictures(self) -> int:
        """The number of pictures that were classified."""
        return sum(self.counts.values())

    @property
    def rate(self) -> float | None:
        """Pictures classified per second; None if no time passed."""
        return self.pictures / self.seconds if self.seconds else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""

        def numbers(folder: str) -> dict[str, int]:
            return {"sorted": self.counts[folder], "present": self.present[folder]}

        return {
            "threshold": self.criterion.threshold,
            "precision": self.criterion.precision,
            "criterion": self.criterion.text,
            "classes": {name: {"folder": folder, **numbers(folder)} for name, folder in self.folders.items()},
            UNSURE: numbers(UNSURE),
            UNLIKE: numbers(UNLIKE),
            "unreadable": [{"path": path, "error": reason} for path, reason in self.unreadable],
            "pictures": self.pictures,
            "seconds": round(self.seconds, 3),
            "pictures_per_second": None if self.rate is None else round(self.rate, 1),
            "notes": self.notes,
        }


@dataclass(frozen=True)
class Decision:
    """Which folder one picture belongs in.

    Attributes:
        picture: its path relative to the sorted folder.
        folder: the name of the folder for it; "" if the picture cannot be read.
        prediction: the prediction; None if the picture cannot be read.
        error: why it cannot be read; "" if it can.
    """

    picture: str
    folder: str
    prediction: Prediction | None = None
    error: str = ""


def sort_folder(
    classifier: Classifier,
    folder: str | Path,
    into: str | Path,
    *,
    threshold: float | None = None,
    precision: float | None = None,
    link: bool = False,
    tta: str | None = None,
    progress: Progress | None = None,
) -> Sorted:
    """Copy the pictures below ``folder`` into one folder per class.

    A picture keeps its path: ``folder/monday/3.jpg`` becomes ``into/cat/monday/3.jpg``. If another picture is
    there, it becomes ``3-2.jpg``.

    Args:
        classifier: the trained network.
        folder: the pictures; folders below it are searched too.
        into: the folder for the class folders; created if it does not exist.
        threshold: accept a class with this probability or more; other pictures go into ``unsure``.
        precision: choose the threshold for this precision, from those stored with the weights. Without
            ``threshold`` and ``precision``, it is the one for 95 %, or for the highest precision below it
            that the held-out pictures support.
        link: make symbolic links instead of copies.
        tta: test-time augmentation, see :meth:`Classifier.logits`. The stored thresholds hold only for
            the one with which the network was measured.
        progress: called with the number of pictures done and their total.

    Raises:
        DataError: there are no pictures, or one of the two folders is within the other.
        RunError: the network gives a picture several labels or has no threshold for this precision or this
            test-time augmentation, a file cannot be written, or another process is sorting into the same
            folder.
    """
    started = time.perf_counter()
    root = user_path(folder)
    criterion = criterion_for(classifier, threshold, precision, tta)
    folders = folder_names(classifier.class_names)
    target = Target(user_path(into), [*folders.values(), UNSURE, UNLIKE], link)
    target.check_apart(root)
    paths, notes = find_pictures(root)
    target.check_links(root, paths)
    found = _nothing_sorted(criterion, folders, notes)
    with target.opened(), ThreadPoolExecutor(COPIERS) as pool:
        places = list(pool.map(lambda path: target.find(root, path), paths))
        for place in places:
            if place is not None:
                found.present[place] += 1
        missing = [path for path, place in zip(paths, places, strict=True) if place is None]
        done = len(paths) - len(missing)
        for batch in decisions(classifier, root, missing, criterion, folders, tta):
            chosen = [one for one in batch if one.folder]
            list(
                pool.map(
                    lambda one: target.put(os.path.join(root, one.picture), one.folder, one.picture), chosen
                )
            )
            _count(found, batch)
            done += len(batch)
            if progress:
                progress(done, len(paths))
    found.seconds = time.perf_counter() - started
    return found


def list_folder(
    classifier: Classifier,
    folder: str | Path,
    file: str | Path,
    *,
    threshold: float | None = None,
    precision: float | None = None,
    tta: str | None = None,
    progress: Progress | None = None,
) -> Sorted:
    """Write a table of the pictures below ``folder`` and the folders that they belong in; copy nothing.

    The table is CSV in UTF-8 with the columns ``picture``, ``folder``, ``class`` (the most probable one),
    ``probability``, ``unlikeness`` and ``error``. A picture's path is relative to the table's folder if the
    picture is below it, else absolute. The file is written whole, at the end.

    Args:
        classifier: the trained network.
        folder: the pictures; folders below it are searched too.
        file: the table, a new file.
        threshold, precision, tta, progress: as for :func:`sort_folder`.

    Raises:
        DataError: there are no pictures.
        RunError: ``file`` exists or cannot be written, or the network has no threshold for this precision
            or this test-time augmentation.
    """
    started = time.perf_counter()
    root, place = user_path(folder), user_path(file).absolute()
    check_new(place)
    criterion = criterion_for(classifier, threshold, precision, tta)
    folders = folder_names(classifier.class_names)
    paths, notes = find_pictures(root)
    found = _nothing_sorted(criterion, folders, notes)
    pictures, home = _without_dots(root), _without_dots(place.parent)
    parts, done = [csv_text([COLUMNS])], 0
    for batch in decisions(classifier, root, paths, criterion, folders, tta):
        parts.append(csv_text(_row(one, _path_in_table(pictures / one.picture, home)) for one in batch))
        _count(found, batch)
        done += len(batch)
        if progress:
            progress(done, len(paths))
    write_file(place, "".join(parts))
    found.seconds = time.perf_counter() - started
    return found


def _path_in_table(picture: Path, folder: Path) -> str:
    return str(picture.relative_to(folder) if picture.is_relative_to(folder) else picture)


def _without_dots(path: Path) -> Path:
    """The absolute path without ``..``.

    Symbolic links stay, except those before ``..``, which leads to the folder above their target.
    """
    parts = path.absolute().parts
    end = max((place for place, part in enumerate(parts, 1) if part == ".."), default=0)
    return Path(Path(*parts[:end]).resolve(), *parts[end:]) if end else Path(*parts)


def _row(one: Decision, picture: str) -> list[str]:
    return [safe_name(picture), safe_text(one.folder), *_cells(one.prediction), safe_text(one.error)]


def _cells(prediction: Prediction | None) -> list[str]:
    if prediction is None:
        return ["", "", ""]
    score = prediction.unlikeness
    shown = "" if score is None else f"{score:.6g}"
    return [safe_text(prediction.label), f"{prediction.probability:.6f}", shown]


def _nothing_sorted(criterion: Criterion, folders: dict[str, str], notes: Sequence[str]) -> Sorted:
    names = [*folders.values(), UNSURE, UNLIKE]
    return Sorted(criterion, folders, dict.fromkeys(names, 0), dict.fromkeys(names, 0), notes=list(notes))


def _count(found: Sorted, batch: Sequence[Decision]) -> None:
    for one in batch:
        if one.folder:
            found.counts[one.folder] += 1
        else:
            found.unreadable.append((one.picture, one.error))


def criterion_for(
    classifier: Classifier,
    threshold: float | None = None,
    precision: float | None = None,
    tta: str | None = None,
) -> Criterion:
    """Decide from which probability a class is accepted; see :func:`sort_folder`.

    Raises:
        RunError: both are given, one is out of range, or the network has no threshold for the precision, or
            none for this test-time augmentation.
    """
    if classifier.info.multilabel:
        raise RunError("the network gives a picture several labels, so it cannot sort pictures into classes")
    if threshold is None:
        known = classifier.info.thresholds
        row = threshold_for(known, precision)
        assert known is not None
        _check_tta(classifier, tta)
        return Criterion(row.probability, row.precision, _promise(classifier, row, known))
    if precision is not None:
        raise RunError("give a threshold or a precision, not both")
    if not 0 <= threshold <= 1:
        raise RunError(f"the threshold is {threshold:g}: expected a probability from 0 to 1, such as 0.9")
    return Criterion(threshold, None, f"a class is accepted from a probability of {threshold:g}")


def _check_tta(classifier: Classifier, tta: str | None) -> None:
    """Check that the thresholds were measured with this test-time augmentation.

    Raises:
        RunError: they were measured with another one, which gives other probabilities.
    """
    measured = classifier.info.tta
    if tta not in (None, measured) and tta in TTA_NAMES:
        raise RunError(
            f"the network's thresholds were measured with test-time augmentation {measured}, so with {tta} "
            "no precision is known. Leave out --tta, or choose a probability yourself: --threshold 0.9"
        )


def _promise(classifier: Classifier, row: Threshold, known: Thresholds) -> str:
    """The sentence about a threshold of the network, and whether its file holds other weights now."""
    quantised = classifier.info.exported == "onnx-int8"
    text = describe_threshold(row, known)
    return f"{text}; measured before the network was quantised" if quantised else text


def decisions(
    classifier: Classifier,
    root: Path,
    paths: Sequence[str],
    criterion: Criterion,
    folders: dict[str, str],
    tta: str | None = None,
) -> Iterator[list[Decision]]:
    """Decide for each picture below ``root`` which folder it belongs in, batch by batch."""

    def load(path: str) -> Picture:
        source = os.path.join(root, path)
        return load_picture(source, source)

    for batch in classify_ahead(classifier, paths, load, tta=tta):
        yield [
            Decision(path, "", error=found.reason)
            if isinstance(found, Unread)
            else _decide(path, found, criterion, folders)
            for path, found in batch
        ]


def _decide(path: str, found: Prediction, criterion: Criterion, folders: dict[str, str]) -> Decision:
    if found.unlike:
        return Decision(path, UNLIKE, found)
    sure = found.probability >= criterion.threshold
    return Decision(path, folders[found.label] if sure else UNSURE, found)
