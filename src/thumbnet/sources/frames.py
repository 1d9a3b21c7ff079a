"""Read pandas frames with a column of paths and a column of labels, and possibly one of splits."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from thumbnet.errors import DataError, printable
from thumbnet.sources.column_names import label_candidates
from thumbnet.sources.columns import Columns
from thumbnet.sources.index import is_picture_name
from thumbnet.sources.label_lists import read_labels
from thumbnet.sources.split_columns import row_splits, split_column, split_values
from thumbnet.sources.tables import EMPTY, Table, repeated_names


def is_frame(given: Any) -> bool:
    """Whether an object is a pandas frame, as far as its attributes tell."""
    return hasattr(given, "columns") and hasattr(given, "iloc")


def split_frame(frame: Any, where: str, notes: list[str]) -> dict[str, Any]:
    """The rows of each split, if a column says which rows are in train; otherwise all rows as ``train``.

    Raises:
        DataError: two columns have the same name.
    """
    columns = _texts(frame, where)
    name = split_column(columns)
    if not name:
        return {"train": frame}
    splits, said = row_splits(name, columns[name], where)
    notes += said
    if splits is None:
        return {"train": frame}
    known = [split for split in dict.fromkeys(splits) if split]
    others = frame[[column for column in frame.columns if str(column) != name]]
    return {split: others[[one == split for one in splits]] for split in known}


def read_frame(frame: Any, where: str, notes: list[str]) -> tuple[list[str], list[Any]]:
    """The paths and labels in a frame. The label is an empty text where the frame has none.

    Paths are recognised by their content. Labels are in the column with a common name for them, or in the
    only other column that has no splits, even if its name is a usual one for splits.

    Raises:
        DataError: the frame has no rows, two columns have the same name, or it is unclear which columns have
            the paths and labels.
    """
    if not len(frame):
        raise DataError(f"{where}: the frame has no rows")
    texts = _texts(frame, where)
    columns = {str(column): frame[column].tolist() for column in frame.columns}
    paths = [name for name, values in columns.items() if all(map(_is_path, values))]
    told = split_column({name: cells for name, cells in texts.items() if name not in paths})
    rest = [name for name in columns if name not in (*paths, told)]
    tells_none = bool(told) and not split_values(told, texts[told])
    if tells_none and not rest:
        rest = [told]  # such as the phases of an operation
    labels = label_candidates(rest)[:1] or rest
    if len(paths) != 1 or len(labels) != 1:
        what = "paths of pictures" if len(paths) != 1 else "labels"
        raise DataError(
            f"{where}: it is unclear which column has the {what}; the columns are "
            f"{', '.join(map(printable, columns))}. Pass the two columns as lists: "
            "(frame['path'].tolist(), frame['label'].tolist()). If each label has a column of 0 and 1: "
            "(frame['path'].tolist(), frame[['cat', 'dog']].to_numpy())"
        )
    if tells_none and labels[0] != told and not label_candidates(labels):
        notes.append(f"{where}: labels are read from {printable(labels[0])!r}, not from {printable(told)!r}")
    given = zip(columns[labels[0]], texts[labels[0]], strict=True)
    return list(map(str, columns[paths[0]])), ["" if text in EMPTY else label for label, text in given]


def several_in_cells(
    labels: Mapping[str, Sequence[Any]], multilabel: bool | str, where: str, notes: list[str]
) -> dict[str, list[list[str]]] | None:
    """Read several labels in each cell, such as ``cat;outdoor``, as in tables; None if each is one class.

    Args:
        labels: the cells of each split.
        multilabel: see ``data.multilabel`` in :class:`~thumbnet.recipes.settings.DataSettings`.
        where: what notes name.
        notes: gets how the labels are written.
    """
    if not all(isinstance(label, str) for part in labels.values() for label in part):
        return None
    columns = Columns("path", "label")  # no paths: rows that repeat a picture are not merged
    tables = [
        (Table(Path(split), ["path", "label"], [["", one] for one in part], [0] * len(part), True), columns)
        for split, part in labels.items()
    ]
    found = read_labels(tables, multilabel)
    notes += found.notes
    if not found.several:
        return None
    notes.append(
        f"{where}: several labels per picture ({printable(found.how)}). To read each cell as one class, set "
        "data.multilabel = false"
    )
    return {split: list(map(list, rows)) for split, rows in zip(labels, found.rows, strict=True)}


def _texts(frame: Any, where: str) -> dict[str, list[str]]:
    """The cells of each column as text, empty where pandas has no value.

    Raises:
        DataError: two columns have the same name.
    """
    twice = repeated_names(list(map(str, frame.columns)))
    if twice:
        raise DataError(f"{where}: two columns are called {printable(twice[0])!r}. Rename one")
    return {
        str(column): [
            "" if lacking else str(cell)
            for cell, lacking in zip(frame[column].tolist(), frame[column].isna().tolist(), strict=True)
        ]
        for column in frame.columns
    }


def _is_path(value: Any) -> bool:
    return isinstance(value, str | Path) and is_picture_name(os.path.basename(value))
