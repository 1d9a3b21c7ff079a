"""Several labels per picture in arrays: rows of zeros and ones, or a list of labels for each picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from thumbnet.data.multilabel import MultiLabelSplit, as_matrix
from thumbnet.data.spelling import places_in
from thumbnet.data.splits import Data, Split
from thumbnet.errors import DataError, printable
from thumbnet.sources.arrays import Arrays, array_splits, as_array
from thumbnet.sources.labels import class_names as labels_by_name
from thumbnet.sources.labels import in_class_order, lacking_help


def label_matrices(
    labels: Mapping[str, Any],
    class_names: Sequence[str] | None,
    multilabel: bool | str,
    where: str,
) -> tuple[tuple[str, ...], dict[str, np.ndarray]] | None:
    """Read labels as several per picture; None if they are one class per picture.

    Args:
        labels: for each split, a matrix [N, labels] of 0 and 1, or for each picture a list of names or of
            positions in ``class_names``. One-hot rows, and lists of one label, are one class per picture
            unless ``multilabel`` is true.
        class_names: the names of all labels, if known.
        multilabel: see ``data.multilabel`` in :class:`~thumbnet.recipes.settings.DataSettings`.
        where: what error messages name.

    Returns:
        The names of the labels, and for each split a matrix, bool [N, labels].

    Raises:
        DataError: rows differ in length, or a label is not among the class names or does not occur in train.
    """
    if multilabel is False:
        return None
    matrices = {split: _matrix(part) for split, part in labels.items()}
    known = {split: matrix for split, matrix in matrices.items() if matrix is not None}
    if len(known) < len(labels):
        lists = {split: _lists(part) for split, part in labels.items()}
        rows = {split: part for split, part in lists.items() if part is not None}
        if len(rows) < len(labels) or not (multilabel is True or _any_several(rows)):
            return None
        names, known = _numbered(rows, class_names, where)
    else:
        if multilabel is not True and not _is_several(known):
            return None
        names = _column_names(known, class_names, where)
    _check_train(known, names, where)
    return names, known


def data_from_matrices(
    arrays: Arrays, source: str, layout: str, where: str, multilabel: bool | str
) -> Data | None:
    """Build a data set from arrays, as :func:`thumbnet.sources.arrays.data_from_arrays` does.

    Returns:
        None if the labels are one class per picture.

    Raises:
        DataError: see :func:`label_matrices`, or the pictures have no known form.
    """
    several = label_matrices(arrays.labels, arrays.class_names, multilabel, where)
    if several is None:
        return None
    names, matrices = several
    numbers = {split: np.zeros(len(matrix), dtype=np.int64) for split, matrix in matrices.items()}
    splits, notes = array_splits(arrays, numbers, where)
    made: dict[str, Split] = {
        split: MultiLabelSplit(pictures, matrices[split]) for split, pictures in splits.items()
    }
    return Data(source, f"{layout}, several labels per picture", names, made, tuple(notes))


def _matrix(labels: Any) -> np.ndarray | None:
    """A matrix of 0 and 1 with two or more columns, as booleans; None for anything else."""
    values = as_array(labels)
    if values.ndim != 2 or values.shape[1] < 2 or values.dtype.kind not in "biuf":
        return None
    return values == 1 if np.isin(values, (0, 1)).all() else None


def _is_several(matrices: Mapping[str, np.ndarray]) -> bool:
    """Whether a row has several ones, and the rows are not all the same."""
    several = any((matrix.sum(axis=1) > 1).any() for matrix in matrices.values())
    return several and any((matrix != matrix[:1]).any() for matrix in matrices.values())


def _lists(labels: Any) -> list[list[str | int]] | None:
    """The lists of labels of all pictures; None if the labels are something else."""
    if hasattr(labels, "tolist"):
        labels = labels.tolist()
    if not isinstance(labels, Sequence) or isinstance(labels, str) or not len(labels):
        return None
    rows: list[list[str | int]] = []
    for row in labels:
        found = row.tolist() if hasattr(row, "tolist") else row
        if not isinstance(found, list | tuple | set | frozenset):
            return None
        items = [item.item() if isinstance(item, np.generic) else item for item in found]
        items = [item.strip() if isinstance(item, str) else item for item in items]
        if not all(isinstance(item, str | int) and not isinstance(item, bool) for item in items):
            return None
        rows.append(items)
    return rows


def _any_several(rows: Mapping[str, list[list[str | int]]]) -> bool:
    return any(len(row) != 1 for part in rows.values() for row in part)


def _column_names(
    matrices: Mapping[str, np.ndarray], class_names: Sequence[str] | None, where: str
) -> tuple[str, ...]:
    widths = sorted({matrix.shape[1] for matrix in matrices.values()})
    names = [str(number) for number in range(widths[0])] if class_names is None else list(class_names)
    if widths != [len(names)]:
        raise DataError(
            f"{where}: the matrices of labels have {' and '.join(map(str, widths))} columns, expected one "
            f"per label: {len(names)}"
        )
    return tuple(map(str, names))


def _numbered(
    rows: Mapping[str, list[list[str | int]]], class_names: Sequence[str] | None, where: str
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    used = {str(label) for part in rows.values() for row in part for label in row}
    if class_names is None:
        order, position = in_class_order(labels_by_name(used))
        names = tuple(order)
    else:
        names = tuple(map(str, class_names))
        position = {str(number): number for number in range(len(names))}
        found = zip(used, places_in(map(str.strip, names), used), strict=True)
        position |= {label: place for label, place in found if place is not None}
    unknown = sorted(used - position.keys())
    if unknown:
        shown = ", ".join(map(printable, unknown[:10]))
        raise DataError(f"{where}: the labels {shown} are not among the {len(names)} classes")
    numbers = {
        split: [[position[str(label)] for label in row] for row in part] for split, part in rows.items()
    }
    return names, {split: as_matrix(part, len(names)) for split, part in numbers.items()}


def _check_train(matrices: Mapping[str, np.ndarray], names: Sequence[str], where: str) -> None:
    if "train" not in matrices:
        return
    trained = matrices["train"].any(axis=0)
    for split, matrix in matrices.items():
        stray = [names[i] for i in np.flatnonzero(matrix.any(axis=0) & ~trained).tolist()]
        if stray:
            shown = ", ".join(map(printable, stray[:10]))
            raise DataError(f"{where}: {split} has labels that train lacks: {shown}. {lacking_help(split)}")
