"""Find the pictures that the weights in ``training.init`` were trained on already.

A network remembers the pictures that it was trained on. If such a picture is held out in a training that
begins with this network, the accuracy on it is too high and its probability too sure. So it chooses nothing
and calibrates nothing (:mod:`thumbnet.training.judges`), and a note says how many such pictures val and test
have.

Only runs know what they were trained on: each keeps digests of its training pictures, as its network saw
them. A file of weights only names its data, so a warning says if these may be the data at hand. The run that
the weights belong to may have begun with the weights of another run, and so on; all of them count. A held-out
picture that is also in the new training split is a leak of these data, not of the weights; it is reported as
such (:mod:`thumbnet.batches.leaks`), and chooses nothing either.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from thumbnet.batches.decoding import decode_split
from thumbnet.batches.engines import MemoryEngine, fits_in_memory
from thumbnet.batches.leaks import are_among, engine_digests, training_digests
from thumbnet.batches.prepare import HELD_OUT, Prepared
from thumbnet.data.calibration import CALIBRATION, FEWEST
from thumbnet.data.rendering import Preprocessing
from thumbnet.data.repeats import picture_digests
from thumbnet.data.splits import Data
from thumbnet.errors import RecipeError, RunError, ThumbnetError
from thumbnet.recipes.recipe import Recipe
from thumbnet.runs.any_weights import AnyWeights, read_any_weights
from thumbnet.runs.data import source_name
from thumbnet.runs.fields import items, whole
from thumbnet.runs.folder import Run
from thumbnet.runs.provenance import run_folder
from thumbnet.runs.weights import find_weights, read_weights
from thumbnet.runs.weights_info import WeightsInfo
from thumbnet.sources.load import where_again

_DECIDES_CALIBRATION = ("calibration_pictures", "split_seed", "group_by")  # which pictures calibrate


@dataclass(frozen=True)
class Known:
    """What the weights in ``training.init`` know.

    Attributes:
        pictures: by split, whether the weights were trained on each picture: bool [N]. Only splits with such
            pictures are here.
        unsure: whether the weights were trained on these data as they were divided then, or on data of the
            same name, but which pictures that were is not known.
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

    Runs that stored no digests, and files of weights, are recognised by the fingerprint of their data. If the
    fingerprint differs, the data are perhaps the same and were divided in another way: the place of a run's
    data tells so, and the name of a file's.

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
    runs, first = _runs_behind(recipe.training.init)
    info = _info_of(first) if runs else initial.info
    same: set[str] = set()  # the splits whose pictures are all known, because the data were the same
    unsure = False
    if info is not None and info.fingerprint == fingerprint:
        same.add("train")
    elif info is not None and where_again(data.source) is not None:
        unsure = info.source == source_name(data.source)
    for run in runs:
        if _compared(run, prepared, found, initial):
            continue
        place, before = _data_of(run)
        if before == fingerprint:
            same |= {"train"} if _calibrates_on_the_same(run, recipe) else {"train", CALIBRATION}
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


def _runs_behind(source: str) -> tuple[list[Run], str]:
    """The run that weights belong to, the one that it began with, and so on; none for other weights.

    The second value names the weights that the earliest of these runs began with, if they are in no run;
    otherwise it is empty.
    """
    runs: list[Run] = []
    met: set[Path] = set()
    while source:
        folder = run_folder(source)
        if folder is None:
            break
        if folder.resolve() in met:
            return runs, ""
        met.add(folder.resolve())
        runs.append(Run(folder))
        try:
            source = runs[-1].recipe.training.init
        except (RunError, RecipeError):
            return runs, ""
    return runs, source


def _info_of(source: str) -> WeightsInfo | None:
    """What thumbnet wrote about an earlier run's initial weights; None if they are gone or from elsewhere."""
    if not source:
        return None
    try:
        return read_any_weights(find_weights(source)).info
    except ThumbnetError:
        return None


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
    return all(getattr(before, key) == getattr(now, key) for key in _DECIDES_CALIBRATION)


