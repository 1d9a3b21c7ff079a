"""Find the pictures that the weights in ``training.init`` were trained on already.

A network remembers the pictures that it was trained on. If such a picture is held out in a training that
begins with this network, the accuracy on it is too high and its probability too sure. So it calibrates
nothing, chooses nothing in :mod:`thumbnet.training.linear` and :mod:`thumbnet.tuning`, and a note says how
many such pictures val and test have.

Only runs know what they were trained on: each keeps digests of its training pictures, as its network saw
them. The run that the weights belong to may have begun with the weights of another run, and so on; all of
them count. A held-out picture that is also in the new training split is a leak of these data, not of the
weights; it is reported as such (:mod:`thumbnet.batches.leaks`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thumbnet.batches.decoding import decode_split
from thumbnet.batches.engines import MemoryEngine, fits_in_memory
from thumbnet.batches.leaks import are_among, engine_digests, training_digests
from thumbnet.batches.prepare import MEASURED, Prepared
from thumbnet.data.calibration import FEWEST, SPLIT
from thumbnet.data.rendering import Preprocessing
from thumbnet.data.repeats import picture_digests
from thumbnet.data.splits import Data
from thumbnet.errors import RecipeError, RunError
from thumbnet.recipes.recipe import Recipe
from thumbnet.runs.any_weights import AnyWeights
from thumbnet.runs.fields import items, whole
from thumbnet.runs.folder import Run
from thumbnet.runs.provenance import run_folder
from thumbnet.runs.weights import read_weights
from thumbnet.sources.load import where_again

_CALIBRATION = ("calibration_pictures", "split_seed", "group_by")  # what decides which pictures calibrate


@dataclass(frozen=True)
class Known:
    """What the weights in ``training.init`` know.

    Attributes:
        pictures: by split, whether the weights were trained on each picture: bool [N]. Only splits with such
            pictures are here.
        unsure: whether the weights were trained on these data as they were divided then, but which pictures
            that were is not known.
    """

    pictures: dict[str, np.ndarray]
    unsure: bool = False


def find_known(
    recipe: Recipe,
    prepared: Prepared,
    data: Data,
    fingerprint: str,
    splits: Iterable[str],
    initial: AnyWeights | None,
) -> Known:
    """Compare pictures with those that the weights were trained on.

    Runs that stored no digests, and files of weights, are recognised by the fingerprint of their data.

    Args:
        recipe: names the weights; none if ``training.init`` is empty.
        prepared: the pictures.
        data: the same data, with pictures set aside for calibration.
        fingerprint: that of the data before these were set aside.
        splits: which splits to compare.
        initial: the weights, if there are any.

    Raises:
        RunError: a run's digests are damaged.
        UnreadableImagesError: some pictures are damaged.
    """
    if initial is None:
        return Known({})
    found: dict[str, np.ndarray] = {name: np.zeros(len(prepared.splits[name]), dtype=bool) for name in splits}
    runs, unsure = list(_runs_behind(recipe.training.init)), False
    same: set[str] = set()  # the splits whose pictures are all known, because the data were the same
    if not runs and initial.info is not None and initial.info.fingerprint == fingerprint:
        same.add("train")
    for run in runs:
        if _compared(run, prepared, found, initial):
            continue
        place, before = _data_of(run)
        if before == fingerprint:
            same |= {"train"} if _calibrates_on_the_same(run, recipe) else {"train", SPLIT}
        elif place is not None and place == where_again(data.source):
            unsure = True
    _leave_leaks(prepared, found)
    for name in same & found.keys():
        found[name][:] = True
    return Known({name: known for name, known in found.items() if known.any()}, unsure)


def _compared(run: Run, prepared: Prepared, found: dict[str, np.ndarray], initial: AnyWeights) -> bool:
    """Mark the pictures in ``found`` that a run was trained on; returns False if they cannot be compared.

    They cannot if the run stored no digests, or if there are too many pictures to decode them as it did.
    """
    trained_on = training_digests(run.path)
    if trained_on is None:
        return False
    try:
        own = initial.info if initial.path == run.weights_path else None
        info = own or read_weights(run.weights_path)[1]
    except RunError:  # an earlier run whose weights are gone
        return False
    digests = {name: _digests(prepared, name, info.preprocessing) for name in found}
    for name, here in digests.items():
        if here is not None:
            found[name] |= are_among(here, trained_on)
    return all(here is not None for here in digests.values())


def _leave_leaks(prepared: Prepared, found: dict[str, np.ndarray]) -> None:
    """Unmark the held-out pictures that are also in the training split; see the text of this module."""
    if not any(known.any() for name, known in found.items() if name != "train"):
        return
    own = _digests(prepared, "train", prepared.preprocessing)
    for name, known in found.items():
        here = None if name == "train" else _digests(prepared, name, prepared.preprocessing)
        if own is not None and here is not None:
            known &= ~are_among(here, own)


def _runs_behind(source: str) -> Iterator[Run]:
    """The run that weights belong to, the one that it began with, and so on; none for other weights."""
    met: set[Path] = set()
    while source:
        folder = run_folder(source)
        if folder is None or folder.resolve() in met:
            return
        met.add(folder.resolve())
        run = Run(folder)
        yield run
        try:
            source = run.recipe.training.init
        except (RunError, RecipeError):
            return


def _digests(prepared: Prepared, name: str, seen_as: Preprocessing) -> np.ndarray | None:
    """Digests of a split's pictures, decoded for ``seen_as``: uint64 [N, 2]; None if they do not fit."""
    engine = prepared.train.engine if name == "train" else prepared.evaluation[name].engine
    here = prepared.preprocessing
    same = (here.size, here.fit, here.rendering) == (seen_as.size, seen_as.fit, seen_as.rendering)
    if same and isinstance(engine, MemoryEngine):
        return engine_digests(engine)
    split = prepared.splits[name]
    if not fits_in_memory([split], seen_as.size):
        return None
    images = decode_split(split, seen_as.size, seen_as.fit, rendering=seen_as.rendering).images
    return picture_digests(images.permute(0, 2, 3, 1).numpy())


