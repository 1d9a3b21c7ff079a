"""Find the columns of a table that hold pictures and labels, and read the labels of its rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from thumbnet.errors import DataError, nearest, printable, some_of
from thumbnet.recipes.settings import DataSettings
from thumbnet.sources.column_names import label_candidates, path_candidates
from thumbnet.sources.index import is_picture_name
from thumbnet.sources.labels import NUMBER, are_quantities
from thumbnet.sources.split_columns import split_column_of
from thumbnet.sources.tables import EMPTY, Table

_ONES = frozenset(("1", "1.0", "true", "yes"))
_MINUS = frozenset(("-1", "-1.0"))  # no in CelebA; uncertain in CheXpert, where 0 is no
_ZEROS = frozenset(("0", "0.0", "false", "no")) | _MINUS
_YES = _ONES | {"x"}  # x only in columns with empty cells
_SAMPLE = 2000  # rows in which pictures' names are looked for
_MOST_UNNAMED = 4  # columns of a table without a header whose first column may name pictures
_MARK = re.compile(r"-?(0(\.\d{1,20})?|1(\.0{1,20})?)", re.ASCII)  # a number from 0 to 1, or -1
_MOST_LARGE = 0.1  # share of the columns of a table of labels that may hold numbers above 1
_MAY_BE_LIST = re.compile(r"[|;,\s\[]")  # several labels in one cell, as :mod:`label_lists` reads them


@dataclass(frozen=True)
class Columns:
    """The names of a table's columns, empty where there is no such column.

    Labels are either in the column ``label`` or in the columns ``one_hot``, one per class.
    """

    path: str
    label: str = ""
    split: str = ""
    one_hot: tuple[str, ...] = ()

    @property
    def labelled(self) -> bool:
        """Whether the table has labels."""
        return bool(self.label or self.one_hot)


def find_columns(table: Table, settings: DataSettings, labels: bool = True) -> Columns:
    """Find a manifest's columns: by the recipe's settings, then by name, then by content.

    Args:
        table: all of its rows decide which columns have labels and splits, because tables are often sorted by
            class or split. The first rows decide which column names the pictures.
        settings: ``path_column``, ``label_column``, ``group_by`` and ``multilabel`` are used.
        labels: whether to look for labels; otherwise only for pictures and splits.

    Raises:
        DataError: the table lacks a column that a setting names, or it is unclear which column has the
            pictures or the labels.
    """
    for key in ("path_column", "label_column") if labels else ("path_column",):
        chosen = getattr(settings, key)
        if chosen and chosen not in table.names:
            raise DataError(
                f"{printable(table.path.name)} has no column {chosen!r} (data.{key}). "
                f"{nearest(chosen, table.names)}"
            )
    path = settings.path_column or _path_column(table)
    if not path:
        raise DataError(
            f"{printable(table.path.name)}: no column appears to name pictures. "
            f"The columns are {_listing(table.names)}. "
            "Name the right one: --path-column NAME"
        )
    values = {name: set(table.column(name)) for name in table.names if name != path}
    varied = [name for name in values if len(values[name] - EMPTY) > 1]
    split = split_column_of(table, [name for name in values if name != settings.label_column], varied)
    if not labels:
        return Columns(path, "", split)
    if settings.label_column:
        return Columns(path, settings.label_column, split)
    rest = [name for name in values if name not in (split, settings.group_by)]
    by_name = [name for name in label_candidates(rest) if values[name] - EMPTY]
    several = [name for name in by_name if name in varied]
    if several:
        found = Columns(path, several[0], split)
        marks = marks_instead(table, found, settings) if settings.multilabel is True else ()
        return Columns(path, "", split, marks) if marks else found
    binary = tuple(name for name in rest if _is_binary(values[name]))
    by_content = [*by_name[:1], *(name for name in rest if _repeats(table, name, values[name] - EMPTY))]
    if len(binary) >= 2:
        found = Columns(path, "", split, binary)
        words = [name for name in by_content if name not in binary and _has_words(values[name])]
        if settings.multilabel is not True and (by_name or _may_be_classes(words, values, found, table)):
            raise DataError(
                f"{printable(table.path.name)}: which column has the labels: {_listing([*words, *binary])}? "
                "Name it: --label-column NAME. If the columns of yes and no are the labels: "
                "--set data.multilabel=true"
            )
        return found
    if len(by_content) > 1:  # quantities are no classes
        by_content = [name for name in by_content if not are_quantities(values[name] - EMPTY)] or by_content
    if len(by_content) > 1:
        raise DataError(
            f"{printable(table.path.name)}: which column has the labels: {_listing(by_content)}? "
            "Name it: --label-column NAME"
        )
    return Columns(path, by_content[0] if by_content else "", split)


def _listing(names: Sequence[str]) -> str:
    return some_of([printable(name) for name in names], 12)


def _path_column(table: Table) -> str:
    """The column that names pictures, by its first cells and its name; empty if there is none."""
    sample = {name: [row[at] for row in table.rows[:_SAMPLE]] for at, name in enumerate(table.names)}

    def pictures(name: str) -> int:
        return sum(is_picture_name(re.split(r"[/\\]", cell)[-1]) for cell in sample[name])

    by_content = {name: count for name in sample if (count := pictures(name))}
    likely = path_candidates(sample)
    most = [name for name in by_content if by_content[name] == max(by_content.values())]
    # If one column holds paths and another bare names, take the paths: several folders may share a name.
    different = {name: len(set(table.column(name))) for name in most} if len(most) > 1 else {}
    ranked = sorted(
        by_content, key=lambda name: (-by_content[name], name not in likely, -different.get(name, 0))
    )
    # Pictures from the web may be called as in their addresses, but a column of numbers is likelier.
    addresses = [name for name in sample if any("://" in cell for cell in sample[name])]
    files = [name for name in ranked if name not in addresses]
    distinct = [name for name in likely if len(set(sample[name])) > len(sample[name]) // 2]
    distinct = [name for name in distinct if name not in addresses]
    found = next(iter((*files, *distinct, *ranked, *likely)), "")
    return found or ("" if table.header else _different(sample))


def _different(sample: dict[str, list[str]]) -> str:
    """The first column whose cells all differ, which may name pictures in a small table without a header."""
    if len(sample) > _MOST_UNNAMED or not any(map(_has_words, sample.values())):
        return ""
    return next((name for name, cells in sample.items() if len(set(cells)) == len(cells) > 2), "")


def marks_pictures(table: Table) -> bool:
    """Whether a table of many columns names pictures, and marks their labels rather than lists their pixels.

    Pixels are larger than 1 in many columns.
    """
    rows = table.rows[:3]
    if not any(is_picture_name(re.split(r"[/\\]", cell)[-1]) for row in rows for cell in row):
        return False
    large = sum(
        any(NUMBER.fullmatch(cell) and not _MARK.fullmatch(cell) for cell in cells)
        for cells in zip(*rows, strict=True)
    )
    return large <= _MOST_LARGE * len(table.names)


def _is_binary(cells: Iterable[str]) -> bool:
    """Whether a column tells yes or no for each row: 0 and 1, True and False, x and nothing, ..."""
    values = set(cells)
    found = {value.casefold() for value in values - EMPTY}
    return bool(found) and found <= (_YES if values & EMPTY else _ONES) | _ZEROS


def _has_words(cells: Iterable[str]) -> bool:
    return any(not NUMBER.fullmatch(cell) and re.search(r"[^\W\d_]", cell) for cell in cells)


def _may_be_classes(
    words: Sequence[str], values: Mapping[str, set[str]], found: Columns, table: Table
) -> bool:
    """Whether a column of words may hold the classes, rather than the columns of yes and no.

    It has more different values than there are such columns, and these do not name one class per row.
    """
    most = max((len(values[name] - EMPTY) for name in words), default=0)
    return most > len(found.one_hot) and any(len(ones) != 1 for ones in ones_of(table, found))


def _repeats(table: Table, name: str, found: set[str]) -> bool:
    """Whether the cells of a column repeat as classes do; ``found`` are its different values."""
    if len(found) <= 2:
        return len(found) == 2
    return len(found) <= sum(cell not in EMPTY for cell in table.column(name)) // 2


def labels_of(table: Table, columns: Columns) -> list[str]:
    """Each row's class as text, or an empty string for a row without a label.

    A cell is one class, whatever is in it. :mod:`thumbnet.sources.label_lists` reads several labels.

    Raises:
        DataError: a row has ones in several columns.
    """
    if columns.label:
        return ["" if cell in EMPTY else cell for cell in table.column(columns.label)]
    labels = []
    for line, ones in zip(table.lines, ones_of(table, columns), strict=True):
        if len(ones) > 1:
            raise DataError(
                f"{printable(table.path.name)}, line {line}: {len(ones)} labels ({_listing(ones)}), but one "
                "class per picture was asked for (data.multilabel = false). If a single column has the "
                "labels, name it: --label-column NAME"
            )
        labels.append(ones[0] if ones else "")
    return labels


def ones_of(table: Table, columns: Columns) -> list[tuple[str, ...]]:
    """For each row, which of the columns ``one_hot`` have a one."""
    places = [(name, table.names.index(name)) for name in columns.one_hot]
    return [tuple(name for name, at in places if row[at].casefold() in _YES) for row in table.rows]


def marks_instead(table: Table, columns: Columns, settings: DataSettings) -> tuple[str, ...]:
    """The columns of yes and no that ``data.multilabel = true`` reads instead of a column called like labels.

    Empty if there are fewer than two, if the user named the column of labels, or if that column may itself
    hold several labels per picture: in a cell, or in rows that repeat a picture.
    """
    if settings.label_column or not label_candidates([columns.label]):
        return ()
    others = (columns.path, columns.split, settings.group_by)
    marks = tuple(name for name in table.names if name not in others and _is_binary(table.column(name)))
    paths, cells = table.column(columns.path), set(table.column(columns.label))
    may_be_several = len(set(paths)) < len(paths) or any(_MAY_BE_LIST.search(cell) for cell in cells)
    return () if may_be_several or len({*marks} - {columns.label}) < 2 else marks


def notes_on_unread_marks(tables: Sequence[tuple[Table, Columns]], settings: DataSettings) -> tuple[str, ...]:
    """Which columns of yes and no are not labels because another column is called like labels."""
    if settings.multilabel is True or settings.multilabel is False:
        return ()
    notes = []
    for table, columns in tables:
        marks = [name for name in marks_instead(table, columns, settings) if name != columns.label]
        if marks:
            notes.append(
                f"{printable(table.path.name)}: the classes are in {printable(columns.label)!r}. If the "
                f"columns of yes and no are labels ({_listing(marks)}): --set data.multilabel=true"
            )
    return tuple(notes)


def notes_on_marks(tables: Sequence[tuple[Table, Columns]]) -> tuple[str, ...]:
    """Which columns of yes and no have -1 or empty cells next to zeros, and which have no yes at all."""
    notes = []
    marked: dict[str, bool] = {}
    for table, columns in tables:
        empty, minus = [], []
        for name in columns.one_hot:
            cells = table.column(name)
            found = {cell.casefold() for cell in set(cells) - EMPTY}
            marked[name] = marked.get(name, False) or not found.isdisjoint(_YES)
            count = sum(cell in EMPTY for cell in cells)
            if count and not found.isdisjoint(_ZEROS):
                empty.append(f"{name} ({count:,})")
            if found & _MINUS and found & (_ZEROS - _MINUS):
                minus.append(f"{name} ({sum(cell in _MINUS for cell in cells):,})")
        if empty:
            notes.append(f"{printable(table.path.name)}: empty cells are read as no: {_listing(empty)}")
        if minus:
            notes.append(
                f"warning: {printable(table.path.name)}: -1 is read as no, like the 0 next to it: "
                f"{_listing(minus)}. If it means uncertain, write 1 or 0 into these cells, or remove the rows"
            )
    never = [name for name, found in marked.items() if not found]
    if never:
        notes.append(f"left out {len(never):,} column(s) in which no row has a 1: {_listing(never)}")
    return tuple(notes)
