"""Read Tiny ImageNet as it is downloaded.

Class names come from words.txt and the labels of ``val`` from its annotations. ``test`` has no labels.

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

from thumbnet.data.reading import is_file, is_folder, read_error, read_text
from thumbnet.data.splits import Data
from thumbnet.errors import DataError, printable
from thumbnet.invocation import command
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources.index import Index
from thumbnet.sources.place import Place

_WNID = re.compile(r"n\d{8}")


def recognise(place: Place, settings: DataSettings) -> bool:
    """Whether ``place`` is a folder with a list of WordNet identifiers and a folder ``train``."""
    return is_file(place.path / "wnids.txt") and is_folder(place.path / "train")


def read(place: Place, source: str, settings: DataSettings) -> Data:
    """The training pictures, and ``val`` if it exists. Leaves out classes without training pictures.

    Raises:
        DataError: a list cannot be read, or there are no training pictures.
    """
    index, notes = place.index(), []
    wnids = sorted({line.strip() for line in read_lines(place.path / "wnids.txt") if line.strip()})
    train = {wnid: index.pictures_below(f"train/{wnid}") for wnid in wnids if _WNID.fullmatch(wnid)}
    wnids = [wnid for wnid in train if train[wnid]]
    if not wnids:
        raise DataError(
            f"{printable(str(place.path))} has a wnids.txt like Tiny ImageNet, but train/ has no pictures of "
            "its classes: unpack the archive again"
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
            f"test/ was left out: it has {unlabelled:,} pictures without labels. To classify them after "
            f"training: {command('predict', 'RUN', 'PATH')}"
        )
    index.keep()
    return Data(source, "Tiny ImageNet, as downloaded", _class_names(place.path, wnids), splits, tuple(notes))


def read_lines(path: Path) -> list[str]:
    """The lines of a text file.

    Raises:
        DataError: the file is missing, or is not UTF-8.
        FailedReadError: the system failed to read it.
    """
    try:
        return read_text(path, "utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{printable(str(path))} is not UTF-8 text") from None
    except OSError as error:
        raise read_error(error, path) from None


def _val(place: Place, index: Index, wnids: Sequence[str], notes: list[str]) -> tuple[list[str], np.ndarray]:
    """Paths and labels (int64 [N]) of the validation pictures, by annotations or else class folders."""
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    annotations = place.path / "val" / "val_annotations.txt"
    annotated: dict[str, str] = {}
    if is_file(annotations):
        for number, line in enumerate(read_lines(annotations), start=1):
            fields = line.split("\t") if "\t" in line else line.split()
            if not line.strip():
                continue
            if len(fields) < 2 or not _WNID.fullmatch(fields[1].strip()):
                raise DataError(
                    f"{printable(str(annotations))}, line {number}: expected a picture's name, a tab and a "
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
        notes.append(f"val: {unknown:,} pictures were left out: no annotation, or a class that train/ lacks")
    missing = len(set(annotated) - {path.replace("\\", "/").rpartition("/")[2] for path in paths})
    if missing and not unknown:
        notes.append(f"val: {missing:,} annotated pictures are missing or have a class that train/ lacks")
    return paths, np.array(labels, dtype=np.int64)


def _class_names(root: Path, wnids: Sequence[str]) -> tuple[str, ...]:
    """The first name in words.txt of each WordNet identifier, plus the identifier if others share it."""
    words: dict[str, str] = {}
    wanted = set(wnids)
    if is_file(root / "words.txt"):
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
