"""Read Parquet files: tables of paths, and columns that hold the pictures, as on the Hugging Face Hub."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from thumbnet.data.multilabel import MultiLabelSplit, as_matrix
from thumbnet.data.splits import BytesSplit, Data, Split
from thumbnet.errors import DataError, MissingExtraError, nearest, printable
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources.columns import class_names, label_candidates, split_of_name
from thumbnet.sources.place import Place
from thumbnet.sources.tables import Table

_LISTS = re.compile(r"(large_)?list<\w+: ((large_)?string|u?int\d+)( not null)?>")
_SHARD = re.compile(r"(?P<split>.+?)(-\d{5}-of-\d{5}.*)?", re.I)


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise MissingExtraError("Parquet files", "formats") from None
    return pyarrow.parquet


def read_rows(path: Path, limit: int | None = None) -> Table:
    """Read a Parquet file's columns of text, numbers and booleans, or their first ``limit`` rows, as text.

    Lists of text or whole numbers are read as JSON.

    Raises:
        DataError: the file cannot be read.
        MissingExtraError: pyarrow is not installed.
    """
    file = _open(path)
    names = [
        field.name for field in file.schema_arrow if not _is_nested(field.type) or _holds_lists(field.type)
    ]
    try:
        rows: list[list[str]] = []
        for batch in file.iter_batches(1 << 14, columns=names):
            columns = [batch.column(name).to_pylist() for name in names]
            rows += [[_text(cell) for cell in row] for row in zip(*columns, strict=True)]
            if limit is not None and len(rows) >= limit:
                break
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {printable(str(path))}: {error}") from None
    return Table(path, names, rows[:limit], list(range(1, len(rows) + 1))[:limit], True)


def _holds_lists(kind: Any) -> bool:
    """Whether a column of this type holds lists of text or whole numbers, which may be labels."""
    return _LISTS.match(str(kind)) is not None


def _text(cell: Any) -> str:
    if isinstance(cell, list):
        return json.dumps(cell)
    return "" if cell is None else str(cell)


def _is_nested(kind: Any) -> bool:
    return str(kind).startswith(
        ("struct", "list", "large_list", "fixed_size", "binary", "large_binary", "map")
    )


def _open(path: Path) -> Any:
    library = _pyarrow()
    try:
        return library.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {printable(str(path))}: {error}") from None


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
        return place.path.is_file() or not any(p.is_dir() and p.name != "data" for p in place.path.iterdir())
    except (DataError, OSError, ValueError):
        return False


def read(place: Place, source: str, settings: DataSettings) -> Data:
    """Read the pictures and labels in Parquet files, one or several per split.

    Raises:
        DataError: a file is damaged or has no labels, or it is unclear which column has them.
        MissingExtraError: pyarrow is not installed.
    """
    by_split: dict[str, list[Path]] = defaultdict(list)
    notes = []
    files = _files(place.path)
    for path in files:
        match = _SHARD.fullmatch(path.stem)
        split = split_of_name(match["split"] if match else path.stem) or split_of_name(path.parent.name)
        if len(files) == 1:
            split = "train"
        if split:
            by_split[split].append(path)
        else:
            notes.append(f"{printable(path.name)} was skipped: its name does not mention a split")
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
            _read_file(file, path, (image, column), (contents, labels, names), split)
        kept = [i for i, label in enumerate(labels) if label not in ("", "-1")]
        if len(kept) < len(labels):
            notes.append(f"{split}: skipped {len(labels) - len(kept):,} row(s) without a label")
        if kept:
            found[split] = ([contents[i] for i in kept], [labels[i] for i in kept], [names[i] for i in kept])
    if "train" not in found:
        raise DataError(f"{source}: none of its Parquet files has labelled training pictures")
    if len(kinds) > 1:
        raise DataError(
            f"{source}: the column {printable(column)!r} holds lists of labels in some files and single "
            "labels in others"
        )
    return _data(source, column, titles, found, notes, kinds == {True} and settings.multilabel is not False)


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
    used = {label for part in rows.values() for row in part for label in row}
    if titles is not None:
        known = {str(number): title for number, title in enumerate(titles)}
    else:
        known = class_names(used)
    odd = sorted(used - set(known))
    if odd:
        raise DataError(
            f"{source}: the label {printable(odd[0])} is not among the {len(known)} classes with names"
        )
    order = list(dict.fromkeys(known.values()))
    at = {label: order.index(name) for label, name in known.items()}
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
    file: Any,
    path: Path,
    columns: tuple[str, str],
    into: tuple[list[bytes], list[str], list[str]],
    split: str,
) -> None:
    contents, labels, names = into
    image, column = columns
    try:
        for batch in file.iter_batches(512, columns=list(columns)):
            cells, values = batch.column(image).to_pylist(), batch.column(column).to_pylist()
            for cell, value in zip(cells, values, strict=True):
                content = cell.get("bytes") if isinstance(cell, dict) else cell
                if not content:
                    raise DataError(f"{printable(str(path))}: row {len(names)} of {split} has no picture")
                contents.append(content)
                labels.append(_text(value))
                names.append(f"{split}[{len(names)}]")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {printable(str(path))}: {error}") from None


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix.lower() == ".parquet" else []
    here = sorted(path.glob("*.parquet"))
    return here or sorted((path / "data").glob("*.parquet"))


def _image_column(file: Any) -> str:
    """The column of pictures, empty if there is none.

    It is a struct with bytes, as on the Hub, or a binary column with a common name for pictures.
    """
    fields = list(file.schema_arrow)
    for field in fields:
        if str(field.type).startswith("struct<") and "bytes:" in str(field.type):
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
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names, key=int)]
    return [str(name) for name in names]
