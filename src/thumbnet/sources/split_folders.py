"""Decide which folders are splits or versions of the data, and note the folders that are not used.

This is the first part of the decision in :mod:`thumbnet.sources.layout`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from thumbnet.data.spelling import name_key
from thumbnet.errors import DataError, printable, some_of
from thumbnet.invocation import command
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources import filenames
from thumbnet.sources.split_names import SPLITS, SplitName, split_name
from thumbnet.sources.tree import Folder, join

LAYOUTS_HELP = (
    "Expected one of: train/CLASS/* with test/CLASS/* or val/CLASS/* (also Training/, valid/, test_set/, "
    f"...); CLASS/* alone; pictures with the class in the file name ({filenames.KNOWN}), in train/ or "
    "alone; or CIFAR's original batch files."
)

# Containers hold all pictures; companions hold what accompanies them, such as masks. A container with
# companions next to it is not a class.
_CONTAINER_WORDS = (
    "images image imgs img pictures photos data dataset jpegimages jpg jpeg png labeled labelled"
)
CONTAINERS = frozenset(_CONTAINER_WORDS.split())
_COMPANION_WORDS = (
    "annotations annotation masks mask labels label trimaps segmentations segmentation meta metadata gt "
    "groundtruth samples sample examples docs unlabeled unlabelled"
)
_COMPANIONS = frozenset(_COMPANION_WORDS.split())
# Names of folders that hold versions (color, grayscale) or parts (fold_1) of one data set. The class folders
# are one level below them.
_VERSION = re.compile(
    r"(color|colour|gray|grey|grayscale|greyscale|rgb|segmented|segmentation|original|augmented|augmentation|"
    r"raw|resized|cropped|cleaned|clean|processed|preprocessed|masks|images|noisy|denoised|bw|"
    r"(fold|part|batch|session|subset|chunk|split|cv|run|set)[ _-]*\d+|\d+x\d+(px)?|with.*|without.*)"
    r"([ _-]*(images|imgs|pictures|data|dataset|version))?",
    re.IGNORECASE,
)


class Unlabelled(NamedTuple):
    """The folder of a split without labels, and a note about it."""

    folder: str
    note: str


class SplitFinder:
    """Finds the splits below ``tree``.

    Attributes:
        base: what messages call the tree.
        top: the folder that holds the splits or classes; ``tree`` until it is found. Messages show paths
            relative to it.
        notes: the notes for the user so far.
        unlabelled: the splits without labels that folders or names show, and where they are.
    """

    def __init__(self, tree: Folder, base: str, settings: DataSettings, packed: bool) -> None:
        self.tree, self.settings, self.packed = tree, settings, packed
        self.base = base.rstrip("/") or "/"
        self.notes: list[str] = []
        self.unlabelled: dict[str, Unlabelled] = {}
        self.top = tree

    def _unwrapped(self, folder: Folder) -> Folder:
        """Enter the folders that only wrap the content, as archives often have."""
        # "here" means this folder. Only an archive is still entered: the user cannot name the folders in it.
        here = self.settings.classes_from == "here"
        while folder.filled():
            filled = folder.filled()
            inner = filled[0]
            if here and (len(filled) > 1 or folder.pictures or not self.packed):
                return folder
            if folder.pictures and (len(filled) > 1 or inner.count <= len(folder.pictures)):
                return folder
            if len(filled) > 1:
                container = [each for each in filled if each.name.casefold() in CONTAINERS]
                companions = [each for each in filled if each.name.casefold() in _COMPANIONS]
                if len(container) != 1 or len(companions) != len(filled) - 1:
                    return folder
                inner = container[0]
                self._note_ignored(companions, f"next to {inner.name}/")
            elif not self._wraps(inner) or self._is_only_class(inner):
                return folder
            if self.settings.classes_from.isdigit() and _depth(inner) < int(self.settings.classes_from):
                return folder
            if folder.pictures:
                if self.settings.label_pattern or self._names_have_labels(folder):
                    return folder
                self._note_loose_pictures(folder, f"next to {printable(inner.name)}/")
            folder = inner
        return folder

    def _is_only_class(self, inner: Folder) -> bool:
        """Whether the only folder is a class: a network may be evaluated on pictures of a single class."""
        plain = not inner.filled() and inner.name.casefold() not in CONTAINERS
        return plain and not self.settings.label_pattern and not self._names_have_labels(inner)

    def _wraps(self, inner: Folder) -> bool:
        """Whether ``inner``, the only folder in another, just wraps its content and is not a split."""
        name = split_name(inner.name)
        if name is None or self._splits_inside(inner) or self.settings.classes_from == "here":
            return True
        return self.packed and name.split != "train"  # test.zip with only test/CLASS/*: these are the data

    def _splits_inside(self, folder: Folder) -> bool:
        """Whether the folder contains nothing but splits: train and at least one other."""
        alone = not folder.pictures and all(split_name(each.name) for each in folder.filled())
        return alone and has_splits(folder)

    def _splits(self, top: Folder) -> dict[str, Folder]:
        """The split folders in ``top``, or nothing if its folders are classes.

        Raises:
            DataError: the names are ambiguous.
        """
        named = {each.path: name for each in top.folders if (name := split_name(each.name)) is not None}
        filled = [each for each in top.filled() if each.path in named]
        sure = [each for each in filled if named[each.path].rank < 2]
        if not any(named[each.path].split == "train" for each in sure):
            sure = self._splits_with_other_words(filled, named, sure)
        if not sure:
            self._note_unsure(filled)
            return {}
        chosen, spare = self._one_for_each(sure, named)
        for each in filled:  # accept test-multiple_fruits/ if there is no other test folder
            name = named[each.path]
            rivals = [e for e in filled if named[e.path].split == name.split]
            if each not in sure and name.split not in chosen and len(rivals) == 1 and "train" in chosen:
                chosen[name.split] = each
        others = [each for each in top.filled() if each not in chosen.values()]
        if not self._are_splits(top, chosen, [each for each in others if each not in spare]):
            return {}
        self._note_splits(top, chosen, named)
        self._note_ignored(others, "next to the splits")
        if top.pictures:
            self._note_loose_pictures(top, "next to the splits")
        return chosen

    def _splits_with_other_words(
        self, filled: list[Folder], named: dict[str, SplitName], sure: list[Folder]
    ) -> list[Folder]:
        """Accept ``mnist_train`` with ``mnist_test`` (the same other word), or with a plain ``test``.

        Raises:
            DataError: names combine a split and a class: ``train_cats``, ``train_dogs``, ``test_cats``.
        """
        weak = [each for each in filled if named[each.path].rank == 2]
        kinds = {named[each.path].split for each in weak}
        train = [each for each in weak if named[each.path].split == "train"]
        if sure:
            return [*sure, *train] if len(train) == 1 else sure
        same = len({named[each.path].rest for each in weak}) == 1
        if same and "train" in kinds and len(kinds) == len(weak) > 1:
            return weak
        if len(train) > 1 and len(kinds) > 1:
            found = ", ".join(f"{self._short(each)}/" for each in weak[:4])
            raise DataError(
                f"{self.base}: the names of {found} combine a split with something else. Arrange them as "
                "train/CLASS and test/CLASS. If they are the classes, say so: --classes-from here"
            )
        return []

    def _note_unsure(self, weak: list[Folder]) -> None:
        """Note classes whose names contain that of a split: ``train_station``, ``cifar_test``."""
        if weak:
            found = ", ".join(f"{self._short(each)}/" for each in weak[:3])
            self.notes.append(f"{found}: taken as a class, not as a split")

    def _one_for_each(
        self, sure: list[Folder], named: dict[str, SplitName]
    ) -> tuple[dict[str, Folder], list[Folder]]:
        """The best folder for each split, and the other candidates.

        Raises:
            DataError: two folders match a split equally well.
        """
        by_split: dict[str, list[Folder]] = defaultdict(list)
        for each in sure:
            by_split[named[each.path].split].append(each)
        movable = [each for each in by_split.get("test", []) if named[each.path].either]
        if len(by_split.get("test", [])) == 2 and len(movable) == 1 and "val" not in by_split:
            by_split["test"].remove(movable[0])
            by_split["val"] = movable
        chosen: dict[str, Folder] = {}
        spare: list[Folder] = []
        for split in SPLITS:
            candidates = sorted(by_split.get(split, []), key=lambda each: named[each.path].rank)
            if not candidates:
                continue
            best = [e for e in candidates if named[e.path].rank == named[candidates[0].path].rank]
            if len(best) > 1:
                both = " and ".join(f"{self._short(e)}/ ({picture_count(e.count)})" for e in best)
                raise DataError(
                    f"{self.base}: {both} both look like the {split} split. Rename or move the one that "
                    "is not"
                )
            chosen[split] = best[0]
            spare += candidates[1:]
        return chosen, spare

    def _are_splits(self, top: Folder, chosen: dict[str, Folder], others: list[Folder]) -> bool:
        """Whether the ``chosen`` folders are splits, rather than classes like the ``others``.

        Raises:
            DataError: the names are ambiguous, or train is missing.
        """
        siblings = ", ".join(f"{printable(each.name)}/" for each in others[:3])
        train = chosen.get("train")
        if train is None:
            found = " and ".join(f"{printable(each.name)}/" for each in chosen.values())
            empty = [each for each in top.folders if not each.count and _is_train(each)]
            if empty:
                raise DataError(f"{self._full(empty[0])} has no pictures, but {found} has")
            if others:
                raise DataError(
                    f"{self.base} has {found} but no train/, only {siblings}. Put the training classes "
                    f"into a folder train/. If {found} is a class, say so: --classes-from here"
                )
            one = self._full(next(iter(chosen.values())))
            raise DataError(
                f"{self.base} has {found} but no train/. To read what is in it, name {one}. {LAYOUTS_HELP}"
            )
        classes_inside = train.filled()
        if classes_inside or self.settings.label_pattern or self._names_have_labels(train):
            alone = set(chosen) == {"train"} and not self.settings.label_pattern
            if classes_inside and alone and _look_like_classes(others, train):
                raise DataError(
                    f"{self.base}: {printable(train.name)}/ contains folders like a split, but the folders "
                    f"next to it look like classes ({siblings}). If it is the training split, name it: "
                    f"{self._full(train)}. If it is a class, say so: --classes-from here"
                )
            return True
        if not others:
            return True  # pictures without labels: reported later
        companions = [each for each in others if each.name.casefold() in _COMPANIONS | CONTAINERS]
        if set(chosen) != {"train"} or len(companions) == len(others):
            found = " and ".join(f"{printable(each.name)}/" for each in chosen.values())
            looks = "looks like a split" if len(chosen) == 1 else "look like splits"
            raise DataError(
                f"{self.base}: {found} {looks}, but {filenames.unrecognised(train.pictures)}. If the folders "
                f"here are classes, including {siblings}, say so: --classes-from here"
            )
        self.notes.append(
            f"{printable(train.name)}/ is a class here, not a split: it contains no class folders and is "
            f"next to {siblings}"
        )
        return False

    def _names_have_labels(self, folder: Folder) -> bool:
        try:
            return filenames.labels_from_names(folder.pictures) is not None
        except DataError:
            return True  # most names have a label; reading them later reports the others

    def _note_splits(self, top: Folder, chosen: dict[str, Folder], named: dict[str, SplitName]) -> None:
        """Note which folder is which split unless the names are plain, and which split folders are empty."""
        if any(each.name not in (split, "valid", "validation") for split, each in chosen.items()):
            which = ", ".join(f"{self._short(each)}/ is {split}" for split, each in chosen.items())
            self.notes.append(f"splits taken from the folder names: {which}")
        for each in top.folders:
            name = named.get(each.path)
            if not each.count and name is not None:
                missing = "" if name.split in chosen else f": there is no {name.split} split"
                self.notes.append(f"{self._short(each)}/ has no pictures{missing}")

    def _check_versions(self, top: Folder) -> None:
        """Refuse or note folders with the same class folders inside, such as ``color`` and ``grayscale``."""
        if self.settings.classes_from != "top" or len(top.filled()) < 2 or top.pictures:
            return
        inner = [{name_key(each.name) for each in sole(folder).filled()} for folder in top.filled()]
        if len(inner[0]) < 2 or any(names != inner[0] for names in inner):
            return
        found = ", ".join(f"{self._short(each)}/" for each in top.filled()[:5])
        example = sole(top.filled()[0]).filled()[0].name
        if all(_VERSION.fullmatch(each.name) for each in top.filled()):
            raise DataError(
                f"{self.base}: {found} contain the same {len(inner[0])} folders, such as "
                f"{printable(example)}/, so they look like versions or parts of one data set. Name one of "
                f"them: {self._full(top.filled()[0])}. If they are the classes, say so: --depth 1"
            )
        self.notes.append(
            f"warning: all class folders ({found}) contain the same {len(inner[0])} folders, such as "
            f"{printable(example)}/, which were merged. If those are the classes, name one of the outer "
            "folders as the data, or make each inner folder a class: --classes-from leaf"
        )

    # --- notes and messages ---

    def _note_unlabelled(self, folder: Folder, split: str) -> None:
        example = printable(self._below_top([min(folder.pictures_below())])[0])
        first = "unpack the archive, then " if self.packed else ""
        place = Path(self._below_top([folder.path])[0] if self.packed else self._place(folder))
        self.unlabelled[split] = Unlabelled(
            folder.path,
            f"{self._short(folder)}/ has no labels ({picture_count(folder.count)}, such as {example}), so it "
            f"is not used as {split}. To classify its pictures after training: {first}"
            f"{command('predict', 'RUN', place)}",
        )

    def _note_ignored(self, folders: list[Folder], why: str) -> None:
        if folders:
            found = [f"{self._short(each)}/ ({picture_count(each.count)})" for each in folders]
            self.notes.append(f"ignored {why}: {some_of(found)}")

    def _note_loose_pictures(self, folder: Folder, where: str) -> None:
        example = printable(join(folder.path, min(folder.pictures)))
        self.notes.append(f"ignored {where}: {picture_count(len(folder.pictures))}, such as {example}")

    def _only_skipped(self) -> str:
        count = sum(count for each in self.tree.walk() for _, count in each.skipped)
        return f", except {picture_count(count)} in hidden or tool folders" if count else ""

    def _short(self, folder: Folder) -> str:
        """A folder's path below ``top``, for a message."""
        return printable(self._below_top([folder.path])[0])

    def _full(self, folder: Folder) -> str:
        return printable(self._place(folder))

    def _place(self, folder: Folder) -> str:
        return join(self.base, folder.path) if folder.path else self.base

    def _below_top(self, paths: list[str]) -> list[str]:
        start = len(self.top.path) + 1 if self.top.path else 0
        return [path[start:] for path in paths] if start else paths


