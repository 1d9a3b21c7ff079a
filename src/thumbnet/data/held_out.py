"""Split test or val off train: a fraction of each class, in whole groups if the pictures have groups.

The pictures of a class are ranked by a hash of their names, and the first ones are set aside. A new picture
may take the place of another one, or raise the number that is set aside, so it moves few others; with groups
or several labels per picture it may move more. A table that :mod:`thumbnet.sources.split_table` writes keeps
the splits as they are.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from thumbnet.data.folds import with_test_fold
from thumbnet.data.patterns import compile_pattern
from thumbnet.data.splits import Data, Split
from thumbnet.errors import DataError, printable, some_of

VAL_FRACTION = 0.1  # of train, set aside as val if the recipe needs one and the data have none
SHARED_GROUPS = "group(s) have pictures in more than one of"  # in a note
NOTHING_SET_ASIDE = "no test pictures are set aside (data.test_fraction is 0): no accuracy will be measured"


def with_held_out(
    data: Data,
    test_fraction: float,
    val_fraction: float,
    seed: int,
    group_by: str = "",
    fold: tuple[int, int] | None = None,
) -> Data:
    """``data`` with ``test`` (if it has neither ``test`` nor ``val``) and ``val`` split off ``train``.

    The split is stratified and depends on hashes of the pictures' names, so a new picture moves few others.
    Pictures of one group (``data.groups``) stay together. A class with only one picture or group stays in
    ``train``.

    Args:
        data: a data set with a ``train`` split.
        test_fraction: share of each class; 0 for no test split.
        val_fraction: share of each class; 0 for no val split.
        seed: selects the pictures.
        group_by: a regular expression that finds a picture's group in its name, for sources without groups.
        fold: instead of ``test_fraction``, the fold of ``train`` that becomes ``test``, from 1, and the
            number of folds; see :func:`~thumbnet.data.folds.with_test_fold`.

    Raises:
        DataError: ``val`` is asked for but exists already, nothing can be set aside, there are too few
            pictures for the folds, or ``group_by`` finds no groups.
    """
    if group_by:
        data = _with_groups(data, group_by)
    if fold is not None:
        data = with_test_fold(data, fold[1], fold[0], seed)
    data = _with_shared_groups_noted(data)
    if "test" not in data.splits and "val" not in data.splits:
        if test_fraction > 0:
            data = _split_off(data, "test", test_fraction, seed)
        elif not val_fraction:
            data = replace(data, notes=(*data.notes, NOTHING_SET_ASIDE))
    if val_fraction > 0:
        if "val" in data.splits:
            raise DataError(f"{data.source} already has a val split: leave out --val-fraction")
        data = _split_off(data, "val", val_fraction, seed + 1)
    return data


def _split_off(data: Data, name: str, fraction: float, seed: int) -> Data:
    """Move part of ``train`` to a new split ``name``."""
    train = data.splits["train"]
    groups = data.groups.get("train")
    if groups is None:
        choose = _by_label if train.multilabel else _by_picture
        chosen = choose(train, len(data.class_names), fraction, seed)
        each = "label" if train.multilabel else "class"
        how = f"{fraction:.0%} of each {each} was set aside as {name} (seed {seed})"
    else:
        chosen = _by_group(train, groups, len(data.class_names), fraction, seed)
        all_groups, taken = len(set(groups.tolist())), len(set(groups[chosen].tolist()))
        share = chosen.sum() / max(len(train), 1)
        how = (
            f"{taken:,} of {all_groups:,} groups ({share:.0%} of the pictures) were set aside as {name}, "
            f"undivided (seed {seed})"
        )
    if not chosen.any():
        reason = "each class has only one picture" if groups is None else "each class is in only one group"
        raise DataError(
            f"{data.source}: no pictures can be set aside as {name}, because {reason}. {_WAY_ON[name]}"
        )
    notes = [f"no test or val split: {how}" if name == "test" else how]
    parts = {"train": np.flatnonzero(~chosen), name: np.flatnonzero(chosen)}
    made = {split: train.subset(where) for split, where in parts.items()}
    present, held = (one.class_counts(len(data.class_names)) for one in (train, made[name]))
    alone = [data.class_names[label] for label in np.flatnonzero((present > 0) & (held == 0))]
    if alone:
        why = "one picture" if groups is None else "one group"
        some = some_of(alone)
        notes.append(f"{len(alone)} class(es) with only {why} stay in train, and {name} lacks them: {some}")
    kept = data.groups
    if groups is not None:
        kept = {**kept, **{split: groups[where] for split, where in parts.items()}}
    return replace(
        data,
        splits={**data.splits, **made},
        groups=kept,
        set_aside=(*data.set_aside, name),
        # No note for val alone: the user asked for it, and its size is printed.
        notes=(*data.notes, *(notes if name == "test" or groups is not None else notes[1:])),
    )


_WAY_ON = {
    "test": "To train on all pictures without measuring: --test-fraction 0",
    "val": "To train without val, leave out --val-fraction, --patience and training.keep",
}


def _by_picture(train: Split, classes: int, fraction: float, seed: int) -> np.ndarray:
    """Choose the fraction of each class, at least one picture of any class that has two: bool [N]."""
    chosen = np.zeros(len(train), dtype=bool)
    order = np.argsort(train.labels, kind="stable")
    for members in np.split(order, np.cumsum(train.class_counts(classes))[:-1]):
        count = min(max(1, round(len(members) * fraction)), len(members) - 1)
        if count > 0:
            ranked = sorted(members.tolist(), key=lambda index: hash_of(train.key(index), seed))
            chosen[ranked[:count]] = True
    return chosen


def _by_label(train: Split, labels: int, fraction: float, seed: int) -> np.ndarray:
    """Choose the fraction of each label's pictures: bool [N].

    Goes through the labels from the rarest to the most frequent. Each label takes its share from those of its
    pictures that are not decided yet, and then all of its pictures are decided. This is iterative
    stratification (Sechidis et al. 2011) for two parts. Pictures without a label give the same fraction.
    """
    ranks = [hash_of(train.name(index), seed) for index in range(len(train))]
    chosen, decided = np.zeros(len(train), dtype=bool), np.zeros(len(train), dtype=bool)

    def take(free: np.ndarray, count: int) -> None:
        ranked = sorted(free.tolist(), key=ranks.__getitem__)
        chosen[ranked[: max(0, count)]] = True
        decided[free] = True

    for label in np.argsort(train.class_counts(labels), kind="stable"):
        members = train.members(int(label))
        wanted = min(max(1, round(len(members) * fraction)), len(members) - 1)
        take(members[~decided[members]], wanted - int(chosen[members].sum()))
        if len(members) and chosen[members].all():  # rarer labels took all of them, but train needs one
            chosen[max(members.tolist(), key=ranks.__getitem__)] = False
    rest = np.flatnonzero(~decided)
    take(rest, round(len(rest) * fraction))
    return chosen


def _by_group(train: Split, groups: np.ndarray, classes: int, fraction: float, seed: int) -> np.ndarray:
    """Choose whole groups so that each class comes close to the fraction: bool [N].

    Goes through the groups in the order of their hashes and takes a group if it fills more of what the
    classes still lack than it adds above their targets. ``train`` keeps pictures of every class. Pictures
    without any of several labels count as one more class, because a group that adds to no class would never
    be taken: the test pictures would all have labels, and be easier to rank than new ones.
    """
    names, position = np.unique(groups, return_inverse=True)
    counts = counts_by_group(train, position, classes)
    if train.multilabel:
        unlabelled = np.bincount(position, ~train.targets.any(axis=1), minlength=len(names))
        counts = np.column_stack((counts, unlabelled.astype(np.int64)))
    total = counts.sum(axis=0)
    wanted = np.where(total > 1, np.maximum(1, np.rint(total * fraction)), 0).astype(np.int64)
    taken, held = np.zeros(len(names), dtype=bool), np.zeros(counts.shape[1], dtype=np.int64)
    order = sorted(range(len(names)), key=lambda index: hash_of(str(names[index]), seed))

    def may_go(index: int) -> bool:
        return not taken[index] and not loses_a_class(counts[index], held, total)

    for index in order:
        after = held + counts[index]
        nearer = np.minimum(after, wanted).sum() - np.minimum(held, wanted).sum()
        beyond = np.maximum(after - wanted, 0).sum() - np.maximum(held - wanted, 0).sum()
        if nearer > beyond and may_go(index):
            taken[index], held = True, after
    for label in np.flatnonzero((held == 0) & (wanted > 0)):  # all its groups are large: take the smallest
        if held[label]:
            continue
        possible = [index for index in order if counts[index, label] and may_go(index)]
        if possible:
            best = min(possible, key=lambda index: counts[index].sum())
            taken[best], held = True, held + counts[best]
    return taken[position]


def counts_by_group(split: Split, position: np.ndarray, classes: int) -> np.ndarray:
    """How many pictures of each class or label each group has: int64 [groups, classes].

    Args:
        split: the pictures.
        position: the number of each picture's group, from 0: int [N].
        classes: the number of classes or labels.
    """
    counts = np.zeros((int(position.max(initial=-1)) + 1, classes), dtype=np.int64)
    if split.multilabel:
        np.add.at(counts, position, split.targets.astype(np.int64))
    else:
        np.add.at(counts, (position, split.labels), 1)
    return counts


def loses_a_class(going: np.ndarray, gone: np.ndarray, total: np.ndarray) -> bool:
    """Whether nothing is left of a class or label once ``going`` follows ``gone``.

    All three count the pictures of each class: int [classes]. ``total`` counts all of them.
    """
    return bool(np.any((gone + going >= total) & (going > 0)))


def _with_groups(data: Data, group_by: str) -> Data:
    """Find each picture's group in its name by the regular expression, unless the source gave groups."""
    if "train" in data.groups:
        return data
    groups: dict[str, np.ndarray] = {}
    matched: dict[str, int] = {}
    names = {split: [one.name(index) for index in range(len(one))] for split, one in data.splits.items()}
    regex = compile_pattern(group_by, list(chain.from_iterable(names.values())), "--group-by")
    for name, several in names.items():
        found, matched[name] = _groups_of(several, regex)
        groups[name] = np.array(found, dtype=object)
    train = data.splits["train"]
    if not matched["train"]:
        raise DataError(
            f"--group-by {group_by} matches none of the pictures, such as {printable(train.name(0))}. Give a "
            "regular expression whose first group matches the group's name in a picture's path, such as "
            "'/([^/_]+)_[^/]*$' for the part before the first _, or give the name of a manifest's column"
        )
    if len(set(groups["train"].tolist())) == 1:
        raise DataError(
            f"--group-by {group_by} finds the same group, {printable(groups['train'][0])!r}, in all "
            f"{len(train):,} pictures, such as {printable(train.name(0))}. Change the "
            "expression so that its first group matches the part that differs, such as a person's number"
        )
    notes = list(data.notes)
    alone = len(train) - matched["train"]
    if alone:
        notes.append(
            f"--group-by matches {matched['train']:,} training pictures; each of the other {alone:,} "
            "forms its own group"
        )
    return replace(data, groups=groups, notes=tuple(notes))


