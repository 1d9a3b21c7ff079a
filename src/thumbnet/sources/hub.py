"""Read image-classification data sets from the Hugging Face Hub, named ``hf:OWNER/NAME``.

The library ``datasets`` downloads them. Folders written by its ``save_to_disk`` are read too.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from thumbnet.data.reading import damage_as_data_error, first_line, is_file
from thumbnet.data.splits import BytesSplit, Data, Split
from thumbnet.errors import DataError, nearest, needs_extra, printable
from thumbnet.files import read_whole
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources.labels import as_class, number_classes
from thumbnet.sources.place import Place
from thumbnet.sources.split_names import split_name

# Usual names of label columns, likeliest first. They count only if no column has the type ClassLabel.
_LABEL_NAMES = [
    "label",
    "labels",
    "class",
    "target",
    "category",
    "fine_label",
    "y",
    "cls",
    "class_name",
    "label_name",
    "class_id",
    "label_id",
    "species",
    "breed",
]
_MOST_CLASSES = 0.5  # distinct values as a share of the rows, at most, for a column to be guessed as labels


def recognise(place: Place, settings: DataSettings) -> bool:
    """Whether ``place`` is a folder written by ``save_to_disk``."""
    folder = place.path
    single = is_file(folder / "state.json") and is_file(folder / "dataset_info.json")
    return single or is_file(folder / "dataset_dict.json")


def read(place: Place, source: str, settings: DataSettings) -> Data:
    """The labelled pictures in a folder written by ``save_to_disk``.

    Raises:
        MissingExtraError: the library ``datasets`` is not installed.
        DataError: the folder is damaged, or has no column of pictures or of labels.
    """
    library = _library("reading a folder saved by the library datasets")
    with damage_as_data_error(place.path, f"cannot load {printable(source)}"):
        loaded = library.load_from_disk(str(place.path))
    tables = loaded if isinstance(loaded, dict) else {"train": loaded}
    places = (place.path, *_caches())
    return _read_tables(tables, "", source, settings, "saved by the library datasets", places)


def load_hub(
    name: str,
    source: str,
    cache: Path | None,
    settings: DataSettings = DataSettings(),  # noqa: B008
) -> Data:
    """A data set on the Hub with a column of pictures and one of labels: integers, words or class labels.

    Args:
        name: ``OWNER/NAME``, then ``:CONFIG`` if it has several configurations, then ``#COLUMN`` if it has
            several label columns, as in ``uoft-cs/cifar100#coarse_label``.
        source: what the user wrote.
        cache: the folder to download to; None for the library's own cache.
        settings: ``path_column`` and ``label_column`` name the columns of pictures and labels.

    Raises:
        MissingExtraError: the library ``datasets`` is not installed.
        DataError: the data set cannot be downloaded, or has no column of pictures or of labels.
    """
    library = _library("reading from the Hugging Face Hub")
    path, _, label_column = name.partition("#")
    path, _, config = path.partition(":")
    try:
        tables = library.load_dataset(path, config or None, cache_dir=str(cache) if cache else None)
    except MemoryError:
        raise
    except Exception as error:  # the library raises a different class for every way to fail
        raise DataError(f"cannot load {printable(source)} from the Hub: {first_line(error)}") from None
    places = (cache / "downloads", *_caches()) if cache else _caches()
    return _read_tables(tables, label_column, source, settings, "Hugging Face Hub", places)


def _caches() -> tuple[Path, ...]:
    """The folders to which the libraries of the Hub download files."""
    from huggingface_hub.constants import HF_HUB_CACHE

    config = _library("reading from the Hugging Face Hub").config
    return Path(config.DOWNLOADED_DATASETS_PATH), Path(config.EXTRACTED_DATASETS_PATH), Path(HF_HUB_CACHE)


def _read_tables(
    tables: Mapping[Any, Any],
    label_column: str,
    source: str,
    settings: DataSettings,
    layout: str,
    places: Sequence[Path],
) -> Data:
    """The data in these tables; ``places`` are the folders in which rows may name files."""
    where = printable(source)
    chosen, notes = _splits({str(name): table for name, table in tables.items()}, where)
    features = chosen["train"].features
    image = _image_column(features, settings.path_column, where, notes)
    label = _label_column(chosen["train"], label_column or settings.label_column, image, where, notes)
    contents: dict[str, tuple[list[bytes], list[str]]] = {}
    values: dict[str, list[str | int]] = {}
    for split, table in chosen.items():
        missing = [column for column in (image, label) if column not in table.features]
        labels = [] if missing else [_known(as_class(value)) for value in table[label]]
        with_label = [index for index, value in enumerate(labels) if value is not None]
        if len(with_label) < len(table):
            count = f"{len(table) - len(with_label):,} of {len(table):,}"
            notes.append(f"{split}: {count} pictures were left out because they have no label")
        if with_label or split == "train":
            contents[split] = _read_pictures(table, image, with_label, split, where, places)
            values[split] = [value for value in labels if value is not None]
    if not values["train"]:
        raise DataError(f"{where}: no training picture has a label in the column {label!r}")
    names = tuple(getattr(features[label], "names", None) or ())
    class_names, numbers, more = number_classes(values, where, names)
    splits: dict[str, Split] = {
        split: BytesSplit(files, numbers[split], called) for split, (files, called) in contents.items()
    }
    return Data(source, layout, class_names, splits, (*notes, *more))


def _splits(tables: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """For each split, the non-empty table whose name fits best; and notes on the tables left out."""
    chosen: dict[str, str] = {}
    rank: dict[str, int] = {}
    for name in tables:
        found = split_name(name)
        if found and len(tables[name]) and found.rank < rank.get(found.split, 9):
            chosen[found.split], rank[found.split] = name, found.rank
    if "train" not in chosen:
        filled = [name for name in tables if len(tables[name])]
        if len(filled) != 1:
            listing = f", only {', '.join(map(printable, tables))}" if tables else ""
            raise DataError(f"{where}: the data set has no train split{listing}")
        chosen = {"train": filled[0]}
    left_out = [printable(name) for name in tables if name not in chosen.values()]
    notes = [f"the split {name!r} was left out" for name in left_out]
    return {split: tables[name] for split, name in chosen.items()}, notes


def _image_column(features: Mapping[str, Any], wanted: str, where: str, notes: list[str]) -> str:
    """The column of pictures: ``wanted``, else the first of type Image, else the first of bytes."""
    found = [key for key, kind in features.items() if type(kind).__name__ == "Image"]
    found = found or [key for key, kind in features.items() if _holds_files(kind)]
    if wanted:
        if wanted not in features:
            raise DataError(
                f"{where}: no column {printable(wanted)!r}. {nearest(wanted, map(printable, features))}"
            )
        return wanted
    if not found:
        raise DataError(
            f"{where} is not an image-classification data set: no column has pictures. Its columns: "
            f"{_listing(features)}"
        )
    if len(found) > 1:
        others = ", ".join(printable(key) for key in found[1:])
        notes.append(
            f"pictures: column {printable(found[0])!r}; choose another ({others}) with --path-column NAME"
        )
    return found[0]


def _holds_files(kind: Any) -> bool:
    """Whether a column has the bytes of files, as in tables that pandas writes."""
    if isinstance(kind, dict):
        return "bytes" in kind and getattr(kind["bytes"], "dtype", "") == "binary"
    return getattr(kind, "dtype", "") in ("binary", "large_binary")


def _label_column(table: Any, wanted: str, image: str, where: str, notes: list[str]) -> str:
    """The column of labels.

    That is ``wanted``, else the first ClassLabel, else the first column with a usual name, else the only
    column with few distinct values.
    """
    features = table.features
    possible = [key for key, kind in features.items() if key != image and _may_be_label(kind)]
    typed = [key for key in possible if type(features[key]).__name__ == "ClassLabel"]
    if wanted:
        if wanted not in possible:
            choices = [printable(key) for key in possible]
            raise DataError(f"{where}: no column {printable(wanted)!r} of labels. {nearest(wanted, choices)}")
        return wanted
    lower = {key.lower(): key for key in possible}
    named = [lower[name] for name in _LABEL_NAMES if name in lower]
    # The first one counts. For CIFAR-100, which has fine_label and coarse_label, that is the usual task.
    found: list[str] = typed or named
    if not found:
        few = [key for key in possible if 2 <= len(set(table[key])) <= _MOST_CLASSES * len(table)]
        found = few if len(few) == 1 else []
    if not found:
        several = f"several columns may be the label ({', '.join(map(printable, few))})"
        what = several if few else "none looks like labels"
        raise DataError(
            f"{where}: cannot tell which column has the labels: {what}. Its columns: {_listing(features)}. "
            "Name the column with --label-column COLUMN or, on the Hub, hf:OWNER/NAME#COLUMN"
        )
    if len(found) > 1 or not typed:
        others = [printable(key) for key in possible if key != found[0]]
        also = f"; others: {', '.join(others)}" if others else ""
        notes.append(f"labels: column {printable(found[0])!r}{also}")
    return found[0]


def _may_be_label(kind: Any) -> bool:
    dtype = str(getattr(kind, "dtype", ""))
    return (
        type(kind).__name__ == "ClassLabel" or dtype in ("string", "large_string", "bool") or "int" in dtype
    )


def _known(label: str | int | None) -> str | int | None:
    """The label; None for -1, by which the Hub marks a missing label."""
    return None if label == -1 else label


def _read_pictures(
    table: Any, image: str, chosen: Sequence[int], split: str, where: str, places: Sequence[Path]
) -> tuple[list[bytes], list[str]]:
    """The encoded pictures at the rows ``chosen``, and names for them in messages."""
    library = _library("reading from the Hugging Face Hub")
    files, names = [], []
    # The column may hold anything, and a file may be missing.
    with damage_as_data_error(where, f"{where}: cannot read pictures from the column {printable(image)!r}"):
        encoded = table.cast_column(image, library.Image(decode=False)).select(chosen)[image]
        for index, item in zip(chosen, encoded, strict=True):
            content, path = item["bytes"], item.get("path")
            names.append(f"{split}/{path}[{index}]" if path else f"{split}[{index}]")
            if content is None:
                row = f"{where}: the row {printable(names[-1])}"
                if not path:
                    raise DataError(f"{row} has no picture")
                content = _read_named(path, places, row)
            files.append(content)
    return files, names


def _read_named(path: str, places: Sequence[Path], row: str) -> bytes:
    """The file that a row names in place of bytes; a relative path starts in the first of ``places``.

    A stranger's row may name any file, such as a picture of the user's, or a device that never ends.

    Raises:
        DataError: it leads out of ``places``, or to no ordinary file.
        OSError: it cannot be read.
    """
    real = Path(os.path.realpath(places[0] / path))
    if not any(real.is_relative_to(os.path.realpath(place)) for place in places):
        raise DataError(
            f"{row} names a file outside {places[0]}, which is not read. A data set has to hold its "
            "pictures: save it again with save_to_disk of the library datasets, which stores them"
        )
    if not stat.S_ISREG(real.stat().st_mode):
        raise DataError(f"{row} names a folder, a device or a pipe")
    return read_whole(real)


def _listing(features: Mapping[str, Any]) -> str:
    return ", ".join(f"{printable(key)} ({type(kind).__name__})" for key, kind in features.items())


def _library(what: str) -> Any:
    with needs_extra(what, "hub"):
        import datasets
    return datasets
