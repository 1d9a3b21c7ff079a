"""Labels in tables that name pictures: one class per picture, or several labels.

Several labels are ``cat;dog`` or ``cat dog`` in a cell, a list in a cell (``["cat", "dog"]``), ones in
several columns of a row, or several rows that name the same picture with different labels. Label Studio
writes ``{"choices": ["cat", "dog"]}``, and ``cat`` if there is only one.
"""

from __future__ import annotations

import ast
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from thumbnet.errors import DataError, printable
from thumbnet.sources.columns import Columns, labels_of, notes_on_marks, ones_of
from thumbnet.sources.tables import Table

SEPARATORS = ("|", ";", ",", " ")
_MARKS = ("|", ";")  # of them, those that hardly any name contains
MANY_REPEATED = 0.1  # if more pictures have rows with different labels, these are no slips
LONGEST_LIST = 10_000  # characters
_OBJECT = '{"'  # how an object in JSON begins


@dataclass(frozen=True)
class RowLabels:
    """The labels of tables.

    Attributes:
        rows: for each table, the labels of each row; of at most one label if pictures have one class.
        several: whether the pictures have several labels each.
        how: how they are written, in words; empty for one class.
        notes: what the user should know.
    """

    rows: list[list[tuple[str, ...]]]
    several: bool
    how: str = ""
    notes: tuple[str, ...] = ()


def read_labels(tables: Sequence[tuple[Table, Columns]], multilabel: bool | str) -> RowLabels:
    """Read the labels of all rows.

    Args:
        tables: the tables of a data set, which are read in the same way, and what their columns mean.
        multilabel: see ``data.multilabel`` in :class:`~thumbnet.recipes.settings.DataSettings`.

    Raises:
        DataError: a row has ones in several columns, and one class per picture was asked for; or a cell holds
            an object that is not Label Studio's.
    """
    notes = notes_on_marks(tables)
    if multilabel is False:
        return replace(_one_class(tables), notes=notes)
    ones = [ones_of(table, columns) if columns.one_hot else [] for table, columns in tables]
    cells = [labels_of(table, columns) if columns.label else [] for table, columns in tables]
    found = {cell for column in cells for cell in column} - {""}
    lists = {cell: several for cell in found if (several := _list_in(cell)) is not None}
    objects = {cell for cell in found if cell.startswith(_OBJECT)}
    odd = objects - lists.keys()
    if odd:
        raise DataError(_told_object(tables, cells, odd))
    are_lists = bool(objects) or (bool(found) and len(lists) == len(found))
    # A table in which "auto" sees several labels is read in the same way by "true", which its run records.
    separator = "" if are_lists else separator_in(found)
    how = _how(are_lists, separator, any(len(row) > 1 for rows in ones for row in rows))
    if not how and _repeated(tables, cells):
        how = "in several rows"
    if not how and multilabel is not True:
        return replace(_one_class(tables), notes=(*notes, *_notes_on_words(found)))
    if not how:
        separator = separator_in(found, sure=True)
        how = _how(False, separator, False) or "one in each row"

    def labels_in(cell: str) -> tuple[str, ...]:
        if are_lists and cell in lists:
            return tuple(lists[cell])
        parts = cell.split(separator) if separator else [cell]
        return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))

    rows = [
        of_columns if columns.one_hot else [labels_in(cell) for cell in column]
        for (_, columns), of_columns, column in zip(tables, ones, cells, strict=True)
    ]
    return RowLabels(rows, True, how, notes)


def _one_class(tables: Sequence[tuple[Table, Columns]]) -> RowLabels:
    rows: list[list[tuple[str, ...]]] = [
        [(label,) if label else () for label in labels_of(table, columns)] for table, columns in tables
    ]
    return RowLabels(rows, False)


def _how(are_lists: bool, separator: str, several_ones: bool) -> str:
    if are_lists:
        return "as lists"
    if separator:
        return "separated by " + ("spaces" if separator == " " else repr(separator))
    return "ones in several columns" if several_ones else ""


def _notes_on_words(labels: set[str]) -> tuple[str, ...]:
    """A note if the parts of classes such as ``fresh apple`` and ``cat;outdoor`` could also be labels."""
    separator = next((mark for mark in _MARKS if any(mark in label for label in labels)), "")
    separator = separator or next((one for one in ", " if _separates(one, labels, sure=True)), "")
    if not separator:
        return ()
    example = min(label for label in labels if separator in label)
    return (
        f"labels such as {printable(example)!r} are one class each. If they are several labels: "
        "--set data.multilabel=true",
    )


