"""Read Parquet files: tables of paths, and columns that hold the pictures, as on the Hugging Face Hub."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from thumbnet.data.multilabel import MultiLabelSplit, as_matrix
from thumbnet.data.reading import damage_as_data_error, folders_in, inside, is_file
from thumbnet.data.spelling import nfc
from thumbnet.data.splits import BytesSplit, Data, Split
from thumbnet.errors import DataError, MissingExtraError, nearest, needs_extra, printable
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources.archives import MAX_EXPANSION
from thumbnet.sources.column_names import label_candidates
from thumbnet.sources.labels import (
    are_whole_numbers,
    check_in_train,
    class_names,
    in_class_order,
    named_numbers,
    note_on_titles,
    one_spelling,
)
from thumbnet.sources.parts import check_parts
from thumbnet.sources.place import Place
from thumbnet.sources.split_columns import split_of_name
from thumbnet.sources.split_names import note_left_out, plainer_names, split_name
from thumbnet.sources.tables import EMPTY, Table, repeated_names

_LISTS = re.compile(r"(large_)?list<\w+: ((large_)?string|u?int\d+)( not null)?>")
_HOLDS_FILES = re.compile(r"struct<(\w+: (large_)?(string|binary), )*bytes: (large_)?binary\b")
_ROWS_PER = 20  # a file may have MAX_EXPANSION / 20 rows per byte
_SHARD = re.compile(r"(?P<split>.+?)(-\d{5}-of-\d{5}.*)?", re.I)


def _pyarrow() -> Any:
    with needs_extra("Parquet files", "formats"):
        import pyarrow.parquet
    return pyarrow.parquet


def read_rows(path: Path, limit: int | None = None) -> Table:
    """Read a Parquet file's columns of text, numbers and booleans, or their first ``limit`` rows, as text.

    Lists of text or whole numbers are read as JSON.

    Raises:
        DataError: the file cannot be read.
        MissingExtraError: pyarrow is not installed.
    """
    names = [
        field.name
        for field in _open(path).schema_arrow
        if not _is_nested(field.type) or _holds_lists(field.type)
    ]
    rows: list[list[str]] = []
    for columns in _batches(path, 1 << 14, names):
        rows += [[_text(cell) for cell in row] for row in zip(*columns, strict=True)]
        if limit is not None and len(rows) >= limit:
            break
    return Table(path, names, rows[:limit], list(range(1, len(rows) + 1))[:limit], True)


def _batches(path: Path, size: int, names: Sequence[str]) -> Iterator[list[list[Any]]]:
    """Yield the values of the columns ``names``, up to ``size`` rows at a time.

    A file of 50 KB can hold one megabyte and repeat it in a million rows. Such a value is one object here.

    Raises:
        DataError: the file is damaged, or it holds far more than its size.
    """
    most = MAX_EXPANSION * path.stat().st_size + (1 << 20)
    with _damage_of(path):
        file = _open(path)
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
        declared = sum(chunk.total_uncompressed_size for chunk in chunks)
        values = max((chunk.num_values for chunk in chunks), default=0)
        if declared > most or values > most // _ROWS_PER:
            raise _bomb(path)
        leaves = [file.schema.column(number) for number in range(len(file.schema))]
        texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        for batch in (
            _pyarrow().ParquetFile(path, read_dictionary=texts).iter_batches(size, columns=list(names))
        ):
            columns = [_values(batch.column(name)) for name in names]
            most -= sum(_size(cell) for column in columns for cell in column)
            if most < 0:
                raise _bomb(path)
            yield columns


def _bomb(path: Path) -> DataError:
    return DataError(
        f"{printable(str(path))} holds more than {MAX_EXPANSION} times its {path.stat().st_size:,} bytes and "
        "is refused as a decompression bomb"
    )


def _values(column: Any) -> list[Any]:
    """The values of an Arrow array as Python objects; equal texts of a dictionary are one object."""
    kind = str(column.type)
    if kind.startswith("dictionary<"):
        known = _values(column.dictionary)
        return [None if at is None else known[at] for at in column.indices.to_pylist()]
    if kind.startswith("struct<"):
        names = [field.name for field in column.type]
        rows = zip(*(_values(field) for field in column.flatten()), strict=True)
        valid = column.is_valid().to_pylist()
        return [dict(zip(names, row, strict=True)) if v else None for v, row in zip(valid, rows, strict=True)]
    if kind.startswith(("list<", "large_list<")):
        ends, values = column.offsets.to_pylist(), _values(column.values)
        valid = column.is_valid().to_pylist()
        return [values[a:b] if v else None for v, a, b in zip(valid, ends, ends[1:], strict=False)]
    return list(column.to_pylist())


def _size(cell: Any) -> int:
    """The bytes of a cell, as far as they count."""
    if isinstance(cell, bytes | str | list):
        return len(cell) if not isinstance(cell, list) else sum(map(_size, cell))
    return sum(map(_size, cell.values())) if isinstance(cell, dict) else 1


def _damage_of(path: Path) -> AbstractContextManager[None]:
    """In this block, the errors that a damaged file causes are raised as :class:`DataError`."""
    return damage_as_data_error(path, f"cannot read {printable(str(path))}")


def _holds_lists(kind: Any) -> bool:
    """Whether a column of this type holds lists of text or whole numbers, which may be labels."""
    return _LISTS.match(str(kind)) is not None


def _text(cell: Any) -> str:
    """A cell as text without outer spaces, as in the other tables; a list as JSON."""
    if isinstance(cell, list):
        return json.dumps([one.strip() if isinstance(one, str) else one for one in cell])
    return "" if cell is None else str(cell).strip()


def _is_nested(kind: Any) -> bool:
    return str(kind).startswith(
        ("struct", "list", "large_list", "fixed_size", "binary", "large_binary", "map")
    )


def _open(path: Path) -> Any:
    with _damage_of(path):
        file = _pyarrow().ParquetFile(path)
        twice = repeated_names(file.schema_arrow.names)
    if twice:
        raise DataError(f"{printable(str(path))}: two columns are called {printable(twice[0])!r}. Rename one")
    return file


def recognise(place: Place, settings: DataSettings) -> bool:
    """Whether the place is a Parquet file with pictures, or a folder with such files.

    Without pyarrow it accepts them unopened, so that :func:`read` can name the missing extra.
    """
    try:
        files = _files(place.path)
        if not files:
            return False
        return _image_column(_open(files[0])) != ""
    except MissingExtraError:  # accept the place, unless other folders may have the pictures
        known = {file.parent for file in files}
        return is_file(place.path) or set(folders_in(place.path)) <= known
    except (DataError, ValueError):
        return False


def read(place: Place, source: str, settings: DataSettings) -> Data:
    """Read the pictures and labels in Parquet files, one or several per split.

    Raises:
        DataError: a file is damaged or has no labels, or it is unclear which column has them.
        MissingExtraError: pyarrow is not installed.
    """
    by_split: dict[str, list[Path]] = defaultdict(list)
    left_out: dict[str, list[str]] = defaultdict(list)
    notes = []
    files = _files(place.path)
    named = {path: ("", "train") if len(files) == 1 else _split_of(path) for path in files}
    plainer = plainer_names({name: split for name, split in named.values() if split})
    for path, (name, split) in named.items():
        if name in plainer:
            left_out[plainer[name]].append(path.relative_to(place.path).as_posix())
        elif split:
            by_split[split].append(path)
        else:
            notes.append(f"{printable(path.name)} was skipped: neither its name nor its folder's is a split")
    notes += [note_left_out(f"{len(paths):,} file(s)", paths[0], name) for name, paths in left_out.items()]
    if not is_file(place.path):
        check_parts(path for paths in by_split.values() for path in paths)
    found: dict[str, tuple[list[bytes], list[str], list[str]]] = {}
    titles: list[str] | None = None
    column, kinds = "", set[bool]()
    for split, paths in by_split.items():
        contents: list[bytes] = []
        labels: list[str] = []
        names: list[str] = []
        for path in paths:
            file = _open(path)
            image = _image_column(file)
            column = _label_column(file, image, path, settings)
            titles = titles or _titles(file, column)
            kinds.add(_holds_lists(file.schema_arrow.field(column).type))
            _read_file(path, (image, column), (contents, labels, names), split)
        kept = [i for i, label in enumerate(labels) if label not in EMPTY and label != "-1"]
        if len(kept) < len(labels):
            notes.append(f"{split}: skipped {len(labels) - len(kept):,} row(s) without a label (empty or -1)")
        if kept:
            found[split] = ([contents[i] for i in kept], [labels[i] for i in kept], [names[i] for i in kept])
    if "train" not in found:
        raise DataError(f"{source}: none of its Parquet files has labelled training pictures")
    if len(kinds) > 1:
        raise DataError(
            f"{source}: the column {printable(column)!r} holds lists of labels in some files and single "
            "labels in others"
        )
    several = kinds == {True} and settings.multilabel is not False
    data = _data(source, column, titles, found, notes, several)
    if titles is not None or settings.label_column or several:
        return data
    return _named(data, column, [path for paths in by_split.values() for path in paths])


def _named(data: Data, column: str, files: Sequence[Path]) -> Data:
    """The data, with names for classes that are numbers if another column has a word for each of them."""
    order = data.class_names
    if not are_whole_numbers(order):
        return data
    names = [set(_open(path).schema_arrow.names) for path in files]
    for other in label_candidates(set.intersection(*names) - {column}):
        if any(_is_nested(_open(path).schema_arrow.field(other).type) for path in files):
            continue
        pairs = {
            (_text(label), nfc(_text(word)))
            for path in files
            for labels, words in _batches(path, 1 << 14, (column, other))
            for label, word in zip(labels, words, strict=True)
        }
        known = class_names(label for label, _ in pairs if label not in EMPTY)
        named = named_numbers(
            {(known[label], word) for label, word in pairs if known.get(label) in order}, order
        )
        if named:
            return replace(data, class_names=named, notes=(*data.notes, note_on_titles(other, column)))
    return data


def _data(
    source: str,
    column: str,
    titles: list[str] | None,
    found: dict[str, tuple[list[bytes], list[str], list[str]]],
    notes: list[str],
    several: bool,
) -> Data:
    rows = {
        split: [list(map(str, json.loads(label))) if several else [label] for label in labels]
        for split, (_, labels, _) in found.items()
    }
    used = {split: {label for row in part for label in row} for split, part in rows.items()}
    if titles is not None:
        known = {str(number): title for number, title in enumerate(titles)}
    else:
        respelt, more = one_spelling(
            {split: [label for row in part for label in row] for split, part in rows.items()}
        )
        notes += more
        rows = {
            split: [[respelt.get(label, label) for label in row] for row in part]
            for split, part in rows.items()
        }
        used = {split: {respelt.get(label, label) for label in part} for split, part in used.items()}
        known = class_names(set().union(*used.values()))
    odd = sorted(set().union(*used.values()) - set(known))
    if odd:
        raise DataError(
            f"{source}: the label {printable(odd[0])} is not among the {len(known)} classes with names"
        )
    check_in_train(used, known, source)
    order, at = in_class_order(known)
    splits: dict[str, Split] = {}
    for split, (contents, _, names) in found.items():
        numbers = [[at[label] for label in row] for row in rows[split]]
        if several:
            plain = BytesSplit(contents, np.zeros(len(numbers), dtype=np.int64), names)
            splits[split] = MultiLabelSplit(plain, as_matrix(numbers, len(order)))
        else:
            splits[split] = BytesSplit(contents, np.array(numbers, dtype=np.int64).reshape(-1), names)
    layout = f"Parquet files with pictures, {'labels' if several else 'classes'} in {printable(column)!r}"
    return Data(source, layout, tuple(order), splits, tuple(notes))


def _read_file(
    path: Path,
    columns: tuple[str, str],
    into: tuple[list[bytes], list[str], list[str]],
    split: str,
) -> None:
    contents, labels, names = into
    for cells, values in _batches(path, 512, columns):
        for cell, value in zip(cells, values, strict=True):
            content = cell.get("bytes") if isinstance(cell, dict) else cell
            if not content:
                raise DataError(f"{printable(str(path))}: row {len(names)} of {split} has no picture")
            contents.append(content)
            labels.append(_text(value))
            names.append(f"{split}[{len(names)}]")


def _files(path: Path) -> list[Path]:
    """The Parquet files at ``path``: the file, those in the folder, or else in its ``data`` or its splits."""
    if is_file(path):
        return [path] if path.suffix.lower() == ".parquet" else []
    splits = [folder for folder in folders_in(path) if split_name(folder.name)]
    for folders in ([path], [path / "data"], splits):
        found = [file for folder in folders for file in inside(folder) if file.suffix == ".parquet"]
        if found:
            return found
    return []


def _split_of(path: Path) -> tuple[str, str]:
    """The name that tells a file's split, its own or its folder's, and the split; empty if none does."""
    match = _SHARD.fullmatch(path.stem)
    name = match["split"] if match else path.stem
    folder = split_name(path.parent.name)
    if split := split_of_name(name):
        return name, split
    return (path.parent.name, folder.split) if folder else ("", "")


def _image_column(file: Any) -> str:
    """The column of pictures, empty if there is none.

    It is a struct with bytes, as on the Hub, or a binary column with a common name for pictures.
    """
    fields = list(file.schema_arrow)
    for field in fields:
        if _HOLDS_FILES.match(str(field.type)):
            return str(field.name)
    binary = [str(f.name) for f in fields if str(f.type) in ("binary", "large_binary")]
    return next((name for name in binary if name.lower() in ("image", "img", "bytes", "jpg", "png")), "")


def _label_column(file: Any, image: str, path: Path, settings: DataSettings) -> str:
    fields = [field for field in file.schema_arrow if field.name != image]
    names = [field.name for field in fields if not _is_nested(field.type) or _holds_lists(field.type)]
    if settings.label_column:
        if settings.label_column not in names:
            raise DataError(
                f"{printable(path.name)} has no column {settings.label_column!r}. "
                f"{nearest(settings.label_column, names)}"
            )
        return settings.label_column
    declared = [name for name in names if _titles(file, name) is not None]
    choices = declared or label_candidates(names) or (names if len(names) == 1 else [])
    if not choices:
        raise DataError(
            f"{printable(path.name)}: it is unclear which column has the labels. "
            f"Columns other than the pictures: {', '.join(map(printable, names)) or 'none'}. "
            "Name the right one: --label-column NAME"
        )
    return str((label_candidates(choices) or choices)[0])


def _titles(file: Any, column: str) -> list[str] | None:
    """The class names that the Hub keeps in the schema's metadata, or None."""
    try:
        info = json.loads((file.schema_arrow.metadata or {})[b"huggingface"])
        feature = info["info"]["features"][column]
        names = feature.get("feature", feature)["names"]
        if isinstance(names, dict):
            names = [names[key] for key in sorted(names, key=int)]
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None