def with_groups_of_new(data: Data, group_by: str, count: int) -> Data:
    """Find the groups of the last ``count`` pictures of ``train``, which joined it later, in their names.

    Warns if such a group is also in another split.

    Args:
        data: data whose groups were found by ``group_by``.
        group_by: the regular expression that finds them.
        count: how many pictures are new.
    """
    train, groups = data.splits["train"], data.groups["train"].astype(object)
    names = [train.name(index) for index in range(len(train) - count, len(train))]
    regex = compile_pattern(group_by, names, "--group-by")
    groups[len(train) - count :] = _groups_of(names, regex)[0]
    return _with_shared_groups_noted(replace(data, groups={**data.groups, "train": groups}))


def _groups_of(names: Sequence[str], regex: re.Pattern[str]) -> tuple[list[str], int]:
    """Find each picture's group in its name and count the matches. Without a match it is its own group."""
    groups: list[str] = []
    matched = 0
    for name in names:
        match = regex.search(name)
        text = (match[min(regex.groups, 1)] or "") if match else ""
        matched += bool(text)
        groups.append(text or f"\0{name}")  # not a name that a match can give
    return groups, matched


def _with_shared_groups_noted(data: Data) -> Data:
    """Add a warning if a group has pictures in more than one split."""
    notes = list(data.notes)
    where: Mapping[str, set[str]] = defaultdict(set)
    for split, groups in data.groups.items():
        for group in set(groups.tolist()):
            where[group].add(split)
    shared = sorted(group for group, splits in where.items() if len(splits) > 1)
    if shared:
        splits = " and ".join(sorted(set().union(*(where[group] for group in shared))))
        notes.append(
            f"warning: {len(shared):,} {SHARED_GROUPS} {splits}, such as "
            f"{printable(str(shared[0]))}: the accuracy measured there may be too high"
        )
    return replace(data, notes=tuple(notes))


def share(name: str, seed: int) -> float:
    """Where the hash of a picture's or group's name is among all hashes, from 0 to 1.

    A picture that comes later is set aside if this is below the fraction, whatever the other pictures are.
    """
    return int.from_bytes(hash_of(name, seed), "big") / 2**64


def hash_of(name: str, seed: int) -> bytes:
    """The hash of a picture's or group's name, 8 bytes, by which pictures are chosen; ``seed`` changes it."""
    return hashlib.blake2b(f"{seed}\0{name}".encode(errors="surrogateescape"), digest_size=8).digest()