def _data_of(run: Run) -> tuple[str | None, str | None]:
    """The place and the fingerprint of a run's data; None for what is not known."""
    try:
        settings = run.settings
    except RunError:
        return None, None
    return settings.get("data"), settings.get("fingerprint")


def _calibrates_on_the_same(run: Run, recipe: Recipe) -> bool:
    """Whether a run of the same splits set the same pictures aside for calibration."""
    try:
        before, now = run.recipe.data, recipe.data
    except (RunError, RecipeError):
        return False
    return all(getattr(before, key) == getattr(now, key) for key in _CALIBRATION)


def known_at_start(
    recipe: Recipe, prepared: Prepared, data: Data, fingerprint: str, initial: AnyWeights | None
) -> tuple[dict[str, np.ndarray], list[str]]:
    """What the initial weights of a training know, for :attr:`Prepared.known`, and notes for the user.

    The arguments and errors are those of :func:`find_known`.
    """
    splits = [name for name in MEASURED if name in prepared.evaluation]
    wanted = [*splits, "train"] if recipe.training.frozen else splits
    found = find_known(recipe, prepared, data, fingerprint, wanted, initial)
    source, known = recipe.training.init, found.pictures
    notes = [_note(source, name, known[name], recipe, prepared) for name in splits if name in known]
    aside: set[str] = {*data.set_aside, SPLIT} if found.unsure else set()
    maybe = " and ".join(name for name in splits if name in aside - known.keys())
    if maybe:
        notes.append(
            f"the network in {source} was trained on these data as they were divided then, so it may know "
            f"pictures that are now in {maybe}: what is measured there may be too good"
        )
    return known, notes


def warning_on(source: str, split: str, known: np.ndarray) -> str:
    """Warn about the accuracy on a split, some of whose pictures the weights in ``source`` know.

    Args:
        source: ``training.init``.
        split: the name of the split.
        known: which of its pictures are known, bool [N].
    """
    return f"warning: {_known_pictures(source, split, known)}: the accuracy there may be too high"


def _known_pictures(source: str, split: str, known: np.ndarray) -> str:
    count, total = int(known.sum()), len(known)
    which = f"all {total:,}" if count == total else f"{count:,} of the {total:,}"
    return f"the network in {source} was trained on {which} {split} pictures"


def _note(source: str, split: str, known: np.ndarray, recipe: Recipe, prepared: Prepared) -> str:
    """What the user should know about the known pictures of a split."""
    few = len(known) - int(known.sum()) < FEWEST
    without = "probabilities are not calibrated" + ("" if few else " on these")
    if split == SPLIT:
        advice = ". --set data.calibration_pictures=0 trains on them, too" if few else ""
        return f"{_known_pictures(source, split, known)}: {without}{advice}"
    calibrates = split == prepared.held_out and recipe.data.calibration_pictures
    return warning_on(source, split, known) + (f", and {without}" if calibrates else "")


def known_record(known: Mapping[str, np.ndarray]) -> dict[str, list[list[int]]]:
    """Masks, bool [N], as JSON: the ranges of true values, each as its first position and the one after it.

    >>> known_record({"val": np.array([True, True, False, True])})
    {'val': [[0, 2], [3, 4]]}
    """
    record: dict[str, list[list[int]]] = {}
    for name, mask in known.items():
        edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0))
        record[name] = edges.reshape(-1, 2).tolist()
    return record


def known_from_record(record: Any, prepared: Prepared) -> dict[str, np.ndarray]:
    """What :func:`known_record` was given.

    Raises:
        ValueError: it does not fit the pictures; the message names the entry.
    """
    if not isinstance(record, dict):
        raise ValueError("init.known is not a JSON object")
    known: dict[str, np.ndarray] = {}
    for name, ranges in record.items():
        if name not in prepared.splits:
            raise ValueError(f"init.known names the split {name!r}, which the data do not have")
        length = len(prepared.splits[name])
        known[name] = np.zeros(length, dtype=bool)
        for one in items(ranges, f"init.known.{name}"):
            start, end = (
                whole(edge, f"init.known.{name}", 0, length)
                for edge in items(one, f"a range in init.known.{name}", 2)
            )
            known[name][start:end] = True
    return known
