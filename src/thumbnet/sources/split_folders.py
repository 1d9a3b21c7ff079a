"""Decide which folders are splits, and write notes about folders that are not used.

The first part of the decision in :mod:`thumbnet.sources.layout`.
"""

from __future__ import annotations

import re
from collections import defaultdict

from thumbnet.errors import DataError, printable
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources import filenames
from thumbnet.sources.split_names import SPLITS, SplitName, split_name
from thumbnet.sources.tree import Folder, join

LAYOUTS_HELP = (
    "Expected one of: train/CLASS/* with test/CLASS/* or val/CLASS/* (also Training/, valid/, test_set/, "
    f"...); CLASS/* alone; pictures with their class in their name ({filenames.KNOWN}), in train/ or "
    "alone; or CIFAR's own batches."
)

# Folders that hold all pictures, and folders of what belongs to them: never classes beside each other.
_CONTAINER_WORDS = (
    "images image imgs img pictures photos data dataset jpegimages jpg jpeg png labeled labelled"
)
CONTAINERS = frozenset(_CONTAINER_WORDS.split())
_COMPANION_WORDS = (
    "annotations annotation masks mask labels label trimaps segmentations segmentation meta metadata gt "
    "groundtruth samples sample examples docs unlabeled unlabelled"
)
_COMPANIONS = frozenset(_COMPANION_WORDS.split())


