"""Which pictures of a split may choose or calibrate something.

A choice needs pictures that are new to the network. Pictures that the weights in ``training.init`` were
trained on are not new (:mod:`thumbnet.training.known`), nor are copies of training pictures, nor pictures
that share a group with any of these. Known pictures are at their best before the network has learned
anything, copies get better until the last epoch, and the probabilities of both are too sure. So they choose
neither the epoch that is kept, nor the strength of L2 (:mod:`thumbnet.training.linear`), nor settings
(:mod:`thumbnet.tuning`), and neither the temperature nor any threshold is fitted on them. They still count in
the result that is reported; warnings say how many there are.

Which pictures of ``val`` choose no epoch is decided when a run begins, and its ``run.json`` records it: a
resumed run must score the same pictures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from thumbnet.batches.leaks import belonging_to_training, with_belonging
from thumbnet.batches.prepare import Prepared
from thumbnet.data.calibration import FEWEST
from thumbnet.distributed import ALONE, World
from thumbnet.errors import RunError
from thumbnet.recipes.recipe import Recipe
from thumbnet.recipes.settings import TrainingSettings
from thumbnet.training.known import was_trained_on

CHOOSE_NOTHING = "choose_nothing"  # in run.json: see Prepared.choose_nothing


@dataclass(frozen=True)
class Judges:
    """The pictures of a split that may choose or calibrate.

    Attributes:
        split: the split's name.
        fair: which of its pictures they are, bool [N].
        known: left out, because the initial weights were trained on them.
        belonging: left out, because they belong together with one that the network is, or was, trained on.
        unsure: whether the initial weights may know further ones.
    """

    split: str
    fair: np.ndarray
    known: int
    belonging: int
    unsure: bool

    @property
    def pictures(self) -> np.ndarray:
        """Their positions in the split, int64 [M], ascending."""
        return np.flatnonzero(self.fair)

    @property
    def asked(self) -> int:
        """How many there would be if none were left out."""
        return len(self.pictures) + self.known + self.belonging

    @property
    def enough(self) -> bool:
        """Whether they can choose: ``FEWEST`` can, and so can most of a split that is small itself."""
        count = len(self.pictures)
        return count >= FEWEST or 2 * count > self.asked

    def reasons(self, init: str, what: str = "") -> str:
        """Why not all pictures judge, or why these may be the wrong ones; empty if they may all be trusted.

        Args:
            init: ``training.init``.
            what: what the pictures are called; by default ``val pictures``, with the name of the split.
        """
        what = what or f"{self.split} pictures"
        reasons: list[str] = []
        if self.known:
            reasons.append(was_trained_on(init, self.known, self.asked, what))
        if self.belonging:
            others = "the others" if reasons else f"the {self.asked:,} {what}"
            these = "these" if self.split == "train" else "training pictures"
            reasons.append(f"{self.belonging:,} of {others} are copies of {these} or in their groups")
        if self.unsure:
            others = "the others" if reasons else f"the {self.asked:,} {what}"
            reasons.append(f"the network in {init} may have been trained on some of {others}")
        return ", and ".join(reasons)


def find_judges(prepared: Prepared, split: str, among: np.ndarray | None = None) -> Judges:
    """The pictures of a split that may choose or calibrate.

    Args:
        prepared: the pictures, and what is known about them.
        split: the split's name. Pictures of ``train`` judge a network that is not trained on them.
        among: which pictures of the split are asked, bool [N]; all by default.
    """
    count = len(prepared.splits[split])
    asked = np.ones(count, dtype=bool) if among is None else among
    nothing = prepared.choose_nothing.get(split)
    if nothing is None:
        nothing = _not_new(prepared, split)
    left_out = asked & nothing
    known = int((left_out & _known(prepared, split)).sum())
    belonging = int(left_out.sum()) - known
    return Judges(split, asked & ~nothing, known, belonging, split in prepared.perhaps_known)


def _known(prepared: Prepared, split: str) -> np.ndarray:
    """Which pictures of a split the weights in ``training.init`` were trained on: bool [N]."""
    none = np.zeros(len(prepared.splits[split]), dtype=bool)
    return prepared.known.get(split, none)


def _not_new(prepared: Prepared, split: str) -> np.ndarray:
    """Which pictures of a split choose nothing: bool [N].

    Copies are found only if all pictures are in memory.
    """
    found, groups = _known(prepared, split), prepared.groups.get(split)
    train = prepared.train.engine
    if split == "train":
        return with_belonging(found, train, groups)
    engine = prepared.evaluation[split].engine
    leaked = belonging_to_training(engine, groups, train, prepared.groups.get("train"))
    return leaked | with_belonging(found, engine, groups)


def choose_by_val(
    recipe: Recipe, prepared: Prepared, world: World = ALONE
) -> tuple[Recipe, Prepared, list[str]]:
    """Find out which pictures of ``val`` choose the epoch of a new training, if any.

    If these are too few, or if the initial weights may know them, the last epoch is kept. In the second case,
    the choice is made where the user asks for it.

    Returns:
        The recipe, the pictures with :attr:`Prepared.choose_nothing`, and notes for the user.

    Raises:
        RunError: the user asks for a choice of the epoch, see :attr:`TrainingSettings.choices`, and too few
            pictures could make it.
    """
    training = recipe.training
    if training.frozen or not training.chooses or "val" not in prepared.evaluation:
        return recipe, prepared, []
    # Only one process compares: on another machine, the pictures may not fit into memory.
    nothing = world.from_first(_not_new(prepared, "val") if world.is_first else None)
    assert nothing is not None
    prepared = replace(prepared, choose_nothing={"val": nothing})
    found = find_judges(prepared, "val")
    reasons = found.reasons(training.init)
    if not reasons:
        return recipe, prepared, []
    if found.enough and not found.unsure:
        count = len(found.pictures)
        return recipe, prepared, [f"{reasons}: only the {count:,} others choose which epoch is best"]
    if not training.must_choose:
        note = f"{reasons}, so val chooses no epoch: the last one is kept (training.keep = last)"
        return replace(recipe, training=replace(training, keep="last")), prepared, [note]
    if not found.enough:
        raise _no_choice(training, found)
    return recipe, prepared, [f"{reasons}: the epoch that val chooses may be too early"]


def _no_choice(training: TrainingSettings, found: Judges) -> RunError:
    """The error for settings that ask for a choice by ``val``, of which too few pictures are new."""
    keys = [one.partition(" = ")[0] for one in training.choices]
    without = " ".join(f"--set {key}={getattr(TrainingSettings, key.partition('.')[2])}" for key in keys)
    choose, these = ("choose", "these settings") if len(keys) > 1 else ("chooses", "that setting")
    others = len(found.pictures)
    few = f", and {others:,} other{'s are' if others > 1 else ' is'} too few to choose by (least: {FEWEST})"
    ways = ["start from a network that was trained without these pictures"] if found.known else []
    ways += ["remove the copies from one of the two splits"] if found.belonging else []
    return RunError(
        f"{' and '.join(training.choices)} {choose} the epoch by val, but {found.reasons(training.init)}. "
        f"Pictures that are not new to the network choose the wrong epoch{few if others else ''}. Without "
        f"{these} ({without}), the last epoch is kept. Or {' and '.join(ways)}"
    )