def known_at_start(
    recipe: Recipe, prepared: Prepared, data: Data, fingerprint: str, initial: AnyWeights | None
) -> tuple[dict[str, np.ndarray], tuple[str, ...], list[str]]:
    """What the initial weights of a training know, with notes for the user.

    The arguments and errors are those of :func:`find_known`.

    Returns:
        :attr:`Prepared.known`, :attr:`Prepared.perhaps_known`, and the notes.
    """
    splits = [name for name in HELD_OUT if name in prepared.evaluation]
    wanted = [*splits, "train"] if recipe.training.frozen else splits
    found = find_known(recipe, prepared, data, fingerprint, wanted, initial)
    source, known = recipe.training.init, found.pictures
    notes = [_note(source, name, known[name], recipe, prepared) for name in splits if name in known]
    aside: set[str] = {"train", *data.set_aside, CALIBRATION} if found.unsure else set()
    certain = {name for name, mask in known.items() if mask.all()}
    perhaps = tuple(name for name in wanted if name in aside - certain)
    notes += warnings_of_perhaps(source, perhaps)
    return known, perhaps, notes


def warnings_of_perhaps(source: str, splits: Sequence[str]) -> list[str]:
    """Warn about the held-out ones of ``splits``, which the weights in ``source`` may know."""
    held_out = [name for name in splits if name in HELD_OUT]
    if not held_out:
        return []
    return [
        f"warning: the network in {source} may have been trained on pictures that are now in "
        f"{' and '.join(held_out)}, because its data were divided in another way: what is measured there may "
        "be too good"
    ]


def warning_on(source: str, split: str, known: np.ndarray) -> str:
    """Warn about the accuracy on a split, some of whose pictures the weights in ``source`` know.

    Args:
        source: ``training.init``.
        split: the name of the split.
        known: which of its pictures are known, bool [N].
    """
    return f"warning: {_known_pictures(source, split, known)}: the accuracy there may be too high"


def was_trained_on(source: str, count: int, total: int, what: str) -> str:
    """Say that the weights in ``source`` were trained on ``count`` of ``total`` pictures, called ``what``."""
    which = f"all {total:,}" if count == total else f"{count:,} of the {total:,}"
    return f"the network in {source} was trained on {which} {what}"


def _known_pictures(source: str, split: str, known: np.ndarray) -> str:
    return was_trained_on(source, int(known.sum()), len(known), f"{split} pictures")


def _note(source: str, split: str, known: np.ndarray, recipe: Recipe, prepared: Prepared) -> str:
    """What the user should know about the known pictures of a split."""
    few = len(known) - int(known.sum()) < FEWEST
    without = "probabilities are not calibrated" + ("" if few else " on these")
    if split == CALIBRATION:
        advice = ". --set data.calibration_pictures=0 trains on them, too" if few else ""
        return f"{_known_pictures(source, split, known)}: {without}{advice}"
    calibrates = split == prepared.calibrates_on and recipe.data.calibration_pictures
    return warning_on(source, split, known) + (f", and {without}" if calibrates else "")


def record_of_masks(masks: Mapping[str, np.ndarray]) -> dict[str, list[list[int]]]:
    """Masks, bool [N], as JSON: the ranges of true values, each as its first position and the one after it.

    >>> record_of_masks({"val": np.array([True, True, False, True])})
    {'val': [[0, 2], [3, 4]]}
    """
    record: dict[str, list[list[int]]] = {}
    for name, mask in masks.items():
        edges = np.flatnonzero(np.diff(mask.astype(np.int8), prepend=0, append=0))
        record[name] = edges.reshape(-1, 2).tolist()
    return record


def masks_from_record(record: Any, key: str, prepared: Prepared) -> dict[str, np.ndarray]:
    """What :func:`record_of_masks` was given; ``key`` is the entry of ``run.json`` that holds ``record``.

    Raises:
        ValueError: it does not fit the pictures; the message names the entry.
    """
    if not isinstance(record, dict):
        raise ValueError(f"{key} is not a JSON object")
    masks: dict[str, np.ndarray] = {}
    for name, ranges in record.items():
        if name not in prepared.splits:
            raise ValueError(f"{key} names the split {name!r}, which the data do not have")
        length = len(prepared.splits[name])
        masks[name] = np.zeros(length, dtype=bool)
        for one in items(ranges, f"{key}.{name}"):
            start, end = (
                whole(edge, f"{key}.{name}", 0, length) for edge in items(one, f"a range in {key}.{name}", 2)
            )
            masks[name][start:end] = True
    return masks


def perhaps_from_record(record: Any, prepared: Prepared) -> tuple[str, ...]:
    """The splits in :attr:`Prepared.perhaps_known`, from the list of their names.

    Raises:
        ValueError: it is no list of splits; the message names the entry.
    """
    names = items(record, "init.perhaps_known")
    for name in names:
        if name not in prepared.splits:
            raise ValueError(f"init.perhaps_known names the split {name!r}, which the data do not have")
    return tuple(names)