class SplitFinder:
    """Finds the splits below ``tree``.

    Attributes:
        base: what to call the tree in messages.
        top: the folder that holds the splits or classes, once that is known; messages call others below it.
        notes: what is to be said, so far.
    """

    def __init__(self, tree: Folder, base: str, settings: DataSettings, packed: bool) -> None:
        self.tree, self.settings, self.packed = tree, settings, packed
        self.base = base.rstrip("/") or "/"
        self.notes: list[str] = []
        self.top = tree

    def _unwrapped(self, folder: Folder) -> Folder:
        """Enter the single folders in which archives often wrap everything."""
        here = self.settings.classes_from == "here"
        while folder.filled():
            filled = folder.filled()
            inner = filled[0]
            if here and (len(filled) > 1 or folder.pictures or not self.packed):
                return folder  # what is wrapped in an archive cannot be named by itself
            if folder.pictures and (len(filled) > 1 or inner.count <= len(folder.pictures)):
                return folder
            if len(filled) > 1:
                container = [each for each in filled if each.name.casefold() in CONTAINERS]
                companions = [each for each in filled if each.name.casefold() in _COMPANIONS]
                if len(container) != 1 or len(companions) != len(filled) - 1:
                    return folder
                inner = container[0]
                self._left_out(companions, f"beside {inner.name}/")
            elif not self._wraps(inner) or self._is_only_class(inner):
                return folder
            if self.settings.classes_from.isdigit() and _depth(inner) < int(self.settings.classes_from):
                return folder
            if folder.pictures:
                if self.settings.label_pattern or self._names_have_labels(folder):
                    return folder
                self._stray(folder, f"beside {printable(inner.name)}/")
            folder = inner
        return folder

    def _is_only_class(self, inner: Folder) -> bool:
        """Whether the one folder is a class: a network may be measured on pictures of one class alone."""
        plain = not inner.filled() and inner.name.casefold() not in CONTAINERS
        return plain and not self.settings.label_pattern and not self._names_have_labels(inner)

    def _wraps(self, inner: Folder) -> bool:
        """Whether the only folder in another just wraps its content, and is not a split."""
        name = split_name(inner.name)
        if name is None or self._splits_inside(inner) or self.settings.classes_from == "here":
            return True
        return self.packed and name.split != "train"  # test.zip with test/CLASS/*: all that there is

    def _splits_inside(self, folder: Folder) -> bool:
        """Whether all folders in it are splits, of two kinds or more: then it wraps them."""
        names = [split_name(each.name) for each in folder.filled()]
        kinds = {name.split for name in names if name and name.rank < 2}
        return "train" in kinds and len(kinds) > 1 and all(names) and not folder.pictures

    def _splits(self, top: Folder) -> dict[str, Folder]:
        """Which folders in ``top`` are splits; none where they are classes.

        Raises:
            DataError: that cannot be told from the names.
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
        for each in filled:  # test-multiple_fruits/ where there is no other test/
            name = named[each.path]
            rivals = [e for e in filled if named[e.path].split == name.split]
            if each not in sure and name.split not in chosen and len(rivals) == 1 and "train" in chosen:
                chosen[name.split] = each
        others = [each for each in top.filled() if each not in chosen.values()]
        if not self._are_splits(top, chosen, [each for each in others if each not in spare]):
            return {}
        self._note_splits(top, chosen, named)
        self._left_out(others, "beside the splits")
        if top.pictures:
            self._stray(top, "beside the splits")
        return chosen

    def _splits_with_other_words(
        self, filled: list[Folder], named: dict[str, SplitName], sure: list[Folder]
    ) -> list[Folder]:
        """``mnist_train`` and ``mnist_test``, with the same other word; or one ``mnist_train`` with ``test``.

        Raises:
            DataError: splits and classes in one, as ``train_cats``, ``train_dogs``, ``test_cats``.
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
            found = ", ".join(f"{self._say(each)}/" for each in weak[:4])
            raise DataError(
                f"{self.base}: {found} have a split and something else in their names. Put each class into "
                "its split, as train/CLASS and test/CLASS; or, if they are the classes, say so: "
                "--classes-from here"
            )
        return []

    def _note_unsure(self, weak: list[Folder]) -> None:
        """Say that a class has a split's name in its own: ``train_station``, ``cifar_test``."""
        if weak:
            found = ", ".join(f"{self._say(each)}/" for each in weak[:3])
            self.notes.append(f"{found}: taken as a class, not as a split")

    def _one_for_each(
        self, sure: list[Folder], named: dict[str, SplitName]
    ) -> tuple[dict[str, Folder], list[Folder]]:
        """One folder for each split, and those that also look like one."""
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
                both = " and ".join(f"{self._say(e)}/ ({picture_count(e.count)})" for e in best)
                raise DataError(
                    f"{self.base}: {both} both look like the {split} split. Rename the one that is not "
                    "meant, or move it elsewhere"
                )
            chosen[split] = best[0]
            spare += candidates[1:]
        return chosen, spare

    def _are_splits(self, top: Folder, chosen: dict[str, Folder], others: list[Folder]) -> bool:
        """Whether these folders are splits rather than classes among ``others``.

        Raises:
            DataError: that cannot be told.
        """
        beside = ", ".join(f"{printable(each.name)}/" for each in others[:3])
        train = chosen.get("train")
        if train is None:
            found = " and ".join(f"{printable(each.name)}/" for each in chosen.values())
            empty = [each for each in top.folders if not each.count and _is_train(each)]
            if empty:
                raise DataError(f"{self._full(empty[0])} has no pictures in it, but {found} has")
            if others:
                raise DataError(
                    f"{self.base} has {found} but no train/; beside it: {beside}. Put the training classes "
                    f"into a folder train/; or, if {found} is a class, say so: --classes-from here"
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
                    f"{self.base}: {printable(train.name)}/ has folders in it as a split has, but {beside} "
                    "lie beside it as classes do. If it is the training split, name it: "
                    f"{self._full(train)}. If it is a class, say so: --classes-from here"
                )
            return True
        if not others:
            return True  # pictures without labels, which is said later
        companions = [each for each in others if each.name.casefold() in _COMPANIONS | CONTAINERS]
        if set(chosen) != {"train"} or len(companions) == len(others):
            found = " and ".join(f"{printable(each.name)}/" for each in chosen.values())
            raise DataError(
                f"{self.base}: {found} look like splits, but {filenames.unrecognised(train.pictures)}. If "
                f"they are classes as {beside} are, say so: --classes-from here"
            )
        self.notes.append(
            f"{printable(train.name)}/ is a class here, not a split: it has no class folders, and lies "
            f"beside {beside}"
        )
        return False

    def _names_have_labels(self, folder: Folder) -> bool:
        try:
            return filenames.labels_from_names(folder.pictures) is not None
        except DataError:
            return True  # of most of them: reading them says of which not

    def _note_splits(self, top: Folder, chosen: dict[str, Folder], named: dict[str, SplitName]) -> None:
        """Say which folder is which split, where its name is not the split's; and which are empty."""
        if any(each.name not in (split, "valid", "validation") for split, each in chosen.items()):
            which = ", ".join(f"{self._say(each)}/ is {split}" for split, each in chosen.items())
            self.notes.append(f"splits by the names of the folders: {which}")
        for each in top.folders:
            name = named.get(each.path)
            if not each.count and name is not None:
                none = "" if name.split in chosen else f": there is no {name.split} split"
                self.notes.append(f"{self._say(each)}/ has no pictures{none}")

    # --- what is said ---

    def _unlabelled(self, folder: Folder, split: str) -> None:
        example = printable(self._below_top([min(folder.pictures_below())])[0])
        first = "unpack the archive, then " if self.packed else ""
        place = self._say(folder) if self.packed else self._full(folder)
        self.notes.append(
            f"{self._say(folder)}/ has no labels ({picture_count(folder.count)}, such as {example}): it is "
            f"not used as {split}. To classify them after training: {first}thumbnet predict RUN "
            f"{_quoted(place)}"
        )

    def _left_out(self, folders: list[Folder], where: str) -> None:
        if folders:
            found = ", ".join(f"{self._say(each)}/ ({picture_count(each.count)})" for each in folders[:5])
            more = f" and {len(folders) - 5} more" if len(folders) > 5 else ""
            self.notes.append(f"left out, {where}: {found}{more}")

    def _stray(self, folder: Folder, where: str) -> None:
        example = printable(join(folder.path, min(folder.pictures)))
        self.notes.append(f"left out, {where}: {picture_count(len(folder.pictures))}, such as {example}")

    def _only_skipped(self) -> str:
        count = sum(count for each in self.tree.walk() for _, count in each.skipped)
        return f", but for {picture_count(count)} in hidden or tool folders" if count else ""

    def _say(self, folder: Folder) -> str:
        """A folder's path below ``top``, for a message."""
        return printable(self._below_top([folder.path])[0])

    def _full(self, folder: Folder) -> str:
        return printable(join(self.base, folder.path) if folder.path else self.base)

    def _below_top(self, paths: list[str]) -> list[str]:
        start = len(self.top.path) + 1 if self.top.path else 0
        return [path[start:] for path in paths] if start else paths


def picture_count(count: int) -> str:
    """A number of pictures, in words."""
    return f"{count:,} picture{'' if count == 1 else 's'}"


def _quoted(path: str) -> str:
    """A path for a command in a message."""
    return f"'{path}'" if re.search(r"[\s'\"$&;()*?]", path) else path


def _depth(folder: Folder) -> int:
    """How many folders deep the deepest pictures are."""
    start = folder.path.count("/") + 1 if folder.path else 0
    return max(
        (each.path.count("/") + 1 if each.path else 0) - start for each in folder.walk() if each.pictures
    )


def _look_like_classes(others: list[Folder], train: Folder) -> bool:
    """Whether the folders next to ``train`` look like classes by their number and size."""
    inside = {each.name.casefold() for each in train.filled()}
    strange = [each for each in others if {one.name.casefold() for one in each.filled()} - inside]
    return bool(strange) or (len(others) > 1 and 2 * sum(each.count for each in others) >= train.count)


def _is_train(folder: Folder) -> bool:
    name = split_name(folder.name)
    return name is not None and name.split == "train" and name.rank < 2
