"""Tiny ImageNet as it is downloaded: readable class names, ``val`` from its annotations, an unlabelled test.

tiny-imagenet-200/wnids.txt, words.txt
                  train/n01443537/images/n01443537_0.JPEG, n01443537_boxes.txt
                  val/images/val_0.JPEG, val/val_annotations.txt
                  test/images/test_0.JPEG
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from thumbnet.data.splits import Data
from thumbnet.errors import DataError, printable
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources.index import Index
from thumbnet.sources.place import Place

_WNID = re.compile(r"n\d{8}")


def recognise(place: Place, settings: DataSettings) -> bool:
    """Whether there are a list of WordNet identifiers and the training pictures."""
    try:
        return (place.path / "wnids.txt").is_file() and (place.path / "train").is_dir()
    except OSError:
        return False


def read(place: Place, source: str, settings: DataSettings) -> Data:
    """The training pictures, and ``val`` where there is one. Classes without training pictures are left out.

    Raises:
        DataError: a list cannot be read, or there are no training pictures.
    """
    index, notes = place.index(), []
    wnids = sorted({line.strip() for line in read_lines(place.path / "wnids.txt") if line.strip()})
    train = {wnid: index.pictures_below(f"train/{wnid}") for wnid in wnids if _WNID.fullmatch(wnid)}
    wnids = [wnid for wnid in train if train[wnid]]
    if not wnids:
        raise DataError(
            f"{printable(str(place.path))}: wnids.txt is there as in Tiny ImageNet, but train/ has no "
            f"pictures "
            "of its classes: unpack the archive again"
        )
    if len(wnids) < len(train):
        notes.append(f"{len(train) - len(wnids)} of the {len(train)} classes have no pictures in train/")
    paths = [path for wnid in wnids for path in train[wnid]]
    labels = np.arange(len(wnids)).repeat([len(train[wnid]) for wnid in wnids])
    splits = {"train": index.split(paths, labels)}
    val, val_labels = _val(place, index, wnids, notes)
    if val:
        splits["val"] = index.split(val, val_labels)
    unlabelled = len(index.pictures_below("test"))
    if unlabelled:
        notes.append(
            f"test/ has {unlabelled:,} pictures without labels, which were left out: once there is a run, "
            "thumbnet predict RUN gives their classes"
        )
    index.keep()
    return Data(source, "Tiny ImageNet, as downloaded", _class_names(place.path, wnids), splits, tuple(notes))


def read_lines(path: Path) -> list[str]:
    """The lines of a list.

    Raises:
        DataError: it cannot be read, or is not text.
    """
    try:
        return path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{printable(str(path))} is not text in UTF-8") from None
    except OSError as error:
        raise DataError(f"cannot read {printable(str(path))}: {error.strerror}") from None


def _val(place: Place, index: Index, wnids: Sequence[str], notes: list[str]) -> tuple[list[str], np.ndarray]:
    """The validation pictures by their annotations, or by class folders that somebody sorted them into."""
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    list_of_names = place.path / "val" / "val_annotations.txt"
    annotated: dict[str, str] = {}
    if list_of_names.is_file():
        for number, line in enumerate(read_lines(list_of_names), start=1):
            fields = line.split("\t") if "\t" in line else line.split()
            if not line.strip():
                continue
            if len(fields) < 2 or not _WNID.fullmatch(fields[1].strip()):
                raise DataError(
                    f"{printable(str(list_of_names))}, line {number}: expected a picture's name, a tab and a "
                    f"class such as n01443537, got {printable(line[:60])!r}"
                )
            annotated[fields[0].strip()] = fields[1].strip()
    paths, labels, unknown = [], [], 0
    for path in index.pictures_below("val"):
        parts = path.replace("\\", "/").split("/")
        wnid = annotated.get(parts[-1], parts[1])
        if wnid in label_of:
            paths.append(path)
            labels.append(label_of[wnid])
        else:
            unknown += 1
    if unknown:
        notes.append(f"val: {unknown:,} pictures were left out, which have no annotation or another class")
    lacking = len(set(annotated) - {path.replace("\\", "/").rpartition("/")[2] for path in paths})
    if lacking and not unknown:
        notes.append(f"val: {lacking:,} annotated pictures are not there or of a class that train/ lacks")
    return paths, np.array(labels, dtype=np.int64)


def _class_names(root: Path, wnids: Sequence[str]) -> tuple[str, ...]:
    """For each WordNet identifier its first name in words.txt; with the identifier where two are the same."""
    words: dict[str, str] = {}
    wanted = set(wnids)
    if (root / "words.txt").is_file():
        for line in read_lines(root / "words.txt"):
            wnid, _, names = line.partition("\t")
            if wnid in wanted:
                words[wnid] = names.split(",")[0].strip()
    shared = Counter(word.casefold() for word in words.values())
    return tuple(
        wnid
        if not words.get(wnid)
        else words[wnid]
        if shared[words[wnid].casefold()] == 1
        else f"{words[wnid]} ({wnid})"
        for wnid in wnids
    )
