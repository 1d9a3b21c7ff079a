"""Find pictures that occur more than once in a run's data, for train, evaluate and report."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thumbnet.batches.engines import Engine, MemoryEngine
from thumbnet.batches.notes import copied_notes
from thumbnet.data.folds import joined
from thumbnet.data.reading import is_file
from thumbnet.data.repeats import Place, Repeats, find_repeats, number_pictures
from thumbnet.data.splits import Split
from thumbnet.errors import RunError, is_out_of_memory, printable
from thumbnet.files import remove_file, write_file, write_with

LEAKS_NAME, DIGESTS_NAME = "leaks.jsonl", "digests.npy"
IN_TRAINING = "were in the training split"  # in the sentence about other data
NOT_COMPARED = (
    "pictures were not compared: they are decoded during the training (the command data compares them)"
)
TOO_NARROW = "so the 95 % interval is too narrow"  # in the sentence about copies within a measured split
_FEW = 0.05  # with a smaller share of copies, an interval is hardly narrower
NO_DIGESTS = (
    "pictures were not compared with those of the training, because the run stored no digests of them"
)


def engine_digests(engine: Engine) -> np.ndarray | None:
    """Digests of an engine's pictures, uint64 [N, 2]; None if the pictures are not all in memory."""
    return engine.digests if isinstance(engine, MemoryEngine) else None


def belonging(engine: Engine, groups: np.ndarray | None) -> np.ndarray:
    """Numbers that are equal for pictures that belong together: int64 [N].

    These are copies of a picture, if all pictures are in memory, and the pictures of one group.

    Args:
        engine: delivers the pictures.
        groups: their groups, str [N]; None if they have none.
    """
    found, digests = [np.arange(len(engine.labels))], engine_digests(engine)
    if digests is not None:
        found.append(number_pictures(digests))
    if groups is not None:
        found.append(np.unique(groups.astype(str), return_inverse=True)[1])
    return joined(*found)


class RepeatSearch:
    """Searches for repeated pictures in a separate thread, so that no training step waits for it.

    Args:
        engines: one engine per split, ``train`` first.
        splits: the same pictures, for their names and labels.
        class_names: class names by label.
    """

    def __init__(
        self, engines: Mapping[str, Engine], splits: Mapping[str, Split], class_names: tuple[str, ...]
    ) -> None:
        self._splits, self._class_names = dict(splits), class_names
        self._engines = {name: one for name, one in engines.items() if isinstance(one, MemoryEngine)}
        self._digests: dict[str, np.ndarray] = {}
        self._found: Repeats | None = None
        self._failure = ""  # why pictures were not compared
        self._thread: threading.Thread | None = None
        if len(self._engines) == len(engines):
            copies = {name: snapshot(engine) for name, engine in self._engines.items()}
            self._thread = threading.Thread(target=self._search, args=(copies,), daemon=True)
            self._thread.start()

    def _search(self, engines: dict[str, MemoryEngine]) -> None:
        try:
            self._digests = {name: engine.digests for name, engine in engines.items()}
            classes = {name: self._splits[name].single_classes() for name in engines}
            self._found = find_repeats(self._digests, classes)
        except Exception as error:  # the training goes on without the comparison
            short = is_out_of_memory(error)
            self._failure = "there is too little memory" if short else f"{type(error).__name__}: {error}"

    @property
    def is_done(self) -> bool:
        """Whether :meth:`finish` returns without waiting."""
        return self._thread is None or not self._thread.is_alive()

    def finish(self, folder: Path) -> dict[str, Any] | None:
        """Wait for the result, write its files into a run's folder, and describe it.

        The engines then have their digests, too.

        Returns:
            See :func:`describe`; only its ``lines`` if the search failed, for lack of memory for example;
            None if pictures were not compared because not all are in memory.
        """
        if self._thread is None:
            return None
        self._thread.join()
        for name, digests in self._digests.items():
            self._engines[name].digests = digests  # a snapshot has computed them
        if self._failure:
            return {"lines": [f"pictures were not compared: {printable(self._failure)}"]}
        assert self._found is not None
        write_with(folder / DIGESTS_NAME, lambda file: np.save(file, self._digests["train"]))
        write_leaks(folder / LEAKS_NAME, self._found, self._splits, self._class_names)
        return describe(self._found, self._splits, self._class_names)


