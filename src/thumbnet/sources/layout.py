"""Decide from names alone what a folder of pictures means: its splits, its classes and what to ignore.

:func:`decide` takes the names below a folder (a :class:`Folder`) and opens no file, so folders, archives and
tests share the same code. :mod:`thumbnet.sources.folders` lists the folder and builds the splits.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from thumbnet.data import plugins
from thumbnet.data.spelling import name_key, nfc
from thumbnet.errors import DataError, printable, some_of
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources import filenames
from thumbnet.sources.split_folders import (
    CONTAINERS,
    LAYOUTS_HELP,
    SplitFinder,
    Unlabelled,
    has_splits,
    picture_count,
    sole,
)
from thumbnet.sources.split_names import SPLITS, split_name
from thumbnet.sources.tree import Folder, is_known_tool, is_tool_folder


class Layout(NamedTuple):
    """What a folder means.

    Attributes:
        root: the path of the folder that holds the splits or classes, below folders that only wrap it.
        shape: the layout in words, such as ``train/CLASS/* + test/CLASS/*``.
        class_names: a label is an index into this tuple.
        splits: for each split, the paths of its pictures relative to ``root`` and their labels, int64.
        notes: what might surprise the user, such as ignored folders.
        unlabelled: the splits that have pictures, but no labels in folders or names.
    """

    root: str
    shape: str
    class_names: tuple[str, ...]
    splits: dict[str, tuple[list[str], np.ndarray]]
    notes: tuple[str, ...]
    unlabelled: dict[str, Unlabelled]


def decide(
    tree: Folder,
    base: str,
    settings: DataSettings,
    read_labels: Callable[[str], tuple[str, ...] | None] = lambda _: None,
    packed: bool = False,
) -> Layout:
    """Decide what the folder ``tree`` means.

    Args:
        base: what messages call the folder, such as its path.
        settings: only ``classes_from`` and ``label_pattern`` are used.
        read_labels: takes a folder's path and returns the class names in its ``labels.txt``, or None if there
            is no such file.
        packed: whether the folder is in an archive, so that the user cannot name the folders inside it.

    Raises:
        DataError: the layout is unknown or ambiguous; the message says what to do.
    """
    return _Decision(tree, base, settings, read_labels, packed).layout()


class _Decision(SplitFinder):
    """Makes the decision for :func:`decide`. ``notes`` collects the notes along the way."""

    def __init__(
        self,
        tree: Folder,
        base: str,
        settings: DataSettings,
        read_labels: Callable[[str], tuple[str, ...] | None],
        packed: bool,
    ) -> None:
        super().__init__(tree, base, settings, packed)
        self.read_labels = read_labels

    def layout(self) -> Layout:
        """Decide what the tree means."""
        if not self.tree.count:
            raise DataError(
                f"no pictures were recognised in {self.base}{self._only_skipped()}. {LAYOUTS_HELP}"
            )
        self.top = self._unwrapped(self.tree)
        splits = {} if self.settings.classes_from == "here" else self._splits(self.top)
        if splits:
            return self._split_folders(splits)
        return self._bare(self.top)

    # --- class folders ---

    def _split_folders(self, chosen: dict[str, Folder]) -> Layout:
        """The layout of a folder that contains split folders."""
        chosen = self._expanded(chosen)
        train = self._inner_split(chosen["train"], None)
        if not train.filled() or self.settings.label_pattern:
            return self._by_names({**chosen, "train": train})
        classes = self._classes(train)
        names = self._train_names(classes, train)
        splits = {"train": classes}
        folders = {"train": train}
        for split in ("val", "test"):
            if split in chosen:
                folder = self._inner_split(chosen[split], names)
                found = self._labelled(folder, split, names, train, classes)
                if found is not None:
                    splits[split] = found
                    folders[split] = folder
        order = [split for split in chosen if split in folders]
        shape = " + ".join(f"{self._short(folders[split])}/{self._class_shape()}" for split in order)
        return self._finish(shape, names, {split: splits[split] for split in order}, folders)

    def _expanded(self, chosen: dict[str, Folder]) -> dict[str, Folder]:
        """Replace train by the splits inside it, as in train/train, train/val, test."""
        train = chosen["train"]
        if not self._splits_inside(train):
            return chosen
        inner = self._splits(train)
        twice = [split for split in inner if split in chosen and split != "train"]
        if twice:
            first, second = self._short(chosen[twice[0]]), self._short(inner[twice[0]])
            raise DataError(
                f"{self.base}: both {first}/ and {second}/ look like the {twice[0]} split. Remove one"
            )
        return {**chosen, **inner}

    def _inner_split(self, folder: Folder, names: Iterable[str] | None) -> Folder:
        """Enter the folders that only wrap a split's content: seg_train/seg_train, training/training."""
        known = {name_key(name) for name in names or ()}
        while not folder.pictures and len(folder.filled()) == 1 and self.settings.classes_from == "top":
            inner = folder.filled()[0]
            wraps = name_key(inner.name) == name_key(folder.name) or split_name(inner.name) is not None
            wraps = wraps or inner.name.casefold() in CONTAINERS
            classes = {name_key(each.name) for each in inner.filled()}
            wraps = wraps or bool(classes and classes <= known)
            if name_key(inner.name) in known or not (wraps or (names is None and len(inner.filled()) > 1)):
                break
            folder = inner
        return folder

    def _bare(self, top: Folder) -> Layout:
        """The layout of a folder without splits: class folders, or pictures with the class in their name."""
        if self.settings.label_pattern or not top.filled() or self._mostly_named(top):
            return self._by_names({"train": top})
        inside = self._splits_in_classes(top)
        if inside is not None:
            return inside
        self._check_versions(top)
        classes = self._classes(top)
        names = self._train_names(classes, top)
        return self._finish(self._class_shape(), names, {"train": classes}, {"train": top})

    def _mostly_named(self, top: Folder) -> bool:
        """Whether over 90% of the pictures are directly in ``top``, with labels in their names."""
        return 10 * len(top.pictures) > 9 * top.count and self._names_have_labels(top)

    def _splits_in_classes(self, top: Folder) -> Layout | None:
        """The layout CLASS/train/* + CLASS/test/*, or None if no class folder contains splits."""
        if self.settings.classes_from != "top" or len(top.filled()) < 2:
            return None
        outer = [each for each in top.filled() if has_splits(sole(each))]
        if not outer:
            return None
        inner = [each for folder in top.filled() for each in folder.filled()]
        whole = len(outer) == len(top.filled()) and not top.pictures
        if not whole or not all(map(self._splits_inside, outer)) or any(each.filled() for each in inner):
            some = ", ".join(f"{self._short(each)}/" for each in outer[:3])
            raise DataError(
                f"{self.base}: there are splits in {some}, as in separate data sets. Name one of them: "
                f"{self._full(outer[0])}. If they are classes, merge the folders inside each: --depth 1"
            )
        splits: dict[str, dict[str, list[Folder]]] = {}
        for folder in top.filled():
            for each in folder.filled():
                name = split_name(each.name)
                assert name is not None
                splits.setdefault(name.split, {}).setdefault(nfc(folder.name), []).append(each)
        found = {split: splits[split] for split in SPLITS if split in splits}
        names = self._train_names(found["train"], top)
        shape = " + ".join(f"CLASS/{split}/*" for split in found)
        self.notes.append(
            "each class folder has its own splits, such as " + self._short(top.filled()[0].filled()[0]) + "/"
        )
        return self._finish(shape, names, found, dict.fromkeys(found, top))

    def _classes(self, folder: Folder) -> dict[str, list[Folder]]:
        """The folders that hold each class's pictures. Keys are paths below ``folder``, in NFC."""
        found: dict[str, list[Folder]] = defaultdict(list)
        start = len(folder.path) + 1 if folder.path else 0
        by = self.settings.classes_from
        if self._by_top():
            for each in self._without_copies(folder):
                found[nfc(each.name)].append(each)
        else:
            for each in folder.walk():
                if each.pictures and each is not folder:
                    parts = each.path[start:].split("/")
                    found[nfc("/".join(parts if by == "leaf" else parts[: int(by)]))].append(
                        each if not each.filled() else Folder(each.path, each.pictures, each.ignored)
                    )
        if folder.pictures:
            self._note_loose_pictures(folder, "next to the class folders")
        return found

    def _without_copies(self, folder: Folder) -> list[Folder]:
        """The class folders, except one that contains copies of all the others, as in some archives."""
        filled = folder.filled()
        if self.settings.classes_from != "top":
            return filled
        keys = Counter(name_key(each.name) for each in filled)
        copies = []
        for each in filled:
            inner = {name_key(child.name) for child in each.filled()}
            # There may be very many classes: they are compared only with folders that contain as many.
            if 1 < len(inner) >= len(keys) - 1 and inner == {*(keys - Counter([name_key(each.name)]))}:
                copies.append(each)
        if len(copies) == 1:
            self._note_ignored(copies, "because it contains the same class folders again")
            return [each for each in filled if each is not copies[0]]
        return filled

    def _by_top(self) -> bool:
        """Whether the outermost folder names the class."""
        return self.settings.classes_from in ("top", "here", "1")

    def _train_names(self, classes: dict[str, list[Folder]], folder: Folder) -> dict[str, str]:
        """The name of each class, by its key in ``classes``.

        Also notes names that look alike and class folders without pictures.

        Raises:
            DataError: without its empty class folders, the folder has fewer than two classes.
        """
        names = {name: name for name in classes}
        if not self._by_top():
            leaves = defaultdict(set)
            for name in classes:
                leaves[name.rpartition("/")[2]].add(name)
            if all(len(same) == 1 for same in leaves.values()):
                names = {name: name.rpartition("/")[2] for name in classes}
        stripped = {name: shown.strip() for name, shown in names.items()}
        changed = [name for name in names if stripped[name] != names[name] and stripped[name]]
        alike = Counter(stripped.values())
        for name in changed:
            if alike[stripped[name]] == 1:
                names[name] = stripped[name]
                self.notes.append(
                    f"the class folder {name!r} became the class {stripped[name]!r}, without spaces around it"
                )
        self._note_alike(list(names.values()))
        merged = [
            name for name, several in classes.items() if len({nfc(f.name) for f in several}) < len(several)
        ]
        if merged and self._by_top():
            self.notes.append(
                f"{len(merged)} class(es) have two folders whose names differ only in their Unicode form: "
                f"merged, such as {merged[0]}"
            )
        self._note_subfolders(classes)
        splits = [] if folder is not self.top else [each for each in folder.folders if split_name(each.name)]
        empty = [each.name for each in folder.folders if not each.count and each not in splits]
        if empty:
            some = ", ".join(printable(name) for name in empty[:5])
            self.notes.append(
                f"{len(empty)} class folder(s) have no pictures and were left out: {some}"
                + (", ..." if len(empty) > 5 else "")
            )
            if len(names) < 2:
                raise DataError(
                    f"{self._full(folder)}: no pictures in the class folder(s) {some}. Fill or remove them"
                )
        return names

    def _note_alike(self, names: list[str]) -> None:
        """Note names such as Cat and cat: two classes here, but one on many other systems."""
        spelt: dict[str, list[str]] = defaultdict(list)
        for name in names:
            spelt[name_key(name)].append(name)
        alike = [same for same in spelt.values() if len(same) > 1]
        if alike:
            shown = ", ".join(" and ".join(map(repr, sorted(same))) for same in alike)
            self.notes.append(f"class names that differ only in case or spaces: {shown}")

    def _note_subfolders(self, classes: dict[str, list[Folder]]) -> None:
        """Note that the folders inside a class were merged, and how to make them classes."""
        if self.settings.classes_from not in ("top", "here"):
            return
        nested = [f for several in classes.values() for f in several if f.filled()]
        plain = not any(child.filled() for f in nested for child in f.filled()) and all(
            not f.pictures and len(f.filled()) == 1 for several in classes.values() for f in several
        )
        if any(note.startswith("warning: all class folders") for note in self.notes):
            return  # already noted
        if not nested or (plain and len({name_key(f.filled()[0].name) for f in nested}) == 1):
            return
        example = max(nested, key=lambda f: len(f.filled()))
        inner = " and ".join(f"{self._short(f)}/" for f in example.filled()[:2])
        more = f" (and {len(example.filled()) - 2} more)" if len(example.filled()) > 2 else ""
        self.notes.append(
            f"{len(nested)} class folder(s) contain folders, which were merged: {inner}{more} became "
            f"{nfc(example.name)!r}. To make each a class: --classes-from leaf, or --depth 2"
        )

    def _labelled(
        self,
        folder: Folder,
        split: str,
        names: dict[str, str],
        train: Folder,
        train_classes: dict[str, list[Folder]],
    ) -> dict[str, list[Folder]] | None:
        """The folders of each class in a split other than train; None if its pictures have no labels.

        Raises:
            DataError: the split has classes that train lacks.
        """
        inner = folder.filled()
        if not inner:
            found = self._named_as(folder, split, names)
            if found is None:
                self._note_unlabelled(folder, split)
            return found
        classes = self._classes(folder)
        alike: dict[str, list[str]] = defaultdict(list)
        for name in names:
            alike[name_key(name)].append(name)
        found = defaultdict(list)
        stray: list[str] = []
        respelt: list[tuple[str, str]] = []
        for name, folders in classes.items():
            same = [name] if name in names else alike.get(name_key(name), [])
            if len(same) != 1:
                stray.append(name)
                continue
            found[same[0]] += folders
            known = {each.name for each in train_classes[same[0]]}
            respelt += [(each.name, same[0]) for each in folders if each.name not in known and self._by_top()]
        if stray and not found and len(inner) == 1 and not alike.get(name_key(stray[0])):
            self._note_unlabelled(folder, split)
            return None
        if stray:
            raise DataError(
                f"{self._full(folder)} has classes that {self._full(train)} lacks: "
                f"{', '.join(printable(name) for name in stray)}. Rename or remove them"
            )
        if respelt:
            first, second = respelt[0]
            form = " (in another Unicode form)" if nfc(first) == second else ""
            self.notes.append(
                f"{split}: {len(respelt)} class folder(s) are spelt differently from train's but taken as "
                f"the same classes: {first!r} is {second!r}{form}"
            )
        lacking = [shown for name, shown in names.items() if name not in found]
        if lacking:
            self.notes.append(f"{split} has no pictures of {some_of(lacking)}")
        return found

    # --- labels in names ---

    def _named_as(self, folder: Folder, split: str, names: dict[str, str]) -> dict[str, list[Folder]] | None:
        """A split's pictures by class if all their names contain one of train's classes: ``cat.1.jpg``."""
        for form in filenames.FORMS:
            labels = filenames.labels_in_form(folder.pictures, form, "")
            if all(label in names for label in labels):
                break
        else:
            return None
        found: dict[str, list[Folder]] = {}
        for name, label in zip(folder.pictures, labels, strict=True):
            found.setdefault(str(label), [Folder(folder.path)])[0].pictures.append(name)
        self.notes.append(f"{split}: classes taken from the file names ({form}.*)")
        return found

    def _by_names(self, chosen: dict[str, Folder]) -> Layout:
        """The layout of pictures with the class in their names."""
        pattern, train = self.settings.label_pattern, chosen["train"]
        paths = {
            split: sorted(folder.pictures_below(), key=filenames.number_first)
            for split, folder in chosen.items()
        }
        try:
            found = filenames.labels_from_names(_base_names(paths["train"]), pattern)
        except DataError as error:
            raise DataError(f"{self._full(train)}: {error}") from None
        if found is None:
            raise DataError(
                f"{self._full(train)}: {filenames.unrecognised(_base_names(paths['train']))}. {LAYOUTS_HELP}"
            )
        form, labels = found.form, {"train": found.labels}
        listed = names = self.read_labels(self.top.path)
        if names is None:
            names = tuple(sorted(set(labels["train"])))
            first, label = _base_names(paths["train"])[0], labels["train"][0]
            self.notes.append(
                "there is no labels.txt: the classes are those in the file names, sorted"
                if form == "NUMBER_CLASS"
                else f"classes taken from the file names: {printable(first)} is {label!r}"
            )
        for split in [split for split in chosen if split != "train"]:
            others = filenames.labels_in_form(_base_names(paths[split]), form, pattern)
            if not any(others) or not paths[split]:
                self._note_unlabelled(chosen[split], split)
                continue
            bad = [path for path, label in zip(paths[split], others, strict=True) if label is None]
            if bad:
                raise DataError(
                    f"{self._full(chosen[split])}: {len(bad):,} name(s) have no label of the form "
                    f"{form or pattern}, unlike those in train, such as {printable(min(bad))}. {LAYOUTS_HELP}"
                )
            labels[split] = [label for label in others if label is not None]
        lacked = "train" if listed is None else "labels.txt"
        unknown = sorted({label for several in labels.values() for label in several} - set(names))
        if unknown:
            some = ", ".join(printable(name) for name in unknown[:10])
            raise DataError(f"{self.base}: file names have classes that {lacked} lacks: {some}")
        self._note_alike(list(names))
        position = {name: label for label, name in enumerate(names)}
        splits = {
            split: (self._below_top(paths[split]), np.array([position[label] for label in several], np.int64))
            for split, several in labels.items()
        }
        files = f"{form}.*" if form else "*"
        kind = "the tutorial's" if form == "NUMBER_CLASS" else f"classes by {pattern}" if pattern else ""
        shape = " + ".join(f"{self._short(chosen[split])}/{files}" for split in labels)
        shape = shape.removeprefix("/") + (f" ({kind})" if kind else "")
        return Layout(self.top.path, shape, names, splits, self._all_notes(chosen), self.unlabelled)

    # --- results and notes ---

    def _finish(
        self,
        shape: str,
        names: dict[str, str],
        splits: dict[str, dict[str, list[Folder]]],
        folders: dict[str, Folder],
    ) -> Layout:
        ordered = sorted(names, key=lambda name: names[name])
        made: dict[str, tuple[list[str], np.ndarray]] = {}
        for split, classes in splits.items():
            paths: list[str] = []
            counts: list[int] = []
            for name in ordered:
                found = sorted(path for each in classes.get(name, []) for path in each.pictures_below())
                paths += found
                counts.append(len(found))
            made[split] = (self._below_top(paths), np.arange(len(ordered)).repeat(counts))
        class_names = tuple(names[name] for name in ordered)
        return Layout(self.top.path, shape, class_names, made, self._all_notes(folders), self.unlabelled)

    def _all_notes(self, folders: dict[str, Folder]) -> tuple[str, ...]:
        """The notes so far, and notes on ignored files and on hidden folders."""
        outside = set(self.tree.ignored_below())
        for split, folder in folders.items():
            inside = (
                folder.ignored_below()
                if folder is not self.top
                else [path for each in folder.folders for path in each.ignored_below()]
            )
            if inside:
                outside -= set(inside)
                self.notes += _notes_on_ignored(split, self._below_top(inside))
        self.notes += plugins.notes_on(path.removeprefix(f"{self.top.path}/") for path in outside)
        links = [link for each in self.tree.walk() for link in each.links]
        links = [(path, why) for path, why in links if not is_tool_folder(path.rpartition("/")[2])]
        if links:
            path, why = links[0]
            path = path.removeprefix(f"{self.top.path}/")
            self.notes.append(
                f"warning: {len(links):,} link(s) were not followed, such as {printable(path)}, because "
                f"{why}. If it is a class or a split, put the folder itself there"
            )
        skipped = [(path, count) for each in self.tree.walk() for path, count in each.skipped if count]
        hidden = [(path, count) for path, count in skipped if not is_known_tool(path.rpartition("/")[2])]
        if skipped:
            path, count = max(hidden or skipped, key=lambda pair: pair[1])
            path = path.removeprefix(f"{self.top.path}/")
            total = sum(count for _, count in skipped)
            self.notes.append(
                f"skipped {picture_count(total)} in {len(skipped)} hidden or tool folder(s), such as "
                f"{printable(path)}/ ({count:,})" + (": rename it if it is a class" if hidden else "")
            )
        outputs = [(path, count) for each in self.tree.walk() for path, count in each.outputs if count]
        if outputs:
            path = outputs[0][0].removeprefix(f"{self.top.path}/")
            self.notes.append(
                f"skipped {picture_count(sum(count for _, count in outputs))} in {len(outputs)} folder(s) "
                f"that thumbnet has written, such as {printable(path)}/"
            )
        return tuple(dict.fromkeys(self.notes))

    def _class_shape(self) -> str:
        by = self.settings.classes_from
        if by == "leaf":
            return ".../CLASS/*"
        return "*/" * (int(by) - 1) + "CLASS/*" if by.isdigit() else "CLASS/*"


def _base_names(paths: Sequence[str]) -> list[str]:
    return [path.rpartition("/")[2] for path in paths]


def _notes_on_ignored(split: str, ignored: list[str]) -> list[str]:
    """Notes on ignored files: those in formats that need a plug-in or conversion, and the others."""
    special = plugins.notes_on(ignored)
    others = [path for path in ignored if plugins.kind_by_name(path) is None]
    if not others:
        return special
    what = f"{len(others)} file(s) that are not pictures by their names, such as {printable(min(others))}"
    return [*special, f"{split}: skipped {what}"]