def separator_in(labels: set[str], sure: bool = False) -> str:
    """The character that separates several labels in one cell; empty if each cell seems to be one label.

    The parts of a cell must also occur alone, or in other cells. With ``|`` and ``;``, which hardly any name
    contains, most parts have to, because a label may be rare. Two words are a name unless there are several
    such cells, because ``Canis lupus`` is one class next to ``Canis aureus``. Words that each keep to one
    place are the parts of names such as ``fresh apple`` and ``rotten apple``.

    Args:
        labels: the different cells.
        sure: whether there are several labels: ``|``, ``;`` and ``,`` then separate them wherever they occur,
            and words of names are separated, too.
    """
    for separator in SEPARATORS:
        occurs = sure and separator != " " and any(separator in label for label in labels)
        if occurs or _separates(separator, labels, sure):
            return separator
    return ""


def _separates(separator: str, labels: set[str], sure: bool) -> bool:
    """Whether the parts of the cells with this separator occur elsewhere, see :func:`separator_in`."""
    parts_of = {label: {part.strip() for part in label.split(separator)} - {""} for label in labels}
    compound = {label: parts for label, parts in parts_of.items() if len(parts) > 1}
    whole = [label for label, parts in compound.items() if parts <= labels]
    counts = Counter(part for parts in compound.values() for part in parts)
    known = sum(n > 1 or part in labels for part, n in counts.items())
    enough = 2 * known > len(counts) if separator in _MARKS else known == len(counts)
    names = not sure and separator in ", " and _keep_places(labels, separator)
    return ((len(compound) > 2 and enough) or len(whole) > (separator == " ")) and not names


def _keep_places(labels: set[str], separator: str) -> bool:
    """Whether all labels have the same number of parts, each of which is always in the same place."""
    split = [[part.strip() for part in label.split(separator)] for label in labels]
    places = {(part, place) for parts in split for place, part in enumerate(parts)}
    return len({len(parts) for parts in split}) == 1 and len({part for part, _ in places}) == len(places)


def _told_object(tables: Sequence[tuple[Table, Columns]], cells: list[list[str]], odd: set[str]) -> str:
    """The message about the first cell that is one of the ``odd`` objects."""
    name, line, cell = next(
        (printable(table.path.name), line, cell)
        for (table, _), column in zip(tables, cells, strict=True)
        for line, cell in zip(table.lines, column, strict=False)  # a table may have no column of labels
        if cell in odd
    )
    return (
        f"{name}, line {line}: {printable(cell[:60])} is not a label. The only objects that are read are "
        'those of Label Studio, {"choices": ["cat", "dog"]}. Write the labels into the cell: ["cat", "dog"]. '
        "To read each cell as one class, whatever is in it: --set data.multilabel=false"
    )


def _list_in(cell: str) -> list[str] | None:
    """The labels in a cell with a list as JSON, Python or Label Studio writes it; None if it holds none."""
    text = cell.strip()
    if not (text[:1] + text[-1:] in ("[]", "{}") and len(text) <= LONGEST_LIST):
        return None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        try:
            values = ast.literal_eval(text)  # reads constants only, and runs nothing
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
    if isinstance(values, dict) and list(values) == ["choices"]:
        values = values["choices"]
    if not isinstance(values, list) or not all(isinstance(one, str | int) for one in values):
        return None
    try:
        return list(dict.fromkeys(label for one in values if (label := str(one).strip())))
    except ValueError:  # an integer of more digits than Python converts, which may be written in hexadecimal
        return None


def _repeated(tables: Sequence[tuple[Table, Columns]], cells: list[list[str]]) -> bool:
    """Whether so many pictures have rows with different labels that they have several labels."""
    labels: dict[tuple[int, str], set[str]] = defaultdict(set)
    for number, ((table, columns), column) in enumerate(zip(tables, cells, strict=True)):
        if column:
            for path, label in zip(table.column(columns.path), column, strict=True):
                if path and label:
                    labels[number, path].add(label)
    several = sum(len(found) > 1 for found in labels.values())
    return several > MANY_REPEATED * len(labels)


def check_several(source: str, layout: str, several: bool, multilabel: bool | str) -> None:
    """Refuse data with one class per picture if several labels were asked for.

    Raises:
        DataError: that is so.
    """
    if multilabel is True and not several:
        raise DataError(
            f"{printable(source)}: data.multilabel = true, but these data have one class per picture "
            f"({printable(layout)}). Several labels come from a table that names pictures, or from a matrix "
            "of labels in NumPy files or Python"
        )