def write_leaks(
    path: Path, found: Repeats, splits: Mapping[str, Split], class_names: tuple[str, ...]
) -> None:
    """Write a line of JSON per leak and per picture in two classes; remove the file if nothing was found."""

    def where(place: Place) -> dict[str, str]:
        split = splits[place.split]
        return {
            "split": place.split,
            "name": split.name(place.index),
            "class": split.label_text(place.index, class_names),
        }

    rows = [{"kind": "leak", "pictures": [where(one) for one in pair]} for pair in found.leaks]
    rows += [{"kind": "two classes", "pictures": [where(one) for one in group]} for group in found.conflicts]
    if rows:
        write_file(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    else:
        remove_file(path)


def describe(
    found: Repeats,
    splits: Mapping[str, Split],
    class_names: tuple[str, ...],
    labels: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Counts of repeated pictures, and sentences about them (``lines``, empty if nothing repeats).

    ``labels`` are positions in ``class_names``; the default is the splits' own labels.
    """
    known = labels or {name: split.single_classes() for name, split in splits.items()}

    def named(place: Place) -> str:
        return f"{place.split}: {printable(splits[place.split].name(place.index))}"

    lines = []
    leaked: dict[tuple[str, str], list[tuple[Place, Place]]] = {}
    for earlier, later in found.leaks:
        leaked.setdefault((later.split, earlier.split), []).append((earlier, later))
    for (later_name, earlier_name), pairs in leaked.items():
        first, second = pairs[0]
        lines.append(
            f"warning: {len(pairs):,} of the {len(splits[later_name]):,} {later_name} pictures are also in "
            f"{earlier_name} (such as {named(second)} = {named(first)})"
        )
    if found.conflicts:
        one, *others = found.conflicts[0]
        label = int(known[one.split][one.index])
        other = next(o for o in others if int(known[o.split][o.index]) != label)
        names = [class_names[label], class_names[int(known[other.split][other.index])]]
        count = len(found.conflicts)
        lines.append(
            f"warning: {count:,} picture{'s are' if count > 1 else ' is'} in two classes (such as "
            f"{named(one)} in {printable(names[0])} = {named(other)} in {printable(names[1])})"
        )
    lines += copied_notes(found, class_names)
    for name, count in found.repeated.items():
        if count:
            measured = name not in ("train", "calibration") and count >= _FEW * len(splits[name])
            lines.append(
                f"{count:,} {name} picture{'s repeat' if count > 1 else ' repeats'} another {name} picture"
                + (f", {TOO_NARROW} unless copies are in one group" if measured else "")
            )
    return {
        "leaks": len(found.leaks),
        "conflicts": len(found.conflicts),
        "repeated": dict(found.repeated),
        "lines": lines,
    }


def training_digests(folder: Path) -> np.ndarray | None:
    """Digests of the pictures that a run was trained on, uint64 [N, 2]; None if the run stored none.

    Raises:
        RunError: the file is damaged.
    """
    path = folder / DIGESTS_NAME
    if not is_file(path):
        return None
    try:
        # A map takes no memory for what the file only declares.
        digests: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy raises almost any exception for a damaged file
        raise RunError(f"cannot read {path}: {error}") from None
    if digests.dtype != np.uint64 or digests.ndim != 2 or digests.shape[1] != 2:
        raise RunError(f"{path} does not contain digests of pictures")
    return digests


def are_among(digests: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which of ``digests`` (uint64 [N, 2]) are among ``known`` (uint64 [M, 2]): bool [N]."""
    numbers = number_pictures(np.concatenate([digests, known]))
    return np.isin(numbers[: len(digests)], numbers[len(digests) :])


def with_belonging(found: np.ndarray, engine: Engine, groups: np.ndarray | None) -> np.ndarray:
    """Some pictures (bool [N]) and all that belong together with one of them (see :func:`belonging`)."""
    if not found.any():
        return found
    together = belonging(engine, groups)
    return np.isin(together, together[found])


def belonging_to_training(
    engine: Engine, groups: np.ndarray | None, train: Engine, train_groups: np.ndarray | None
) -> np.ndarray:
    """Which held-out pictures belong together with a training picture: bool [N].

    These are copies of training pictures, pictures of one of their groups, and the held-out pictures that
    belong together with one of these (see :func:`belonging`). Copies are found only if all pictures are in
    memory.

    Args:
        engine, train: deliver the held-out pictures and those of the training split.
        groups, train_groups: their groups, str [N]; None if they have none.
    """
    found = np.zeros(len(engine.labels), dtype=bool)
    here, there = engine_digests(engine), engine_digests(train)
    if here is not None and there is not None:
        found |= are_among(here, there)
    if groups is not None and train_groups is not None:
        found |= np.isin(groups.astype(str), train_groups.astype(str))
    return with_belonging(found, engine, groups)


def lines_about(
    engine: Engine,
    split: Split,
    name: str,
    *,
    labels: np.ndarray,
    class_names: tuple[str, ...],
    trained_on: np.ndarray | None,
) -> list[str]:
    """Sentences about a split of other data: which pictures repeat, and which are in the training split.

    Args:
        engine: delivers the split's pictures as the run sees them.
        split: the same pictures.
        name: the split's name in the sentences.
        labels: int [N], positions in ``class_names``.
        class_names: class names of the run.
        trained_on: the result of :func:`training_digests`.
    """
    digests = engine_digests(engine)
    if digests is None:
        return ["pictures were not compared: there are too many to hold them in memory"]
    lines: list[str] = []
    if trained_on is None:
        lines.append(NO_DIGESTS)
    else:
        known = are_among(digests, trained_on)
        if known.any():
            example = printable(split.name(int(np.flatnonzero(known)[0])))
            lines.append(
                f"warning: {int(known.sum()):,} of these {len(split):,} pictures {IN_TRAINING} "
                f"(such as {example})"
            )
    found = find_repeats({name: digests}, {name: labels})
    inside: list[str] = describe(found, {name: split}, class_names, {name: labels})["lines"]
    return lines + inside


def snapshot(engine: MemoryEngine) -> MemoryEngine:
    """An engine whose digests are there, or can be computed by a thread while a GPU trains: on the CPU."""
    if "digests" in vars(engine) or engine.images.device == torch.device("cpu"):
        return engine
    on_cpu = copy.copy(engine)
    on_cpu.images = engine.images.cpu()
    return on_cpu