def has_splits(folder: Folder) -> bool:
    """Whether there are splits in the folder: train and at least one other."""
    names = [split_name(each.name) for each in folder.filled()]
    kinds = {name.split for name in names if name and name.rank < 2}
    return "train" in kinds and len(kinds) > 1


def sole(folder: Folder) -> Folder:
    """The innermost folder that holds all pictures of ``folder``."""
    while not folder.pictures and len(folder.filled()) == 1:
        folder = folder.filled()[0]
    return folder


def picture_count(count: int) -> str:
    """``1 picture``, ``1,000 pictures``."""
    return f"{count:,} picture{'' if count == 1 else 's'}"


def _depth(folder: Folder) -> int:
    """How many folders deep the deepest pictures are below ``folder``."""
    start = folder.path.count("/") + 1 if folder.path else 0
    return max(
        (each.path.count("/") + 1 if each.path else 0) - start for each in folder.walk() if each.pictures
    )


def _look_like_classes(others: list[Folder], train: Folder) -> bool:
    """Whether the folders next to ``train`` look like classes, judging by their subfolders and sizes."""
    inside = {each.name.casefold() for each in train.filled()}
    strange = [each for each in others if {child.name.casefold() for child in each.filled()} - inside]
    return bool(strange) or (len(others) > 1 and 2 * sum(each.count for each in others) >= train.count)


def _is_train(folder: Folder) -> bool:
    name = split_name(folder.name)
    return name is not None and name.split == "train" and name.rank < 2
