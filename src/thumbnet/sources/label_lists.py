"""Labels in tables that name pictures: one class per picture, or several labels.

Several labels are ``cat;dog`` or ``cat dog`` in a cell, a list in a cell (``["cat", "dog"]``), ones in
several columns of a row, or several rows that name the same picture with different labels. Label Studio
writes ``{"choices": ["cat", "dog"]}``, and ``cat`` if there is only one. NumPy and pandas write lists without
commas, ``['cat' 'dog']``, and databases ``{cat,dog}``.
"""

from __future__ import annotations

import ast
import json
import re
import string
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
_OTHER_MARKS = ("/", "+", "&")  # may separate labels too, but are as often in names; they are only noted
_BRACKETS = ("[]", "{}", "()")
_SURE = re.compile(r"[\[{(]\s*[\"']")  # how a list begins that cannot be the name of a class
_ITEM = re.compile(
    r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|-?(?:0|[1-9]\d{0,17})(?:\.0*)?)(\s*,\s*|\s+|$)""",
    re.DOTALL | re.ASCII,
)
_BARE = re.compile(r"""[^"'\\\[\]{}()]+""")  # an item of a list without quotes


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
            a list that cannot be read.
    """
    notes = notes_on_marks(tables)
    if multilabel is False:
        return replace(_one_class(tables), notes=notes)
    ones = [ones_of(table, columns) if columns.one_hot else [] for table, columns in tables]
    cells = [labels_of(table, columns) if columns.label else [] for table, columns in tables]
    found = {cell for column in cells for cell in column} - {""}
    lists = _lists_in(found)
    # Next to a list that is surely one, a plain cell is a single label, as Label Studio writes it.
    are_lists = any(map(_is_surely_list, found)) or (bool(found) and len(lists) == len(found))
    odd = {cell for cell in found - lists.keys() if _brackets(cell) in _BRACKETS[:2] or _is_surely_list(cell)}
    if are_lists and odd:
        raise DataError(_told_odd_list(tables, cells, odd))
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
        notes = notes if separator else (*notes, *_notes_on_words(found))

    def labels_in(cell: str) -> tuple[str, ...]:
        if are_lists and cell in lists:
            return tuple(lists[cell])
        return tuple(dict.fromkeys(_parts(cell, separator)))

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
    other = "" if separator else next((one for one in _OTHER_MARKS if _separates(one, labels, sure=True)), "")
    if not separator and not other:
        return ()
    example = min(label for label in labels if (separator or other) in label)
    way = "--set data.multilabel=true" if separator else f"write ; in place of {other}"
    return (f"labels such as {printable(example)!r} are one class each. If they are several labels: {way}",)


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
    parts_of = {label: set(_parts(label, separator)) for label in labels}
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


def _parts(cell: str, separator: str) -> list[str]:
    """The labels that a separator, if any, separates. Between spaces, punctuation such as & is no label."""
    parts = [part.strip() for part in (cell.split(separator) if separator else [cell])]
    return [part for part in parts if part.strip(string.punctuation if separator == " " else " ")]


def _told_odd_list(tables: Sequence[tuple[Table, Columns]], cells: list[list[str]], odd: set[str]) -> str:
    """The message about the first cell that is one of the ``odd`` lists."""
    name, line, cell = next(
        (printable(table.path.name), line, cell)
        for (table, _), column in zip(tables, cells, strict=True)
        for line, cell in zip(table.lines, column, strict=False)  # a table may have no column of labels
        if cell in odd
    )
    return (
        f"{name}, line {line}: {printable(cell[:60])} is neither a label nor a list that can be read. Write "
        'the labels into the cell as JSON does: ["cat", "dog"]. The only objects that are read are those of '
        'Label Studio: {"choices": ["cat", "dog"]}. To read each cell as one class, whatever is in it: '
        "--set data.multilabel=false"
    )


def _lists_in(cells: set[str]) -> dict[str, list[str]]:
    """The labels in the cells that hold a list."""
    lists = {cell: several for cell in cells if (several := _list_in(cell)) is not None}
    # [cat] and {cat} may be names of classes. They are lists if all others are, and one has several items.
    bare = {cell: several for cell in cells - lists.keys() if (several := _bare_list_in(cell)) is not None}
    are_lists = len(lists) + len(bare) == len(cells) and any(len(several) > 1 for several in bare.values())
    return lists | bare if are_lists else lists


def _brackets(cell: str) -> str:
    """The first and last character of a cell that is short enough to be read as a list."""
    text = cell.strip()
    return text[:1] + text[-1:] if len(text) <= LONGEST_LIST else ""


def _is_surely_list(cell: str) -> bool:
    text = cell.strip()
    return text[:1] + text[-1:] in _BRACKETS and _SURE.match(text) is not None


def _list_in(cell: str) -> list[str] | None:
    """The labels in a cell with a list of JSON, Python, NumPy or Label Studio; None if it holds no list.

    Python joins neighbouring strings, so its own parser would read NumPy's ``['cat' 'dog']`` as ``catdog``.
    """
    if _brackets(cell) not in _BRACKETS:
        return None
    text = cell.strip()
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return _literals(text)
    if isinstance(values, dict) and list(values) == ["choices"]:
        values = values["choices"]
    if values == {}:
        return []
    if not isinstance(values, list) or not all(isinstance(one, str | int) for one in values):
        return _literals(text)
    return list(dict.fromkeys(label for one in values if (label := str(one).strip())))


def _literals(text: str) -> list[str] | None:
    """The items in brackets if all are quoted or whole numbers, with commas between all of them or none.

    Numbers in round brackets are rather an interval or a version.
    """
    inner, at = text[1:-1].strip(), 0
    items: list[str] = []
    commas: list[bool] = []
    while at < len(inner):
        found = _ITEM.match(inner, at)
        if found is None:
            return None
        items.append(found[1])
        commas.append("," in found[2])
        at = found.end()
    if len(set(commas[:-1])) > 1 or (text.startswith("(") and not all(item[0] in "'\"" for item in items)):
        return None
    try:
        values = [
            ast.literal_eval(one) if one[0] in "'\"" else str(int(one.partition(".")[0])) for one in items
        ]
    except (ValueError, SyntaxError):
        return None
    return list(dict.fromkeys(label for one in values if (label := one.strip())))


def _bare_list_in(cell: str) -> list[str] | None:
    """The labels in a cell such as ``{cat,golden retriever}``, as PostgreSQL writes it; None for others."""
    if _brackets(cell) not in _BRACKETS[:2]:
        return None
    parts = [part.strip() for part in cell.strip()[1:-1].split(",")]
    plain = [part[1:-1] if re.fullmatch(r'"[^"\\]+"', part) else part for part in parts]
    return list(dict.fromkeys(plain)) if all(map(_BARE.fullmatch, plain)) else None


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
