"""Decode the training pictures, and divide them into pictures to train on and pictures to judge by.

A ``val`` split of the data judges. Otherwise, a data set with fewer than ``SMALL`` training pictures is
cross-validated, and a larger one gives a fifth of its pictures, at most about ``MOST_HELD_OUT``. Copies of a
picture, and pictures of one group, stay together. Pictures that are not new to the network judge nothing
(:mod:`thumbnet.training.judges`). The test pictures are neither decoded nor looked at.

The division is the same for every input size and every way to fit pictures into it. Each of these is decoded
when a trial first asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from thumbnet.batches.batches import EvalBatches, TrainBatches
from thumbnet.batches.decoding import some_sizes
from thumbnet.batches.engines import Engine, MemoryEngine, WorkerEngine
from thumbnet.batches.leaks import belonging
from thumbnet.batches.prepare import Prepared, prepare
from thumbnet.data.calibration import FEWEST
from thumbnet.data.folds import fold_numbers, rarest_labels
from thumbnet.data.splits import Data, Progress
from thumbnet.errors import DataError, RunError
from thumbnet.invocation import command
from thumbnet.recipes.recipe import Recipe
from thumbnet.runs.any_weights import AnyWeights
from thumbnet.seeds import derive_seed
from thumbnet.training.judges import Judges, find_judges
from thumbnet.training.known import find_known
from thumbnet.training.transfer import read_initial

SMALL = 1000  # with fewer training pictures, every picture is held out once
FOLDS = 3
PARTS = 5  # of a larger data set, one part in this many is held out
MOST_HELD_OUT = 5000  # pictures; more would cost time and decide nothing
_WITHOUT_INIT = "Leave out --init (training.init), or start from a network that was trained on other pictures"


@dataclass(frozen=True)
class Parts:
    """What the trials of a search train on and are judged by.

    Attributes:
        parts: for each network of a trial, its batches; ``evaluation`` has only ``val``.
        pictures: training pictures of the data, those that are held out included.
        held_out: pictures that judge a trial, over all parts.
        together: a number for each of them, those of one part after those of another; equal numbers belong
            together, as copies of a picture or as pictures of one group. Empty if none belong together.
        left_out: why some pictures that could judge judge nothing; empty if all of them judge.
        watched: pictures of the split that the final training watches and measures.
        how: the division in words.
        size: height and width of the network's input.
        own: height and width of some pictures as they are stored.
        skipped: how many pictures cannot be read.
        notes: what the user should know about the pixels, and about pictures that judge nothing.
        initial: the weights that ``training.init`` names, if any. All trials start from them.
    """

    parts: tuple[Prepared, ...]
    pictures: int
    held_out: int
    together: tuple[int, ...]
    left_out: str
    watched: int
    how: str
    size: tuple[int, int]
    own: tuple[tuple[int, int], ...]
    skipped: int
    notes: tuple[str, ...]
    initial: AnyWeights | None
    _again: Callable[[Recipe], tuple[Prepared, ...]] = field(repr=False, compare=False)

    def for_recipe(self, recipe: Recipe) -> tuple[Prepared, ...]:
        """The same division with the input size of ``recipe``, and its way to fit pictures into it.

        Raises:
            UnreadableImagesError, OutOfMemoryError: as for :func:`thumbnet.batches.prepare.prepare`.
        """
        return self._again(recipe)


@dataclass(frozen=True)
class _Division:
    """Which pictures judge.

    Attributes:
        folds: the held-out training pictures of each network, bool [N]; empty if a ``val`` split judges.
        val: positions in ``val`` of the pictures that judge, int64 [M]; empty if training pictures judge.
        together: for each picture that judges, in the order of the networks, a number that is equal for
            pictures that belong together: int64 [M].
        how: the division in words.
        left_out: see :class:`Parts`.
    """

    folds: list[np.ndarray]
    val: np.ndarray
    together: np.ndarray
    how: str
    left_out: str = ""

    @property
    def sets(self) -> int:
        """The number of independent sets of pictures among those that judge."""
        return len(np.unique(self.together))


def held_out_of(part: Prepared) -> int:
    """How many pictures judge one network of a trial."""
    return len(part.evaluation["val"].engine.labels)


def divide(data: Data, recipe: Recipe, device: torch.device, progress: Progress | None = None) -> Parts:
    """Decode ``data`` without its test split, and divide it.

    Raises:
        DataError: too few pictures can judge.
        RunError: the weights in ``training.init`` cannot be read, or may know the pictures.
        UnreadableImagesError, OutOfMemoryError: as for :func:`thumbnet.batches.prepare.prepare`.
    """
    initial = read_initial(recipe.training.init) if recipe.training.init else None
    kept = {name: split for name, split in data.splits.items() if name in ("train", "val")}
    judged = replace(data, splits=kept)
    prepared = _with_known(prepare(judged, recipe, device, progress), recipe, data, initial)
    by_val = "val" in prepared.evaluation
    division = (_by_val if by_val else _by_folds)(data, prepared, recipe)
    parts = _parts(prepared, recipe, division)
    held_out = sum(map(held_out_of, parts))
    independent = division.sets == held_out
    notes = [f"{division.left_out}: these judge nothing"] if division.left_out else []
    start = (recipe.data.image_size, recipe.data.fit)
    latest: dict[tuple[str, str], tuple[Prepared, ...]] = {}  # only one, because each takes as much memory

    def again(other: Recipe) -> tuple[Prepared, ...]:
        wanted = (other.data.image_size, other.data.fit)
        if wanted == start:
            return parts
        if wanted not in latest:
            latest.clear()
            decoded = replace(prepare(judged, other, device, progress), known=prepared.known)
            latest[wanted] = _parts(decoded, other, division)
        return latest[wanted]

    return Parts(
        parts=parts,
        pictures=prepared.train.count,
        held_out=held_out,
        together=() if independent else tuple(division.together.tolist()),
        left_out=division.left_out,
        watched=next((len(data.splits[name]) for name in ("val", "test") if name in data.splits), 0),
        how=division.how if independent else f"{division.how}, in {division.sets:,} independent sets",
        size=prepared.preprocessing.size,
        own=tuple(some_sizes(prepared.splits["train"])),
        skipped=len(prepared.skipped),
        notes=(*prepared.notes, *notes),
        initial=initial,
        _again=again,
    )


def _with_known(prepared: Prepared, recipe: Recipe, data: Data, initial: AnyWeights | None) -> Prepared:
    """The same pictures, with those marked that the weights in ``training.init`` were trained on.

    Raises:
        RunError: only the place of the data says that the weights were trained on them.
    """
    if initial is None:
        return prepared
    init = recipe.training.init
    judging = "val" if "val" in prepared.evaluation else "train"
    found = find_known(recipe, prepared, data, data.fingerprint(), [judging], initial)
    if found.unsure and judging in ("train", *data.set_aside):
        raise RunError(
            f"the network in {init} may have been trained on the pictures that would judge the settings, "
            f"because its data were divided in another way. {_WITHOUT_INIT}"
        )
    return replace(prepared, known=found.pictures)


def _check_enough(judges: Judges, data: Data, recipe: Recipe) -> None:
    """Check that enough pictures are new to the network.

    Raises:
        DataError: they are too few.
    """
    if judges.enough:
        return
    ways = [_WITHOUT_INIT] if judges.known else []
    if judges.belonging and judges.split == "val":
        ways.append(
            f"Remove the copies from one of the two splits ({command('data', data.source)} finds them), or "
            "do without a val split (leave out --val-fraction and --patience): training pictures judge then, "
            "and copies of one picture stay together"
        )
    raise DataError(
        f"{data.source}: {judges.reasons(recipe.training.init)}, and at least {FEWEST} others are needed to "
        f"compare settings. {'. '.join(ways)}"
    )


def _by_val(data: Data, prepared: Prepared, recipe: Recipe) -> _Division:
    """Let the ``val`` split judge.

    Raises:
        DataError: too few of its pictures can.
    """
    judges = find_judges(prepared, "val")
    _check_enough(judges, data, recipe)
    val = judges.pictures
    return _Division(
        folds=[],
        val=val,
        together=belonging(prepared.evaluation["val"].engine, prepared.groups.get("val"))[val],
        how=f"the val split, {len(val):,} pictures",
        left_out=judges.reasons(recipe.training.init),
    )


def _by_folds(data: Data, prepared: Prepared, recipe: Recipe) -> _Division:
    """Let training pictures judge: each fold once, or only the first one.

    Raises:
        DataError: too few of them can judge.
    """
    count = prepared.train.count
    if count < FEWEST:
        raise DataError(
            f"{data.source} has {count} training pictures: at least {FEWEST} are needed to compare settings"
        )
    judges = find_judges(prepared, "train")
    _check_enough(judges, data, recipe)
    new = len(judges.pictures)
    small = new < SMALL
    folds = FOLDS if small else max(PARTS, -(-new // MOST_HELD_OUT))
    labels = _labels(prepared)
    together = belonging(prepared.train.engine, prepared.groups.get("train"))
    numbers = fold_numbers(labels, together, folds, derive_seed(recipe.data.split_seed, "tune"))
    numbers[~judges.fair] = 0  # all networks are trained on them
    there = [fold for fold in range(1, folds + 1) if (numbers == fold).any()]
    used = there if small else there[:1]
    held_out = int(np.isin(numbers, used).sum())
    if not used or (numbers != used[0]).sum() < 2:
        raise DataError(
            f"{data.source}: no training pictures can be held out to compare settings, because the pictures "
            "of each class are copies of each other or belong to one group"
        )
    how = (
        f"{len(used)} folds of the {count:,} training pictures"
        if small and new == count
        else f"{held_out:,} of the {count:,} training pictures"
    )
    held = [numbers == fold for fold in used]
    return _Division(
        folds=held,
        val=np.zeros(0, dtype=np.int64),
        together=np.concatenate([together[chosen] for chosen in held]),
        how=how,
        left_out=judges.reasons(recipe.training.init),
    )


def _parts(prepared: Prepared, recipe: Recipe, division: _Division) -> tuple[Prepared, ...]:
    """The batches of each network of a trial."""
    if division.folds:
        return tuple(_part(prepared, recipe, held) for held in division.folds)
    if len(division.val) == len(prepared.splits["val"]):
        return (prepared,)
    judging = _engine_of(prepared, recipe, "val", division.val)
    return (_judged_by(judging, prepared, recipe),)


def _judged_by(engine: Engine, prepared: Prepared, recipe: Recipe) -> Prepared:
    """The same batches to train on, with the pictures of ``engine`` as ``val``."""
    size = recipe.evaluation.batch_size
    judged = EvalBatches(engine, prepared.train.normalise, batch_size=size)
    return replace(prepared, evaluation={"val": judged})


def _part(prepared: Prepared, recipe: Recipe, held: np.ndarray) -> Prepared:
    """Batches of the training pictures, with those that ``held`` marks (bool [N]) as ``val``."""
    old = prepared.train
    train, val = (_engine_of(prepared, recipe, "train", np.flatnonzero(chosen)) for chosen in (~held, held))
    size = prepared.preprocessing.size
    batches = TrainBatches(train, old.normalise, recipe, size)
    return _judged_by(val, replace(prepared, train=batches), recipe)


def _engine_of(prepared: Prepared, recipe: Recipe, split: str, positions: np.ndarray) -> Engine:
    """An engine for the pictures of ``train`` or ``val`` at ``positions``, int [M]."""
    engine = prepared.train.engine if split == "train" else prepared.evaluation[split].engine
    if isinstance(engine, MemoryEngine):
        where = torch.from_numpy(positions)
        return MemoryEngine(engine.images[where.to(engine.images.device)], engine.labels[where])
    part, pre = prepared.splits[split].subset(positions), prepared.preprocessing
    device = prepared.train.normalise.device
    return WorkerEngine(part, pre.size, pre.fit, recipe.data.workers, pre.rendering, device)


def _labels(prepared: Prepared) -> np.ndarray:
    """What the folds are balanced by, int64 [N]: the class, or the rarest of several labels, if any."""
    labels = prepared.train.engine.labels.numpy()
    return labels if labels.ndim == 1 else rarest_labels(labels)
